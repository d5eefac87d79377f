"""Who may ask for what: addresses, hosts and origins, the token, and which files a submitted study may name."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hpsearch.errors import FixInput
from hpsearch.finetune.names import file_and_part, is_file, is_own
from hpsearch.spec import EMBEDDED_DATA, StudySpec

COOKIE = "hpsearch_session"
LOCAL = ("127.0.0.1", "localhost", "::1")
SAFE = ("GET", "HEAD")
OURS = ("/api/", "/parts/", "/static/", "/compare/")  # nothing of another site leads there
WEAKEST = 16  # characters of a token
OPEN = ("/api/health", "/login", "/static/app.css")  # what is answered without a token


@dataclass(frozen=True, slots=True)
class Guard:
    """What is allowed."""

    hosts: frozenset[str]  # names that this server goes by, in a request's Host
    roots: tuple[Path, ...]  # folders that data and weights may lie in
    token: str = field(default="", repr=False)
    code: bool = False  # whether studies may name functions, which is to run what the submitter says

    # ------------------------------------------------------------ requests

    def refusal(self, method: str, path: str, headers: Mapping[str, str], cookies: Mapping[str, str]) -> tuple[int, str] | None:
        """Why a request is not answered, with its status; None where it is. Names of `headers` are in small letters."""
        name = host_name(headers.get("host", ""))
        if name not in self.hosts:
            return 421, f"this server does not go by the name {name[:80]!r}: open it by its own, or start it with --allow-host"
        foreign = headers.get("sec-fetch-site") not in (None, "same-origin", "none")
        if method not in SAFE:
            origin = headers.get("origin")
            foreign = foreign or (origin is not None and not same_origin(origin, headers.get("host", "")))
        elif not path.startswith(OURS):  # other sites may link to pages, not have things done here as a picture or a script
            foreign = False
        if foreign:
            return 403, "a page of another site may not ask for this"
        if self.token and path not in OPEN and not self.known(headers, cookies):
            return 401, "this server wants its token: Authorization: Bearer TOKEN, HPSEARCH_TOKEN for the command line, or the page /login"
        return None

    def known(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether a request brings the token, or a cookie that was given for it."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        bearer = scheme.lower() == "bearer" and self.right(given.strip())
        return bearer or hmac.compare_digest(cookies.get(COOKIE, "").encode(), self.cookie().encode())

    def right(self, given: str) -> bool:
        """Whether this is the token; takes as long for any."""
        return bool(self.token) and hmac.compare_digest(given.encode(), self.token.encode())

    def cookie(self) -> str:
        """What a browser keeps instead of the token."""
        return hmac.new(self.token.encode(), b"hpsearch session", hashlib.sha256).hexdigest()

    # ------------------------------------------------------------ studies

    def admit(self, spec: StudySpec, folder: Path) -> None:
        """Raise FixInput for a study that names files outside the roots, or functions where these are not allowed."""
        for model in spec.models:
            if is_own(model) and not self.code:
                raise FixInput(
                    f"model: {model} is code, which this server does not run for others; start it with --allow-code to change that"
                )
        if re.fullmatch(r"[\w.]+:\w+", spec.data) and not self.code:
            raise FixInput(
                f"data: {spec.data} is code, which this server does not run for others; start it with --allow-code to change that"
            )
        for key in ("artifacts", "ray_address"):
            if getattr(spec, key) is not None and not self.code:
                raise FixInput(
                    f"{key}: a study that is submitted may not send a server elsewhere; leave it out, or start it with --allow-code"
                )
        files = {"data_root": spec.data_root, "weights": file_and_part(spec.weights)[0] if is_file(spec.weights) else None}
        if spec.data != EMBEDDED_DATA and (not spec.data.isalnum() or os.path.lexists(folder / spec.data)):  # else a set of torchvision
            files["data"] = spec.data
        for key, given in files.items():
            if given is not None:
                self.check_path(key, given, folder)

    def check_path(self, key: str, given: str, folder: Path) -> None:
        """Raise FixInput for a path that leads out of the roots, by whatever links."""
        if "\0" in given or given.startswith("~"):
            raise FixInput(f"{key}: {given[:200]!r} cannot be used: write the path in full")
        real = Path(os.path.realpath(folder / given))
        if not any(real == root or root in real.parents for root in self.roots):
            listed = ", ".join(map(str, self.roots))
            raise FixInput(
                f"{key}: {given[:200]} is not in a folder that this server reads data from ({listed}); it is started with --data-root"
            )


def make_guard(host: str, token: str, allowed: Sequence[str], roots: Sequence[Path], code: bool, folder: Path) -> Guard:
    """What a server that listens on `host` allows. FixInput where others could reach it without a token."""
    if not loopback(host) and not token:
        raise FixInput(
            f"--host {host} can be reached by other machines: set HPSEARCH_TOKEN (or --token-file) to a secret of {WEAKEST} characters or "
            "more that they must bring, or stay with --host 127.0.0.1"
        )
    if token and len(token) < WEAKEST:
        raise FixInput(
            f"the token is too short to keep anybody out: take {WEAKEST} characters or more, such as `openssl rand -hex 24` gives"
        )
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise FixInput("the token must be of plain characters without spaces, since it travels in a header")
    names = {*LOCAL, *(host_name(name) for name in allowed)} | ({host.lower()} if host not in ("0.0.0.0", "::", "") else set())
    return Guard(frozenset(names), tuple(Path(os.path.realpath(folder / root)) for root in roots or [folder]), token, code)


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if port.isdigit() and name and ":" not in name else host


def same_origin(origin: str, host: str) -> bool:
    """Whether a page of that origin is one of this server's."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.strip().lower()
