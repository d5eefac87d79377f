"""The search space: what is searched, in which range, on which scale, under which condition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from hpsearch.errors import FixInput, nearest
from hpsearch.recipes import ALL, CORE, DEFAULTS, EMBEDDED_MODEL, KNOWN, Defaults, catalogued, checked, known, spelled, told
from hpsearch.types import Params, Value

Kind = Literal["float", "int", "choice", "fixed"]
Condition = tuple[str, tuple[Value, ...]]  # another parameter, and its values beside which this one is used

ENTRY_KEYS = ("low", "high", "log", "choices", "value", "default", "grid", "when")
# The three forms of an entry, by their first key, and what each may hold.
GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "value": ("value", "when"),
    "choices": ("choices", "default", "grid", "when"),
    "low": ("low", "high", "log", "default", "grid", "when"),
}
GRID_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Parameter:
    """One hyperparameter; `fixed` and `choice` use `choices`, the others `low` to `high` inclusive. All of `when` must hold."""

    name: str
    kind: Kind
    default: Value
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()
    grid: tuple[Value, ...] = ()
    when: tuple[Condition, ...] = ()

    def active(self, params: Params) -> bool:
        """Whether the parameter is used beside these values of the others."""
        return all(parent in params and params[parent] in values for parent, values in self.when)

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
"""Parents stand before the parameters whose conditions name them."""


def parse_space(entries: Mapping[str, Any], defaults: Defaults = DEFAULTS, recipe: Mapping[str, Any] = MappingProxyType({})) -> Space:
    """The whole space from a study's `space:` and `recipe:` mappings: what is searched, and the core, searched or fixed.

    Of the core, what both omit gets its `defaults`. Raises one FixInput that lists everything wrong.
    """
    entries, recipe = spelled(entries), spelled(recipe)
    problems: list[str] = []
    space: list[Parameter] = []
    fixed: dict[str, Value] = {}
    for section, where, what in ((entries, "space", "hyperparameter"), (recipe, "recipe", "setting")):
        for name in section:
            with noted(problems):
                known(name, where, what)
    if "model" in entries:
        with noted(problems):
            space.append(parse_model(entries["model"], defaults))
    for name in KNOWN:
        if name in entries and name in recipe:
            problems.append(f"{name} is both searched and fixed: remove space.{name} or recipe.{name}")
        elif name in recipe:
            with noted(problems):
                fixed[name] = checked(name, recipe[name], f"recipe.{name}")
                if name in CORE:
                    space.append(Parameter(name, "fixed", fixed[name], choices=(fixed[name],)))
        elif name in entries or name in CORE:
            with noted(problems):
                space.append(parse_parameter(name, entries.get(name, defaults[name]), defaults))
    if not problems:
        with noted(problems):
            others = {name: fixed.get(name, defaults[name]["default"]) for name in KNOWN if name not in CORE}
            return connect(tuple(space), others | {"model": defaults.get("model", {}).get("default", EMBEDDED_MODEL)})
    raise FixInput("\n".join(problems))


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Add what is refused inside to `problems`, and go on."""
    try:
        yield
    except FixInput as error:
        problems += str(error).splitlines()


def parse_model(entry: Any, defaults: Defaults) -> Parameter:
    """The models that are searched."""
    p = parse_parameter("model", entry, {"model": {"default": EMBEDDED_MODEL}, **defaults})
    if p.when:
        raise FixInput("space.model takes no `when`: every trial has a model; put a condition on what is for some models only")
    return p


def parse_parameter(name: str, entry: Any, defaults: Defaults = DEFAULTS) -> Parameter:
    """One hyperparameter from a value (fixed), a list (choices) or a mapping; raises FixInput."""
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
    when = parse_when(entry["when"], f"{where}.when") if "when" in entry else ()
    if "value" in entry:
        value = checked(name, entry["value"], where)
        return Parameter(name, "fixed", value, choices=(value,), when=when)
    parse = parse_choices if "choices" in entry else parse_range
    return replace(parse(name, entry, where, checked(name, defaults[name]["default"], where)), when=when)


def parse_when(given: Any, where: str) -> tuple[Condition, ...]:
    """Conditions from a mapping of other hyperparameters to the values that they must have."""
    if not isinstance(given, Mapping) or not given:
        raise FixInput(f"{where} must name other hyperparameters with their values, such as {{optimizer: [sgd]}}, got {told(given)}")
    conditions = []
    for parent, listed in spelled(given).items():
        name = known(parent, where)
        values = listed if isinstance(listed, Sequence) and not isinstance(listed, str) else [listed]
        if not values:
            raise FixInput(f"{where}.{name} must list at least one value")
        conditions.append((name, tuple(dict.fromkeys(checked(name, value, f"{where}.{name}") for value in values))))
    return tuple(conditions)


def parse_choices(name: str, entry: Mapping[str, Any], where: str, fallback: Any) -> Parameter:
    """A hyperparameter that takes one of a few values."""
    listed = entry["choices"]
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise FixInput(f"{where}.choices must be a list of at least one value")
    choices = tuple(checked(name, value, f"{where}.choices") for value in listed)
    if len(set(choices)) < len(choices):
        raise FixInput(f"{where}.choices holds a value twice: {list(choices)}")
    default = checked(name, entry["default"], f"{where}.default") if "default" in entry else fallback if fallback in choices else choices[0]
    if default not in choices:
        raise FixInput(f"{where}.default {default} is not among the choices {list(choices)}")
    return Parameter(name, "choice", default, choices=choices, grid=listed_grid(name, entry, where, choices))


def parse_range(name: str, entry: Mapping[str, Any], where: str, fallback: Any) -> Parameter:
    """A hyperparameter between `low` and `high`."""
    if catalogued(name).kind == "choice":
        raise FixInput(f"{where} is one of {', '.join(catalogued(name).choices) or 'several names'}: give choices instead of low and high")
    if "low" not in entry or "high" not in entry:
        raise FixInput(f"{where} needs both low and high")
    low, high = (checked(name, entry[key], f"{where}.{key}") for key in ("low", "high"))
    if low > high:
        raise FixInput(f"{where}: low {low} is greater than high {high}; swap them")
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise FixInput(f"{where}.log must be true or false")
    if log and low <= 0:
        raise FixInput(f"{where}: a log scale needs low > 0, got {low}; raise low or set log: false")
    default = checked(name, entry["default"], f"{where}.default") if "default" in entry else min(max(fallback, low), high)
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
    points = tuple(checked(name, value, f"{where}.grid") for value in listed)
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
    if isinstance(parameter.default, float):  # which is trained first, and need not be trained twice
        values = [parameter.default if math.isclose(v, parameter.default, rel_tol=1e-9) else v for v in values]
    return tuple(dict.fromkeys(round(v) if parameter.kind == "int" else v for v in values))


def bind_blocks(entry: Any, blocks: int) -> Any:
    """An entry for `frozen_layers` with every "all" in it replaced by the model's number of blocks; points are kept once."""
    if isinstance(entry, Mapping):
        return {key: bind_blocks(value, blocks) for key, value in entry.items()}
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        return list(dict.fromkeys(bind_blocks(value, blocks) for value in entry))
    return blocks if entry in ("all", ALL) and not isinstance(entry, bool) else entry


def bind_condition(entry: Any, blocks: int) -> Any:
    """An entry whose condition on `frozen_layers` has the model's number of blocks for "all"."""
    when = entry.get("when") if isinstance(entry, Mapping) else None
    if not isinstance(when, Mapping) or "frozen_layers" not in when:
        return entry
    return {**entry, "when": {**when, "frozen_layers": bind_blocks(when["frozen_layers"], blocks)}}


# ---------------------------------------------------------------- conditions


def connect(space: Space, fixed: Params) -> Space:
    """The space with built-in conditions, without those that always hold, parents first; FixInput for one that can never hold.

    `fixed` holds the settings that are not searched; the space's own come first.
    """
    problems: list[str] = []
    done: dict[str, Parameter] = {}
    for p in parents_first(tuple(merged(p) for p in space)):
        done[p.name] = p
        with noted(problems):
            done[p.name] = settled(p, done, fixed)
    for name in fixed:
        for parent, values in catalogued(name).when.items():
            possible = offered(parent, done, fixed)
            if name not in done and fixed[name] != DEFAULTS[name]["default"] and not set(values) & set(possible):
                problems.append(idle(f"recipe.{name}", parent, values, possible))
    if problems:
        raise FixInput("\n".join(problems))
    return parents_first(tuple(done[p.name] for p in space))


def parents_first(space: Space) -> Space:
    """The space with each parameter behind those that its conditions name; FixInput for a circle."""
    named = {p.name: p for p in space}
    ordered: dict[str, Parameter] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        """Add a parameter behind its parents."""
        if name in path:
            circle = ", ".join(sorted(path[path.index(name) :]))
            raise FixInput(f"the conditions of {circle} go round in a circle: remove the `when` of one of them")
        if name in named and name not in ordered:
            for parent, _ in named[name].when:
                visit(parent, (*path, name))
            ordered[name] = named[name]

    for name in named:
        visit(name, ())
    return tuple(ordered.values())


def merged(p: Parameter) -> Parameter:
    """A parameter with its own conditions narrowed by those that the catalogue has for it."""
    when = dict(p.when)
    for parent, values in catalogued(p.name).when.items():
        when[parent] = tuple(v for v in when.get(parent, values) if v in values)
        if not when[parent]:
            raise FixInput(f"space.{p.name}.when.{parent}: {p.name} is used only beside {either(values)}")
    return replace(p, when=tuple(when.items()))


def settled(p: Parameter, parents: Mapping[str, Parameter], fixed: Params) -> Parameter:
    """A parameter with the conditions that are open; FixInput for one that cannot be met."""
    still = []
    for parent, values in p.when:
        possible = offered(parent, parents, fixed)
        q = parents.get(parent)
        if q is not None and q.kind == "float":
            raise FixInput(f"space.{p.name}.when.{parent}: conditions go by choices and whole numbers, and {parent} is a range")
        built_in = parent in catalogued(p.name).when
        met = tuple(v for v in values if (q.contains(v) if q is not None else v in possible))
        if not met and (built_in or q is None or q.kind == "fixed"):
            raise FixInput(idle(f"space.{p.name}", parent, values, possible))
        if len(met) < len(values) and not built_in and q is not None:
            raise FixInput(f"space.{p.name}.when.{parent} has values that space.{parent} never takes: {list(set(values) - set(met))}")
        if q is not None and (q.when or q.kind == "int" or not set(q.choices) <= set(met)):
            still.append((parent, met))
    return replace(p, when=tuple(still))


def offered(name: str, space: Mapping[str, Parameter], fixed: Params) -> tuple[Value, ...]:
    """The values that a setting may have, where it is no range."""
    return space[name].choices if name in space else (fixed[name],)


def idle(name: str, parent: str, values: tuple[Value, ...], possible: tuple[Value, ...]) -> str:
    """That a setting could never have an effect, and what to do."""
    return f"{name} is used only beside {parent} {either(values)}, and {parent} is {either(possible)}: change {parent} or remove {name}"


def either(values: tuple[Value, ...]) -> str:
    """Values in words."""
    return " or ".join(map(str, values))


# ---------------------------------------------------------------- what follows from a space


def default_params(space: Space) -> Params:
    """The default recipe: every parameter that is used in it, at its default."""
    params: dict[str, Value] = {}
    for p in space:
        if p.active(params):
            params[p.name] = p.default
    return params


def grid_size(space: Space) -> int:
    """How many points the grid has; FixInput when a parameter has none or there are too many."""
    parents = {parent for p in space for parent, _ in p.when}
    deciding = tuple(p for p in space if p.name in parents)
    if deciding:
        grid_size(deciding)
    others = tuple((p, len(p.points())) for p in space if p.name not in parents)
    size = sum(math.prod(n for p, n in others if p.active(point)) for point in grid_points(deciding))
    if size > GRID_LIMIT:
        raise FixInput(f"the grid has {size:,} points, more than {GRID_LIMIT:,}: give fewer points, or use another sampler")
    return size


def grid_points(space: Space) -> Iterator[Params]:
    """Every point of the grid once, in order; a point holds the parameters that are used in it."""
    if not space:
        yield {}
        return
    *before, last = space
    for point in grid_points(tuple(before)):
        yield from ({**point, last.name: value} for value in last.points()) if last.active(point) else (point,)


def searched(space: Space) -> Space:
    """The parameters that vary, in value or in being used at all."""
    return tuple(p for p in space if p.when or (p.low != p.high if p.kind in ("float", "int") else len(p.choices) > 1))
