"""An executor around another: what was trained to its end before, in the same repeat of a comparison, is replayed instead of trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from hpsearch.protocols import Executor, Message
from hpsearch.types import (
    OBJECTIVES,
    Event,
    Job,
    Outcome,
    Params,
    Status,
    StudyStarted,
    Trial,
    TrialEnded,
    TrialRecord,
    Value,
    metrics_of,
    point_key,
    progress_of,
    score_of,
)

Key: TypeAlias = tuple[int, tuple[tuple[str, Value], ...]]
STATE = "replayed to epoch "  # in place of the file that a paused trial goes on from


class Memo:
    """Trainings that ran to their end, by repeat and configuration. As a tracker it hears of every one.

    `epochs`: those of configurations that do not name them.
    """

    def __init__(self, epochs: int = 0) -> None:
        self.epochs = epochs
        self.kept: dict[Key, TrialRecord] = {}
        self.study, self.repeat = "", 0

    def find(self, trial: Trial) -> TrialRecord | None:
        """What the trial would come to; None where it has to be trained, or goes on from what was trained."""
        going_on = trial.resume is not None and not trial.resume.startswith(STATE)
        return None if going_on or trial.setup is not None else self.kept.get(key_of(trial.repeat, trial.params))

    def planned(self, record: TrialRecord) -> int:
        """Epochs that a training was to have; it may have stopped early."""
        return int(record.params.get("epochs") or self.epochs)

    def add(self, study: str, repeat: int, record: TrialRecord) -> None:
        """Keep a trial of a study if it is complete, the first one of a configuration; none that no comparison repeats."""
        if repeat and record.status is Status.COMPLETE and record.setup is None and record.curve:
            origin = record.reused or f"{study}, trial {record.number}"
            self.kept.setdefault(key_of(repeat, record.params), replace(record, reused=origin))

    def record(self, event: Event) -> None:
        """Take note of trials of earlier sessions, and of those that end."""
        match event:
            case StudyStarted():
                self.study, self.repeat = event.study, int(event.spec.get("repeat", 0))
                for record in event.records:
                    self.add(self.study, self.repeat, record)
            case TrialEnded(record, _):
                self.add(self.study, self.repeat, record)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Replay:
    """A trial that is told epoch by epoch, as if it were trained."""

    trial: Trial
    kept: TrialRecord
    epochs: int  # planned
    told: int  # epochs
    waits: bool = False  # for the verdict
    stopped: bool = False


class Reusing:
    """Carries jobs to `executor`, except those that `memo` knows the end of.

    A replayed trial waits for the pruner's verdict after every epoch, and takes the place of a worker meanwhile, so that what is asked for
    and when stays as it would be. `folder` is where the files of the trials go; `resumable`: trials that are stopped may go on.
    """

    def __init__(self, executor: Executor, memo: Memo, folder: str | None = None, resumable: bool = False) -> None:
        self.executor, self.memo, self.folder, self.resumable = executor, memo, folder, resumable
        self.workers = executor.workers
        self.replays: dict[int, Replay] = {}  # by job

    def start(self) -> None:
        """Start the workers."""
        self.executor.start()

    def free(self, alone: bool = False) -> int:
        """How many jobs could start at once; `alone`: each with a worker to itself."""
        return max(0, self.executor.free(alone) - len(self.replays))

    def submit(self, job: Job) -> None:
        """Begin to replay a trial that is known, pass on every other job."""
        kept = self.memo.find(job.trials[0]) if len(job.trials) == 1 else None
        if kept is None:
            self.executor.submit(replace(job, trials=tuple(replace(trial, folder=self.folder) for trial in job.trials)))
            return
        assert self.free(), "submit only to a free executor"
        (trial,) = job.trials
        told = int(trial.resume.removeprefix(STATE)) if trial.resume is not None else 0
        self.replays[job.id] = Replay(trial, kept, self.memo.planned(kept), told)

    def poll(self, timeout: float) -> list[Message]:
        """The next epoch, or the end, of each replay, and what the workers say; waits only where nothing is replayed."""
        messages = [self.tell(job, replay) for job, replay in list(self.replays.items()) if not replay.waits]
        return messages + self.executor.poll(0.0 if messages else timeout)

    def tell(self, job: int, replay: Replay) -> Message:
        """One turn of a replay."""
        kept, number = replay.kept, replay.trial.number
        if not replay.stopped and replay.told < len(kept.curve):
            replay.told, replay.waits = replay.told + 1, True
            return Message(0, job, step=(progress_of(number, kept.curve[replay.told - 1], replay.epochs),))
        del self.replays[job]
        outcome = cut_short(number, kept, replay.told, self.resumable) if replay.stopped else completed(number, kept)
        return Message(0, job, step=(outcome,), done=True)

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Let a job go on, without the trials in `stop`; one that has told its last epoch is over anyway."""
        replay = self.replays.get(job)
        if replay is None:
            self.executor.answer(job, stop)
            return
        replay.waits = False
        replay.stopped = replay.trial.number in stop and replay.told < len(replay.kept.curve)

    def keep(self) -> None:
        """Trials that are stopped from now on are to go on later; a replay needs no state for that."""
        self.executor.keep()

    def close(self) -> None:
        """End all workers, at once."""
        self.replays.clear()
        self.executor.close()


def key_of(repeat: int, params: Params) -> Key:
    """A configuration in a repeat as something hashable."""
    return repeat, point_key(params)


def completed(number: int, kept: TrialRecord) -> Outcome:
    """The outcome of a whole training. Its weights are those of the study that trained it, and stay there."""
    return Outcome(
        number,
        Status.COMPLETE,
        val_loss=kept.val_loss,
        epoch=kept.best_epoch,
        seconds=kept.seconds,
        metrics=kept.metrics,
        effective=kept.effective,
        per_class=kept.per_class,
        reused=kept.reused,
    )


def cut_short(number: int, kept: TrialRecord, told: int, resumable: bool) -> Outcome:
    """The outcome of a training that is stopped after `told` epochs: the epoch whose weights would have been kept by then."""
    best = min(kept.curve[:told], key=lambda row: rank(kept.objective, row))
    return Outcome(
        number,
        Status.PRUNED,
        val_loss=best["val_loss"],
        epoch=int(best["epoch"]),
        seconds=kept.curve[told - 1]["seconds"],
        metrics=metrics_of(best),
        effective=kept.effective,
        state=f"{STATE}{told}" if resumable else None,
        reused=kept.reused,
    )


def rank(objective: str, row: Mapping[str, float]) -> tuple[float, float]:
    """What makes an epoch's weights the ones to keep, as the kernel has it."""
    score = score_of(objective, row["val_loss"], row)
    return (OBJECTIVES[objective] * score if score is not None else row["val_loss"]), row["val_loss"]
