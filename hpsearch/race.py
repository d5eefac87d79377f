"""What a person sees while samplers are compared: where each stands, and the study that is being run."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hpsearch.terminal import Lines, LiveTable, label, score, settings, shown_value, task
from hpsearch.types import ComparisonStarted, Event, StudyEnded, StudyStarted, TrialEnded, TrialRecord, best_record


class Race:
    """What both forms of output know of a comparison."""

    def __init__(self) -> None:
        self.asked: ComparisonStarted | None = None
        self.at = ("", 0)  # sampler and repeat of the study that is being run
        self.ended: dict[tuple[str, int], list[TrialRecord]] = {}

    def note(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case ComparisonStarted():
                self.asked = event
                self.ended = {at: [r for r in records if r.status.ended] for at, records in event.done.items()}
            case StudyStarted():
                self.at = (str(event.spec["sampler"]), int(event.spec.get("repeat", 0)))
                self.ended[self.at] = [r for r in event.records if r.status.ended]
            case TrialEnded(record, _):
                self.ended.setdefault(self.at, []).append(record)

    def best(self, sampler: str, repeat: int) -> TrialRecord | None:
        """The best trial so far of a sampler in one repeat."""
        return best_record(self.ended.get((sampler, repeat), ()))

    def counts(self) -> str:
        """How far all studies together have come."""
        trials = [record for records in self.ended.values() for record in records]
        reused = sum(bool(record.reused) for record in trials)
        of = f"/{self.asked.trials:,}" if self.asked and self.asked.trials else ""
        return f"{len(trials):,}{of} trials" + (f" ({reused:,} reused)" if reused else "")

    def place(self) -> str:
        """The study that is being run."""
        return f"repeat {self.at[1]} of {self.asked.repeats if self.asked else '?'}, {self.at[0]}"

    def budget(self) -> str:
        """What each study may take."""
        if self.asked is None:
            return ""
        per = f"{self.asked.seconds:g} s of training" if math.isfinite(self.asked.seconds) else f"{self.asked.trials:,} trials in all"
        return f"{', '.join(self.asked.samplers)}; {self.asked.repeats} repeats, {per}"


class RaceLines(Lines):
    """One line per event worth one."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.race = Race()

    def record(self, event: Event) -> None:
        """Print what the event is worth."""
        self.race.note(event)
        match event:
            case ComparisonStarted():
                self.say(f"Comparison {event.name}: {self.race.budget()}; {self.race.counts()} so far")
            case StudyStarted():
                self.board.note(event)
                self.say(f"Study {event.study}: {self.race.place()}, {self.board.headline()}")
            case StudyEnded():
                self.board.note(event)
                if event.best is not None:
                    self.say(f"{self.race.place()}: best trial {event.best.number}  {score(event.best)}")
            case _:
                super().record(event)

    def line(self, record: TrialRecord, best: int | None) -> str:
        """One ended trial, counted among those of all studies."""
        result = score(record) if record.val_loss is not None else record.error or ""
        star = "  best" if best == record.number else ""
        reused = ", reused" if record.reused else ""
        head = f"[{self.race.counts().split(' ')[0]}] {self.race.at[0]} r{self.race.at[1]} {label(record)} {record.status.value.lower()}"
        return f"{head}{reused} {result} {record.seconds:.1f} s  {settings(record.params)}{star}"


class RaceTable(LiveTable):
    """A table that updates in place: the samplers, then the trials of the study that is being run."""

    def __init__(self, console: Console) -> None:
        self.race = Race()
        super().__init__(console)

    def record(self, event: Event) -> None:
        """Take note; the table redraws itself five times a second."""
        self.race.note(event)
        if not isinstance(event, ComparisonStarted):
            super().record(event)

    def render(self) -> Group:
        """Everything on the screen."""
        asked, board = self.race.asked, self.board
        if asked is None:
            return super().render()
        elapsed = time.monotonic() - board.begun
        parts: list[Any] = [Text(f"{asked.name}  {self.race.counts()}  {elapsed:.0f} s", style="bold")]
        if self.race.at[1]:
            parts.append(Text(self.race.place(), style="bold"))
        if board.facts:
            parts.append(Text(task(board.facts), style="dim"))
        if self.race.at[1]:
            parts.append(self.standings(asked))
        if board.running or board.ended:
            parts.append(self.table(6))
        return Group(*parts, *self.step())

    def standings(self, asked: ComparisonStarted) -> Table:
        """Where each sampler stands in this repeat, which is where they are compared, and in those before."""
        table, repeat = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), self.race.at[1]
        first, *_ = [r.objective for records in self.race.ended.values() for r in records] or ["val_loss"]
        for title in ("sampler", f"trials, repeat {repeat}", f"best {first}", "at trial", "first in repeats"):
            table.add_column(title, justify="left" if title == "sampler" else "right", no_wrap=True)
        for sampler in asked.samplers:
            best = self.race.best(sampler, repeat)
            ended = len(self.race.ended.get((sampler, repeat), ()))
            value, at = ("-", "-") if best is None else (shown_value(best.objective, best.score), str(best.number))
            style = "cyan" if sampler == self.race.at[0] else ""
            table.add_row(sampler, str(ended), value, at, str(self.wins(asked, sampler, repeat)), style=style)
        return table

    def wins(self, asked: ComparisonStarted, sampler: str, repeat: int) -> int:
        """In how many of the earlier repeats a sampler found the best value."""
        found = 0
        for earlier in range(1, repeat):
            costs = {s: best.cost for s in asked.samplers if (best := self.race.best(s, earlier)) is not None}
            found += sampler in costs and costs[sampler] == min(costs.values())
        return found
