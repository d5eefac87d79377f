"""One worker, in this process: for tests, debuggers and profilers."""

from __future__ import annotations

from collections.abc import Generator

from hpsearch.executors.worker import KernelRef, drive, ready, wants_answer
from hpsearch.types import Job, Kernel, Message


class InlineExecutor:
    """Runs jobs inside `poll`, one epoch per call."""

    workers = 1

    def __init__(self, ref: KernelRef) -> None:
        self.ref = ref
        self.kernel: Kernel | None = None
        self.pending: list[Message] = []
        self.job: Job | None = None
        self.session: Generator[Message, frozenset[int], None] | None = None
        self.waiting = False

    def start(self) -> None:
        """Build the kernel."""
        self.kernel, message = ready(self.ref, 0)
        self.pending.append(message)

    def free(self) -> int:
        """1 when no job is live and the kernel is ready."""
        return int(self.session is None and self.kernel is not None)

    def submit(self, job: Job) -> None:
        """Open the job's session; it advances in `poll`."""
        assert self.free(), "submit only to a free executor"
        assert self.kernel is not None
        self.job, self.session = job, drive(self.kernel, job, 0)
        self.pending.append(next(self.session))

    def poll(self, timeout: float) -> list[Message]:
        """The next message, if any; never waits."""
        del timeout
        if not self.pending and self.session is not None and not self.waiting:
            self.pending.append(self.session.send(frozenset()))
        messages, self.pending = self.pending, []
        for message in messages:
            self.waiting = wants_answer(message)
            if message.done:
                self.session = None
        return messages

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Advance the session by one step."""
        assert self.session is not None
        assert self.job is not None
        assert self.job.id == job, "answer the job that waits"
        self.waiting = False
        self.pending.append(self.session.send(stop))

    def close(self) -> None:
        """Drop the session and the kernel."""
        if self.session is not None:
            self.session.close()
        self.session = self.kernel = None
