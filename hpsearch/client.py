"""A client of `hpsearch serve`, with the verbs of the command line. It needs nothing but Python.

from hpsearch import Client

client = Client("http://127.0.0.1:8470")
client.run({"name": "first", "trials": 12})
client.wait("first")["best"]
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hpsearch import errors
from hpsearch.errors import FixInput, FixSetup, HpsearchError

ADDRESS = "http://127.0.0.1:8470"
TRIES = 5  # of what may be asked twice, while the server is away
AWAY = (ConnectionError, TimeoutError, http.client.HTTPException)
OVER = ("done", "failed", "cancelled", "paused")


class Client:
    """A server's studies. Errors are those of the command line: FixInput, NotFound, WaitOrStop ..."""

    def __init__(self, server: str = ADDRESS, token: str | None = None, timeout: float = 900.0) -> None:
        """`token`: the server's, else HPSEARCH_TOKEN; `timeout`: seconds without an answer."""
        if not server.startswith(("http://", "https://")):
            raise FixInput(f"--server {server} is no address: write it as {ADDRESS}")
        self.server, self.timeout = server.rstrip("/"), timeout
        self.token = os.environ.get("HPSEARCH_TOKEN", "") if token is None else token

    # ------------------------------------------------------------ studies

    def run(
        self,
        study: Mapping[str, Any] | str,
        *,
        compare: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
        share: str = "",
    ) -> dict[str, Any]:
        """Submit a study: the keys of a study file, or its text. Twice with one `key` is once, also when the connection breaks.

        `compare`: samplers to compare on it, such as {"samplers": ["random", "tpe"], "repeats": 5}.
        """
        body: dict[str, Any] = {"study": dict(study)} if isinstance(study, Mapping) else {"yaml": study}
        body |= {"priority": priority, "share": share} | ({"compare": dict(compare)} if compare is not None else {})
        headers = {"idempotency-key": key or secrets.token_hex(16)}
        found: dict[str, Any] = self.ask("POST", "/studies", body, headers, again=True)
        return found

    def list(self) -> list[dict[str, Any]]:
        """All studies, newest first."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.ask("GET", f"/studies?limit=1000&offset={len(rows)}")
            rows += page["studies"]
            if not page["studies"] or len(rows) >= page["total"]:
                return rows

    def show(self, study: str) -> dict[str, Any]:
        """One study."""
        found: dict[str, Any] = self.ask("GET", self.path(study))
        return found

    def has(self, study: str) -> bool:
        """Whether there is one of that name, or a comparison."""
        one = re.compile(rf"{re.escape(study)}(-[a-z]+-r\d+)?")
        return any(one.fullmatch(row["study"]) for row in self.list())

    def trials(self, study: str, **query: Any) -> dict[str, Any]:
        """A page of its trials: status, sort, order, offset, limit."""
        found: dict[str, Any] = self.ask("GET", f"{self.path(study)}/trials?{urlencode(query)}")
        return found

    def trial(self, study: str, number: int) -> dict[str, Any]:
        """One trial with its curve and its diagnosis."""
        found: dict[str, Any] = self.ask("GET", f"{self.path(study)}/trials/{number:d}")
        return found

    def wait(self, study: str, every: float = 1.0) -> dict[str, Any]:
        """The study once it has ended, or is paused."""
        while (row := self.show(study))["state"] not in (*OVER, "stored"):
            time.sleep(every)
        return row

    def events(self, study: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """What happens, from the beginning or from the event whose `id` is known, until the study ends; a broken connection is taken up."""
        lost = 0
        while True:
            try:
                with closing(self.open("GET", f"{self.path(study)}/events?after={after}")) as answer:
                    for event in parsed(answer):
                        after, lost = event.get("id", after), 0
                        yield event
                        if event["event"] == "state" and event["state"] in (*OVER, "stored"):
                            return
            except (FixSetup, *AWAY):
                lost += 1
                if lost > TRIES:
                    raise
                time.sleep(lost)

    # ------------------------------------------------------------ steering

    def cancel(self, study: str) -> None:
        """End a study for good."""
        self.ask("POST", f"{self.path(study)}/cancel")

    def pause(self, study: str) -> None:
        """Pause a study."""
        self.ask("POST", f"{self.path(study)}/pause")

    def resume(self, study: str) -> None:
        """Have a study go on."""
        self.ask("POST", f"{self.path(study)}/resume")

    def stop(self, study: str, trial: int) -> None:
        """Stop a running trial at the end of its epoch."""
        self.ask("POST", f"{self.path(study)}/trials/{trial:d}/stop")

    def extend(self, study: str, trials: int) -> dict[str, Any]:
        """Raise a study's number of trials, also while it runs."""
        found: dict[str, Any] = self.ask("PATCH", self.path(study), {"trials": trials})
        return found

    # ------------------------------------------------------------ what comes of it

    def compare(self, *studies: str, anyway: bool = False) -> dict[str, Any]:
        """Studies compared, or what one comparison of samplers came to."""
        query = urlencode([("study", name) for name in studies] + [("anyway", "true")] * anyway)
        found: dict[str, Any] = self.ask("GET", f"/compare?{query}")
        return found

    def report(self, study: str, path: Path | str) -> Path:
        """Download the report."""
        return self.download(f"{self.path(study)}/report", Path(path))

    def model(self, study: str, path: Path | str) -> Path:
        """Download the winner's weights (safetensors)."""
        return self.download(f"{self.path(study)}/model", Path(path))

    def export(self, study: str, path: Path | str) -> Path:
        """Download the winner as `hpsearch export` writes it, as a zip file."""
        return self.download(f"{self.path(study)}/export", Path(path))

    def health(self) -> dict[str, Any]:
        """Whether the server gets on."""
        found: dict[str, Any] = self.ask("GET", "/health")
        return found

    # ------------------------------------------------------------ HTTP

    def path(self, study: str) -> str:
        """Where a study is, below the API."""
        return f"/studies/{quote(study, safe='')}"

    def open(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send a request; the open answer. Raises what the command line would."""
        sent = {"accept": "*/*"} | dict(headers or {}) | ({"authorization": f"Bearer {self.token}"} if self.token else {})
        data = json.dumps(body).encode() if body is not None else b"" if method != "GET" else None
        sent |= {"content-type": "application/json"} if body is not None else {}
        request = urllib.request.Request(f"{self.server}/api{path}", data, sent, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise refusal(error.code, error.read(1 << 20)) from None
        except urllib.error.URLError as error:
            raise FixSetup(f"no server answers at {self.server} ({error.reason}): start it with `hpsearch serve`") from None

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, again: bool = False) -> Any:
        """What the server answers; `again`: may be asked twice."""
        for trial in range(TRIES):
            try:
                with closing(self.open(method, path, body, headers)) as answer:
                    return json.load(answer)
            except AWAY as error:
                if not (again or method == "GET") or trial == TRIES - 1:
                    raise FixSetup(f"{self.server} broke off the connection ({error}): try again") from None
                time.sleep(0.2 * 2**trial)
        raise AssertionError

    def download(self, path: str, target: Path) -> Path:
        """Write an answer to a file, whole or not at all."""
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with closing(self.open("GET", path)) as answer, aside.open("wb") as file:
                shutil.copyfileobj(answer, file)
            os.replace(aside, target)
        except OSError as error:
            raise FixSetup(f"{target} cannot be written: {error}") from None
        finally:
            aside.unlink(missing_ok=True)
        return target


def parsed(answer: Any) -> Iterator[dict[str, Any]]:
    """Server-sent events out of an open answer."""
    event: dict[str, Any] = {}
    for raw in answer:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        key, _, value = line.partition(": ")
        if not line and "data" in event:
            kind, data, place = event.get("event", "notice"), json.loads(event["data"]), event.get("id")
            yield {**data, "event": kind} | ({"id": int(place)} if place else {})
        event = event | {key: value} if line and key in ("id", "event", "data") else {} if not line else event


def refusal(status: int, body: bytes) -> HpsearchError:
    """The error that the server meant."""
    try:
        said = json.loads(body)
        detail, kind = str(said["detail"]), str(said["type"]).rpartition(":")[2]
    except (ValueError, KeyError, TypeError):
        return FixSetup(f"the server answered {status}: is this hpsearch?")
    name = "".join(part.capitalize() for part in kind.split("-"))
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, HpsearchError) and found is not errors.Interrupted:
        return found(detail)
    return FixInput(detail) if status < 500 else FixSetup(detail)
