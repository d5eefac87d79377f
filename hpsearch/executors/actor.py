"""What runs in a Ray actor: a worker whose files travel with its messages, since its machine may share no disk with the orchestrator's."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpsearch import machine
from hpsearch.dbfile import alive
from hpsearch.errors import FixSetup
from hpsearch.executors.worker import BEAT, KernelRef, Notes, Sessions, ready
from hpsearch.keeping import state_path
from hpsearch.protocols import Message
from hpsearch.types import Job, Progress

SCRATCH = "hpsearch-worker-"  # folders of workers, in the system's temporary one: SCRATCH, process, something


# ---------------------------------------------------------------- what travels


@dataclass(frozen=True, slots=True)
class Letter:
    """What a worker says, with the files that belong to it: (trial, name, content)."""

    message: Message
    files: tuple[tuple[int, str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Here:
    """A worker has been placed."""

    where: str  # "NODE, process PID"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A worker lacks a file of the orchestrator's."""

    path: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A file, as references to its chunks; or why it could not be read."""

    chunks: tuple[Any, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A job, with the states that its trials go on from, by number."""

    job: Job
    states: Mapping[int, bytes]


# ---------------------------------------------------------------- the worker


class Luggage:
    """A worker's own folder, whose files travel with what is said of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[int, str] = {}  # of live trials, by number
        self.sent: dict[int, tuple[int, int]] = {}  # which version of a live trial's state was sent

    def unpack(self, parcel: Parcel) -> Job:
        """The job as this worker sees it: its files are here, whichever folder they have at home."""
        trials = []
        for trial in parcel.job.trials:
            path, state = state_path(self.folder, trial.name), parcel.states.get(trial.number)
            path.unlink(missing_ok=True)
            if state is not None:
                path.write_bytes(state)
            self.names[trial.number] = trial.name
            trials.append(replace(trial, folder=None, resume=None if state is None else str(path)))
        return replace(parcel.job, trials=tuple(trials))

    def pack(self, message: Message) -> Letter:
        """A message with what is new among the files of its trials. Those of a trial that is over are not kept here."""
        files = []
        for item in message.step:
            own = state_path(self.folder, self.names[item.trial])
            if isinstance(item, Progress):
                if (version := version_of(own)) is not None and version != self.sent.get(item.trial):
                    self.sent[item.trial] = version
                    files.append((item.trial, own.name, own.read_bytes()))
                continue
            for path in map(Path, filter(None, (item.checkpoint, item.state))):
                if path.parent == self.folder:
                    files.append((item.trial, path.name, path.read_bytes()))
                    path.unlink()
            own.unlink(missing_ok=True)
            del self.names[item.trial]
            self.sent.pop(item.trial, None)
        return Letter(message, tuple(files))


def version_of(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class Worker:
    """The actor: a thread trains; `serve` says what it has to say, while `order` takes what the orchestrator sends."""

    def __init__(self, ref: KernelRef, number: int) -> None:
        self.ref, self.number = ref, number
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Letter | Wanted | BaseException | None] = queue.SimpleQueue()
        self.early: list[Any] = []  # orders that came while a file was waited for

    def order(self, order: Any) -> None:
        """Take an order: a Parcel, a verdict, KEEP, or a file that was asked for."""
        self.inbox.put(order)

    def serve(self) -> Iterator[Letter | Wanted | Here]:
        """Everything that the worker says, until it takes no more jobs."""
        threading.Thread(target=self.work, name="trainer", daemon=True).start()
        yield Here(f"{socket.gethostname()}, process {os.getpid()}")
        while (said := self.outbox.get()) is not None:
            if isinstance(said, BaseException):
                raise said
            yield said

    def work(self) -> None:
        """Build the kernel, then run the jobs that come, until the process is worn out."""
        folder = scratch()
        try:
            self.train(Luggage(folder))
            self.outbox.put(None)
        except BaseException as error:
            self.outbox.put(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def train(self, luggage: Luggage) -> None:
        """`process.serve`, with queues for pipes and with luggage."""
        last = time.monotonic()

        def beat(why: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= BEAT:
                last = time.monotonic()
                self.outbox.put(Letter(Message(self.number, None, notice=why)))

        machine.listeners.append(beat)
        kernel, message = ready(self.at_home(luggage.folder), self.number)
        self.outbox.put(Letter(message))
        if kernel is None:
            return
        for order in self.early:
            self.inbox.put(order)
        sessions = Sessions(kernel, self.number, Notes(None, self.ref.objective))
        while sessions.live or not sessions.worn or not self.inbox.empty():
            while not self.inbox.empty() or not sessions.ready:
                order = self.inbox.get()
                sessions.obey(luggage.unpack(order) if isinstance(order, Parcel) else order)
            for message in sessions.advance():
                self.outbox.put(luggage.pack(message))
            beat()

    def at_home(self, folder: Path) -> KernelRef:
        """The kernel as it is built here: with a folder of this machine, and a way to have files of the orchestrator's."""
        here = {"folder": str(folder)} if self.ref.folder else {}
        return (
            replace(self.ref, config={**self.ref.config, **here, "fetch": self.fetch}) if isinstance(self.ref.config, Mapping) else self.ref
        )

    def fetch(self, path: str) -> Iterator[bytes]:
        """A file of the orchestrator's, in chunks; FixSetup when it cannot be read there."""
        import ray

        self.outbox.put(Wanted(path))
        while not isinstance(order := self.inbox.get(), Sent):
            self.early.append(order)
        if order.error:
            raise FixSetup(order.error)
        for chunk in order.chunks:
            machine.pulse()
            yield ray.get(chunk)


def scratch() -> Path:
    """A new folder for this worker's files; those of workers that were killed here go."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdigit() and not alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
