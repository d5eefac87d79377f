"""What stands before every request: who may ask, how much may be sent, headers, and a line in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch.core.text import escaped
from hpsearch.service.errors import problem
from hpsearch.service.guard import Guard

LARGEST = 1 << 20  # bytes of a request's body
MUCH = f"at most {LARGEST:,} bytes are taken"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
    "content-security-policy": POLICY,
}


class Gate:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, guard: Guard, log: Callable[[str], None]) -> None:
        self.app, self.guard, self.log = app, guard, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, received = time.monotonic(), 0, 0
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.guard.refusal(scope["method"], scope["path"], headers, cookies_of(headers.get("cookie", "")))
        declared = headers.get("content-length", "0")
        if refused is None and (not declared.isdigit() or int(declared) > LARGEST):
            refused = 413, MUCH

        async def heard() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST:
                raise HTTPException(413, MUCH)  # FastAPI lets these pass
            return message

        async def said(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.decode("latin-1").lower() for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            if refused is not None:
                wants_page = refused[0] == 401 and "text/html" in headers.get("accept", "")
                challenge = {"www-authenticate": "Bearer"} if refused[0] == 401 else {}
                answer = problem(303, refused[1], headers={"location": "/login"}) if wants_page else problem(*refused, headers=challenge)
                await answer(scope, receive, said)
            else:
                await self.app(scope, heard, said)
        finally:
            self.log(f"{scope['method']} {scope['path'][:200]!r} {status or 'broken off'} {1000 * (time.monotonic() - begun):.0f} ms")


def cookies_of(header: str) -> Mapping[str, str]:
    """Cookies by name; none where they cannot be read."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


def to_stderr(line: str) -> None:
    """Log a line, such as a request: what was asked and what came of it; never its query, headers or body."""
    sys.stderr.write(time.strftime("%Y-%m-%d %H:%M:%S ") + escaped(line) + "\n")


def silent(line: str) -> None:
    """Log nothing."""
    del line
