"""What a stored trial may hold: looked at once, when it is read, whatever it is read from.

Results lie in files and in attributes of a database, which people edit and strangers send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from hpsearch.core.text import cleaned, escaped
from hpsearch.types import OBJECTIVES, Setup, Status, TrialRecord, is_number, score_of

LARGEST = 1_000_000  # trial, attempt
EPOCHS = 100_000
NAMES = 1000  # hyperparameters or metrics of a trial
LATEST = 1e11  # seconds since the epoch
SCORED = (Status.COMPLETE, Status.PRUNED, Status.PAUSED)
FIELDS = {field.name for field in fields(TrialRecord)}


def trial_values(stored: Any) -> dict[str, Any]:
    """Returns the fields of `TrialRecord` among what was stored of a trial, cleaned and of the right types; others are left out.

    Raises:
        ValueError: One of them is not what hpsearch writes; the text says which.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"it is a {type(stored).__name__}, not a mapping")
    values = {key: value for key, value in stored.items() if key in FIELDS}
    for key, (fits, words) in RULES.items():
        if key in values and not fits(values[key]):
            raise ValueError(f"its {key} is {brief(values[key])}, not {words}")
    for key in ("origin", "error", "reused", "remark"):
        if values.get(key) is not None:
            values[key] = cleaned(values[key])
    if "status" in values:
        values["status"] = Status(values["status"])
    if values.get("setup") is not None:
        values["setup"] = Setup(**values["setup"])
    return values


def check_scores(record: TrialRecord) -> TrialRecord:
    """Returns a record of a trial that has ended or waits at a rung; ValueError where it is to be compared by what is no number."""
    scores = {"val_loss": record.val_loss, record.objective: score_of(record.objective, record.val_loss, record.metrics)}
    for key, value in scores.items() if record.status in SCORED else ():
        if not is_number(value) and (value is not None or record.status is Status.COMPLETE):
            raise ValueError(f"its {key} is {brief(value)}, not a finite number")
    return record


def brief(value: object) -> str:
    """Returns a value for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return escaped(text if len(text) <= 60 else f"{text[:57]}...")


def whole(low: int, high: int) -> Callable[[Any], bool]:
    """Returns a test for integers in a range."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def among(values: Any) -> Callable[[Any], bool]:
    """Returns a test for texts among some."""
    return lambda value: isinstance(value, str) and value in values


def between(low: float, high: float) -> Callable[[Any], bool]:
    """Returns a test for numbers in a range."""
    return lambda value: is_number(value) and low <= value <= high


def maybe(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns a test that takes None too."""
    return lambda value: value is None or fits(value)


def is_text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_any_number(value: Any) -> bool:
    """Whether a value is a number, be it infinite or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_params(value: Any) -> bool:
    """Whether a value is a configuration."""
    if not isinstance(value, Mapping) or len(value) > NAMES:
        return False
    return all(
        isinstance(key, str) and (inner is None or isinstance(inner, str | bool) or is_number(inner)) for key, inner in value.items()
    )


def is_metrics(value: Any) -> bool:
    """Whether a value is a number for each of some names."""
    if not isinstance(value, Mapping) or len(value) > NAMES:
        return False
    return all(isinstance(key, str) and is_any_number(inner) for key, inner in value.items())


def is_curve(value: Any) -> bool:
    """Whether a value is a row for each epoch, as `Progress.row` has it."""
    if not isinstance(value, list | tuple) or len(value) > EPOCHS:
        return False
    return all(is_metrics(row) and is_epoch(row.get("epoch")) and {"val_loss", "train_loss", "seconds"} <= {*row} for row in value)


def is_per_class(value: Any) -> bool:
    """Whether a value is a number for each class, under each of some names."""
    if not isinstance(value, Mapping) or len(value) > NAMES:
        return False
    lists = [*value.values()]
    right = all(isinstance(inner, list | tuple) and all(map(is_any_number, inner)) for inner in lists)
    return right and all(isinstance(key, str) for key in value) and len({len(inner) for inner in lists}) <= 1


def is_setup(value: Any) -> bool:
    """Whether a value is what `dataclasses.asdict` makes of a `Setup`."""
    if not isinstance(value, Mapping) or not {"name", "like"} <= {*value} <= {field.name for field in fields(Setup)}:
        return False
    numbers = all(maybe(whole(-LARGEST, 1 << 63))(value.get(key)) for key in ("like", "trial", "seed", "fold", "folds"))
    if not numbers or not isinstance(value["name"], str) or not isinstance(value.get("scratch", False), bool):
        return False
    try:
        return bool(Setup(**value))
    except ValueError:
        return False


is_epoch = whole(0, EPOCHS)
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "number": (whole(-LARGEST, LARGEST), f"a whole number up to {LARGEST:,}"),
    "status": (among([status.value for status in Status]), f"one of {', '.join(status.value for status in Status)}"),
    "params": (is_params, "a configuration"),
    "origin": (is_text, "text"),
    "attempt": (whole(0, LARGEST), f"a whole number up to {LARGEST:,}"),
    "val_loss": (maybe(is_any_number), "a number"),
    "best_epoch": (maybe(is_epoch), f"a whole number up to {EPOCHS:,}"),
    "seconds": (between(0.0, LATEST), "a number of seconds"),
    "started": (maybe(between(0.0, LATEST)), "a time in seconds"),
    "ended": (maybe(between(0.0, LATEST)), "a time in seconds"),
    "metrics": (is_metrics, "numbers by name"),
    "effective": (is_params, "a configuration"),
    "curve": (is_curve, f"up to {EPOCHS:,} epochs with their numbers"),
    "checkpoint": (maybe(is_text), "the name of a file"),
    "error": (maybe(is_text), "text"),
    "objective": (among(OBJECTIVES), f"one of {', '.join(OBJECTIVES)}"),
    "per_class": (is_per_class, "a number for each class"),
    "state": (maybe(is_text), "the name of a file"),
    "setup": (maybe(is_setup), "what sets a run apart"),
    "reused": (is_text, "text"),
    "remark": (is_text, "text"),
}
