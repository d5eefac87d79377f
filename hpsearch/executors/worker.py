"""What runs on the worker's side of any executor: build the kernel, drive its sessions."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hpsearch.errors import FixSetup, HpsearchError
from hpsearch.protocols import Kernel, Message
from hpsearch.types import Job, Outcome, Progress, Status, fault_of


@dataclass(frozen=True, slots=True)
class KernelRef:
    """How a worker builds its kernel: "package.module:function" and the JSON-able configuration to call it with."""

    target: str
    config: Mapping[str, Any]

    def build(self) -> Kernel:
        """Import the function and call it."""
        module, _, name = self.target.partition(":")
        make: Callable[[Mapping[str, Any]], Kernel] = getattr(importlib.import_module(module), name)
        return make(self.config)


def ready(ref: KernelRef, worker: int) -> tuple[Kernel | None, Message]:
    """Build the kernel and load what trials share; what went wrong is in the message."""
    try:
        kernel = ref.build()
        return kernel, Message(worker, None, facts=kernel.facts())
    except HpsearchError as error:
        return None, Message(worker, None, error=error)
    except Exception:
        return None, Message(worker, None, error=FixSetup(f"worker {worker} could not start:\n{traceback.format_exc()}"))


def drive(kernel: Kernel, job: Job, worker: int) -> Generator[Message, frozenset[int], None]:
    """Run a job's session: yields its messages, the last one `done`; is sent the trials to stop after each.

    A message without steps says that another session may go on. Whatever a session raises ends its live trials as FAILED,
    never the worker.
    """
    live = {trial.number for trial in job.trials}
    diverged: frozenset[int] = frozenset()
    try:
        session = kernel.session(job)
        step = next(session)
        while True:
            step = tuple(failed(item) for item in step if item.trial not in diverged)
            live -= {item.trial for item in step if isinstance(item, Outcome)}
            diverged |= {item.trial for item in step if isinstance(item, Outcome) and item.status is Status.FAILED}
            stop = yield Message(worker, job.id, step=step)
            step = session.send(stop | diverged)
    except StopIteration:
        reason = "the session ended without an outcome for this trial"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    yield Message(worker, job.id, step=failures(live, reason), done=True)


def failed(item: Progress | Outcome) -> Progress | Outcome:
    """The end of a trial in place of an epoch whose results are no numbers: nobody is to judge or store these."""
    fault = fault_of(item) if isinstance(item, Progress) else ""
    return Outcome(item.trial, Status.FAILED, seconds=item.seconds, error=fault) if fault else item


class Sessions:
    """A worker's live sessions, each advanced in its turn; one that has reported progress waits for the verdict."""

    def __init__(self, kernel: Kernel, worker: int) -> None:
        self.kernel, self.worker = kernel, worker
        self.live: dict[int, Generator[Message, frozenset[int], None]] = {}  # by job
        self.ready: dict[int, frozenset[int] | None] = {}  # by job: the verdict to go on with; None to begin
        self.worn = ""  # why no more jobs are taken

    def begin(self, job: Job) -> None:
        """Open a job's session."""
        self.live[job.id] = drive(self.kernel, job, self.worker)
        self.ready[job.id] = None

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Let a job's session go on, without the trials in `stop`."""
        self.ready[job] = stop

    def advance(self) -> Iterator[Message]:
        """Give each session that can go on one turn; what they have to say."""
        for job, stop in list(self.ready.items()):
            session = self.live[job]
            message = next(session) if stop is None else session.send(stop)
            if wants_answer(message):
                del self.ready[job]
            else:
                self.ready[job] = frozenset()
            if message.done:
                del self.live[job], self.ready[job]
                self.worn = self.worn or self.kernel.worn()
                message = replace(message, worn=self.worn)
            if message.step or message.done:
                yield message


def failures(trials: set[int], reason: str) -> tuple[Outcome, ...]:
    """Outcomes of trials that ended with their session or worker."""
    return tuple(Outcome(number, Status.FAILED, error=reason) for number in sorted(trials))


def wants_answer(message: Message) -> bool:
    """Whether the session waits for a verdict after this message."""
    return any(isinstance(item, Progress) for item in message.step)
