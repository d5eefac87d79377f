"""What runs on the worker's side of any executor: build the kernel, drive its sessions."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hpsearch.devices import Crew
from hpsearch.errors import FixSetup, HpsearchError
from hpsearch.executors.aside import load
from hpsearch.faults import crash_point
from hpsearch.keeping import state_path, write_result
from hpsearch.protocols import Executor, Kernel, Message
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.types import Job, Outcome, Progress, Say, Status, Trial, TrialRecord, fault_of, sound

STALL = 300.0  # seconds without a sign of life after which a worker hangs
BEAT = 1.0  # seconds between signs of life of a worker that trains
BIRTHS = 5  # tries to start a worker that is lost before it is ready
KEEP = "keep"  # to a worker: trials that are stopped from now on are to go on later


@dataclass(frozen=True, slots=True)
class KernelRef:
    """How a worker builds its kernel: "package.module:function" and the JSON-able configuration to call it with."""

    target: str
    config: Mapping[str, Any]

    @property
    def folder(self) -> str | None:
        """Where trials leave their files."""
        folder: str | None = self.config.get("folder") if isinstance(self.config, Mapping) else None
        return folder

    @property
    def objective(self) -> str:
        """The study's."""
        return str(self.config.get("objective", "val_loss")) if isinstance(self.config, Mapping) else "val_loss"

    def build(self) -> Kernel:
        """Import the function and call it."""
        module, _, name = self.target.partition(":")
        make: Callable[[Mapping[str, Any]], Kernel] = load(module, name, "starting a worker")
        return make(self.config)


class Workforce(Executor, Protocol):
    """The executor of a study: its kernel is named once the data is ready, which its `aside` makes it."""

    ref: KernelRef | None  # named before start()
    crew: Crew  # who shares a device, which decides how much of its memory each may fill

    def aside(self, target: str, config: Mapping[str, Any], say: Say, stopped_by: Callable[[], int | None] = ..., what: str = ...) -> Any:
        """Call a function in another process of this machine; see `aside.call`."""
        ...


def sessions_of(ref: KernelRef, kernel: Kernel, worker: int) -> Sessions:
    """A worker's sessions; files go where the kernel's configuration says."""
    return Sessions(kernel, worker, Notes(ref.folder, ref.objective))


def ready(ref: KernelRef, worker: int) -> tuple[Kernel | None, Message]:
    """Build the kernel and load what trials share; what went wrong is in the message."""
    try:
        kernel = ref.build()
        return kernel, Message(worker, None, facts=kernel.facts())
    except HpsearchError as error:
        return None, Message(worker, None, error=error)
    except MemoryError:
        remedy = "there is not enough memory: fewer --workers need less, or raise the limit (`ulimit -v`)"
        return None, Message(worker, None, error=FixSetup(f"worker {worker} could not start: {remedy}"))
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


@dataclass
class Course:
    """A live trial as its worker sees it."""

    trial: Trial
    started: float  # seconds since the epoch (UTC)
    curve: list[dict[str, float]] = field(default_factory=list)


class Notes:
    """What live trials have come to. Their results are written into `folder`, or their own, before anybody is told of them.

    `objective` is the study's.
    """

    def __init__(self, folder: str | None, objective: str) -> None:
        self.folder, self.objective = folder, objective
        self.keeping = False  # trials that are stopped are to go on later
        self.courses: dict[int, Course] = {}  # by trial

    def begin(self, job: Job) -> None:
        """A job's trials are live from now on."""
        self.courses |= {trial.number: Course(trial, time.time()) for trial in job.trials}

    def place(self, trial: Trial) -> str | None:
        """Where a trial's files go."""
        return trial.folder or self.folder

    def note(self, item: Progress | Outcome) -> None:
        """Remember an epoch; keep a result. A trial that was cut off has none, one that was lost is trained again."""
        course = self.courses[item.trial]
        if isinstance(item, Progress):
            course.curve.append(item.row())
            return
        del self.courses[item.trial]
        trial, folder = course.trial, self.place(course.trial)
        cut_off = self.keeping and item.status is Status.PRUNED
        if folder is None or cut_off or item.lost:
            return
        record = TrialRecord.of(trial, sound(item, self.objective), course.started, time.time(), course.curve, self.objective)
        if item.status is Status.PRUNED and item.state is not None:
            record = replace(record, status=Status.PAUSED)
        write_result(folder, record, trial.study)
        if item.state is None:
            TrialFiles(folder).delete(state_path(folder, trial.name).name)
        crash_point("result-kept")


class Sessions:
    """A worker's live sessions, each advanced in its turn; one that has reported progress waits for the verdict."""

    def __init__(self, kernel: Kernel, worker: int, notes: Notes) -> None:
        self.kernel, self.worker, self.notes = kernel, worker, notes
        self.live: dict[int, Generator[Message, frozenset[int], None]] = {}  # by job
        self.ready: dict[int, frozenset[int] | None] = {}  # by job: the verdict to go on with; None to begin
        self.worn = ""  # why no more jobs are taken

    def obey(self, order: Job | tuple[int, frozenset[int]] | str) -> None:
        """Do what the orchestrator sent: a job, a verdict on one, or KEEP."""
        if isinstance(order, Job):
            self.begin(order)
        elif isinstance(order, str):
            self.keep()
        else:
            self.answer(*order)

    def begin(self, job: Job) -> None:
        """Open a job's session."""
        self.notes.begin(job)
        self.live[job.id] = drive(self.kernel, job, self.worker)
        self.ready[job.id] = None

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Let a job's session go on, without the trials in `stop`."""
        self.ready[job] = stop

    def keep(self) -> None:
        """Trials that are stopped from now on are to go on later."""
        self.notes.keeping = True
        self.kernel.keep()

    def rescue(self) -> None:
        """Nobody listens any more: bring every trial to the end of its epoch, where it leaves its state."""
        self.keep()
        everybody = frozenset(self.notes.courses)
        for job in self.live:
            if job not in self.ready:
                self.answer(job, everybody)
        while self.live:
            for message in self.advance():
                if wants_answer(message):
                    assert message.job is not None
                    self.answer(message.job, everybody)

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
            for item in message.step:
                self.notes.note(item)
            if message.step or message.done:
                yield message


def failures(trials: set[int], reason: str, lost: bool = False) -> tuple[Outcome, ...]:
    """Outcomes of trials that ended with their session or, `lost`, with their worker."""
    return tuple(Outcome(number, Status.FAILED, error=reason, lost=lost) for number in sorted(trials))


def wants_answer(message: Message) -> bool:
    """Whether the session waits for a verdict after this message."""
    return any(isinstance(item, Progress) for item in message.step)
