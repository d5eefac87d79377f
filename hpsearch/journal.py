"""A study's events as lines of JSON in its folder, for whoever watches: `hpsearch serve`, or `tail -f`. The truth is the storage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpsearch.types import (
    BudgetRaised,
    ComparisonEnded,
    ComparisonStarted,
    EpochDone,
    Event,
    LoopSpent,
    Notice,
    StageStarted,
    StudyEnded,
    StudyStarted,
    TrackingBehind,
    TrialAgain,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialStarted,
    WorkerReady,
    finite_json,
    trial_name,
)

EVENTS = "events.jsonl"
MOST = 1 << 16  # bytes that are read at once
RECENT = 1 << 18  # bytes: a thousand epochs


class Journal:
    """Writes events as they happen, each in one call, so that a kill leaves at most half of the last line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS
        self.descriptor: int | None = None  # opened by the first event: a study that is refused leaves nothing

    def record(self, event: Event) -> None:
        """Append the event; where the disk is full it is left out, and the study goes on."""
        row = row_of(event)
        if row is not None:
            self.write(row)
        if isinstance(event, StudyStarted):  # a kill may have come between the storage and this file
            told = self.told()
            for record in event.records:
                if record.status.ended and record.number not in told:
                    self.write({"event": "ended", "best": None, **ended(record)})

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        line = f"{json.dumps(finite_json({'at': time.time(), **row}), separators=(',', ':'))}\n"
        with suppress(OSError):
            if self.descriptor is not None and not os.fstat(self.descriptor).st_nlink:  # somebody has deleted it
                self.close()
            if self.descriptor is None:
                self.descriptor = self.open()
            os.write(self.descriptor, line.encode())

    def told(self) -> set[int]:
        """The trials whose end stands in the file."""
        found = set()
        with suppress(OSError), self.path.open("rb") as file:
            for line in file:
                if b'"event":"ended"' in line:
                    with suppress(ValueError, KeyError, TypeError):
                        found.add(int(json.loads(line)["trial"]))
        return found

    def open(self) -> int:
        """The file, at the beginning of a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # whoever wrote it was killed
            os.write(descriptor, b"\n")
        return descriptor

    def close(self) -> None:
        """Close the file."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Digest(Journal):
    """Of a comparison: its studies, and the ends of their trials. Each study has a journal of its own."""

    study = ""

    def record(self, event: Event) -> None:
        """Append what is worth a line."""
        match event:
            case ComparisonStarted(name, samplers, repeats, trials):
                self.write({"event": "session", "study": name, "budget": trials, "samplers": samplers, "repeats": repeats})
            case StudyStarted(study):
                self.study = study
                self.write({"event": "study", "study": study})
            case TrialEnded(record, best):
                self.write({"event": "ended", "study": self.study, "best": best, **ended(record)})
            case ComparisonEnded(_, verdict):
                self.write({"event": "over", "reason": "compared", "verdict": list(verdict)})
            case TrialAgain() | Notice() | TrackingBehind():
                self.write({**(row_of(event) or {}), "study": self.study})


def row_of(event: Event) -> dict[str, Any] | None:
    """An event as it stands in the file; None for what nobody watches."""
    match event:
        case StudyStarted(study, _, spec, records, budget, workers):
            return {
                "event": "session",
                "study": study,
                "trials": len(records),
                "budget": budget,
                "workers": workers,
                "objective": spec.get("objective"),
            }
        case StageStarted(title, runs):
            return {"event": "stage", "text": title, "runs": runs}
        case WorkerReady(worker, facts):
            about = {key: facts[key] for key in ("device", "precision", "trials_per_device") if key in facts}
            return {"event": "worker", "worker": worker, **about}
        case TrialStarted(trial, at):
            return {"event": "trial", "trial": trial.number, "name": trial.name, "at": at, "attempt": trial.attempt, "params": trial.params}
        case EpochDone(progress, stop, at):
            return {"event": "epoch", "trial": progress.trial, "at": at, "epochs": progress.epochs, "stop": stop, **progress.row()}
        case TrialAgain(trial, reason):
            return {"event": "again", "trial": trial.number, "attempt": trial.attempt, "text": reason}
        case Notice(text):
            return {"event": "notice", "text": text}
        case TrackingBehind(points):
            return {"event": "tracking", "behind": points}
        case BudgetRaised(budget):
            return {"event": "budget", "budget": budget}
        case LoopSpent(seconds, trials):
            return {"event": "loop", "seconds": seconds, "trials": trials}
        case TrialPaused(record):
            return {"event": "paused", **ended(record)}
        case TrialEnded(record, best):
            return {"event": "ended", "best": best, **ended(record)}
        case StudyEnded(reason, best):
            return {"event": "over", "reason": reason, "best": best.number if best else None}
    return None


def ended(record: TrialRecord) -> dict[str, Any]:
    """How a trial ended."""
    return {
        "trial": record.number,
        "name": trial_name(record.number) if record.setup is None else record.setup.name,
        "status": record.status.value,
        "score": record.score,
        "val_loss": record.val_loss,
        "accuracy": record.metrics.get("accuracy"),
        "seconds": record.seconds,
        "error": record.error,
    }


def recent(folder: Path) -> int:
    """A place in the file from which on what is under way is told."""
    try:
        return max(0, (folder / EVENTS).stat().st_size - RECENT)
    except OSError:
        return 0


def read_events(folder: Path, offset: int = 0) -> tuple[list[tuple[int, Mapping[str, Any]]], int]:
    """Events from a place in the file on, each with the place after it, and the place to read from next; halves of lines wait."""
    try:
        with (folder / EVENTS).open("rb") as file:
            if offset > os.fstat(file.fileno()).st_size:  # another file than the reader knew
                offset = 0
            file.seek(offset)
            text = file.read(MOST)
            while text and b"\n" not in text and (more := file.read(MOST)):  # a line longer than that
                text += more
    except OSError:
        return [], offset
    found: list[tuple[int, Mapping[str, Any]]] = []
    for line in text.split(b"\n")[:-1]:
        offset += len(line) + 1
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append((offset, row))
    return found, offset
