"""Worker processes on this machine, forked in milliseconds from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from hpsearch.errors import FixSetup
from hpsearch.executors.aside import PREPARING, call, launch
from hpsearch.executors.worker import KernelRef, Sessions, failures, ready
from hpsearch.machine import ignore_signals, shielded
from hpsearch.protocols import Message
from hpsearch.types import Job, Outcome, Say


def serve(connection: Connection, ref: KernelRef, worker: int) -> None:
    """A worker's life: say what it is, then run the jobs that come, until the connection closes or the process is worn out."""
    ignore_signals()
    try:
        kernel, message = ready(ref, worker)
        connection.send(message)
        sessions = Sessions(kernel, worker) if kernel is not None else None
        while sessions is not None and (sessions.live or not sessions.worn or connection.poll(0)):
            while connection.poll(0 if sessions.ready else None):
                order: Job | tuple[int, frozenset[int]] = connection.recv()
                if isinstance(order, Job):
                    sessions.begin(order)
                else:
                    sessions.answer(*order)
            for message in sessions.advance():
                connection.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the orchestrator is gone: so is the reason to train


@dataclass
class Seat:
    """One worker as the executor sees it."""

    process: ForkServerProcess
    connection: Connection
    slots: int = 0  # jobs that it takes at once; 0 until it is ready
    jobs: dict[int, set[int]] = field(default_factory=dict)  # live trials by job
    worn: bool = False  # it takes no more jobs

    @property
    def free(self) -> int:
        """Jobs that could start."""
        return 0 if self.worn else self.slots - len(self.jobs)


class ProcessExecutor:
    """`workers` processes with `threads` threads each.

    Starting torch takes seconds, forking from a server that has it 11 to 18 ms; the server never touches CUDA, which
    does not survive a fork. A worker that dies is replaced, and its trials end as FAILED.
    """

    def __init__(self, ref: KernelRef | None, workers: int, threads: int = 1, preload: tuple[str, ...] = ()) -> None:
        self.ref, self.workers = ref, workers  # the kernel may be named later, before start()
        # Read when libraries load, so the server must be born with them.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        resource_tracker.ensure_running()  # it would lift the shield: it guards itself
        with shielded():
            forkserver.ensure_running()  # returns at once; it imports while the caller goes on
        self.seats: list[Seat] = []

    def start(self) -> None:
        """Fork the workers; waits for the server's imports."""
        assert self.ref is not None, "name the kernel before the workers start"
        self.seats = [self.hire(worker) for worker in range(self.workers)]

    def aside(
        self, target: str, config: Mapping[str, Any], say: Say, stopped_by: Callable[[], int | None] = lambda: None, what: str = PREPARING
    ) -> Any:
        """Call a function in a process forked from the same server; see `aside.call`."""
        return call(self.context, target, config, say, stopped_by, what)

    def hire(self, worker: int) -> Seat:
        """Start one worker."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, self.ref, worker), name=f"hpsearch-worker-{worker}", daemon=True)
        launch(process)
        theirs.close()
        return Seat(process, ours)

    def free(self) -> int:
        """How many jobs could start at once."""
        return sum(seat.free for seat in self.seats)

    def submit(self, job: Job) -> None:
        """Send the job to the worker with most room."""
        seat = max(self.seats, key=lambda seat: seat.free)
        assert seat.free > 0, "submit only to a free executor"
        seat.jobs[job.id] = {trial.number for trial in job.trials}
        with suppress(OSError):  # it just died: poll() notices and ends its trials
            seat.connection.send(job)

    def poll(self, timeout: float) -> list[Message]:
        """Messages of all workers; a dead worker's trials as FAILED outcomes."""
        seats = {seat.connection: worker for worker, seat in enumerate(self.seats)}
        out: list[Message] = []
        for connection in multiprocessing.connection.wait(list(seats), timeout):
            worker = seats[connection]  # type: ignore[index]
            out += self.hear(worker)
        return out

    def hear(self, worker: int) -> list[Message]:
        """A message from a worker that has something to say, or its obituary."""
        seat = self.seats[worker]
        try:
            message: Message = seat.connection.recv()
        except (EOFError, OSError):
            return self.bury(worker)
        if message.facts is not None:
            seat.slots = message.facts.slots
        if message.job is not None:
            seat.jobs[message.job] -= {item.trial for item in message.step if isinstance(item, Outcome)}
            if message.done:
                del seat.jobs[message.job]
        seat.worn = seat.worn or bool(message.worn)
        return [message]

    def bury(self, worker: int) -> list[Message]:
        """Replace a dead worker; its live trials failed with it."""
        seat = self.seats[worker]
        seat.process.join()
        code = seat.process.exitcode or 0
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        seat.connection.close()
        if not seat.slots:
            return [Message(worker, None, error=FixSetup(f"worker {worker} {cause} before it was ready: is there enough memory?"))]
        self.seats[worker] = self.hire(worker)
        reason = f"worker {worker} {cause} while training"
        return [Message(worker, job, step=failures(live, reason), done=True) for job, live in seat.jobs.items()]

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Send the verdict to the worker that has the job."""
        seat = next(seat for seat in self.seats if job in seat.jobs)
        with suppress(OSError):  # as in submit()
            seat.connection.send((job, stop))

    def close(self) -> None:
        """End all workers, at once."""
        for seat in self.seats:
            seat.process.kill()
        for seat in self.seats:
            seat.process.join()
            seat.connection.close()
        self.seats = []
