"""The mirror's process: MLflow costs 4 to 30 ms a call and seconds to import, and its server may be slow or dead."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from hpsearch.machine import ignore_signals
from hpsearch.types import Event, StudyStarted

if TYPE_CHECKING:
    from ctypes import c_longlong

FLUSH_SECONDS = 2.0  # how old an epoch of a running trial may get before it is sent


def serve(
    events: multiprocessing.Queue[Event | None],
    answers: multiprocessing.Queue[str],
    taken: c_longlong,
    beats: c_longlong,
    uri: str,
    folder: str,
) -> None:
    """Mirror events until None comes, then answer with what went wrong ("" when nothing did).

    `taken` counts the epochs and ends of trials that MLflow has, `beats` its answers.
    """

    def beat() -> None:
        beats.value += 1

    ignore_signals()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it announces every table it makes
    problem = ""
    try:
        create_store(uri)
        from hpsearch.tracking.mirror import Mirror

        mirror, earlier = Mirror(uri, beat), 0
        beat()
        for event in flowing(events):
            if isinstance(event, StudyStarted):  # one process mirrors several studies, one after the other
                mirror.flush()
                earlier += mirror.points
                mirror = Mirror(uri, beat)
            mirror.flush() if event is None else mirror.take(event)
            taken.value = earlier + mirror.points - mirror.waiting()
        mirror.flush()
        taken.value = earlier + mirror.points
    except Exception as error:
        problem = masked(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", uri)
        with suppress(OSError):
            (Path(folder) / "tracking.log").write_text(masked(traceback.format_exc(), uri))
        for _ in flowing(events):  # keep the queue empty
            pass
    answers.put(problem)


def masked(text: str, uri: str) -> str:
    """`text` without the credentials that `uri` may hold."""
    try:
        parts = urlsplit(uri)
        secrets = [parts.netloc.rpartition("@")[0], parts.password or ""]
    except ValueError:  # not to be parsed, and so not to be shown either
        return text.replace(uri, "***")
    for secret in (*secrets, *map(unquote, secrets)):
        text = text.replace(secret, "***") if len(secret) > 2 else text  # a shorter one is in every word
    return text


def flowing(events: multiprocessing.Queue[Event | None]) -> Iterator[Event | None]:
    """Events as they come, with a None in between whenever FLUSH_SECONDS have passed; ends at the final None.

    It also ends when the orchestrator was killed: the queue stays open then, this process holding its other end too.
    """
    due = time.monotonic() + FLUSH_SECONDS
    while True:
        with suppress(queue.Empty):
            event = events.get(timeout=max(0.01, due - time.monotonic()))
            if event is None:
                return
            yield event
        if not orchestrator_lives():
            return
        if time.monotonic() >= due:
            yield None
            due = time.monotonic() + FLUSH_SECONDS


def orchestrator_lives() -> bool:
    """Whether the process that feeds this one is there."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def create_store(uri: str) -> None:
    """Make a new SQLite store aside and link it into place: a kill half-way would leave a file that never opens again."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.new-{os.getpid()}")
    from mlflow import MlflowClient

    try:
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # somebody else was first
            os.link(aside, path)
    finally:
        for leftover in path.parent.glob(f"{aside.name}*"):
            leftover.unlink()
