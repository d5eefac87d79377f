"""Parallel coordinates: a line a trial through the searched hyperparameters to its score; axes one below the other, as phones hold them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from hpsearch.report import tables
from hpsearch.report.objective import Objective, objective
from hpsearch.report.style import BEST, COLOURS, DEFAULT, UNITS, Drawn, escape, figure
from hpsearch.report.words import FATES, several
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hpsearch.report.tables import StudyView


LEAST = 4  # trials with a score below which lines say nothing
MOST_AXES = 9  # hyperparameters; those of the least importance are left out
ROW = 66  # pixels from axis to axis
LETTERS = 46  # of labels that fit beside one another on a phone
GROUPS = (("the rest", DEFAULT, 0.3, 0.8), ("second quarter", COLOURS[Status.COMPLETE], 0.5, 1.0), ("best quarter", BEST, 0.8, 1.3))


class Axis(NamedTuple):
    """One axis: its name, what stands below it, and where values lie on it."""

    title: str
    labels: Sequence[tuple[float, str]]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[object, ...] = ()

    def at(self, value: object) -> float | None:
        """Where a value lies, from 0 to 1; None where a trial has none."""
        if self.choices:
            return spread(self.choices.index(value), len(self.choices)) if value in self.choices else None
        x = tables.finite(value)
        if x is None or (self.log and x <= 0):
            return None
        span = math.log(self.high / self.low) if self.log else self.high - self.low
        return (math.log(x / self.low) if self.log else x - self.low) / span if span else 0.5


def parallel(view: StudyView) -> Drawn | None:
    """A line a trial, coloured by the rank of its score; None where fewer than two hyperparameters are searched, or few trials have one."""
    goal, names = objective(view.spec), ranked(view)
    trials = sorted((r for r in view.records if tables.finite(r.score) is not None), key=lambda r: (r.cost, r.number))
    if len(names) < 2 or len(trials) < LEAST:
        return None
    shown = names[:MOST_AXES]
    axes = [*(parameter_axis(view, name) for name in shown), score_axis([goal.factor * (r.score or 0.0) for r in trials], goal)]
    lines = {r.number: [a.at(v) for a, v in zip(axes, values(r, shown, goal), strict=True)] for r in trials}
    left = f"; the {len(names) - len(shown)} of least importance are left out" if len(names) > len(shown) else ""
    count = f"n = {several(len(trials), 'trial')} with a {goal.noun} (pruned: best so far), one line each; one seed"
    drawn = figure("All hyperparameters together", f"{count}; a gap: not used by the trial{left}", 110 + ROW * len(axes))
    for i, axis in enumerate(axes):
        draw_axis(drawn, axis, -i)
    for (label, colour, opacity, width), group in zip(GROUPS, reversed(quarters(trials)), strict=True):
        add_lines(drawn, group, lines, goal, f"{label} ({len(group):,})", colour, opacity, width)
    best = tables.best_trial(view)
    if best and best.number in lines:
        add_best(drawn, best, lines[best.number], goal, tables.called(view))
    drawn.update_layout(
        xaxis={"range": [-0.03, 1.03], "visible": False, "fixedrange": True},
        yaxis={"range": [0.55 - len(axes), 0.5], "visible": False, "fixedrange": True},
        margin={"l": 12, "r": 12, "b": 12},
    )
    columns = {name: tables.parameter_column(name) for name in names}
    rows = [(r.number, str(r.status), place, *(r.params.get(name) for name in names), r.score) for place, r in enumerate(trials, start=1)]
    return drawn, pd.DataFrame(rows, columns=["number", "status", "rank", *columns.values(), goal.name], dtype=object)


def ranked(view: StudyView) -> list[str]:
    """The searched hyperparameters, the most important first, those of unknown importance in the study's order."""
    names = tables.searched(view)
    order = tables.importance(view)["parameter"].tolist()
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def values(record: TrialRecord, names: Iterable[str], goal: Objective) -> list[object]:
    """A trial's value on each axis."""
    return [*(record.params.get(name) for name in names), goal.drawn(record.score)]


def quarters(trials: Sequence[TrialRecord]) -> tuple[Sequence[TrialRecord], ...]:
    """Trials in order of score as the best quarter, the second, and the rest."""
    quarter = math.ceil(len(trials) / 4)
    return trials[:quarter], trials[quarter : 2 * quarter], trials[2 * quarter :]


# ---------------------------------------------------------------- axes


def parameter_axis(view: StudyView, name: str) -> Axis:
    """The axis of a hyperparameter over its range, or its choices."""
    entry = tables.space(view)[name]
    low, high, title = tables.finite(entry.get("low")), tables.finite(entry.get("high")), escape(name, 30)
    if low is None or high is None:
        choices = tuple(entry.get("choices", ()))
        room = max(2, LETTERS // max(1, len(choices)) - 1)
        return Axis(title, [(spread(i, len(choices)), escape(choice, room)) for i, choice in enumerate(choices)], choices=choices)
    log = bool(entry.get("log")) and low > 0
    unit = ", ".join(word for word in (UNITS.get(name), "log" if log else "") if word)
    return Axis(title + (f" ({unit})" if unit else ""), marked(low, high, log), low, high, log)


def score_axis(scores: Sequence[float], goal: Objective) -> Axis:
    """The axis of the objective over what trials came to."""
    low, high = min(scores), max(scores)
    log = goal.is_loss and low > 0 and high / low > 10
    return Axis(
        f"{goal.axis}{', log' if log else ''}: {'less' if goal.sign > 0 else 'more'} is better", marked(low, high, log), low, high, log
    )


def marked(low: float, high: float, log: bool) -> list[tuple[float, str]]:
    """Labels at both ends and in the middle."""
    middle = math.sqrt(low) * math.sqrt(high) if log else low + (high - low) / 2
    return [(at, f"{value:.3g}") for at, value in ((0.0, low), (0.5, middle), (1.0, high))]


def spread(i: int, n: int) -> float:
    """Where the i-th of n choices lies."""
    return (i + 0.5) / max(1, n)


def draw_axis(drawn: go.Figure, axis: Axis, y: int) -> None:
    """A line, its name above it, labels below it."""
    drawn.add_shape(type="line", x0=0, x1=1, y0=y, y1=y, line={"color": DEFAULT, "width": 1})
    drawn.add_annotation(text=axis.title, x=0, y=y, xanchor="left", yanchor="bottom", yshift=3, showarrow=False, font={"size": 12.5})
    for at, text in axis.labels:
        side = "left" if at == 0 else "right" if at == 1 else "center"
        drawn.add_annotation(text=text, x=at, y=y, xanchor=side, yanchor="top", yshift=-2, showarrow=False, font={"size": 11})
        drawn.add_shape(type="line", x0=at, x1=at, y0=y - 0.05, y1=y + 0.05, line={"color": DEFAULT, "width": 1})


# ---------------------------------------------------------------- lines


def add_lines(
    drawn: go.Figure,
    trials: Sequence[TrialRecord],
    lines: dict[int, list[float | None]],
    goal: Objective,
    name: str,
    colour: str,
    opacity: float,
    width: float,
) -> None:
    """The lines of one group as one trace, with a gap after each trial."""
    x: list[Any] = []
    y: list[Any] = []
    said: list[Any] = []
    for record in trials:
        line = lines[record.number]
        x += [*line, None]
        y += [*(-i if at is not None else None for i, at in enumerate(line)), None]
        said += [*[told(record, goal)] * len(line), None]
    if trials:
        drawn.add_scatter(
            x=x,
            y=y,
            customdata=said,
            mode="lines",
            name=name,
            opacity=opacity if len(trials) <= 100 else opacity / 2,
            line={"color": colour, "width": width},
            hovertemplate="%{customdata}<extra></extra>",
        )


def add_best(drawn: go.Figure, best: TrialRecord, line: Sequence[float | None], goal: Objective, word: str) -> None:
    """The best trial, bold."""
    drawn.add_scatter(
        x=list(line),
        y=[-i if at is not None else None for i, at in enumerate(line)],
        mode="lines+markers",
        name=f"{word}: trial {best.number}",
        line={"color": BEST, "width": 4},
        marker={"color": BEST, "size": 9, "line": {"width": 1}},
        hovertemplate=f"{told(best, goal)}<extra></extra>",
    )


def told(record: TrialRecord, goal: Objective) -> str:
    """A trial under the pointer."""
    return f"trial {record.number}, {FATES[record.status]}: {goal.drawn(record.score):.4g} {goal.unit}"
