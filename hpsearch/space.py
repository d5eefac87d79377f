"""The search space: what is searched, in which range, on which scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpsearch.errors import FixInput, nearest
from hpsearch.types import Params, Value

Kind = Literal["float", "int", "choice", "fixed"]


@dataclass(frozen=True, slots=True)
class Known:
    """A hyperparameter that the kernel understands."""

    kind: Literal["float", "int"]
    low: float  # smallest value that makes sense
    high: float  # largest
    unit: str


KNOWN: Mapping[str, Known] = {
    "learning_rate": Known("float", 1e-12, 1e3, "per step"),
    "batch_size": Known("int", 1, 2**20, "images"),
    "epochs": Known("int", 1, 100_000, "passes over the training images"),
    "weight_decay": Known("float", 0.0, 1e3, "decoupled, per step, times the learning rate"),
    "dropout": Known("float", 0.0, 0.99, "probability, before the head"),
    "frozen_layers": Known("int", 0, 10_000, "blocks, from the input"),
}
ALL = 10_000  # `frozen_layers: all` until the model's blocks are counted

Defaults = Mapping[str, Mapping[str, Any]]
# What an omitted hyperparameter gets; `default` is the default recipe, trial 0 of every study. First for the embedded model:
DEFAULTS: Defaults = {
    "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True, "default": 1e-3, "grid": [3e-4, 1e-3, 3e-3, 1e-2]},
    "batch_size": {"choices": [8, 16, 32], "default": 8, "grid": [8, 16]},
    "epochs": {"low": 3, "high": 20, "default": 15, "grid": [8, 16]},
    "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-2, "grid": [1e-2]},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1, "grid": [0.0, 0.3]},
    "frozen_layers": {"low": 0, "high": 6, "default": 0, "grid": [0, 2, 4, 5]},
}
# For networks pretrained on photographs: AdamW's usual range for fine-tuning, larger batches, fewer epochs.
IMAGE_DEFAULTS: Defaults = {
    "learning_rate": {"low": 1e-5, "high": 3e-3, "log": True, "default": 3e-4, "grid": [1e-4, 3e-4, 1e-3]},
    "batch_size": {"choices": [16, 32, 64], "default": 32, "grid": [32]},
    "epochs": {"low": 3, "high": 10, "default": 6, "grid": [6]},
    "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-2, "grid": [1e-2]},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1, "grid": [0.0, 0.3]},
    "frozen_layers": {"low": 0, "high": "all", "default": 0, "grid": [0, "all"]},
}

ENTRY_KEYS = ("low", "high", "log", "choices", "value", "default", "grid")
# The three forms of an entry, by their first key, and what each may hold.
GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "value": ("value",),
    "choices": ("choices", "default", "grid"),
    "low": ("low", "high", "log", "default", "grid"),
}
GRID_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Parameter:
    """One hyperparameter; `fixed` and `choice` use `choices`, the others `low` to `high` inclusive."""

    name: str
    kind: Kind
    default: Value
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()
    grid: tuple[Value, ...] = ()

    def points(self) -> tuple[Value, ...]:
        """Grid points: those given; all choices; all of a short integer range. FixInput when there are none."""
        if self.kind in ("fixed", "choice"):
            return self.grid or self.choices
        if self.grid:
            return self.grid
        if self.kind == "int" and self.high - self.low < 16 and not self.log:
            return tuple(range(int(self.low), int(self.high) + 1))
        raise FixInput(
            f"the grid sampler needs points for '{self.name}': add `grid: [...]` or `grid: 5` to space.{self.name}, or fix its value"
        )

    def contains(self, value: Value) -> bool:
        """Whether `value` lies in the range, or is one of the choices."""
        if self.kind in ("fixed", "choice"):
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high


Space = tuple[Parameter, ...]


def parse_space(entries: Mapping[str, Any], defaults: Defaults = DEFAULTS) -> Space:
    """The whole space from a study's `space:` mapping; hyperparameters it omits get their `defaults`.

    Raises one FixInput that lists everything wrong.
    """
    problems = [f"unknown hyperparameter 'space.{name}': {nearest(name, KNOWN)}" for name in entries if name not in KNOWN]
    space = []
    for name in KNOWN:
        try:
            space.append(parse_parameter(name, entries.get(name, defaults[name]), defaults))
        except FixInput as error:
            problems.append(str(error))
    if problems:
        raise FixInput("\n".join(problems))
    return tuple(space)


def parse_parameter(name: str, entry: Any, defaults: Defaults = DEFAULTS) -> Parameter:
    """One hyperparameter from a number (fixed), a list (choices) or a mapping; raises FixInput."""
    where = f"space.{name}"
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        entry = {"choices": list(entry)}
    elif not isinstance(entry, Mapping):
        entry = {"value": entry}
    for key in entry:
        if key not in ENTRY_KEYS:
            raise FixInput(f"unknown key '{where}.{key}': {nearest(str(key), ENTRY_KEYS)}")
    forms = [form for form in (("value",), ("choices",), ("low", "high")) if any(key in entry for key in form)]
    if len(forms) != 1:
        raise FixInput(f"{where} takes a value, or choices, or low and high; got {', '.join(map(str, entry)) or 'nothing'}")
    stray = [key for key in entry if key not in GOES_WITH[forms[0][0]]]
    if stray:
        raise FixInput(f"{where}.{stray[0]} cannot go with {' and '.join(forms[0])}: remove one of them")
    if "value" in entry:
        value = number(name, entry["value"], where)
        return Parameter(name, "fixed", value, choices=(value,))
    if "choices" in entry:
        return parse_choices(name, entry, where, number(name, defaults[name]["default"], where))
    return parse_range(name, entry, where, number(name, defaults[name]["default"], where))


def parse_choices(name: str, entry: Mapping[str, Any], where: str, fallback: Any) -> Parameter:
    """A hyperparameter that takes one of a few values."""
    listed = entry["choices"]
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise FixInput(f"{where}.choices must be a list of at least one value")
    choices = tuple(number(name, value, f"{where}.choices") for value in listed)
    if len(set(choices)) < len(choices):
        raise FixInput(f"{where}.choices holds a value twice: {list(choices)}")
    default = number(name, entry["default"], f"{where}.default") if "default" in entry else fallback if fallback in choices else choices[0]
    if default not in choices:
        raise FixInput(f"{where}.default {default} is not among the choices {list(choices)}")
    return Parameter(name, "choice", default, choices=choices, grid=listed_grid(name, entry, where, choices))


def parse_range(name: str, entry: Mapping[str, Any], where: str, fallback: Any) -> Parameter:
    """A hyperparameter between `low` and `high`."""
    if "low" not in entry or "high" not in entry:
        raise FixInput(f"{where} needs both low and high")
    low, high = (number(name, entry[key], f"{where}.{key}") for key in ("low", "high"))
    if low > high:
        raise FixInput(f"{where}: low {low} is greater than high {high}; swap them")
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise FixInput(f"{where}.log must be true or false")
    if log and low <= 0:
        raise FixInput(f"{where}: a log scale needs low > 0, got {low}; raise low or set log: false")
    default = number(name, entry["default"], f"{where}.default") if "default" in entry else min(max(fallback, low), high)
    if not low <= default <= high:
        raise FixInput(f"{where}.default {default} lies outside {low} to {high}")
    parameter = Parameter(name, KNOWN[name].kind, default, low, high, log)
    grid = listed_grid(name, entry, where, None, parameter)
    return Parameter(name, KNOWN[name].kind, default, low, high, log, grid=grid)


def listed_grid(
    name: str, entry: Mapping[str, Any], where: str, choices: tuple[Value, ...] | None, parameter: Parameter | None = None
) -> tuple[Value, ...]:
    """The points under `grid:`, given as a list or, for a range, as their number; each inside the range, none twice."""
    listed = entry.get("grid")
    if listed is None:
        return ()
    if isinstance(listed, int) and not isinstance(listed, bool) and parameter is not None:
        return spread(parameter, listed, where)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise FixInput(f"{where}.grid must be a list of points, or their number")
    points = tuple(number(name, value, f"{where}.grid") for value in listed)
    inside = choices.__contains__ if choices is not None else parameter.contains if parameter is not None else bool
    outside = [p for p in points if not inside(p)]
    if outside:
        raise FixInput(f"{where}.grid has points outside the range: {outside}")
    if len(set(points)) < len(points):
        raise FixInput(f"{where}.grid holds a point twice: {list(points)}")
    return points


def spread(parameter: Parameter, n: int, where: str) -> tuple[Value, ...]:
    """`n` points from low to high, even on the parameter's own scale; integers rounded, without repeats."""
    if not 1 <= n <= 1000:
        raise FixInput(f"{where}.grid: the number of points must be 1 to 1000, got {told(n)}")
    low, high = (math.log(v) for v in (parameter.low, parameter.high)) if parameter.log else (parameter.low, parameter.high)
    raw = [low + (high - low) * i / max(1, n - 1) for i in range(n)]
    values = [min(max(math.exp(v) if parameter.log else v, parameter.low), parameter.high) for v in raw]
    values[0], values[-1] = parameter.low, parameter.high if n > 1 else parameter.low  # exp(log(x)) is not x
    return tuple(dict.fromkeys(round(v) if parameter.kind == "int" else v for v in values))


def number(name: str, value: Any, where: str) -> Any:
    """`value` as the type the hyperparameter has; FixInput when it is not a finite number of its kind and domain."""
    known = KNOWN[name]
    if value == "all" and name == "frozen_layers":
        return ALL
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise FixInput(f"{where} must be a number, got {told(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FixInput(f"{where} must be a number, got {told(value)}")
    try:
        value = float(value) if known.kind == "float" else value
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        finite = False
    if not finite:
        raise FixInput(f"{where} must be finite, got {told(value)}")
    if known.kind == "int":
        if value != int(value):
            raise FixInput(f"{where} must be a whole number, got {value}")
        value = int(value)
    if not known.low <= value <= known.high:
        raise FixInput(f"{where} must lie between {known.low:g} and {known.high:g} ({known.unit}), got {value}")
    return value


def told(value: Any) -> str:
    """`value` for a message, at most 80 characters; Python refuses to print integers of more than 4,300 digits."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"something too large to print ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:77]}..."


def bind_blocks(entry: Any, blocks: int) -> Any:
    """An entry for `frozen_layers` with every "all" in it replaced by the model's number of blocks; points are kept once."""
    if isinstance(entry, Mapping):
        return {key: bind_blocks(value, blocks) for key, value in entry.items()}
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        return list(dict.fromkeys(bind_blocks(value, blocks) for value in entry))
    return blocks if entry in ("all", ALL) and not isinstance(entry, bool) else entry


def default_params(space: Space) -> Params:
    """The default recipe."""
    return {p.name: p.default for p in space}


def grid_size(space: Space) -> int:
    """How many points the grid has; FixInput when a parameter has none or there are too many."""
    size = math.prod(len(p.points()) for p in space)
    if size > GRID_LIMIT:
        raise FixInput(f"the grid has {size:,} points, more than {GRID_LIMIT:,}: give fewer points, or use another sampler")
    return size


def grid_points(space: Space) -> Iterator[Params]:
    """Every point of the grid once, in order."""
    names = [p.name for p in space]
    for values in itertools.product(*(p.points() for p in space)):
        yield dict(zip(names, values, strict=True))


def searched(space: Space) -> Space:
    """The parameters that vary."""
    return tuple(p for p in space if (p.low != p.high if p.kind in ("float", "int") else len(p.choices) > 1))
