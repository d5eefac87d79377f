"""Contours: the score over the two numeric hyperparameters that matter most, with a surface only near what was trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hpsearch.report import tables
from hpsearch.report.objective import Objective, objective
from hpsearch.report.slices import EDGE_TEXT, slice_axis
from hpsearch.report.style import BEST, COLOURS, DEFAULT, DRAWN_FATES, Drawn, escape, figure, marker, translucent
from hpsearch.report.words import FATES, several
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from hpsearch.report.tables import StudyView

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LEAST_POINTS = 6  # trials below which there is nothing to see
LEAST_SURFACE = 20  # trials below which a surface would be invented
GRID = 64  # nodes of the surface along each axis
REACH = 0.11  # of an axis' length: further from any trial nothing is known
WIDTH = 0.07  # of an axis' length: how far a trial speaks for its neighbourhood
WORST = 0.8  # share of trials that the colours are for; the few that diverged would take them all


class Spot(NamedTuple):
    """One trial on the plane."""

    trial: int
    status: str
    x: float
    y: float
    score: float  # raw


def contours(view: StudyView) -> Drawn | None:
    """Trials by fate on the plane of the two numeric hyperparameters that matter most; None where there are no two, or few trials."""
    names, goal = plane(view), objective(view.spec)
    spots = on_plane(view, names) if names else []
    if names is None or len(spots) < LEAST_POINTS:
        return None
    surface = len(spots) >= LEAST_SURFACE
    count = f"The two numbers that matter most. n = {several(len(spots), 'trial')} with a {goal.noun} (pruned: best so far), one seed"
    shade = "green: mean of neighbours, only near trials, the worst fifth in one shade" if surface else "too few for a surface"
    drawn = figure(f"{escape(names[0], 40)} and {escape(names[1], 40)}", f"{count}; {shade}", 500)
    drawn.update_layout(xaxis=slice_axis(view, names[0]), yaxis=slice_axis(view, names[1]) | {"showgrid": False})
    if surface:
        add_surface(drawn, view, names, spots, goal)
    for status in DRAWN_FATES:
        add_spots(drawn, [spot for spot in spots if spot.status == status], status, goal)
    best = tables.best_trial(view)
    mark(drawn, tables.default_trial(view), names, "default recipe", {"symbol": "diamond", "size": 11, "color": DEFAULT})
    if best:
        mark(drawn, best, names, f"{tables.called(view)}: trial {best.number}", {"symbol": "star", "size": 17, "color": BEST})
        add_edges(drawn, view, names, best)
    column = {name: tables.parameter_column(name) for name in names}
    return drawn, pd.DataFrame(spots, columns=["number", "status", *column.values(), goal.name])


def plane(view: StudyView) -> tuple[str, str] | None:
    """The two most important numeric hyperparameters that are searched; None without importance, or without two."""
    space = tables.space(view)
    numeric = [name for name in tables.searched(view) if tables.finite(space[name].get("low")) is not None]
    ranked = [name for name in tables.importance(view)["parameter"] if name in numeric]
    return (ranked[0], ranked[1]) if len(ranked) >= 2 else None


def on_plane(view: StudyView, names: tuple[str, str]) -> list[Spot]:
    """The trials with a score that use both hyperparameters."""
    found = []
    for record in tables.ordered(view):
        x, y = (tables.finite(record.params.get(name)) for name in names)
        score = tables.finite(record.score)
        if x is not None and y is not None and score is not None and record.status in DRAWN_FATES:
            found.append(Spot(record.number, str(record.status), x, y, score))
    return found


# ---------------------------------------------------------------- surface


def add_surface(drawn: go.Figure, view: StudyView, names: tuple[str, str], spots: list[Spot], goal: Objective) -> None:
    """What neighbours score on average, as filled contours."""
    known = goal.factor * np.array([spot.score for spot in spots])
    places = np.column_stack([place(view, names[0], [s.x for s in spots]), place(view, names[1], [s.y for s in spots])])
    worst = goal.sign * float(np.quantile(goal.sign * known, WORST))
    values = smooth(places, (np.minimum if goal.sign > 0 else np.maximum)(known, worst))
    ticks = np.linspace(0, 1, GRID)
    grid = [[None if math.isnan(v) else float(f"{v:.4g}") for v in row] for row in values.tolist()]
    where = {"x": back(view, names[0], ticks), "y": back(view, names[1], ticks), "z": grid, "hoverinfo": "skip"}
    shades = ((0.0, translucent(BEST, 0.6)), (1.0, translucent(BEST, 0.03)))
    drawn.add_heatmap(**where, name=goal.label, coloraxis="coloraxis")  # contours filled with what lets through would add up
    drawn.add_contour(
        **where, name="lines", ncontours=9, contours={"coloring": "none"}, line={"width": 0.7, "color": BEST}, showlegend=False
    )
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "xpad": 4, "tickfont": {"size": 12}}
    bar |= {"title": {"text": goal.axis, "side": "right", "font": {"size": 12.5}}}
    scale = shades if goal.sign > 0 else tuple((1 - at, shade) for at, shade in reversed(shades))
    drawn.update_layout(coloraxis={"colorscale": scale, "colorbar": bar})


def smooth(places: Array, values: Array) -> Array:
    """Mean of the values weighted by nearness, on a grid over the unit square: a row for each y; not a number far from any trial."""
    ticks, rows = np.linspace(0, 1, GRID), []
    across = (ticks[:, None] - places[:, 0]) ** 2
    for y in ticks:  # row by row: all at once would take gigabytes where there are many trials
        squares = across + (y - places[:, 1]) ** 2
        nearest = squares.min(axis=1)
        weights = np.exp((nearest[:, None] - squares) / (2 * WIDTH**2))  # the nearest weighs 1: nothing vanishes far away
        rows.append(np.where(nearest > REACH**2, np.nan, weights @ values / weights.sum(axis=1)))
    return np.array(rows)


def place(view: StudyView, name: str, values: list[float]) -> Array:
    """Where values lie between the ends of a hyperparameter's range, on its own scale: 0 to 1."""
    low, high, log = ends(view, name)
    on, a, b = (np.log(np.maximum(values, low)), math.log(low), math.log(high)) if log else (np.array(values), low, high)
    found: Array = (on - a) / (b - a)
    return found


def back(view: StudyView, name: str, shares: Array) -> list[float]:
    """The values at shares of a hyperparameter's range."""
    low, high, log = ends(view, name)
    return [low * (high / low) ** float(t) if log else low + float(t) * (high - low) for t in shares]


def ends(view: StudyView, name: str) -> tuple[float, float, bool]:
    """A hyperparameter's range, and whether it is searched on a log scale."""
    entry = tables.space(view)[name]
    low, high = float(entry["low"]), float(entry["high"])
    return low, high, bool(entry.get("log")) and low > 0


# ---------------------------------------------------------------- marks


def add_spots(drawn: go.Figure, spots: list[Spot], status: Status, goal: Objective) -> None:
    """The trials of one fate."""
    if spots:
        drawn.add_scatter(
            x=[spot.x for spot in spots],
            y=[spot.y for spot in spots],
            customdata=[[spot.trial, goal.drawn(spot.score)] for spot in spots],
            mode="markers",
            name=f"{FATES[status]} ({len(spots):,})",
            marker=marker(status, size=8 if len(spots) <= 200 else 5),
            hovertemplate=f"trial %{{customdata[0]}}: %{{customdata[1]:.4g}} {goal.unit}<br>%{{x}}, %{{y}}<extra>{FATES[status]}</extra>",
        )


def mark(drawn: go.Figure, record: TrialRecord | None, names: tuple[str, str], label: str, look: dict[str, Any]) -> None:
    """A mark on one trial, if it uses both hyperparameters."""
    x, y = (tables.finite(record.params.get(name)) if record else None for name in names)
    if x is not None and y is not None:
        drawn.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=label,
            marker=look | {"line": {"width": 1}},
            hovertemplate=f"{label}<br>%{{x}}, %{{y}}<extra></extra>",
        )


def add_edges(drawn: go.Figure, view: StudyView, names: tuple[str, str], best: TrialRecord) -> None:
    """Say which ranges the best value lies at the edge of."""
    edges = [f"{escape(name, 24)}: {end} end" for name in names if (end := tables.edge(view, name, best.params.get(name)))]
    if edges:
        lines = [EDGE_TEXT, *edges]
        here = {"xref": "paper", "yref": "paper", "x": 0, "xanchor": "left", "align": "left", "y": 1, "yanchor": "bottom"}
        drawn.add_annotation(text="<br>".join(lines), showarrow=False, font={"color": COLOURS[Status.PRUNED]}, **here)
        drawn.update_layout(legend={"y": 1.12 + 0.05 * len(edges)})  # above the note, which a phone has room for in short lines
