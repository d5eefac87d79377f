"""From tables to Plotly figures: pure functions of a `StudyView`, each with the table behind it. Units are on the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from hpsearch.report import tables
from hpsearch.report.bars import class_counts
from hpsearch.report.objective import LABELS, Objective, objective
from hpsearch.report.slices import slices
from hpsearch.report.style import (
    BEST,
    COLOURS,
    DEFAULT,
    DRAWN_FATES,
    Drawn,
    escape,
    figure,
    mark_best,
    marker,
    nothing,
    panels,
    score_axis,
    value_axis,
    whole_axis,
    wrapped,
)
from hpsearch.report.words import FATES, counts, several
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hpsearch.report.tables import StudyView


SECONDARY = {"accuracy": (DEFAULT, "dash"), "f1": (COLOURS[Status.COMPLETE], "dot")}  # beside the objective
MANY_POINTS = 3000  # lines alone from here on: a mark is a node of the page


# ---------------------------------------------------------------- history


def history(view: StudyView) -> Drawn:
    """Score of each trial by fate, the best so far, and the default recipe as a line."""
    table, numbers, goal = tables.history(view), tables.summary(view), objective(view.spec)
    drawn = figure("Best so far", f"n = {several(len(table), 'trial')}: {counts(numbers)}; one seed")
    if table.empty:
        return nothing(drawn, "No trial has run yet."), table
    first, last = int(table["trial"].min()), int(table["trial"].max())
    drawn.update_layout(xaxis=whole_axis(first, last, "trial"), yaxis=score_axis(table, goal))
    if tables.final_score(numbers.default) is not None:
        level, name = goal.drawn(tables.final_score(numbers.default)), "default recipe"
        add_line(drawn, [first - 0.5, last + 0.5], [level, level], name, {"color": DEFAULT, "dash": "dash", "width": 1.5})
    best = table[table["best_so_far"].notna()]
    if len(best):
        line = {"color": BEST, "width": 2, "shape": "hv"}
        add_line(drawn, best["trial"].tolist(), [goal.drawn(v) for v in best["best_so_far"]], "best so far", line)
    for status in DRAWN_FATES:
        scatter_fate(drawn, table[(table["status"] == status) & table[goal.name].notna()], status, goal)
    add_scoreless(drawn, table[table[goal.name].isna() & ~table["status"].isin([Status.RUNNING, Status.WAITING])], goal)
    mark_best(drawn, numbers.best, goal, x=numbers.best.number if numbers.best else 0, word=tables.called(view))
    return drawn, table


def add_line(drawn: go.Figure, x: list[Any], y: list[Any], name: str, line: Mapping[str, Any]) -> None:
    """A line for the eye, silent under the pointer."""
    drawn.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip")


def scatter_fate(drawn: go.Figure, rows: pd.DataFrame, status: Status, goal: Objective) -> None:
    """One trace of the trials that shared a fate."""
    if len(rows):
        hover = f"trial %{{x}}: %{{y:.4g}} {goal.unit}<extra>{FATES[status]}</extra>"
        name = f"{FATES[status]} ({len(rows):,})"
        drawn.add_scatter(
            x=rows["trial"].tolist(),
            y=[goal.drawn(v) for v in rows[goal.name]],
            mode="markers",
            name=name,
            marker=marker(status, size=8 if len(rows) <= 200 else 5),
            hovertemplate=hover,
        )


def add_scoreless(drawn: go.Figure, rows: pd.DataFrame, goal: Objective) -> None:
    """Trials without a score have no height: they are drawn along the upper edge, with their reason."""
    if rows.empty:
        return
    drawn.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    reasons = [wrapped(error) if isinstance(error, str) else "no reason recorded" for error in rows["error"]]
    drawn.add_scatter(
        x=rows["trial"].tolist(),
        y=[0.985] * len(rows),
        yaxis="y2",
        mode="markers",
        name=f"failed ({len(rows):,}, at the top)",
        marker=marker(Status.FAILED),
        customdata=reasons,
        hovertemplate=f"trial %{{x}}: no {goal.noun}<br>%{{customdata}}<extra></extra>",
    )
    if rows.shape[0] and not any(trace.yaxis != "y2" for trace in drawn.data):
        drawn.update_yaxes(showticklabels=False, showgrid=False)


# ---------------------------------------------------------------- learning curves


def curves(view: StudyView) -> Drawn:
    """Validation loss over epochs: one trace a fate, the best trial and the default recipe above them."""
    table = tables.curves(view)[["trial", "status", "epoch", "progress", "val_loss"]]
    numbers = tables.summary(view)
    count = f"n = {several(table['trial'].nunique(), 'trial')}, {several(len(table), 'epoch')}"
    drawn = figure("Learning curves", f"{count}; a cross: stopped by the pruner, or failed", 440)
    seen = table[table["val_loss"].notna()]
    if seen.empty:
        return nothing(drawn, "No trial has finished an epoch."), table
    longest = int(seen["epoch"].max())
    drawn.update_layout(xaxis=whole_axis(1, longest, "epoch"), yaxis=value_axis(seen["val_loss"], "validation loss (nats)"))
    special = {r.number for r in (numbers.best, numbers.default) if r}
    mode = "lines+markers" if len(seen) <= MANY_POINTS else "lines"
    for status in DRAWN_FATES:
        add_curves(drawn, table[(table["status"] == status) & ~table["trial"].isin(special)], status, mode)
    add_stops(drawn, seen)
    if numbers.default and numbers.default is not numbers.best:
        add_one_curve(drawn, seen, numbers.default, "default recipe", DEFAULT, "dash")
    if numbers.best:
        add_one_curve(drawn, seen, numbers.best, f"{tables.called(view)}: trial {numbers.best.number}", BEST, "solid")
    return drawn, table


def add_curves(drawn: go.Figure, rows: pd.DataFrame, status: Status, mode: str) -> None:
    """All curves of one fate as one trace, with a gap after each trial: a thousand traces would take the browser down."""
    x: list[Any] = []
    y: list[Any] = []
    numbers: list[Any] = []
    groups = [(number, curve) for number, curve in rows.groupby("trial") if curve["val_loss"].notna().any()]
    for number, curve in groups:
        x += [*curve["epoch"].tolist(), None]
        y += [*(v if v == v else None for v in curve["val_loss"].tolist()), None]
        numbers += [*[number] * len(curve), None]
    if groups:
        drawn.add_scatter(
            x=x,
            y=y,
            customdata=numbers,
            mode=mode,
            name=f"{FATES[status]} ({len(groups):,})",
            opacity=0.65 if len(groups) <= 60 else 0.5,
            line={"color": COLOURS[status], "width": 1.3 if len(groups) <= 60 else 0.7},
            marker={"size": 4, "line": {"width": 0}},
            hovertemplate="trial %{customdata}, epoch %{x}<br>%{y:.4g} nats<extra></extra>",
        )


def add_stops(drawn: go.Figure, seen: pd.DataFrame) -> None:
    """A cross where a trial was stopped or failed."""
    for status in (Status.PRUNED, Status.FAILED):
        last = seen[seen["status"] == status].groupby("trial").tail(1)
        if len(last):
            drawn.add_scatter(
                x=last["epoch"].tolist(),
                y=last["val_loss"].tolist(),
                customdata=last["trial"].tolist(),
                mode="markers",
                showlegend=False,
                name=f"{FATES[status]} here",
                marker={"symbol": "x-thin", "size": 7 if len(last) <= 60 else 5, "line": {"width": 1.5, "color": COLOURS[status]}},
                hovertemplate=f"trial %{{customdata}} {FATES[status]} after epoch %{{x}}<br>%{{y:.4g}} nats<extra></extra>",
            )


def add_one_curve(drawn: go.Figure, seen: pd.DataFrame, record: TrialRecord, name: str, colour: str, dash: str) -> None:
    """A trial's curve drawn to stand out."""
    curve = seen[seen["trial"] == record.number]
    if len(curve):
        drawn.add_scatter(
            x=curve["epoch"].tolist(),
            y=curve["val_loss"].tolist(),
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 3, "dash": dash},
            marker={"size": 6, "color": colour, "line": {"width": 1}},
            hovertemplate=f"{name}, epoch %{{x}}<br>%{{y:.4g}} nats<extra></extra>",
        )


# ---------------------------------------------------------------- importance, best trial


def importance(view: StudyView) -> Drawn:
    """How much of the score's variation each hyperparameter explains."""
    table = tables.importance(view)
    method = escape(view.importance_method or "not named")
    drawn = figure(
        "Importance",
        f"n = {several(len(view.records), 'trial')}: {counts(tables.summary(view))}; method: {method}",
        130 + 44 * max(3, len(table)),
    )
    if table.empty:
        return nothing(drawn, "Not computed: too few trials with different scores."), table
    rows = table.iloc[::-1]
    share = [100 * v for v in rows["importance"]]
    drawn.add_bar(
        x=share,
        y=[escape(name, 32) for name in rows["parameter"]],
        orientation="h",
        marker={"color": COLOURS[Status.COMPLETE], "line": {"width": 0}},
        text=[f"{v:.0f} %" for v in share],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )
    top = max(share[-1] * 1.15, 1e-9)
    drawn.update_layout(xaxis={"title": {"text": "importance (% of the total)"}, "range": [0, top]}, bargap=0.35, showlegend=False)
    return drawn, table


def best_trial(view: StudyView) -> Drawn:
    """Training against validation over the best trial's epochs: does it still learn, does it overfit."""
    best = tables.best_trial(view)
    table = tables.curves(view)
    table = table[table["trial"] == (best.number if best else None)].drop(columns="status")
    images = tables.validation_images(view)
    count = f"n = {images} validation images; " if images else ""
    title = f"Inside the best trial ({best.number})" if best else "Inside the best trial"
    drawn = figure(title, f"{count}{several(len(table), 'epoch')} of one trial; dotted: the epoch whose weights are kept")
    if best is None or table.empty:
        return nothing(drawn, "No complete trial with epochs to show."), table
    epochs = whole_axis(1, int(table["epoch"].max()), "epoch")
    both = [*table["val_loss"], *table["train_loss"]]
    drawn.update_layout(xaxis=epochs, yaxis=value_axis(both, "loss (nats)"))
    add_metric(drawn, table, "train_loss", "training loss", COLOURS[Status.PRUNED], "dash", panel="", unit=" nats")
    add_metric(drawn, table, "val_loss", "validation loss", BEST, "solid", panel="", unit=" nats")
    goal = objective(view.spec)
    main = "accuracy" if goal.is_loss else goal.name
    shares = [name for name in dict.fromkeys((main, "accuracy", "f1")) if measured(table, name)]
    if shares:
        drawn.update_layout(xaxis2=epochs | {"anchor": "y2"}, yaxis2={"title": {"text": "on validation images (%)"}, "anchor": "x2"})
    for name in shares:
        colour, dash = (BEST, "solid") if name == main else SECONDARY[name]
        add_metric(drawn, table, name, LABELS[name], colour, dash, panel="2", unit=" %", factor=100)
    for panel in ("", "2") if shares else ("",):
        mark_epoch(drawn, best.best_epoch, panel)
    return panels(drawn, 2 if shares else 1, columns=2), table


def measured(table: pd.DataFrame, column: str) -> bool:
    """Whether any epoch has the metric."""
    return column in table and bool(table[column].notna().any())


def mark_epoch(drawn: go.Figure, epoch: int | None, panel: str) -> None:
    """A dotted line at the epoch whose weights were kept."""
    if epoch:
        line = {"color": DEFAULT, "dash": "dot", "width": 1.5}
        drawn.add_shape(type="line", x0=epoch, x1=epoch, xref=f"x{panel}", yref=f"y{panel} domain", y0=0, y1=1, line=line)


def add_metric(
    drawn: go.Figure, table: pd.DataFrame, column: str, name: str, colour: str, dash: str, *, panel: str, unit: str, factor: float = 1.0
) -> None:
    """One metric over epochs; nothing when it was not measured."""
    if measured(table, column):
        drawn.add_scatter(
            x=table["epoch"].tolist(),
            y=[factor * v if v == v else None for v in table[column]],
            xaxis=f"x{panel}",
            yaxis=f"y{panel}",
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2.2, "dash": dash},
            marker={"size": 6, "color": colour},
            hovertemplate=f"{name}, epoch %{{x}}: %{{y:.4g}}{unit}<extra></extra>",
        )


FIGURES: Mapping[str, Callable[[StudyView], Drawn]] = {
    "history": history,
    "curves": curves,
    "slices": slices,
    "importance": importance,
    "best_trial": best_trial,
    "class_counts": class_counts,
}
"""Every figure that a page can show."""
