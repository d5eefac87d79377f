"""Errors as problem details (RFC 9457), from the same table as exit codes."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hpsearch.core.text import harmless
from hpsearch.errors import HpsearchError, http_status
from hpsearch.service.models import Problem

MEDIA = "application/problem+json"


def problem(status: int, detail: str, kind: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as a response."""
    title = HTTPStatus(status).phrase if status in {s.value for s in HTTPStatus} else "Client Closed Request"
    about = f"urn:hpsearch:problem:{kind}" if kind else "about:blank"
    said = Problem(type=about, title=title, status=status, detail=harmless(detail))
    return JSONResponse(said.model_dump(), status, headers, media_type=MEDIA)


def kind_of(error: HpsearchError) -> str:
    """A class of errors as part of a URN: FixInput is fix-input."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()


def install(app: FastAPI) -> None:
    """Have the application answer every error so."""

    @app.exception_handler(HpsearchError)
    async def known(_: Request, error: HpsearchError) -> JSONResponse:
        return problem(http_status(error), str(error), kind_of(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, "; ".join(map(sentence, error.errors()[:20])), "fix-input")

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fault(_: Request, __: Exception) -> JSONResponse:
        return problem(500, "something went wrong that nobody foresaw: the server's log says what", "fault")


def sentence(item: dict[str, Any]) -> str:
    """One finding of the validation, without what was given."""
    where = ".".join(str(part) for part in item["loc"] if part != "body")
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase, "content": {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status in (400, 401, 403, 404, 409, 413, 421, 422, 423, 503)
}
