"""A configuration of one search space fitted into another: what fits is taken, the rest is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpsearch.errors import FixInput
from hpsearch.recipes import KNOWN, checked
from hpsearch.space import Parameter, Space
from hpsearch.types import Params, Value

Misfit = Literal["outside", "fixed", "unsearched", "unused"]


@dataclass(frozen=True, slots=True)
class Remark:
    """A value that was not taken, and what stands in its place."""

    kind: Misfit
    name: str
    value: Value
    domain: str = ""  # what would have fitted
    instead: Value = None


def fit(params: Params, space: Space) -> tuple[dict[str, Value], tuple[Remark, ...]]:
    """The configuration of `space` that is nearest to `params`, and the values that it could not take.

    What does not fit stands at the parameter's default; what is not used beside the values taken is absent.
    """
    fitted: dict[str, Value] = {}
    remarks: list[Remark] = []
    for p in space:  # parents first
        if p.active(fitted):
            fitted[p.name] = taken(p, params[p.name]) if p.name in params else p.default
        if p.name in params and p.name not in fitted:
            remarks.append(Remark("unused", p.name, params[p.name]))
        elif p.name in params and fitted[p.name] != normal(p, params[p.name]):
            kind: Misfit = "fixed" if p.kind == "fixed" else "outside"
            remarks.append(Remark(kind, p.name, params[p.name], domain(p), p.default))
    names = {p.name for p in space}
    remarks += [Remark("unsearched", name, value) for name, value in params.items() if name not in names]
    return fitted, tuple(remarks)


def taken(p: Parameter, value: Value) -> Value:
    """The value where it fits, else the default."""
    value = normal(p, value)
    return value if p.contains(value) else p.default


def normal(p: Parameter, value: Value) -> Value:
    """The value as the type that the parameter has; None for what is not of its kind."""
    if p.name not in KNOWN:
        return value
    try:
        checked_value: Value = checked(p.name, value, p.name)
    except FixInput:
        return None
    return checked_value


def domain(p: Parameter) -> str:
    """What a parameter may be, in words."""
    return ", ".join(map(shown, p.choices)) if p.kind in ("fixed", "choice") else f"{shown(p.low)} to {shown(p.high)}"


def shown(value: Value) -> str:
    """A value with at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- in words


def sentences(remarks: Sequence[Remark]) -> list[str]:
    """One line for each kind of misfit, over all configurations; each name in it once, with its values."""
    found: dict[Misfit, dict[str, list[Remark]]] = {kind: {} for kind in WORDS}
    for remark in remarks:
        found[remark.kind].setdefault(remark.name, []).append(remark)
    return ["; ".join(WORDS[kind](name, several) for name, several in names.items()) for kind, names in found.items() if names]


def outside(name: str, remarks: Sequence[Remark]) -> str:
    """Values beyond the range, or that are no choice."""
    plural = "" if len(distinct(remarks)) > 1 else "es"
    return f"{name} {listed(remarks)} do{plural} not fit {remarks[0].domain} (default {shown(remarks[0].instead)} instead)"


def fixed(name: str, remarks: Sequence[Remark]) -> str:
    """Values of what the study fixes."""
    return f"{name} is fixed at {remarks[0].domain} here (not {listed(remarks)})"


def unsearched(name: str, remarks: Sequence[Remark]) -> str:
    """Values of what the study does not search."""
    return f"{name} is not searched here ({listed(remarks)} not taken)"


def unused(name: str, remarks: Sequence[Remark]) -> str:
    """Values of what has no use beside the others."""
    return f"{name} is not used beside what was taken ({listed(remarks)})"


def listed(remarks: Sequence[Remark]) -> str:
    """Their values, each once, three at most."""
    values = distinct(remarks)
    return ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")


def distinct(remarks: Sequence[Remark]) -> list[str]:
    """Their values as shown, each once."""
    return list(dict.fromkeys(shown(remark.value) for remark in remarks))


WORDS: Mapping[Misfit, Callable[[str, Sequence[Remark]], str]] = {
    "outside": outside,
    "fixed": fixed,
    "unsearched": unsearched,
    "unused": unused,
}
