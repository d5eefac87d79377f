"""Worker processes on this machine, forked in milliseconds from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from hpsearch import machine
from hpsearch.devices import Crew
from hpsearch.errors import FixSetup, HpsearchError
from hpsearch.executors.aside import PREPARING, call, launch
from hpsearch.executors.seat import Seat, Watch, seated
from hpsearch.executors.worker import BEAT, BIRTHS, KEEP, STALL, KernelRef, Sessions, failures, ready, sessions_of
from hpsearch.faults import crash_point
from hpsearch.machine import ignore_signals, kill_group, safe_import_path, shielded
from hpsearch.protocols import GRACE, Message
from hpsearch.types import Job, Say


def serve(connection: Connection, ref: KernelRef, worker: int, place: Mapping[str, str]) -> None:
    """A worker's life: say what it is, then run the jobs that come, until the connection closes or the process is worn out.

    `place` is the part of its environment that says which device it sees. When the orchestrator dies, trials get the rest of
    their epoch, at most GRACE seconds, and leave their states.
    """
    ignore_signals()
    os.environ.update(place)  # before CUDA starts, which the server that this was forked from never does
    os.setpgid(0, 0)  # whatever it starts ends with it
    sessions: Sessions | None = None
    last = time.monotonic()

    def beat(why: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT:
            last = time.monotonic()
            connection.send(Message(worker, None, notice=why))

    machine.listeners.append(beat)
    try:
        with machine.claim(Path(ref.folder) / f"worker-{worker}.lock" if ref.folder else None, GRACE + 7.0):
            machine.end_with_parent(GRACE)
            try:
                kernel, message = ready(ref, worker)
                connection.send(message)
                sessions = sessions_of(ref, kernel, worker) if kernel is not None else None
                while sessions is not None and (sessions.live or not sessions.worn or connection.poll(0)):
                    while connection.poll(0 if sessions.ready else None):
                        sessions.obey(connection.recv())
                    for message in sessions.advance():
                        crash_point("before-message")
                        connection.send(message)
                    beat()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                machine.listeners.clear()
                if sessions is not None:
                    sessions.rescue()
                os.killpg(0, signal.SIGKILL)
    except HpsearchError as error:
        with suppress(OSError):
            connection.send(Message(worker, None, error=error))


@dataclass
class ProcessSeat(Seat):
    """A worker in a process of this machine."""

    process: ForkServerProcess
    connection: Connection


class ProcessExecutor:
    """A crew of processes with `threads` threads each.

    Starting torch takes seconds, forking from a server that has it 11 to 18 ms; the server never touches CUDA, which
    does not survive a fork. A worker that dies is replaced, and its trials end as FAILED.
    """

    def __init__(
        self, ref: KernelRef | None, crew: Crew | int, threads: int = 1, preload: tuple[str, ...] = (), stall: float = STALL
    ) -> None:
        """`crew`: the workers and their devices; a number is that of workers that are left to themselves."""
        self.crew = Crew(({},) * crew, ("",) * crew) if isinstance(crew, int) else crew
        self.ref, self.workers, self.stall = ref, self.crew.workers, stall  # the kernel may be named later, before start()
        # Read when libraries load, so the server must be born with them.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        with safe_import_path():
            resource_tracker.ensure_running()  # it would lift the shield: it guards itself
        with shielded(), safe_import_path():
            forkserver.ensure_running()  # returns at once; it imports while the caller goes on
        self.seats: list[ProcessSeat] = []
        self.selector = selectors.DefaultSelector()  # of their connections, each with the number of its worker
        self.watched = Watch(stall)
        self.unborn = 0  # workers in a row that died before they were ready

    def start(self) -> None:
        """Fork the workers; waits for the server's imports."""
        assert self.ref is not None, "name the kernel before the workers start"
        self.seats = [self.hire(worker) for worker in range(self.workers)]

    def aside(
        self, target: str, config: Mapping[str, Any], say: Say, stopped_by: Callable[[], int | None] = lambda: None, what: str = PREPARING
    ) -> Any:
        """Call a function in a process forked from the same server; see `aside.call`."""
        return call(self.context, target, config, say, stopped_by, what, self.crew.places[0])

    def hire(self, worker: int) -> ProcessSeat:
        """Start one worker."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=serve, args=(theirs, self.ref, worker, self.crew.places[worker]), name=f"hpsearch-worker-{worker}", daemon=True
        )
        launch(process)
        theirs.close()
        self.selector.register(ours, selectors.EVENT_READ, worker)
        return ProcessSeat(process, ours)

    def free(self, alone: bool = False) -> int:
        """How many jobs could start at once; `alone`: each with a worker to itself."""
        return sum(seat.free(alone) for seat in self.seats)

    def submit(self, job: Job) -> None:
        """Send the job to a worker; `seated` chooses."""
        seat = seated(self.seats, job)
        with suppress(OSError):  # it just died: poll() notices and ends its trials
            seat.connection.send(job)

    def poll(self, timeout: float) -> list[Message]:
        """Messages of all workers; a dead worker's trials as FAILED outcomes."""
        self.watch()
        return [message for key, _ in self.selector.select(timeout) for message in self.hear(key.data)]

    def watch(self) -> None:
        """End workers that hang."""
        for seat in self.watched.silent(self.seats):
            if not seat.connection.poll(0):
                seat.hung = True
                kill_group(seat.process.pid or 0)
                seat.process.kill()

    def hear(self, worker: int) -> list[Message]:
        """A message from a worker that has something to say, or its obituary."""
        seat = self.seats[worker]
        try:
            message: Message = seat.connection.recv()
        except (EOFError, OSError):
            return self.bury(worker)
        seat.heed(message)
        if message.facts is not None:
            self.unborn = 0
        return [message]

    def bury(self, worker: int) -> list[Message]:
        """Replace a dead worker; its live trials failed with it."""
        seat = self.seats[worker]
        seat.process.join()
        code = seat.process.exitcode or 0
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        cause = f"made no progress for {self.stall:g} s and was ended" if seat.hung else cause
        kill_group(seat.process.pid or 0)  # what it started
        self.selector.unregister(seat.connection)
        seat.connection.close()
        if not seat.slots:
            self.unborn += 1
            if code < 0 and self.unborn < BIRTHS:
                self.seats[worker] = self.hire(worker)
                return []
            return [Message(worker, None, error=FixSetup(f"worker {worker} {cause} before it was ready: is there enough memory?"))]
        self.seats[worker] = self.hire(worker)
        reason = f"worker {worker} {cause} while training"
        return [Message(worker, job, step=failures(live, reason, lost=True), done=True) for job, live in seat.jobs.items()]

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Send the verdict to the worker that has the job."""
        seat = next(seat for seat in self.seats if job in seat.jobs)
        with suppress(OSError):  # as in submit()
            seat.connection.send((job, stop))

    def keep(self) -> None:
        """Trials that are stopped from now on are to go on later."""
        for seat in self.seats:
            with suppress(OSError):
                seat.connection.send(KEEP)

    def close(self) -> None:
        """End all workers, at once, with what they started."""
        for seat in self.seats:
            kill_group(seat.process.pid or 0)
            seat.process.kill()
        for seat in self.seats:
            seat.process.join()
            seat.connection.close()
        self.selector.close()
        self.seats, self.selector = [], selectors.DefaultSelector()
