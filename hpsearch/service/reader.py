"""What the service tells of studies, read from storage and queue as any other reader would, and kept for a moment: many watch one."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hpsearch.compared import members
from hpsearch.diagnosis import diagnoses
from hpsearch.errors import FixSetup, NotFound
from hpsearch.leftovers import locked
from hpsearch.names import check_name
from hpsearch.places import Place, winning
from hpsearch.proof import explain_winner, winner_of
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.catalog import read_study, study_names
from hpsearch.search.glance import Glance, glances, together
from hpsearch.search.queue import Entry, Queue
from hpsearch.search.store import open_storage
from hpsearch.types import OBJECTIVES, SIGNS, StoredStudy, TrialRecord, finite_json

FRESH = 1.0  # seconds for which what was read is good enough, unless it was changed here
KEPT = 256  # things read that are kept
LISTS = ("overview", "html studies", "counts")  # read of all studies
SORTABLE = ("number", "status", "score", "val_loss", "seconds", "best_epoch", "started", "ended")
T = TypeVar("T")


class Reader:
    """Reads studies for many at once."""

    def __init__(self, queue: Queue, where: Place) -> None:
        self.queue, self.where = queue, where
        self.storage = open_storage(where.storage)
        self.memory: dict[str, tuple[float, Any]] = {}
        self.locks: dict[str, threading.Lock] = {}
        self.guard = threading.Lock()
        self.flights: dict[str, asyncio.Future[Any]] = {}
        self.states: dict[str, str] = {}  # of studies, as read last
        self.changes: Counter[str] = Counter()  # how often something of a study was forgotten; "": of any

    def close(self) -> None:
        """Close connections."""
        self.storage.engine.dispose()

    def once(self, key: str, read: Callable[[], T]) -> T:
        """What `read` gives, read at most once in FRESH seconds whoever asks."""
        with self.guard:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            at, value = self.memory.get(key, (-math.inf, None))
            if time.monotonic() - at > FRESH:
                subject = subject_of(key)
                changes = self.changes[subject]
                value = read()
                with self.guard:
                    self.memory.pop(key, None)  # the newest stand last
                    if changes == self.changes[subject]:  # else it may have been read before the change
                        self.memory[key] = (time.monotonic(), value)
                    for old in list(self.memory)[:-KEPT]:
                        del self.memory[old]
                    if len(self.locks) > 4 * KEPT:  # whoever holds one of them goes on with it
                        self.locks = {kept: lock for kept, lock in self.locks.items() if kept in self.memory}
            kept: T = value
        return kept

    def peek(self, key: str) -> Any:
        """What was read of late under that key; None for nothing."""
        at, value = self.memory.get(key, (-math.inf, None))
        return value if time.monotonic() - at <= FRESH else None

    async def shared(self, key: str, read: Callable[[], T]) -> T:
        """As `once`, for many requests at the same moment: one thread reads, and none where it is known."""
        if (known := self.peek(key)) is not None:
            kept: T = known
            return kept
        if key not in self.flights:
            flight = self.flights[key] = asyncio.ensure_future(asyncio.to_thread(self.once, key, read))
            flight.add_done_callback(lambda _: self.flights.pop(key, None))
        found: T = await asyncio.shield(self.flights[key])
        return found

    def forget(self, name: str) -> None:
        """Somebody has changed that study: what was read of it is old."""
        with self.guard:
            self.changes.update(("", name))
            for key in [key for key in self.memory if subject_of(key) in ("", name)]:
                del self.memory[key]

    def notice(self, name: str, state: str) -> None:
        """A study's state, as read now: what was read of it in another one is old."""
        if self.states.get(name) != state:
            self.states[name] = state
            self.forget(name)

    # ------------------------------------------------------------ studies

    def stored(self, name: str) -> StoredStudy:
        """A study as the storage has it; NotFound, or FixInput for a name that no study has."""
        check_name(name)
        return self.once(f"study {name}", lambda: self.read_stored(name))

    def read_stored(self, name: str) -> StoredStudy:
        """The same, read now."""
        try:
            return read_study(self.storage, name)
        except NotFound:
            entry = self.entry(name)
            if entry is None or not entry.compares:
                raise
        found = ", ".join(members(self.studies(), name)) or "of which none has begun"
        raise NotFound(f"'{name}' is a comparison: its trials are those of its studies, {found}")

    def studies(self) -> list[str]:
        """The names of all that the storage has."""
        return self.once("studies", lambda: study_names(self.storage))

    def folder(self, name: str) -> Path:
        """A study's folder."""
        return self.where.runs(name)

    def entry(self, name: str) -> Entry | None:
        """A study's row in the queue; None where it was run without."""
        check_name(name)
        try:
            return self.queue.latest(name)
        except NotFound:
            return None

    def overview(self) -> list[dict[str, Any]]:
        """All studies, newest first."""
        return self.once("overview", self.read_overview)

    def read_overview(self) -> list[dict[str, Any]]:
        """The same, read now."""
        entries = {entry.study: entry for entry in self.queue.all_latest()}
        known = glances(self.storage)
        rows = [self.row(name, entry, known.get(name), known) for name, entry in entries.items()]
        return rows + [self.row(name, None, glance) for name, glance in known.items() if name not in entries]

    def study(self, name: str) -> dict[str, Any]:
        """One study; NotFound where neither queue nor storage has it."""
        entry = self.entry(name)
        wanted = [name, *(members(self.studies(), name) if entry is not None and entry.compares else [])]
        known = glances(self.storage, wanted)
        glance = known.get(name)
        if entry is None and glance is None:
            self.stored(name)  # says which name is near
        row = self.row(name, entry, glance, known)
        try:
            stored = self.stored(name)
        except NotFound:
            nothing: dict[str, Any] = {"objective": None, "best": None, "default": None, "gain": None, "facts": {}, "warnings": []}
            return shown(row | nothing | {"spec": dict(entry.values) if entry else {}})
        return shown(row | about(stored))

    def row(self, name: str, entry: Entry | None, glance: Glance | None, known: Mapping[str, Glance] = {}) -> dict[str, Any]:
        """A study, or a comparison of those that are `known`, as a row of lists."""
        studies: list[str] = []
        if entry is not None and entry.compares:
            studies = members([*known], name)
            glance = together(name, [known[study] for study in studies], OBJECTIVES.get(str(entry.values.get("objective")).lower(), 1))
        counts = glance.counts if glance else {}
        state = entry.state if entry else self.state_elsewhere(name)
        ended = sum(counts.get(fate, 0) for fate in ("complete", "pruned", "failed"))
        best, default = (finite(glance.best), finite(glance.default)) if glance else (None, None)
        if glance is not None and glance.confirmed and not studies:
            winner = winner_of(self.stored(name))
            best = finite(winner.score) if winner else None
        return {
            "study": name,
            "state": state,
            "wanted": entry.wanted if entry else None,
            "note": entry.note if entry else "",
            "trials": entry.trials if entry else max(ended, sum(counts.values())),
            "ended": ended,
            "counts": counts,
            "best_score": best,
            "default_score": default,
            "priority": entry.priority if entry else 0,
            "share": entry.share if entry else "",
            "submitted": entry.submitted if entry else None,
            "started": entry.started if entry else None,
            "finished": entry.ended if entry else None,
            "studies": studies,
        }

    def state_elsewhere(self, name: str) -> str:
        """The state of a study that is not in the queue: run by a command at the moment, or at rest."""
        try:
            return "running" if locked(self.folder(name)) else "stored"
        except Exception:  # a name that is no folder's: another program made it
            return "stored"

    # ------------------------------------------------------------ trials

    def trials(self, name: str, status: str | None, sort: str, descending: bool, offset: int, limit: int) -> dict[str, Any]:
        """A page of a study's trials."""
        records = [r for r in self.stored(name).records if status is None or r.status.value == status]
        missing = [r for r in records if getattr(r, sort) is None]
        there = sorted((r for r in records if getattr(r, sort) is not None), key=lambda r: (getattr(r, sort), r.number), reverse=descending)
        shown = [*there, *missing][offset : offset + limit]
        page: dict[str, Any] = finite_json({"total": len(records), "offset": offset, "trials": [trial_row(r) for r in shown]})
        return page

    def trial(self, name: str, number: int) -> tuple[StoredStudy, TrialRecord]:
        """One trial; NotFound when there is none of that number."""
        stored = self.stored(name)
        record = next((r for r in stored.records if r.number == number), None)
        if record is None:
            raise NotFound(f"'{name}' has no trial {number}: it has {len(stored.records):,}, numbered from 0")
        return stored, record

    def weights(self, name: str) -> Path:
        """The file of the winner's weights, in the study's folder; NotFound or FixSetup."""
        record = winning(self.stored(name))
        path = TrialFiles(self.folder(name)).find(record.checkpoint)
        if path is None:
            raise FixSetup(f"the weights of trial {record.number} of '{name}' are not in its folder any more")
        return path


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a study as JSON and pages take it."""
    found: dict[str, Any] = finite_json(row)
    return found


def subject_of(key: str) -> str:
    """The study that something was read of; "" for all of them."""
    return "" if key in LISTS else key.rpartition(" ")[2]


def about(stored: StoredStudy) -> dict[str, Any]:
    """What the storage knows of a study beside its numbers."""
    best, default = winner_of(stored), stored.default
    objective = str(stored.spec.get("objective", "val_loss"))
    said = diagnoses(stored.records)
    gain = None
    if best and default and best.score is not None and default.score is not None:
        gain = (default.score - best.score) * SIGNS.get(objective, 1)
    return {
        "objective": objective,
        "best": trial_row(best) | {"diagnosis": said.get(best.number), "chosen_by": explain_winner(stored)} if best else None,
        "best_score": finite(best.score) if best else None,
        "default": trial_row(default) if default else None,
        "gain": gain,
        "spec": dict(stored.spec),
        "facts": dict(stored.facts),
        "warnings": [f"{r.name}: {r.remark}" for r in stored.records if r.remark],
    }


def trial_row(record: TrialRecord) -> dict[str, Any]:
    """A trial without its curve."""
    return {
        "number": record.number,
        "status": record.status.value,
        "origin": record.origin,
        "attempt": record.attempt,
        "params": dict(record.params),
        "score": record.score,
        "val_loss": record.val_loss,
        "metrics": dict(record.metrics),
        "best_epoch": record.best_epoch,
        "epochs_done": len(record.curve),
        "seconds": record.seconds,
        "started": record.started,
        "ended": record.ended,
        "error": record.error,
        "remark": record.remark,
    }


def finite(value: float | None) -> float | None:
    """A number, or nothing."""
    return value if value is not None and math.isfinite(value) else None


def curves(stored: StoredStudy) -> Mapping[int, list[Mapping[str, float]]]:
    """The validation curve of every trial."""
    return {r.number: [{"epoch": row["epoch"], "val_loss": row["val_loss"]} for row in r.curve] for r in stored.records}
