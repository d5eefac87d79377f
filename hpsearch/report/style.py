"""How figures look: colours by fate, a light and a dark template, axes, and how untrusted text becomes safe in Plotly."""

from __future__ import annotations

import html
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go

from hpsearch.report.tables import finite
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hpsearch.report.objective import Objective

Drawn: TypeAlias = tuple[go.Figure, pd.DataFrame]
"""A figure, and the table behind it."""

# Told apart with any colour vision (after Okabe and Ito, 2008), at 3:1 or more against the paper; marks differ in shape too.
COLOURS: Mapping[Status, str] = {
    Status.COMPLETE: "#1b76bd",
    Status.PRUNED: "#c27500",
    Status.FAILED: "#bd3a88",
    Status.RUNNING: "#7b8490",
    Status.WAITING: "#7b8490",  # as running: the symbol tells them apart
    Status.PAUSED: "#7b8490",
}
SYMBOLS: Mapping[Status, str] = {
    Status.COMPLETE: "circle",
    Status.PRUNED: "triangle-down",
    Status.FAILED: "x",
    Status.RUNNING: "circle-open",
    Status.WAITING: "circle-open-dot",
    Status.PAUSED: "line-ns-open",
}
BEST, DEFAULT = "#078a63", "#6d7683"
VIOLET = "#6f55c9"
IN_THE_DARK = {
    COLOURS[Status.COMPLETE]: "#57a8ee",
    COLOURS[Status.PRUNED]: "#f0a53a",
    COLOURS[Status.FAILED]: "#ef7abb",
    COLOURS[Status.RUNNING]: "#98a2af",
    BEST: "#35d29d",
    DEFAULT: "#a9b3c0",
    VIOLET: "#a896f6",
}
"""The same colours on dark paper."""
UNITS = {
    "learning_rate": "per step",
    "batch_size": "images",
    "epochs": "passes over the data",
    "dropout": "probability",
    "frozen_layers": "blocks",
    "weight_decay": "per step, × learning rate",
    "warmup_epochs": "epochs",
    "unfreeze_epochs": "epochs per block",
    "early_stopping": "epochs",
    "rotate": "degrees",
    "flip": "probability",
}
DRAWN_FATES = (Status.PRUNED, Status.COMPLETE, Status.FAILED)  # later ones lie above


@dataclass(frozen=True, slots=True)
class Series:
    """How one of several things of a kind is drawn."""

    colour: str
    dash: str
    symbol: str


SERIES = (
    Series(COLOURS[Status.COMPLETE], "solid", "circle"),
    Series(COLOURS[Status.PRUNED], "6px,3px", "square"),
    Series(BEST, "2px,3px", "triangle-up"),
    Series(COLOURS[Status.FAILED], "9px,3px,2px,3px", "x"),
    Series(VIOLET, "12px,4px", "star"),
    Series(DEFAULT, "5px,3px,1px,3px", "hexagon"),
)


@dataclass(frozen=True, slots=True)
class Ink:
    """The colours of one mode."""

    paper: str
    text: str
    muted: str
    grid: str
    hover: str


INKS = {
    "light": Ink("#ffffff", "#1b2430", "#566273", "#e4e8ee", "#ffffff"),
    "dark": Ink("#171c24", "#e6eaf0", "#a3adbb", "#2d3542", "#222a35"),
}


def translucent(colour: str, share: float = 0.16) -> str:
    """A colour that lets through what lies below; the page finds the shade for dark paper by its first six digits."""
    return f"{colour}{round(255 * share):02x}"


def template(ink: Ink) -> go.layout.Template:
    """A Plotly template in the colours of one mode; figures themselves name no colour that depends on it."""
    axis = {
        "gridcolor": ink.grid,
        "linecolor": ink.grid,
        "zerolinecolor": ink.grid,
        "tickfont": {"color": ink.muted, "size": 12},
        "title": {"font": {"color": ink.muted, "size": 12.5}, "standoff": 8},
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": ink.grid,
    }
    layout = {
        "paper_bgcolor": ink.paper,
        "plot_bgcolor": ink.paper,
        "font": {"color": ink.text, "family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif", "size": 13},
        "xaxis": axis | {"showgrid": False, "zeroline": False},
        "yaxis": axis | {"zeroline": False},
        "hoverlabel": {"bgcolor": ink.hover, "bordercolor": ink.muted, "font": {"color": ink.text}, "align": "left", "namelength": -1},
        "annotationdefaults": {"font": {"color": ink.muted, "size": 12}, "bgcolor": translucent(ink.paper, 0.75), "showarrow": False},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": ink.muted, "activecolor": ink.text},
    }
    data = {"scatter": [{"marker": {"line": {"color": ink.paper}}}], "heatmap": [{"textfont": {"color": ink.text}}]}
    return go.layout.Template(layout=layout, data=data)


TEMPLATES = {mode: template(ink) for mode, ink in INKS.items()}


def figure(title: str, subtitle: str, height: int = 400) -> go.Figure:
    """An empty figure with title, subtitle and a legend above the plot."""
    return go.Figure(
        layout={
            "template": TEMPLATES["light"],
            "title": {"text": title, "subtitle": {"text": subtitle}, "x": 0.01, "xanchor": "left"},
            "height": height,
            "margin": {"l": 56, "r": 16, "t": 80, "b": 40},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "hovermode": "closest",
            "showlegend": True,
        }
    )


def nothing(figure: go.Figure, why: str) -> go.Figure:
    """Say in the middle of an empty figure why it is empty."""
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=170, showlegend=False)
    lines = "<br>".join(escape(line) for line in textwrap.wrap(why, 44))
    return figure.add_annotation(text=lines, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)


def panels(figure: go.Figure, n: int, columns: int, height: int = 310) -> go.Figure:
    """Lay the axes x1..xn, y1..yn out in rows of `columns`; a phone gets `layout.meta["narrow"]`: one column."""
    wide = domains(n, columns, height)
    narrow = domains(n, 1, height - 30)
    for key, value in wide.items():
        axis, _, rest = key.partition(".")
        figure.update_layout({axis: {rest: value} if rest else value})
    figure.update_layout(meta={"narrow": narrow})
    return figure


def domains(n: int, columns: int, height: int) -> dict[str, Any]:
    """Where each of n panels lies, as dotted layout keys, and the figure's height in pixels."""
    columns = max(1, min(n, columns))
    rows = max(1, math.ceil(n / columns))
    total = rows * height + 100
    across, down = (0.09 if columns < 3 else 0.075), 95 / (total - 128)
    width, tall = (1 - across * (columns - 1)) / columns, (1 - down * (rows - 1)) / rows
    keys: dict[str, Any] = {"height": total}
    for i in range(n):
        row, column = divmod(i, columns)
        left, top = column * (width + across), 1 - row * (tall + down)
        tag = "" if i == 0 else str(i + 1)
        keys[f"xaxis{tag}.domain"] = [left, min(1.0, left + width)]
        keys[f"yaxis{tag}.domain"] = [max(0.0, top - tall), top]
    return keys


def marker(status: Status, size: int = 8, opacity: float = 0.9) -> dict[str, Any]:
    """The mark of a fate."""
    return {"color": COLOURS[status], "symbol": SYMBOLS[status], "size": size, "opacity": opacity, "line": {"width": 0.7}}


def series(i: int) -> Series:
    """The look of the i-th of several things of a kind; from the seventh on they begin again."""
    return SERIES[i % len(SERIES)]


def mark_best(
    drawn: go.Figure, best: TrialRecord | None, goal: Objective, x: object, panel: str = "", legend: bool = True, word: str = "best"
) -> None:
    """A star on the best trial, at its own score in the search."""
    if best is not None:
        drawn.add_scatter(
            x=[x],
            y=[goal.drawn(best.score)],
            xaxis=f"x{panel}",
            yaxis=f"y{panel}",
            mode="markers",
            name=f"{word}: trial {best.number}",
            showlegend=legend,
            legendgroup="best",
            marker={"symbol": "star", "size": 16, "color": BEST, "line": {"width": 1}},
            hovertemplate=f"{word}: trial {best.number}<br>%{{y:.4g}} {goal.unit}<extra></extra>",
        )


def whole_axis(low: int, high: int, title: str) -> dict[str, Any]:
    """An axis of whole numbers (trials, epochs): never a tick at 0.5, room for half a mark at both ends."""
    room = max(0.5, 0.025 * (high - low))
    ticks = {"tickmode": "linear", "tick0": 0, "dtick": whole_step(high - low), "tickformat": "d"}
    return {"title": {"text": title}, "range": [low - room, high + room], **ticks}


def whole_step(span: int, ticks: int = 8) -> int:
    """The step of 1, 2 or 5 times a power of ten that gives at most about `ticks` ticks."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if span <= step * ticks:
                return step
        power *= 10


def value_axis(values: Iterable[object], title: str) -> dict[str, Any]:
    """An axis of losses: logarithmic when they span more than a decade."""
    axis: dict[str, Any] = {"title": {"text": title}}
    known = [x for x in map(finite, values) if x is not None]
    decades = math.log10(max(known)) - math.log10(min(known)) if known and min(known) > 0 else 0.0
    if decades > 1:
        return axis | log_axis(decades)
    return axis | {"rangemode": "nonnegative"}


def score_axis(table: pd.DataFrame, goal: Objective) -> dict[str, Any]:
    """The axis of the objective: a share of 100 % is never drawn logarithmically."""
    return value_axis(table[goal.name], goal.axis) if goal.is_loss else {"title": {"text": goal.axis}, "rangemode": "nonnegative"}


def log_axis(decades: float, dense: float = 2.5) -> dict[str, Any]:
    """Logarithmic, labelled with whole numbers such as 0.2 rather than a lonely 2; powers of ten alone beyond `dense` decades."""
    return {"type": "log", "dtick": max(1, math.ceil(decades / 5)) if decades > dense else "D2", "tickformat": "~g"}


def escape(value: object, length: int = 200) -> str:
    """Untrusted text for any Plotly string: Plotly reads HTML-like tags in labels and hover text."""
    line = " ".join(str(value).split())
    return html.escape(line if len(line) <= length else line[: length - 1] + "…", quote=False)


def wrapped(value: object, width: int = 60, length: int = 300) -> str:
    """Untrusted text for hover labels, broken into lines."""
    line = " ".join(str(value).split())[:length]
    return "<br>".join(html.escape(part, quote=False) for part in textwrap.wrap(line, width))
