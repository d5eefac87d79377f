"""From a study's records to tables: pure functions of a `StudyView`. Numbers stay raw here (nats, seconds, shares in [0, 1])."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from hpsearch.diagnosis import diagnoses
from hpsearch.proof import Proof
from hpsearch.recipes import CORE, CRAFT, KNOWN
from hpsearch.report.objective import objective
from hpsearch.types import DataReport, Status, TrialRecord, best_record

METRICS = ("accuracy", "precision", "recall", "f1")
FURTHER = ("balanced_accuracy", "top5")  # columns where a trial has them
FIXED_COLUMNS = ("number", "status", "origin", "val_loss", "best_epoch", "epochs_trained", "seconds", *METRICS, "diagnosis", "error")
EDGE = 0.02  # share of a range's length that counts as its edge
Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True, slots=True)
class StudyView:
    """Everything a page may say about one study; gathered by the caller, who owns storage and search."""

    name: str
    spec: Mapping[str, Any]  # the resolved study
    facts: Mapping[str, Any]  # what the worker found: model, blocks, images, versions
    records: tuple[TrialRecord, ...]
    importance: tuple[tuple[str, float], ...]  # share of each parameter
    importance_method: str
    policy: str  # how pruned trials are told to this sampler
    notes: tuple[str, ...]  # commands worth copying
    generated: str  # UTC
    data: DataReport | None = None  # what checking the data found
    headstart: tuple[str, ...] = ()  # what was said of the trials that the study began with
    proof: Proof | None = None  # what was found beside the search
    runs: tuple[TrialRecord, ...] = ()  # the runs that it rests on
    trial: int | None = None  # the one that the page is about, if it is about one


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a study's header. None where there is nothing to count or to compare."""

    best: TrialRecord | None  # the confirmed winner; else the trial of the best score among complete ones
    default: TrialRecord | None  # trial of the default recipe
    gain: float | None  # of the best over the default, one seed each, in the objective's own unit: nats or percentage points
    accuracy_gain: float | None  # percentage points, best minus default
    counts: Mapping[Status, int]
    seconds: float  # of training, summed over trials
    saved: float  # seconds not trained thanks to pruning: an estimate
    val_images: int | None


# ---------------------------------------------------------------- tables


def trials(view: StudyView) -> pd.DataFrame:
    """One row a trial, in order of number."""
    rows, verdicts = [], diagnoses(view.records)
    for r in ordered(view):
        row: dict[str, Any] = {"number": r.number, "status": str(r.status), "origin": r.origin}
        row |= {parameter_column(name): r.params.get(name) for name in parameters(view)}
        row |= {"val_loss": finite(r.val_loss), "best_epoch": r.best_epoch, "epochs_trained": len(r.curve), "seconds": r.seconds}
        row |= {name: finite(r.metrics.get(name)) for name in (*METRICS, *FURTHER)}
        rows.append(row | {"reused": r.reused or None, "diagnosis": verdicts.get(r.number), "error": r.error})
    middle = [parameter_column(name) for name in parameters(view)]
    score = objective(view.spec).name
    further = [name for name in FURTHER if name == score or any(row[name] is not None for row in rows)]
    reused = ["reused"] if any(r.reused for r in view.records) else []
    columns = [*FIXED_COLUMNS[:3], *middle, *FIXED_COLUMNS[3:-2], *further, *reused, *FIXED_COLUMNS[-2:]]
    table = frame(rows, columns, ("val_loss", "seconds", *METRICS, *further))
    return table.astype({"number": "int64", "epochs_trained": "int64", "best_epoch": "Int64"})


def curves(view: StudyView) -> pd.DataFrame:
    """One row an epoch: trial, status, epoch, progress (percent of the planned epochs), then each metric."""
    rows = []
    for r in ordered(view):
        planned = planned_epochs(view, r)
        for at, epoch in enumerate(r.curve, start=1):
            number = int(finite(epoch.get("epoch")) or at)
            head = {"trial": r.number, "status": str(r.status), "epoch": number, "progress": 100 * number / planned}
            rows.append(head | {name: finite(value) for name, value in epoch.items() if name not in head})
    table = pd.DataFrame(rows)
    for name in ("trial", "status", "epoch", "progress", "val_loss", "train_loss"):
        if name not in table:
            table[name] = pd.Series(dtype="float64")
    measured = [name for name in table.columns if name not in ("trial", "status", "epoch")]
    return table[["trial", "status", "epoch", *measured]].astype(dict.fromkeys(measured, "float64"))


def history(view: StudyView) -> pd.DataFrame:
    """One row a trial: its score, the best score of a complete trial so far, the score of the default recipe."""
    goal, default = objective(view.spec), final_score(default_trial(view))
    rows: list[tuple[Any, ...]] = []
    best: float | None = None
    for r in ordered(view):
        score = finite(r.score)
        if r.status is Status.COMPLETE and score is not None and (best is None or goal.sign * score < goal.sign * best):
            best = score
        rows.append((r.number, str(r.status), score, best, default, r.error))
    columns = ["trial", "status", goal.name, "best_so_far", "default_recipe", "error"]
    return frame(rows, columns, columns[2:5]).astype({"trial": "int64"})


def configuration(view: StudyView) -> pd.DataFrame:
    """One row a hyperparameter: the best trial's value, the default recipe's, what was searched, and whether the best lies on an edge.

    A value is missing where a trial does not use the hyperparameter. Below stand settings that the study fixes to what is unusual.
    """
    best, default = best_trial(view), default_trial(view)
    rows = []
    for name in parameters(view):
        entry = space(view).get(name, {})
        value = best.params.get(name) if best else None
        used = best.effective.get(name, value) if best else None
        usual = default.params.get(name) if default else entry.get("default", entry.get("value"))
        rows.append((name, value, used, usual, describe(entry), edge(view, name, value)))
    for name, value in craft(view).items():
        if name not in parameters(view):
            rows.append((name, value, value, value, describe({}), None))
    return frame(rows, ["parameter", "best", "as_trained", "default_recipe", "searched", "edge"])


def study(view: StudyView) -> pd.DataFrame:
    """What was asked for: the resolved study without its space, one key a row."""
    asked = {key: value for key, value in view.spec.items() if key != "space"}
    return frame(flatten(asked), ["setting", "value"])


def facts(view: StudyView) -> pd.DataFrame:
    """What the worker found when it loaded model and data, one key a row."""
    known = {key: value for key, value in view.facts.items() if key != "sessions"}  # how earlier ones were laid out
    return frame(flatten(known), ["fact", "value"])


def importance(view: StudyView) -> pd.DataFrame:
    """Share of each hyperparameter, largest first."""
    known = [(name, share) for name, share in view.importance if finite(share) is not None]
    rows = sorted(known, key=lambda pair: (-pair[1], pair[0]))
    return frame(rows, ["parameter", "importance"], ("importance",))


# ---------------------------------------------------------------- numbers


def summary(view: StudyView) -> Summary:
    """The numbers of the page's header."""
    best, default = best_trial(view), default_trial(view)
    scores = final_score(default), final_score(best)
    shares = [finite(r.metrics.get("accuracy")) if r else None for r in (best, default)]
    comparable = None not in scores
    return Summary(
        best=best,
        default=default,
        gain=objective(view.spec).gain(*scores),
        accuracy_gain=difference(*(100 * s if s is not None and comparable else None for s in shares)),
        counts={status: sum(r.status is status for r in view.records) for status in Status},
        seconds=sum(finite(r.seconds) or 0.0 for r in view.records),
        saved=sum(seconds_saved(view, r) for r in view.records),
        val_images=validation_images(view),
    )


def best_trial(view: StudyView) -> TrialRecord | None:
    """The study's best trial: the one that stood up best when trained again, where that was done."""
    return confirmed_trial(view) or best_record(view.records)


def confirmed_trial(view: StudyView) -> TrialRecord | None:
    """The trial that stood up best when trained again; None where that was not done, or not to its end."""
    winner = view.proof.winner if view.proof and view.proof.confirmed else None
    return next((r for r in view.records if r.number == winner), None)


def called(view: StudyView) -> str:
    """What the study's best trial is called: the winner, where it was confirmed and a luckier one has the best score of the search."""
    confirmed = confirmed_trial(view)
    return "winner" if confirmed and confirmed is not best_record(view.records) else "best"


def default_trial(view: StudyView) -> TrialRecord | None:
    """The trial that ran the default recipe."""
    return next((r for r in view.records if r.origin == "default"), None)


def final_score(record: TrialRecord | None) -> float | None:
    """Score of a complete trial, if it has one."""
    return finite(record.score) if record and record.status is Status.COMPLETE else None


def seconds_saved(view: StudyView, record: TrialRecord) -> float:
    """Planned epochs that a pruned trial did not run, times its mean seconds an epoch: an estimate."""
    trained = len(record.curve)
    if record.status is not Status.PRUNED or not trained:
        return 0.0
    spent = finite(record.seconds) or finite(record.curve[-1].get("seconds")) or 0.0
    return max(0, planned_epochs(view, record) - trained) * spent / trained


def planned_epochs(view: StudyView, record: TrialRecord) -> int:
    """Epochs that a trial was to run; as many as it ran when nothing tells."""
    entry = space(view).get("epochs", {})
    offered = (record.effective.get("epochs"), record.params.get("epochs"), entry.get("value"), entry.get("default"))
    planned = next((n for n in map(finite, offered) if n and n >= 1), 1)
    return max(int(planned), len(record.curve), 1)


def validation_images(view: StudyView) -> int | None:
    """How many images the losses are means over, from the worker's facts or, before it spoke, from the study."""
    for source in (view.facts, view.spec):
        for key, value in leaves(source):
            words = key.lower().replace("_", ".").split(".")
            if isinstance(value, int) and ("val" in words or "validation" in words) and "loss" not in words:
                return value
    return None


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen on `n` images (Wilson, 1927)."""
    z2 = Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


# ---------------------------------------------------------------- the space


def space(view: StudyView) -> Mapping[str, Mapping[str, Any]]:
    """Parameter name -> its entry in the resolved study."""
    return view.spec.get("space") or {}


def craft(view: StudyView) -> dict[str, Any]:
    """The settings that the study fixes to something else than their default."""
    recipe: Mapping[str, Any] = view.spec.get("recipe") or {}
    return {name: value for name, value in recipe.items() if name in CORE or value != CRAFT.get(name, {}).get("default")}


def parameters(view: StudyView) -> list[str]:
    """All hyperparameters: those of the study in its order, then any that only trials know."""
    return list(dict.fromkeys([*space(view), *(name for r in view.records for name in r.params)]))


def searched(view: StudyView) -> list[str]:
    """The hyperparameters that vary."""
    return [name for name, entry in space(view).items() if entry.get("low") != entry.get("high") or len(entry.get("choices", ())) > 1]


def parameter_column(name: str) -> str:
    """A hyperparameter's column in the trial table."""
    return f"param.{name}" if name in (*FIXED_COLUMNS, *FURTHER) else name


def edge(view: StudyView, name: str, value: object) -> Literal["low", "high"] | None:
    """Which end of its range a value lies on, if that end could be moved: zero, all of a share and all blocks are natural limits."""
    entry, x = space(view).get(name, {}), finite(value)
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    if x is None or low is None or high is None or low >= high:
        return None
    if entry.get("log"):
        if min(x, low) <= 0:
            return None
        position = math.log(x / low) / math.log(high / low)
    else:
        position = (x - low) / (high - low)
    if position <= EDGE:
        return None if low == 0 else "low"
    blocks = view.facts.get("blocks")  # their number, or their names
    most = len(blocks) if isinstance(blocks, Sequence) else finite(blocks)
    natural = (name == "frozen_layers" and most is not None and high >= most) or (name in KNOWN and high >= KNOWN[name].high)
    return "high" if position >= 1 - EDGE and not natural else None


def describe(entry: Mapping[str, Any]) -> str:
    """A hyperparameter's range in words."""
    only = f", only with {condition(entry)}" if entry.get("when") else ""
    if "choices" in entry:
        return "one of " + ", ".join(map(str, entry["choices"])) + only
    if "low" in entry:
        return f"{entry['low']} to {entry['high']}" + (" (log)" if entry.get("log") else "") + only
    return "fixed" + only


def condition(entry: Mapping[str, Any]) -> str:
    """When a hyperparameter is used, in words; nothing where it always is."""
    when: Mapping[str, Sequence[object]] = entry.get("when") or {}
    return " and ".join(f"{parent} {' or '.join(map(str, values))}" for parent, values in when.items())


# ---------------------------------------------------------------- small things


def frame(rows: Sequence[Any], columns: Sequence[str], measured: Sequence[str] = ()) -> pd.DataFrame:
    """A table of plain objects, `measured` columns as float64: pandas' own text type refuses half of a surrogate pair."""
    return pd.DataFrame(rows, columns=list(columns), dtype=object).astype(dict.fromkeys(measured, "float64"))


def ordered(view: StudyView) -> list[TrialRecord]:
    """Records in order of number."""
    return sorted(view.records, key=lambda r: r.number)


def finite(value: object) -> float | None:
    """A number that can be drawn, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def difference(a: float | None, b: float | None) -> float | None:
    """a - b, or None when one is missing."""
    return None if a is None or b is None else a - b


def leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def flatten(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested mappings as dotted keys with plain text; sequences joined by commas."""
    return [(key, plain(value)) for key, value in leaves(values) if value is not None]


def plain(value: object) -> str:
    """A value as text, sequences joined by commas."""
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
