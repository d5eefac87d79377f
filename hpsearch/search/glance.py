"""All studies at a glance: a few queries for any number of studies, since lists are looked at all the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Table, func, select, true

STUDIES: Table = models.StudyModel.__table__
DIRECTIONS: Table = models.StudyDirectionModel.__table__
TRIALS: Table = models.TrialModel.__table__
ATTRIBUTES: Table = models.StudyUserAttributeModel.__table__
VALUES: Table = models.TrialValueModel.__table__
FATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.RUNNING: "running"}


@dataclass(frozen=True, slots=True)
class Glance:
    """A study in numbers."""

    study: str
    counts: dict[str, int]  # trials by fate: complete, pruned, failed, running, waiting
    best: float | None  # score of the best complete trial
    default: float | None  # of trial 0
    confirmed: bool = False  # whether its best trials have been trained again


def together(name: str, studies: Sequence[Glance], sign: int) -> Glance:
    """Several studies of one objective as one; `sign`: 1 where less is better."""
    counts: Counter[str] = Counter()
    for study in studies:
        counts.update(study.counts)
    found = [study.best for study in studies if study.best is not None]
    return Glance(name, dict(counts), min(found, key=lambda best: sign * best) if found else None, None)


def glances(storage: RDBStorage, names: Sequence[str] | None = None) -> dict[str, Glance]:
    """Studies by name, newest first; those of `names` that are there, or all."""
    with storage.engine.connect() as db:
        asked = select(STUDIES.c.study_id, STUDIES.c.study_name).order_by(STUDIES.c.study_id.desc())
        if names is not None:
            asked = asked.where(STUDIES.c.study_name.in_(list(names)))
        known = {row[0]: row[1] for row in db.execute(asked)}
        mine = TRIALS.c.study_id.in_(list(known)) if names is not None else true()  # databases take only so many values
        down = {number: way == StudyDirection.MINIMIZE for number, way in db.execute(select(DIRECTIONS.c.study_id, DIRECTIONS.c.direction))}
        fates = db.execute(select(TRIALS.c.study_id, TRIALS.c.state, func.count()).where(mine).group_by(TRIALS.c.study_id, TRIALS.c.state))
        counts: dict[int, dict[str, int]] = {number: {} for number in known}
        for number, state, count in fates:
            counts.setdefault(number, {})[FATES.get(state, "waiting")] = count
        ended = (
            select(TRIALS.c.study_id, func.min(VALUES.c.value), func.max(VALUES.c.value))
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(mine, TRIALS.c.state == TrialState.COMPLETE)
        )
        best = {number: low if down.get(number, True) else high for number, low, high in db.execute(ended.group_by(TRIALS.c.study_id))}
        first = ended.where(TRIALS.c.number == 0).group_by(TRIALS.c.study_id)
        default = {number: low for number, low, _ in db.execute(first)}
        again = select(ATTRIBUTES.c.study_id).distinct().where(ATTRIBUTES.c.key.like("hpsearch.run.confirm-%"))
        confirmed = {row[0] for row in db.execute(again)}
    return {
        name: Glance(name, counts[number], best.get(number), default.get(number), number in confirmed) for number, name in known.items()
    }
