"""What of a study Optuna has no column for, and the study's own row: our records in Optuna's tables, and back."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.core.text import cleaned
from hpsearch.core.trial_values import brief, is_metrics, is_params, trial_values
from hpsearch.errors import ChooseAnotherName, FixSetup
from hpsearch.faults import crash_point
from hpsearch.keeping import STUDY, record_from, write_durably
from hpsearch.recipes import CORE
from hpsearch.search.rows import count
from hpsearch.spec import StudySpec, comparable
from hpsearch.types import OBJECTIVES, Judged, Params, Status, TrialRecord, is_number

RECORD = "hpsearch"  # the user attribute that holds what Optuna has no column for
RUN = f"{RECORD}.run."  # begins the study attribute that holds a run beside the search
LAYOUT = 1  # of what RECORD and its neighbours hold; one more when an older hpsearch could no longer read it
LEFT_OUT = "what the storage holds of it beside Optuna's own columns is left out"  # begins the remark of a trial whose record is damaged
HEADSTART = "headstart"  # the key of RECORD that holds the trials that the study began with
OPENINGS = f"{RECORD}.openings"  # the study attribute that holds when the test split was looked at, and what was seen
KEPT = {field.name for field in fields(TrialRecord)} - {"status"}
STATES = {Status.COMPLETE: TrialState.COMPLETE, Status.PRUNED: TrialState.PRUNED, Status.FAILED: TrialState.FAIL}
STATUSES = {v: k for k, v in STATES.items()} | {TrialState.RUNNING: Status.RUNNING, TrialState.WAITING: Status.WAITING}


def open_study(storage: RDBStorage, spec: StudySpec) -> int:
    """The study's id in the storage, creating it; ChooseAnotherName when one of that name is another study."""
    name = spec.study_name()
    try:
        study_id = storage.get_study_id_from_name(name)
        if not count(storage, study_id) and storage.get_study_directions(study_id) != [direction_of(spec.objective)]:
            storage.delete_study(study_id)  # made by a command that failed before its first trial, with another objective
            raise KeyError
    except KeyError:
        study_id = storage.create_new_study([direction_of(spec.objective)], name)
        crash_point("study-half-made")
        storage.set_study_user_attr(
            study_id, RECORD, {"uid": uuid.uuid4().hex, "spec": spec.resolved(), "digest": spec.digest(), "layout": LAYOUT}
        )
        return study_id
    attributes = storage.get_study_user_attrs(study_id)
    if problem := fault_of_study(attributes):
        raise FixSetup(f"what the storage holds of the study '{name}' is damaged ({problem}): choose another --name, or `hpsearch doctor`")
    stored = attributes.get(RECORD)
    empty = not count(storage, study_id)
    if stored is None and not empty:
        raise ChooseAnotherName(f"the study '{name}' in this storage was not made by hpsearch: choose another --name")
    stored = stored or {}
    check_layout(name, stored)
    changes = differences(comparable(stored["spec"]), spec.identity()) if stored else []
    if empty and (not stored or changes):  # made by a command that failed before its first trial: nothing to mix up
        stored, changes = {"uid": uuid.uuid4().hex, "layout": LAYOUT}, []
    if empty:  # trials may have left results, but it begins as this command has it
        stored = {key: value for key, value in stored.items() if key != HEADSTART} | {"spec": spec.resolved()}
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise ChooseAnotherName(
            f"the study '{name}' exists and differs in what makes its trials comparable:\n{listed}\n"
            "choose another --name, or repeat the command as it was to continue that study"
        )
    resolved = proven_before(stored["spec"], spec.resolved())
    storage.set_study_user_attr(study_id, RECORD, stored | {"spec": resolved, "digest": spec.digest()})
    return study_id


def keep_study(storage: RDBStorage, name: str, folder: Path) -> None:
    """Write what the storage knows of a study, but for its trials, into its folder."""
    study_id = storage.get_study_id_from_name(name)
    kept = {
        "name": name,
        "directions": [direction.name for direction in storage.get_study_directions(study_id)],
        "user_attrs": storage.get_study_user_attrs(study_id),
        "system_attrs": storage.get_study_system_attrs(study_id),
    }
    write_durably(folder / STUDY, json.dumps(kept))


def kept_study(folder: Path) -> Mapping[str, Any] | None:
    """What `keep_study` wrote; None for a folder without it."""
    try:
        return load_study(folder)
    except (OSError, ValueError):
        return None


def load_study(folder: Path) -> Mapping[str, Any]:
    """What `keep_study` wrote; OSError, or ValueError with what is wrong with it."""
    try:
        kept = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(kept, dict):
        raise ValueError(f"it is a {type(kept).__name__}, not a mapping")
    for key, kind in (("name", str), ("directions", list), ("user_attrs", dict), ("system_attrs", dict)):
        if not isinstance(kept.get(key), kind):
            raise ValueError(f"its {key} is {brief(kept.get(key))}")
    if kept["directions"] not in [[direction.name] for direction in (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)]:
        raise ValueError(f"its directions are {brief(kept['directions'])}, not one of MINIMIZE and MAXIMIZE")
    problem = fault_of_study(kept["user_attrs"])
    if problem or not kept["user_attrs"].get(RECORD, {}).get("uid"):
        raise ValueError(problem or "it says of no study what it is")
    return kept


def fault_of_study(attributes: Mapping[str, Any]) -> str:
    """What is wrong with the record among a study's attributes; "" where it is one of ours, or there is none."""
    about = attributes.get(RECORD, {})
    if not isinstance(about, Mapping):
        return f"its record is a {type(about).__name__}, not a mapping"
    kinds = {"uid": str, "spec": Mapping, "facts": Mapping, "digest": str, "layout": int, HEADSTART: Mapping}
    wrong = next((key for key, kind in kinds.items() if key in about and not isinstance(about[key], kind)), None)
    if wrong:
        return f"its {wrong} is {brief(about[wrong])}"
    spec, start = about.get("spec", {}), about.get(HEADSTART, {"trials": [], "remarks": []})
    needed = {"space": Mapping, "pruner": Mapping, "sampler": str, "data": str}
    wrong = next((key for key, kind in needed.items() if about and not isinstance(spec.get(key), kind)), None)
    if wrong is None and not isinstance(spec.get("recipe", {}), Mapping):  # which studies had not at first
        wrong = "recipe"
    if wrong:
        return f"the {wrong} of its spec is {brief(spec.get(wrong))}"
    if about and (spec.get("objective") not in OBJECTIVES or not all(isinstance(entry, Mapping) for entry in spec["space"].values())):
        return "its spec is not that of a study"
    trials, remarks = start.get("trials"), start.get("remarks")
    if not isinstance(trials, list) or not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
        return "what it began with is no list"
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and is_params(pair[1]) for pair in trials):
        return "what it began with is no list of configurations"
    return ""


def openings_of(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The looks at the test split among a study's attributes; what hpsearch does not write is left out."""
    listed, found = attributes.get(OPENINGS, []), []
    for opening in listed if isinstance(listed, list) else []:
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            judged = [Judged.from_json(values) for values in opening["judged"]]
            if is_number(opening["at"]) and isinstance(opening["trial"], int) and all(is_metrics(one.metrics) for one in judged):
                found.append(opening)
    return tuple(found)


def study_record(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record among a study's attributes; that of a study of another program, with a remark, where it is damaged."""
    problem = fault_of_study(attributes)
    if not problem:
        found: Mapping[str, Any] = attributes.get(RECORD, {})
        return found
    return {HEADSTART: {"trials": [], "remarks": [cleaned(f"What the storage holds of this study is damaged, and left out: {problem}")]}}


def check_layout(name: str, stored: Mapping[str, Any]) -> None:
    """Raise FixSetup for a study whose records are those of a newer hpsearch, before anything of it is changed."""
    if int(stored.get("layout", 1)) > LAYOUT:
        made = f"its records have layout {stored['layout']}, this one knows up to {LAYOUT}"
        raise FixSetup(f"the study '{name}' was made by a newer hpsearch ({made}): update hpsearch")


def proven_before(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new resolved study with what the old one asked for beside its search, where it asks for nothing itself.

    A session that only looks, or searches on, does not undo a confirmation.
    """
    kept = {"references": old.get("references", False) or new["references"]}
    if not (new["confirm"] or new["cv"]):
        kept |= {key: old.get(key) for key in ("confirm", "cv")}
    return new | kept


def direction_of(objective: str) -> StudyDirection:
    """Which way Optuna is to go."""
    return StudyDirection.MINIMIZE if OBJECTIVES[objective] > 0 else StudyDirection.MAXIMIZE


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf in which two resolved studies differ."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{where}{key}.")
        elif a != b and not is_close(a, b):
            lines.append(f"{where}{key}: {a} -> {b}")
    return lines


def is_close(a: object, b: object) -> bool:
    """Whether two values differ by the rounding of a computation alone, as points of a grid may from one version to the next."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(x == y or is_close(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-9)


def running(params: Params, dists: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A template for a trial that begins now."""
    return FrozenTrial(
        number=-1,  # the storage gives number and id
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=dict(params),
        distributions=dict(dists),
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )


def extras(record: TrialRecord) -> dict[str, Any]:
    """What of a record Optuna has no column for, JSON-able."""
    return {
        "status": record.status.value,
        "val_loss": record.val_loss,
        "origin": record.origin,
        "attempt": record.attempt,
        "best_epoch": record.best_epoch,
        "seconds": record.seconds,
        "started": record.started,
        "ended": record.ended,
        "metrics": dict(record.metrics),
        "effective": dict(record.effective),
        "curve": list(record.curve),
        "checkpoint": record.checkpoint,
        "error": record.error,
        "per_class": dict(record.per_class),
        "state": record.state,
        **{key: value for key in ("reused", "remark") if (value := getattr(record, key))},
    }


def run_values(record: TrialRecord) -> dict[str, Any]:
    """A run beside the search, JSON-able."""
    return {"number": record.number, "params": dict(record.params), "setup": asdict(record.setup) if record.setup else None} | extras(
        record
    )


def runs_of(attributes: Mapping[str, Any], objective: str) -> tuple[TrialRecord, ...]:
    """The runs beside the search among a study's attributes, first ones first."""
    found = []
    for key, values in attributes.items():
        if key.startswith(RUN):
            with suppress(ValueError):  # not written by hpsearch
                blank = {"params": {}, "attempt": 1, "checkpoint": None, "error": None, "objective": objective}
                record = record_from({**blank, **values} if isinstance(values, Mapping) else values)
                found += [record] if record.setup is not None else []
    return tuple(sorted(found, key=lambda run: -run.number))


def fixed_of(spec: Mapping[str, Any]) -> Params:
    """The hyperparameters that a stored study fixes, which Optuna's trials do not hold: of one value, and used in every trial."""
    fixed = {name: value for name, value in spec.get("recipe", {}).items() if name in CORE}
    for name, entry in spec.get("space", {}).items():
        values = [entry["value"]] if "value" in entry else entry.get("choices") or {entry.get("low"), entry.get("high")}
        if len(values) == 1 and "when" not in entry:
            fixed[name] = next(iter(values))
    return fixed


def record_of(trial: FrozenTrial, fixed: Params, objective: str) -> TrialRecord:
    """A stored trial as a record; of one whose record is not what hpsearch writes, what Optuna knows of it, and a remark that says so."""
    ours, values = objective in OBJECTIVES, trial.values or ()
    try:
        more = trial_values(trial.user_attrs.get(RECORD, {})) if ours else {}
    except ValueError as error:
        more = {"remark": cleaned(f"{LEFT_OUT}: {error}")}
    names = [objective] if len(values) == 1 else [f"value {i}" for i in range(len(values))]
    blank = TrialRecord(
        number=trial.number,
        status=STATUSES[trial.state],
        params={**fixed, **trial.params},
        origin="added" if ours and "origin" not in more else "sampled",
        attempt=1,
        val_loss=values[0] if ours and values and trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        best_epoch=None,
        seconds=0.0,
        started=trial.datetime_start.astimezone(UTC).timestamp() if trial.datetime_start else None,
        ended=None,
        metrics={} if ours else dict(zip(names, values, strict=True)),
        effective={},
        curve=(),
        checkpoint=None,
        error=None,
        objective=objective,
    )
    record = replace(blank, **{k: v for k, v in more.items() if k in KEPT})
    if record.val_loss is not None and not math.isfinite(record.val_loss) and record.status is Status.COMPLETE:
        record = replace(record, val_loss=None, remark="its validation loss in the storage is no finite number, and is left out")
    paused = more.get("status") == Status.PAUSED and not trial.state.is_finished()
    return replace(record, status=Status.PAUSED) if paused else record
