"""A trial's rows in Optuna's tables, written in one transaction each for its start and its end.

Optuna's own calls make one transaction per report and attribute, 35 to 45 ms of processor time for a trial with ten reports,
taken from training on the same cores; this takes 2 to 3. It relies on the tables of Optuna 5 (`pyproject.toml` holds it
there); `tests/search/test_rows.py` compares it with Optuna's calls, value for value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Table, delete, func, insert, select, update

TRIALS: Table = models.TrialModel.__table__
PARAMS: Table = models.TrialParamModel.__table__
VALUES: Table = models.TrialValueModel.__table__
REPORTS: Table = models.TrialIntermediateValueModel.__table__
USER: Table = models.TrialUserAttributeModel.__table__
SYSTEM: Table = models.TrialSystemAttributeModel.__table__
SHARED: Table = models.StudySystemAttributeModel.__table__


class ForeignTrial(RuntimeError):
    """Another program added trials to the study."""


def count(storage: RDBStorage, study_id: int) -> int:
    """How many trials a study has; Optuna's own call reads them all."""
    with storage.engine.begin() as db:
        return int(db.execute(select(func.count()).where(TRIALS.c.study_id == study_id)).scalar_one())


def start(storage: RDBStorage, study_id: int, trial: FrozenTrial, shared: Mapping[str, Any]) -> int:
    """Insert a running trial with its parameters and attributes, and the study's system attributes; the trial's id.

    Raises ForeignTrial when its number is taken. May be called again when nobody knows whether it was stored, as after a server's restart.
    """
    with storage.engine.begin() as db:
        if (stored := find(db, study_id, trial)) is not None:
            return stored
        taken = db.execute(select(func.count()).where(TRIALS.c.study_id == study_id)).scalar_one()
        if taken != trial.number:
            raise ForeignTrial(f"the storage holds {taken} trials of this study where {trial.number} were expected")
        row = {"study_id": study_id, "number": trial.number, "state": TrialState.RUNNING, "datetime_start": trial.datetime_start}
        result = db.execute(insert(TRIALS).values(**row))
        assert result.inserted_primary_key is not None
        trial_id: int = result.inserted_primary_key[0]
        put(db, PARAMS, (parameter(trial_id, trial, name) for name in trial.params))
        attributes(db, USER, trial_id, trial.user_attrs)
        attributes(db, SYSTEM, trial_id, trial.system_attrs)
        attributes(db, SHARED, study_id, shared, owner="study_id")
    return trial_id


def find(db: Connection, study_id: int, trial: FrozenTrial) -> int | None:
    """The id of this very trial, if it is stored: of that number, begun at the same moment (of which some databases keep the second)."""
    where = (TRIALS.c.study_id == study_id) & (TRIALS.c.number == trial.number)
    row = db.execute(select(TRIALS.c.trial_id, TRIALS.c.datetime_start).where(where)).first()
    if row is None or trial.datetime_start is None or row.datetime_start is None:
        return None
    if abs((row.datetime_start - trial.datetime_start).total_seconds()) > 1.0:
        return None
    stored = dict(db.execute(select(USER.c.key, USER.c.value_json).where(USER.c.trial_id == row.trial_id)).all())
    mine = {key: json.dumps(value) for key, value in trial.user_attrs.items()}
    return int(row.trial_id) if stored == mine else None


def reopen(storage: RDBStorage, trial_id: int, trial: FrozenTrial) -> None:
    """Set an interrupted trial running again, without the reports of its earlier attempt."""
    with storage.engine.begin() as db:
        db.execute(delete(REPORTS).where(REPORTS.c.trial_id == trial_id))
        stored = {row[0] for row in db.execute(select(PARAMS.c.param_name).where(PARAMS.c.trial_id == trial_id))}
        put(db, PARAMS, (parameter(trial_id, trial, name) for name in trial.params if name not in stored))  # none of an enqueued one
        attributes(db, USER, trial_id, trial.user_attrs)
        db.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(state=TrialState.RUNNING, datetime_start=datetime.now()))


def end(storage: RDBStorage, trial_id: int, trial: FrozenTrial) -> None:
    """Write an ended trial's reports, attributes, values and state: all of it or nothing."""
    with storage.engine.begin() as db:
        db.execute(delete(REPORTS).where(REPORTS.c.trial_id == trial_id))
        put(db, REPORTS, (report(trial_id, step, value) for step, value in trial.intermediate_values.items()))
        attributes(db, USER, trial_id, trial.user_attrs)
        attributes(db, SYSTEM, trial_id, trial.system_attrs)
        db.execute(delete(VALUES).where(VALUES.c.trial_id == trial_id))
        for objective, value in enumerate(trial.values or ()):
            number, kind = models.TrialValueModel.value_to_stored_repr(value)
            put(db, VALUES, [{"trial_id": trial_id, "objective": objective, "value": number, "value_type": kind}])
        db.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(state=trial.state, datetime_complete=trial.datetime_complete))


def pause(storage: RDBStorage, trial_id: int, trial: FrozenTrial) -> None:
    """Write what a trial that waits at a rung has come to, and mark it as waiting."""
    with storage.engine.begin() as db:
        db.execute(delete(REPORTS).where(REPORTS.c.trial_id == trial_id))
        put(db, REPORTS, (report(trial_id, step, value) for step, value in trial.intermediate_values.items()))
        attributes(db, USER, trial_id, trial.user_attrs)
        db.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(state=TrialState.WAITING))


def requeue(storage: RDBStorage, trial_id: int) -> None:
    """Mark an interrupted trial as waiting."""
    with storage.engine.begin() as db:
        db.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(state=TrialState.WAITING))


def parameter(trial_id: int, trial: FrozenTrial, name: str) -> dict[str, Any]:
    """One parameter's row."""
    distribution = trial.distributions[name]
    return {
        "trial_id": trial_id,
        "param_name": name,
        "param_value": distribution.to_internal_repr(trial.params[name]),
        "distribution_json": distribution_to_json(distribution),
    }


def report(trial_id: int, step: int, value: float) -> dict[str, Any]:
    """One intermediate value's row."""
    number, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"trial_id": trial_id, "step": step, "intermediate_value": number, "intermediate_value_type": kind}


def attributes(db: Connection, table: Table, of: int, values: Mapping[str, Any], owner: str = "trial_id") -> None:
    """Replace attributes of a trial or study by key."""
    if values:
        db.execute(delete(table).where(table.c[owner] == of, table.c.key.in_(list(values))))
        put(db, table, ({owner: of, "key": key, "value_json": json.dumps(value)} for key, value in values.items()))


def put(db: Connection, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    """Insert rows, if any, in one statement."""
    listed = list(rows)
    if listed:
        db.execute(insert(table), listed)
