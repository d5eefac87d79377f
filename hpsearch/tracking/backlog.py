"""What the mirror's process was told of a study, as short as it can be said: enough to write it anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hpsearch.types import (
    ComparisonEnded,
    EpochDone,
    Event,
    StudyEnded,
    StudyStarted,
    TrialAgain,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialStarted,
    WorkerReady,
)


class Backlog:
    """One study: how it started, its ended trials with the times of their epochs, every event of the others."""

    def __init__(self) -> None:
        self.started: StudyStarted | None = None
        self.ready: WorkerReady | None = None
        self.live: dict[int, list[Event]] = {}  # events of trials that have not ended
        self.ended: dict[int, TrialRecord] = {}  # in this session
        self.times: dict[int, tuple[float, ...]] = {}  # ended trials -> when their epochs were reached
        self.last: list[Event] = []  # how study and comparison ended

    def note(self, event: Event) -> None:
        """Keep what is needed of an event."""
        match event:
            case StudyStarted():
                self.started = event
            case WorkerReady():
                self.ready = event
            case TrialStarted(trial):
                self.live.setdefault(trial.number, []).append(event)
            case EpochDone(progress):
                self.live.setdefault(progress.trial, []).append(event)
            case TrialPaused(record):
                self.live.setdefault(record.number, []).append(event)
            case TrialAgain(trial):
                self.live.pop(trial.number, None)  # its epochs come again
            case TrialEnded(record):
                epochs = {e.progress.epoch: e.at for e in self.live.pop(record.number, []) if isinstance(e, EpochDone)}
                times = tuple(epochs.get(int(row["epoch"]), 0.0) for row in record.curve)
                self.ended[record.number] = record
                if all(times):
                    self.times[record.number] = times
            case StudyEnded() | ComparisonEnded():
                self.last.append(event)

    def events(self) -> Iterator[Event]:
        """The study told anew: trials that have ended are among what it started with."""
        if self.started is not None:
            search = {r.number: r for r in self.started.records} | {n: r for n, r in self.ended.items() if r.setup is None}
            beside = {r.number: r for r in self.started.beside} | {n: r for n, r in self.ended.items() if r.setup is not None}
            yield replace(self.started, records=tuple(search.values()), beside=tuple(beside.values()))
        if self.ready is not None:
            yield self.ready
        for events in list(self.live.values()):
            yield from events
        yield from self.last
