"""The nouns that cross walls. Everything here is frozen, picklable and JSON-able."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

from hpsearch.core.text import cleaned, cleaned_json, harmless

Value: TypeAlias = float | int | str | bool | None
Params: TypeAlias = Mapping[str, Value]
PerClass: TypeAlias = Mapping[str, Sequence[float]]
"""images, precision, recall, f1: one value a class, in the order of the classes."""

OBJECTIVES: Mapping[str, int] = {  # what a study may optimise; 1: less is better, -1: more is better
    "val_loss": 1,
    "accuracy": -1,
    "balanced_accuracy": -1,
    "precision": -1,
    "recall": -1,
    "f1": -1,
    "top5": -1,
}
VALUE, MAXIMIZED, SEVERAL = "value", "value (maximized)", "values (several)"  # what studies of other programs optimise
SIGNS: Mapping[str, int] = {**OBJECTIVES, VALUE: 1, MAXIMIZED: -1, SEVERAL: 1}


Say: TypeAlias = Callable[[str, int, int], None]
"""Hears what a long step is doing, how much of it is done, and of how much (0: not known)."""


def say_nothing(text: str, done: int = 0, total: int = 0) -> None:
    """Nobody listens."""


class Status(StrEnum):
    """The fate of a trial."""

    WAITING = "WAITING"  # interrupted; the next session trains it again
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"  # at a rung of successive halving; it may go on from there
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of the trial."""
        return self not in (Status.WAITING, Status.RUNNING, Status.PAUSED)


PLAIN_NAME = re.compile(r"[\w+-][\w.+-]*")  # a name that is one part of a path
RUN_NAME = re.compile(r"trial-\d{4,}|(?:again|confirm|default|scratch|probe)-[\w.+-]+?")  # names that trials and runs have


def trial_name(number: int) -> str:
    """What a trial of the search is called, in files and in MLflow."""
    return f"trial-{number:04d}"


def point_key(params: Params) -> tuple[tuple[str, Value], ...]:
    """A configuration as something hashable."""
    return tuple(sorted(params.items()))


@dataclass(frozen=True, slots=True)
class Setup:
    """What sets a run beside the search (a reference, a confirmation) apart from the study's trials."""

    name: str  # "confirm-0012-seed-1": names its files and its MLflow run
    like: int  # trial whose random numbers it draws
    trial: int | None = None  # trial whose configuration it repeats
    seed: int | None = None  # in place of the study's: for the new head, the order of images, augmentation
    scratch: bool = False  # from random weights
    fold: int | None = None  # of `folds`, from 0: validates on that part of the training and validation images
    folds: int = 0

    def __post_init__(self) -> None:
        """Refuses a name that would lead out of the study's folder: setups are read from storages and files, too."""
        if not PLAIN_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of a run")


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration to train."""

    number: int  # from 0; trial 0 is the default recipe
    params: Params
    attempt: int = 1  # k+1 after an interruption
    origin: str = "sampled"  # "default", "initial", "warm", "portfolio", "grid"; "reference", "confirm" or "winner" beside the search
    resume: str | None = None  # file with the state it goes on from, if it is still there and this trial's
    study: str = ""  # uid of its study: what it leaves on the disk says whose it is
    losses: int = 0  # how often its worker died, hung or lost its device
    setup: Setup | None = None  # of a run beside the search, whose number is negative
    repeat: int = 0  # of a comparison: it seeds head, order and augmentation in place of the trial's number
    folder: str | None = None  # for its files, in place of the kernel's

    @property
    def name(self) -> str:
        """What it is called; a run beside the search has a name of its own."""
        return trial_name(self.number) if self.setup is None else self.setup.name


@dataclass(frozen=True, slots=True)
class Job:
    """Trials that a worker runs together; the ordinary job has one."""

    id: int
    trials: tuple[Trial, ...]
    alone: bool = False  # it has its worker to itself


@dataclass(frozen=True, slots=True)
class Progress:
    """One trial after one more epoch."""

    trial: int
    epoch: int  # 1 .. epochs
    epochs: int  # planned
    val_loss: float  # nats per image
    train_loss: float  # nats per image, mean over the epoch's steps
    metrics: Mapping[str, float]  # accuracy, balanced_accuracy, precision, recall, f1, top5 in [0, 1]; learning_rate
    seconds: float  # since the trial started
    images_per_second: float | None = None  # training images, over the epoch's training alone
    at: float = field(default=0.0, compare=False)  # when it was reached, seconds since the epoch (UTC); 0: not known
    again: bool = False  # told again by a trial that goes on from a later state, for whoever does not know it

    def row(self) -> dict[str, float]:
        """Flat, JSON-able form: what MLflow, the storage and the report keep of an epoch."""
        return {
            "epoch": self.epoch,
            "val_loss": self.val_loss,
            "train_loss": self.train_loss,
            **self.metrics,
            "seconds": self.seconds,
            **({} if self.images_per_second is None else {"images_per_second": self.images_per_second}),
        }


ROW = ("epoch", "val_loss", "train_loss", "seconds", "images_per_second")  # of an epoch's row; the rest are its metrics


def progress_of(number: int, row: Mapping[str, float], epochs: int) -> Progress:
    """The reverse of `Progress.row`."""
    return Progress(
        trial=number,
        epoch=int(row["epoch"]),
        epochs=epochs,
        val_loss=row["val_loss"],
        train_loss=row["train_loss"],
        metrics=metrics_of(row),
        seconds=row["seconds"],
        images_per_second=row.get("images_per_second"),
    )


def metrics_of(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an epoch."""
    return {name: value for name, value in row.items() if name not in ROW}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended. A failure is a value with its reason in `error`."""

    trial: int
    status: Status
    val_loss: float | None = None  # nats, of the epoch whose weights were kept
    epoch: int | None = None  # that epoch, 1-based
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)  # at that epoch
    effective: Params = field(default_factory=dict)  # hyperparameters as the trainer used them
    checkpoint: str | None = None  # path of the kept weights (safetensors)
    error: str | None = None
    per_class: PerClass = field(default_factory=dict)  # at the kept epoch
    state: str | None = None  # file from which a stopped trial can go on exactly as if it had not been stopped
    reused: str = ""  # "STUDY, trial N": nothing was trained, these are the results of the same configuration there
    lost: bool = False  # no fault of the trial's: its worker died, hung or lost its device
    remark: str = ""  # what is wrong with the training, such as layers that got no gradient

    def __post_init__(self) -> None:
        """Cleans what the user's code and libraries say: stores, terminals and MLflow get it from here."""
        for key in ("error", "remark"):
            if text := getattr(self, key):
                object.__setattr__(self, key, cleaned(str(text)))


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker found out when it loaded model and data: shown, recorded, and checked against the space."""

    values: Mapping[str, Any]
    slots: int = 1  # trials that the worker can train at once

    def __post_init__(self) -> None:
        """Cleans names that come from data, such as those of classes."""
        object.__setattr__(self, "values", cleaned_json(self.values))


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial as the storage remembers it: the row behind every table, figure and MLflow run."""

    number: int
    status: Status
    params: Params
    origin: str
    attempt: int
    val_loss: float | None
    best_epoch: int | None
    seconds: float
    started: float | None  # seconds since the epoch (UTC)
    ended: float | None
    metrics: Mapping[str, float]
    effective: Params
    curve: Sequence[Mapping[str, float]]  # `Progress.row` of each epoch
    checkpoint: str | None  # name of the file with its weights, in the study's folder; a path is reduced to that
    error: str | None
    objective: str = "val_loss"  # one of SIGNS: what the study optimises
    per_class: PerClass = field(default_factory=dict)
    state: str | None = None  # name of the file that a paused trial resumes from, there too
    setup: Setup | None = None  # of a run beside the search
    reused: str = ""  # as in Outcome; seconds are those that the training took there
    remark: str = ""  # as in Outcome

    def __post_init__(self) -> None:
        """Reduces paths to names: the study's folder may be copied or moved, and a record must not lead out of it."""
        for key in ("checkpoint", "state"):
            if (stored := getattr(self, key)) is not None:
                object.__setattr__(self, key, PurePosixPath(str(stored)).name or None)

    @classmethod
    def of(
        cls, trial: Trial, outcome: Outcome, started: float, ended: float, curve: Sequence[Mapping[str, float]], objective: str
    ) -> TrialRecord:
        """Of a trial that has just ended."""
        return cls(
            number=trial.number,
            status=outcome.status,
            params=trial.params,
            origin=trial.origin,
            attempt=trial.attempt,
            val_loss=outcome.val_loss,
            best_epoch=outcome.epoch,
            seconds=outcome.seconds,
            started=started,
            ended=ended,
            metrics=dict(outcome.metrics),
            effective=dict(outcome.effective),
            curve=list(curve),
            checkpoint=outcome.checkpoint,
            error=outcome.error,
            objective=objective,
            per_class=dict(outcome.per_class),
            state=outcome.state,
            setup=trial.setup,
            reused=outcome.reused,
            remark=outcome.remark,
        )

    @property
    def name(self) -> str:
        """As `Trial.name`."""
        return trial_name(self.number) if self.setup is None else self.setup.name

    @property
    def score(self) -> float | None:
        """The objective's value at the kept epoch: nats for val_loss, else a share in [0, 1]."""
        return score_of(self.objective, self.val_loss, self.metrics)

    @property
    def cost(self) -> float:
        """The score, negated where more is better, so that less is better; infinite without one."""
        return math.inf if self.score is None or not math.isfinite(self.score) else SIGNS[self.objective] * self.score


def score_of(objective: str, val_loss: float | None, metrics: Mapping[str, float]) -> float | None:
    """The value of `objective` among an epoch's results."""
    return val_loss if objective == "val_loss" else metrics.get(objective)


def is_number(value: object) -> bool:
    """Whether a result is a finite number: storages and samplers take None, text, NaN and infinities for what they like."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fault_of(progress: Progress) -> str:
    """Why an epoch's results cannot be used; "" where they can."""
    found = {"validation loss": progress.val_loss, "training loss": progress.train_loss, **progress.metrics}
    bad = next((name for name, value in found.items() if not is_number(value)), None)
    return "" if bad is None else f"diverged: {bad} is {found[bad]!r} after epoch {progress.epoch} of {progress.epochs}"


def sound(outcome: Outcome, objective: str) -> Outcome:
    """The outcome; FAILED in its place where its results are no numbers, since one that is -inf would be the best of all."""
    score = score_of(objective, outcome.val_loss, outcome.metrics)
    results = {"val_loss": outcome.val_loss, objective: score} if outcome.status is Status.COMPLETE else {}
    if outcome.status is Status.PRUNED and outcome.val_loss is not None:
        results["val_loss"] = outcome.val_loss
    bad = next((name for name, value in results.items() if not is_number(value)), None)
    if bad is None:
        return outcome
    reason = f"diverged: the trial ended with {bad} {results[bad]!r}, which is no finite number"
    return Outcome(outcome.trial, Status.FAILED, seconds=outcome.seconds, effective=outcome.effective, error=reason)


def is_winnable(record: TrialRecord) -> bool:
    """Whether a trial can be chosen: it is complete with a finite score, and another program that added it did not keep its weights."""
    return record.status is Status.COMPLETE and math.isfinite(record.cost) and record.origin != "added"


def best_record(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The complete trial of the best score, the earlier one of equals; pruned trials never win, they were cut short."""
    complete = (r for r in records if is_winnable(r))
    return min(complete, key=lambda r: (r.cost, r.number), default=None)


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A study as the storage has it."""

    name: str
    spec: Mapping[str, Any]  # resolved; of a study that another program made, the objective alone
    facts: Mapping[str, Any]
    records: tuple[TrialRecord, ...]
    runs: tuple[TrialRecord, ...] = ()  # beside the search
    openings: tuple[Mapping[str, Any], ...] = ()  # of the test split, in order
    headstart: tuple[str, ...] = ()  # what was said of the trials that it began with
    uid: str = ""  # as in StudyStarted

    @property
    def default(self) -> TrialRecord | None:
        """Trial 0, the default recipe; None in a study of another program."""
        foreign = self.spec.get("objective") in (VALUE, MAXIMIZED, SEVERAL)
        return None if foreign else next((r for r in self.records if r.number == 0), None)


def finite_json(value: Any) -> Any:
    """The same without NaN and infinities, which JSON has no word for, and with texts that a page and a terminal can show."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless(str(key)): finite_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [finite_json(inner) for inner in value]
    return value


# ---------------------------------------------------------------- what is wrong with the data


@dataclass(frozen=True, slots=True)
class Example:
    """One image, or a pair, that a finding is about."""

    names: tuple[str, ...]  # as the data calls them: relative paths, or "train/17"
    text: str = ""  # such as "labelled cat, its neighbours are dogs (10 of 10)"
    thumbnails: tuple[str, ...] = ()  # data URIs, in the order of names


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about the data before time is spent on it."""

    kind: str  # "unreadable", "near-duplicates", ...
    level: Literal["error", "warning", "note"]  # an error refuses the study
    text: str  # what, how many, and what to do
    count: int = 0
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class DataReport:
    """What checking the data came to."""

    data: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]  # split ("train", "val", "test") -> images of each class
    left_out: int  # files that could not be used
    findings: tuple[Finding, ...]
    facts: Mapping[str, Value]  # numbers worth knowing, such as the smallest difference the validation images can show

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that refuse a study."""
        return tuple(f for f in self.findings if f.level == "error")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataReport:
        """From what `dataclasses.asdict` made of one, also after a journey through JSON."""
        findings = tuple(
            Finding(**{**f, "examples": tuple(Example(tuple(e["names"]), e["text"], tuple(e["thumbnails"])) for e in f["examples"])})
            for f in values["findings"]
        )
        counts = {split: tuple(n) for split, n in values["counts"].items()}
        return cls(values["data"], tuple(values["classes"]), counts, values["left_out"], findings, dict(values["facts"]))


# ---------------------------------------------------------------- what a finished model is worth


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What a network still knows of the task that it was pretrained on."""

    task: str
    images: int  # held out, of that task
    before: float  # accuracy with the pretrained weights, in [0, 1]
    after: float  # with the fine-tuned body under the same head
    refitted_before: float | None = None  # with a new linear head instead, fitted on half of these images, measured on the other half
    refitted_after: float | None = None

    @property
    def drop(self) -> float:
        """Accuracy lost, in [-1, 1]."""
        return self.before - self.after

    @property
    def sentence(self) -> str:
        """The same in words."""
        return f"On {self.task} its accuracy went from {100 * self.before:.1f} % to {100 * self.after:.1f} %."


@dataclass(frozen=True, slots=True)
class Judged:
    """A finished checkpoint on one split."""

    name: str
    images: int
    loss: float  # nats per image
    metrics: Mapping[str, float]
    per_class: PerClass
    confusion: tuple[tuple[int, ...], ...]  # a row for each true class
    forgetting: Forgetting | None = None
    mistakes: tuple[Example, ...] = ()  # the surest ones first

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Judged:
        """From what `dataclasses.asdict` made of one, also after a journey through JSON."""
        mistakes = tuple(Example(tuple(e["names"]), e["text"], tuple(e["thumbnails"])) for e in values["mistakes"])
        lost = Forgetting(**values["forgetting"]) if values["forgetting"] else None
        confusion = tuple(tuple(row) for row in values["confusion"])
        return cls(**{**values, "confusion": confusion, "forgetting": lost, "mistakes": mistakes})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of checkpoints."""

    split: str
    judged: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made ready before the first trial."""

    blocks: int  # of the model, before its head; 0 without a model
    report: DataReport
    index: str  # file that says which image belongs to which split; "" for embedded data
    digest: str  # of pixels, labels and splits; "" when they could not be divided
    weights: str  # which weights were loaded, and what of them did not fit
    weights_digest: str = ""  # of the state that every trial starts from
    unshared: str = ""  # why what frozen blocks put out cannot be shared by trials, if so
    indexes: Mapping[str, str] = field(default_factory=dict)  # by model, of a study with several; blocks are then those of the deepest
    models: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)  # parameters, blocks, image_size, weights of each
    files: Mapping[str, str] = field(default_factory=dict)  # by model: its weights, for workers on machines that lack them


# ---------------------------------------------------------------- what the orchestrator saw


@dataclass(frozen=True, slots=True)
class StudyStarted:
    """The loop begins or goes on."""

    study: str
    uid: str  # tells apart studies of one name, made in different storages
    spec: Mapping[str, Any]  # resolved
    records: Sequence[TrialRecord]  # of earlier sessions
    budget: int  # trials in total
    workers: int  # 0: nothing is trained, what was is told again
    facts: Mapping[str, Any] = field(default_factory=dict)  # what workers of earlier sessions found
    beside: Sequence[TrialRecord] = ()  # runs beside the search, of earlier sessions
    experiment: str = ""  # of MLflow; "" means the study's name


@dataclass(frozen=True, slots=True)
class ComparisonStarted:
    """Samplers are compared: their studies follow, one after the other."""

    name: str
    samplers: tuple[str, ...]
    repeats: int
    trials: int  # of all studies; 0: budgets are in seconds
    seconds: float  # of each study; infinite: budgets are in trials
    done: Mapping[tuple[str, int], Sequence[TrialRecord]]  # sampler and repeat -> trials of earlier sessions


@dataclass(frozen=True, slots=True)
class ComparisonEnded:
    """What a comparison came to."""

    name: str
    verdict: Sequence[str]  # sentences
    scores: Mapping[str, float]  # by name: what its run in MLflow has as metrics
    at: float  # when its last trial ended, seconds since the epoch (UTC)
    artifacts: Sequence[str]  # its page and its values


@dataclass(frozen=True, slots=True)
class StageStarted:
    """Runs beside the search begin."""

    title: str
    runs: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has loaded data and weights."""

    worker: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A trial was handed to a worker."""

    trial: Trial
    at: float  # seconds since the epoch (UTC)


@dataclass(frozen=True, slots=True)
class TrialAgain:
    """A trial was lost with its worker and will be handed out again; its epochs come again, from the last one that was kept."""

    trial: Trial  # its next attempt
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should read while the study runs, such as a full disk that it waits for."""

    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a session while it runs."""

    pause: bool = False
    stop: frozenset[int] = frozenset()  # trials
    trials: int = 0  # that the study is to come to; 0: as many as it began with


@dataclass(frozen=True, slots=True)
class BudgetRaised:
    """The study will come to more trials than it began with."""

    budget: int


@dataclass(frozen=True, slots=True)
class LoopSpent:
    """What the loop itself has taken so far in this session, waiting for workers apart."""

    seconds: float
    trials: int  # that ended meanwhile


@dataclass(frozen=True, slots=True)
class TrackingBehind:
    """MLflow does not take what it is told; 0: it has caught up."""

    points: int  # epochs and ends of trials that it lacks


@dataclass(frozen=True, slots=True)
class EpochDone:
    """A trial reported an epoch; `stop` is the pruner's verdict."""

    progress: Progress
    stop: bool
    at: float


@dataclass(frozen=True, slots=True)
class TrialPaused:
    """A trial waits at a rung; when it goes on, it is started again."""

    record: TrialRecord


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial ended, as the storage remembers it; `best` is the study's best trial number now."""

    record: TrialRecord
    best: int | None


@dataclass(frozen=True, slots=True)
class StudyEnded:
    """The loop ended: `reason` is "budget", "timeout", "exhausted", "interrupted", or "" where that is not known."""

    reason: str
    best: TrialRecord | None
    default: TrialRecord | None  # trial 0, the default recipe
    artifacts: Sequence[str] = ()  # files that belong to the study: report, resolved spec, best weights
    scores: Mapping[str, float] = field(default_factory=dict)  # what was proven beside the search, by name
    winner: int | None = None  # the trial that stood up best when trained again


Event: TypeAlias = (
    ComparisonStarted
    | ComparisonEnded
    | StudyStarted
    | StageStarted
    | WorkerReady
    | TrialStarted
    | EpochDone
    | TrialAgain
    | Notice
    | BudgetRaised
    | LoopSpent
    | TrackingBehind
    | TrialPaused
    | TrialEnded
    | StudyEnded
)
