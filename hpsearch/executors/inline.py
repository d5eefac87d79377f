"""One worker, in this process: for tests, debuggers and profilers."""

from __future__ import annotations

from hpsearch.executors.worker import KernelRef, Sessions, ready, sessions_of
from hpsearch.protocols import Message
from hpsearch.types import Job


class InlineExecutor:
    """Runs jobs inside `poll`, each one step per call."""

    workers = 1

    def __init__(self, ref: KernelRef) -> None:
        self.ref = ref
        self.sessions: Sessions | None = None
        self.slots = 0
        self.alone: int | None = None  # the last job that was to have the worker to itself
        self.pending: list[Message] = []

    def start(self) -> None:
        """Build the kernel."""
        kernel, message = ready(self.ref, 0)
        if kernel is not None and message.facts is not None:
            self.sessions, self.slots = sessions_of(self.ref, kernel, 0), message.facts.slots
        self.pending.append(message)

    def free(self, alone: bool = False) -> int:
        """How many jobs could start at once; `alone`: each with a worker to itself."""
        if self.sessions is None or self.taken:
            return 0
        return self.slots - len(self.sessions.live) if not alone else int(not self.sessions.live)

    @property
    def taken(self) -> bool:
        """Whether a job has the worker to itself."""
        return self.sessions is not None and self.alone in self.sessions.live

    def submit(self, job: Job) -> None:
        """Open the job's session; it advances in `poll`."""
        assert self.sessions is not None
        assert self.free(job.alone), "submit only to a free executor"
        self.alone = job.id if job.alone else self.alone
        self.sessions.begin(job)

    def poll(self, timeout: float) -> list[Message]:
        """What one turn of every session has come to; never waits."""
        del timeout
        messages, self.pending = self.pending, []
        return messages + (list(self.sessions.advance()) if self.sessions is not None else [])

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Let the job's session go on, in `poll`."""
        assert self.sessions is not None
        assert job in self.sessions.live, "answer a job that waits"
        self.sessions.answer(job, stop)

    def keep(self) -> None:
        """Trials that are stopped from now on are to go on later."""
        if self.sessions is not None:
            self.sessions.keep()

    def close(self) -> None:
        """Drop the sessions and the kernel."""
        for session in self.sessions.live.values() if self.sessions is not None else ():
            session.close()
        self.sessions = None
