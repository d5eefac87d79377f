"""The verbs that bring a study into MLflow afterwards: its runs from the storage, its model into the registry."""

from __future__ import annotations

from dataclasses import dataclass

from hpsearch import tracking
from hpsearch.actions import Place, ending, show
from hpsearch.errors import FixInput, FixSetup
from hpsearch.machine import study_lock
from hpsearch.types import Say, StoredStudy, StudyStarted, say_nothing


@dataclass(frozen=True, slots=True)
class Synced:
    """What the mirror holds now."""

    study: str
    trials: int
    beside: int  # runs beside the search


def sync(where: Place, name: str | None, say: Say = say_nothing) -> Synced:
    """Rebuild or complete a study's mirror from the storage; doing it twice changes nothing.

    Raises NotFound without the study, WaitOrStop while it is run, FixInput for one that is not hpsearch's, FixSetup when MLflow
    cannot be written.
    """
    assert where.tracking is not None
    stored = show(where, name)
    if not stored.uid:
        raise FixInput(f"the study '{stored.name}' in this storage was not made by hpsearch, so there is nothing to bring into MLflow")
    folder = where.runs(stored.name)
    folder.mkdir(parents=True, exist_ok=True)
    with study_lock([folder], stored.name):
        say(f"Bringing {stored.name} into MLflow", 0, 0)
        mirror = tracking.MlflowTracker(where.tracking, folder)
        try:
            mirror.record(StudyStarted(stored.name, stored.uid, stored.spec, stored.records, 0, 0, stored.facts, stored.runs))
            mirror.record(ending(stored, where, reason_of(stored)))
            mirror.close(patience=None)
        except BaseException:
            mirror.abandon()
            raise
    if mirror.problem:
        raise FixSetup(f"MLflow could not be written ({mirror.problem}): the whole story is in {folder / 'tracking.log'}")
    ended = sum(r.status.ended for r in stored.records)
    return Synced(stored.name, ended, sum(r.status.ended for r in stored.runs))


def reason_of(stored: StoredStudy) -> str:
    """Why a stored study ended, as far as its trials show it; "" where they do not."""
    if any(not r.status.ended for r in stored.records):
        return "interrupted"
    return "budget" if len(stored.records) >= int(stored.spec.get("trials", 0)) else ""
