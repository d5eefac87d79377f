"""What a person sees in the terminal: a live table, or one line per trial when output is piped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hpsearch.core.text import harmless
from hpsearch.types import (
    OBJECTIVES,
    SIGNS,
    BudgetRaised,
    EpochDone,
    Event,
    Notice,
    Params,
    Progress,
    StageStarted,
    Status,
    StudyEnded,
    StudyStarted,
    TrackingBehind,
    Trial,
    TrialAgain,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialStarted,
    WorkerReady,
    best_record,
)

SHORT = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "epochs": "epochs",
    "weight_decay": "decay",
    "dropout": "drop",
    "frozen_layers": "frozen",
}
COLOURS = {
    Status.WAITING: "dim",
    Status.PAUSED: "dim",
    Status.COMPLETE: "green",
    Status.PRUNED: "yellow",
    Status.FAILED: "red",
    Status.RUNNING: "cyan",
}
SHOWN = 12  # trials in the live table
SOON = 2.0  # seconds within which a step needs no announcement of its progress
NEWS = ("Data: ", "Sampler: ", "Model: ", "Study: ", "Weights: ", "Warm start", "Portfolio: ")  # what is worth keeping on the screen


class SafeConsole(Console):
    """A console whose texts do nothing to the terminal but what their style says."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yields segments as `Console.render` does, with what is unsafe in their texts escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def brief(value: object) -> str:
    """A hyperparameter in at most seven characters."""
    if isinstance(value, float):
        return f"{value:.1e}".replace("e-0", "e-") if 0 < abs(value) < 0.01 else f"{value:.3g}"
    return str(value)


def settings(params: Params) -> str:
    """A configuration on one line."""
    return " ".join(f"{SHORT.get(k, k)}={brief(v)}" for k, v in params.items())


def percent(metrics: Mapping[str, float], key: str = "accuracy") -> str:
    """A share as a percentage, or a dash."""
    return f"{100 * metrics[key]:.1f}" if key in metrics else "-"


class Board:
    """What both forms of output know of the study."""

    def __init__(self) -> None:
        self.study, self.budget, self.workers, self.sampler = "", 0, 0, ""
        self.begun = time.monotonic()
        self.running: dict[int, tuple[Trial, Progress | None]] = {}
        self.ended: list[TrialRecord] = []
        self.paused: set[int] = set()
        self.best: TrialRecord | None = None
        self.facts: Mapping[str, Any] = {}
        self.stage, self.stage_runs = "", 0  # beside the search
        self.beside: list[TrialRecord] = []  # ended runs of the stage
        self.behind = 0  # epochs and ends of trials that MLflow lacks, while it does not answer

    def note(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case StudyStarted(study, _, spec, records, budget, workers):
                self.study, self.budget, self.workers = study, budget, workers
                self.running, self.ended, self.paused, self.best = {}, [], set(), None  # studies of a comparison follow one another
                self.sampler = f"{spec['sampler']}, pruner {spec['pruner']['name']}"
                for record in records:
                    if record.status.ended:
                        self.end(record)
                    elif record.status is Status.PAUSED:
                        self.paused.add(record.number)
            case WorkerReady(_, facts):
                self.facts = facts
            case StageStarted(title, runs):
                self.stage, self.stage_runs, self.beside = title, runs, []
            case TrialStarted(trial, _):
                self.running[trial.number] = (trial, None)
                self.paused.discard(trial.number)
            case EpochDone(progress, _, _):
                self.running[progress.trial] = (self.running[progress.trial][0], progress)
            case TrialAgain(trial):
                self.running.pop(trial.number, None)
            case TrialPaused(record):
                self.running.pop(record.number, None)
                self.paused.add(record.number)
            case TrialEnded(record, _):
                self.running.pop(record.number, None)
                self.paused.discard(record.number)
                if record.setup is None:
                    self.end(record)
                else:
                    self.beside.append(record)
            case BudgetRaised(budget):
                self.budget = budget
            case TrackingBehind(points):
                self.behind = points
            case StudyEnded():
                self.running.clear()

    def end(self, record: TrialRecord) -> None:
        """Count an ended trial."""
        self.ended.append(record)
        self.best = best_record([record, *([self.best] if self.best else [])])

    def lag(self) -> str:
        """How far MLflow is behind."""
        return f"tracking behind by {self.behind:,}: MLflow does not answer; the study goes on, and tracking catches up once it does"

    def headline(self) -> str:
        """Where the study stands, in a line."""
        fates = {s: sum(r.status is s for r in self.ended) for s in (Status.COMPLETE, Status.PRUNED, Status.FAILED)}
        fates[Status.PAUSED] = len(self.paused)
        counts = ", ".join(f"{n} {s.value.lower()}" for s, n in fates.items() if n)
        stage = f"; {self.stage}: {len(self.beside)}/{self.stage_runs}" if self.stage else ""
        return f"{len(self.ended)}/{self.budget} trials" + (f" ({counts})" if counts else "") + stage


def score(record: TrialRecord) -> str:
    """A trial's result on a line: the objective first, then validation loss and accuracy where they are not it."""
    beside = ("accuracy", "f1") if record.objective == "val_loss" else ("accuracy",)
    known = {"val_loss": record.val_loss, **{key: record.metrics.get(key) for key in beside}}
    shown = {record.objective: record.score, **known}
    return "  ".join(f"{key} {shown_value(key, value)}" for key, value in shown.items() if value is not None)


def shown_value(metric: str, value: float | None) -> str:
    """A loss with four digits, a share as a percentage, a value of another program as it is."""
    if value is None:
        return "-"
    if metric not in OBJECTIVES and metric in SIGNS:
        return f"{value:.6g}"
    return f"{value:.4f}" if metric == "val_loss" else f"{100 * value:.1f} %"


def task(facts: Mapping[str, Any]) -> str:
    """What is being trained on what, in a line."""
    images = "/".join(str(facts.get(f"{part}_images", "?")) for part in ("train", "val", "test"))
    models = facts.get("models") or {facts.get("model"): facts}
    model = ", ".join(f"{name} ({about.get('parameters', 0):,} parameters)" for name, about in models.items())
    where = " in ".join(str(facts[key]) for key in ("device", "precision") if key in facts)
    slots = facts.get("trials_per_device", 1)
    return f"{model} on {facts.get('data')}: {images} train/val/test images, {where}{f', {slots} trials at once' if slots > 1 else ''}"


class Lines:
    """One line per event worth one: for pipes, logs and CI."""

    def __init__(self, console: Console) -> None:
        self.console, self.board = console, Board()
        self.step = ("", 0.0, 0)  # what is being done, since when, and the quarter of it that was told

    def say(self, text: str, done: int = 0, total: int = 0) -> None:
        """Announce a step; where its progress is known, only once it has taken a while, and then every quarter."""
        if total:
            step, begun, told = self.step
            quarter = 4 * done // total
            if step != text:
                self.step = (text, time.monotonic(), 0)
            if step != text or quarter <= told or time.monotonic() - begun < SOON:
                return
            self.step = (text, begun, quarter)
            text = f"{text}: {done:,} of {total:,}"
        with suppress(OSError):  # whoever read this may be gone; the study goes on
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def record(self, event: Event) -> None:
        """Print what the event is worth."""
        first_facts = isinstance(event, WorkerReady) and not self.board.facts
        behind = self.board.behind
        self.board.note(event)
        match event:
            case TrackingBehind(points) if not points:
                self.say("tracking has caught up")
            case TrackingBehind() if not behind:
                self.say(self.board.lag())
            case StudyStarted():
                self.say(f"Study {self.board.study}: {self.board.headline()}, sampler {self.board.sampler}, {self.board.workers} workers")
            case WorkerReady() if first_facts:
                self.say(task(self.board.facts))
            case StageStarted(title, runs):
                self.say(f"{title}: {runs} run{'s' * (runs != 1)}")
            case TrialEnded(record, best):
                self.say(self.line(record, best))
            case BudgetRaised(budget):
                self.say(f"More trials were asked for: the study goes on to {budget:,}")
            case TrialAgain() | Notice():
                self.say(news(event))

    def line(self, record: TrialRecord, best: int | None) -> str:
        """One ended trial."""
        loss = score(record) if record.val_loss is not None else record.error or ""
        star = "  best" if best == record.number and record.status is Status.COMPLETE else ""
        lead = f"  {record.origin}" if record.origin in ("warm", "portfolio") else ""
        done, total = len(self.board.ended), self.board.budget
        if record.setup is not None:
            done, total = len(self.board.beside), self.board.stage_runs
        head = f"[{done}/{total}] {label(record)} {record.status.value.lower()}"
        remark = f"\n      Warning: {record.remark}" if record.remark else ""
        return f"{head} {loss} {record.seconds:.1f} s  {settings(record.params)}{lead}{star}{remark}"

    def close(self) -> None:
        """Nothing is open."""


class LiveTable:
    """A table that updates in place."""

    def __init__(self, console: Console) -> None:
        self.console, self.board = console, Board()
        self.doing, self.done, self.total = "Starting", 0, 0
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=5, transient=False)
        self.live.start()

    def say(self, text: str, done: int = 0, total: int = 0) -> None:
        """Announce a long step under the table; what is no step but news stays above it."""
        if text.startswith(NEWS):
            self.live.console.print(text, highlight=False, markup=False)
        else:
            self.doing, self.done, self.total = text, done, total

    def record(self, event: Event) -> None:
        """Take note; the table redraws itself five times a second."""
        self.board.note(event)
        if isinstance(event, WorkerReady):
            self.doing = ""
        if isinstance(event, TrialAgain | Notice):
            self.live.console.print(news(event), highlight=False, markup=False)
        elif isinstance(event, TrialEnded) and event.record.remark:
            self.live.console.print(f"{label(event.record)}: {event.record.remark}", style="bold red", highlight=False, markup=False)

    def close(self) -> None:
        """Leave the last table standing."""
        if self.live.is_started:
            self.doing = ""
            with suppress(OSError):
                self.live.stop()

    def render(self) -> Group:
        """Everything on the screen."""
        board = self.board
        elapsed = time.monotonic() - board.begun
        head = Text(f"{board.study or 'hpsearch'}  {board.headline() if board.budget else ''}  {elapsed:.0f} s", style="bold")
        if board.sampler:
            head.append(f"  {board.sampler}", style="not bold dim")
        parts: list[Any] = [head]
        if board.facts:
            parts.append(Text(task(board.facts), style="dim"))
        if board.running or board.ended:
            parts.append(self.table())
        if board.best is not None:
            parts.append(Text(f"best: trial {board.best.number}  {score(board.best)}", style="green"))
        if board.behind:
            parts.append(Text(board.lag(), style="yellow"))
        return Group(*parts, *self.step())

    def step(self) -> list[Any]:
        """The long step that is being done, if any."""
        if self.doing and self.total:
            told = Text(f"{self.doing}: {self.done:,} of {self.total:,}")
            return [told, ProgressBar(total=self.total, completed=self.done, width=40)]
        return [Spinner("dots", text=Text(self.doing))] if self.doing else []

    def table(self, ended: int = SHOWN) -> Table:
        """Running trials, then the latest ended ones."""
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        for title in ("trial", "state", "epoch", "val_loss", "acc %", *columns()):
            table.add_column(title, justify="left" if title == "state" else "right", no_wrap=True)
        for _, (trial, progress) in sorted(self.board.running.items()):
            at = f"{progress.epoch if progress else 0}/{trial.params.get('epochs', '?')}"
            loss = f"{progress.val_loss:.4f}" if progress else ""
            accuracy = percent(progress.metrics) if progress else ""
            table.add_row(label(trial, short=True), "running", at, loss, accuracy, *values(trial.params), style=COLOURS[Status.RUNNING])
        for record in reversed([*self.board.ended, *self.board.beside][-ended:]):
            at = f"{len(record.curve)}/{record.params.get('epochs', '?')}"
            loss = f"{record.val_loss:.4f}" if record.val_loss is not None else "-"
            state = Text("best" if self.board.best is record else record.status.value.lower(), style=COLOURS[record.status])
            table.add_row(label(record, short=True), state, at, loss, percent(record.metrics), *values(record.params))
        return table


def news(event: TrialAgain | Notice) -> str:
    """What a person should read above the table."""
    return event.text if isinstance(event, Notice) else f"{event.reason}: {label(event.trial)} goes on, attempt {event.trial.attempt}"


def label(trial: Trial | TrialRecord, short: bool = False) -> str:
    """What a trial, or a run beside the search, is called."""
    if trial.setup is not None:
        return trial.setup.name
    return str(trial.number) if short else f"trial {trial.number}"


def columns() -> list[str]:
    """Headings of the hyperparameters in the table; epochs stand with the epoch reached."""
    return [title for name, title in SHORT.items() if name != "epochs"]


def values(params: Params) -> list[str]:
    """A configuration under `columns`."""
    return [brief(params.get(name, "")) for name in SHORT if name != "epochs"]
