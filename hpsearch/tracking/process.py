"""The mirror's process: MLflow costs 4 to 30 ms a call and seconds to import, and its server may be slow or dead."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from hpsearch.machine import ignore_signals
from hpsearch.tracking.backlog import Backlog
from hpsearch.tracking.channel import receive
from hpsearch.tracking.stores import create_store
from hpsearch.types import EpochDone, Event, StudyStarted, TrialEnded

if TYPE_CHECKING:
    from ctypes import c_longlong

    from hpsearch.tracking.mirror import Mirror

FLUSH_SECONDS = 2.0  # how old an epoch of a running trial may get before it is sent
RETRY_SECONDS = 30.0  # the longest wait between two tries
LAST_SECONDS = 20.0  # how long after the end of a study a new try may begin


def serve(
    events: Connection,
    answers: Connection,
    taken: c_longlong,
    beats: c_longlong,
    failures: c_longlong,
    uri: str,
    folder: str,
) -> None:
    """Mirror events until None comes, then answer with what is missing and why ("" when nothing is).

    `taken` counts the epochs and ends of trials that MLflow has, `beats` its answers, `failures` those in a row.
    """
    ignore_signals()
    silence()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it announces every table it makes
    follower = Follower(uri, Path(folder), taken, beats, failures)
    coming, first, silent = flowing(events), list[Event](), False

    def begun() -> bool:
        """Whether there is a study to mirror: of one whose data is refused nothing is heard, and no store is left behind."""
        nonlocal silent
        first.extend(itertools.islice((event for event in coming if event is not None), 1))
        silent = not first
        return not silent

    with suppress(Exception):  # told when it is tried again
        create_store(uri, begun)  # MLflow loads, and makes its store, while the study makes ready
    if silent:
        answers.send("")
        return
    for told in first:
        follower.hear(told)
    follower.follow(flush=True)
    for event in coming:
        if event is not None:
            follower.hear(event)
        follower.follow(flush=event is None)
    missing = follower.finish()
    with suppress(OSError):  # the orchestrator was killed meanwhile
        answers.send(missing)


def silence() -> None:
    """Keeps what MLflow and its libraries print off the terminal: what goes wrong is an answer of this process, and in `tracking.log`."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Follower:
    """Keeps MLflow up to date with what it hears; after a failure it writes the study anew, which changes nothing of what is there."""

    def __init__(self, uri: str, folder: Path, taken: c_longlong, beats: c_longlong, failures: c_longlong) -> None:
        self.uri, self.folder = uri, folder
        self.taken, self.beats, self.failures = taken, beats, failures
        self.backlogs = [Backlog()]  # of the mirror's study, and of those that began after it
        self.news: deque[Event] = deque()  # heard, and not yet given to the mirror
        self.mirror: Mirror | None = None  # None: all backlogs are to be written anew
        self.points = 0  # epochs and ends of trials that were heard
        self.due = 0.0  # when to try again
        self.problem, self.hopeless = "", False

    def beat(self) -> None:
        """MLflow has answered."""
        self.beats.value += 1

    def hear(self, event: Event) -> None:
        """Keep an event."""
        self.points += isinstance(event, (EpochDone, TrialEnded))
        if isinstance(event, StudyStarted):  # one process mirrors several studies, one after the other
            self.backlogs.append(Backlog())
        self.backlogs[-1].note(event)
        if self.mirror is not None:
            self.news.append(event)

    def follow(self, flush: bool) -> bool:
        """Bring MLflow up to date, unless it failed a short while ago; whether it is. `flush`: with epochs of running trials."""
        if time.monotonic() < self.due:
            return False
        anew = self.mirror is None
        try:
            mirror = self.write() if self.mirror is None else self.mirror
            while self.news:
                mirror = self.give(mirror, self.news.popleft())
            if flush or anew:
                mirror.flush()
        except Exception as error:
            self.fail(error, anew)
            return False
        self.mirror, self.failures.value, self.problem = mirror, 0, ""
        self.taken.value = self.points - mirror.waiting()
        return True

    def write(self) -> Mirror:
        """Write all that is kept anew; the mirror of the last study."""
        create_store(self.uri)
        from hpsearch.tracking.mirror import Mirror

        while True:
            mirror = Mirror(self.uri, self.beat, self.backlogs[0].times)
            self.beat()
            for event in self.backlogs[0].events():
                mirror.take(event)
            if len(self.backlogs) == 1:
                return mirror
            mirror.flush()
            self.backlogs.pop(0)

    def give(self, mirror: Mirror, event: Event) -> Mirror:
        """Give the mirror an event; the mirror of its study."""
        if isinstance(event, StudyStarted):
            mirror.flush()
            self.backlogs.pop(0)
            mirror = type(mirror)(self.uri, self.beat, self.backlogs[0].times)
        mirror.take(event)
        return mirror

    def fail(self, error: Exception, anew: bool) -> None:
        """Keep what went wrong, and wait a while before the next try: 1 s, 2 s, 4 s ... RETRY_SECONDS."""
        self.problem = masked(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", self.uri)
        with suppress(OSError):
            (self.folder / "tracking.log").write_text(masked(traceback.format_exc(), self.uri))
        self.hopeless = anew and not passing(error)
        self.failures.value += 1
        self.due = time.monotonic() + min(RETRY_SECONDS, 2.0 ** min(self.failures.value - 1, 10))
        if self.mirror is not None:
            with suppress(Exception):
                self.mirror.stop_watching()
        self.mirror = None
        self.news.clear()

    def finish(self) -> str:
        """Bring MLflow up to date for the last time; what went wrong, "" when nothing did.

        It is tried for LAST_SECONDS; once where MLflow refuses for good, or has never answered.
        """
        self.failures.value, self.due = 0, 0.0
        give_up = time.monotonic() + LAST_SECONDS
        while not self.follow(flush=True):
            if self.hopeless or not self.beats.value or self.due > give_up or not orchestrator_lives():
                return self.problem
            time.sleep(max(0.0, self.due - time.monotonic()))
        return ""


def passing(error: Exception) -> bool:
    """Whether the same request may succeed later: a server that is away or overloaded, a database that is locked.

    Not so for credentials that are refused, a store of another version, or a mistake of ours.
    """
    status = getattr(error, "get_http_status_code", None)
    if "database schema" in str(error):
        return False
    if status is not None:
        return status() >= 500 or status() in (408, 429)
    return isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "InterfaceError")


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


def flowing(events: Connection) -> Iterator[Event | None]:
    """Events as they come, with a None in between whenever FLUSH_SECONDS have passed; ends at the final None.

    It also ends when the orchestrator was killed, which closes the line.
    """
    due = time.monotonic() + FLUSH_SECONDS
    while True:
        try:
            event = receive(events, max(0.01, due - time.monotonic()))
        except queue.Empty:
            pass
        except EOFError:
            return
        else:
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
