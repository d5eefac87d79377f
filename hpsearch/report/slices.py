"""Slices: the score against each searched hyperparameter, one panel each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hpsearch.report import tables
from hpsearch.report.objective import Objective, objective
from hpsearch.report.style import (
    COLOURS,
    DEFAULT,
    DRAWN_FATES,
    UNITS,
    escape,
    figure,
    log_axis,
    mark_best,
    marker,
    nothing,
    panels,
    score_axis,
    whole_axis,
    wrapped,
)
from hpsearch.report.words import FATES, several
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from hpsearch.report.tables import StudyView

EDGE_TEXT = "best value lies on the edge<br>of its range: widen it"


def slices(view: StudyView) -> tuple[go.Figure, pd.DataFrame]:
    """Score against each searched hyperparameter, the best marked, edges of ranges flagged."""
    names, goal = tables.searched(view), objective(view.spec)
    columns = {name: tables.parameter_column(name) for name in names}
    table = tables.trials(view)[["number", "status", *columns.values(), goal.name]]
    scored = table[table[goal.name].notna()]
    count = f"n = {len(scored):,} of {several(len(table), 'trial')} (those with a {goal.noun})"
    drawn = figure("Slices of the space", f"{count}, one mark a trial; one seed")
    if not names or scored.empty:
        return nothing(
            drawn, f"No trial has a {goal.noun} yet." if names else "Every hyperparameter is fixed: nothing was searched."
        ), table
    best = tables.best_trial(view)
    for i, name in enumerate(names):
        panel = "" if i == 0 else str(i + 1)
        y_axis = score_axis(scored, goal) | {"anchor": f"x{panel}"}
        if i:
            y_axis["matches"] = "y"  # some panels lack the worst trials
        if i % 3:
            y_axis["title"] = {"text": ""}
        drawn.update_layout({f"xaxis{panel}": slice_axis(view, name) | {"anchor": f"y{panel}"}, f"yaxis{panel}": y_axis})
        for status in DRAWN_FATES:
            add_slice(drawn, scored[scored["status"] == status], columns[name], status, goal, panel)
        mark_default(drawn, view, name, goal, panel)
        x = slice_value(view, name, best) if best else None
        mark_best(drawn, best, goal, x, panel, legend=i == 0, word=tables.called(view))
        if best and tables.edge(view, name, best.params.get(name)):
            here = {"xref": f"x{panel} domain", "yref": f"y{panel} domain", "x": 0.5, "y": 1, "yanchor": "bottom"}
            drawn.add_annotation(text=EDGE_TEXT, showarrow=False, font={"color": COLOURS[Status.PRUNED]}, **here)
    panels(drawn, len(names), columns=3)
    narrow = dict(drawn.layout.meta["narrow"])
    narrow |= {f"yaxis{'' if i == 0 else i + 1}.title.text": goal.axis for i in range(len(names))}
    noted = 44 if drawn.layout.annotations else 8  # pixels: the legend stands above the notes on edges
    narrow["legend.y"] = 1 + noted / narrow["height"]
    return drawn.update_layout(legend={"y": 1 + noted / drawn.layout.height}, meta={"narrow": narrow}), table


def add_slice(drawn: go.Figure, rows: pd.DataFrame, column: str, status: Status, goal: Objective, panel: str) -> None:
    """The trials of one fate in one panel, but those that do not use the hyperparameter; the legend names a fate once, with all."""
    name = f"{FATES[status]} ({len(rows):,})"
    rows = rows[rows[column].notna()]
    if rows.empty:
        return
    known = any(trace.legendgroup == status for trace in drawn.data)
    category = drawn.layout[f"xaxis{panel}"].type == "category"
    drawn.add_scatter(
        x=[escape(v, 24) if category else tables.finite(v) for v in rows[column]],
        y=[goal.drawn(v) for v in rows[goal.name]],
        customdata=rows["number"].tolist(),
        xaxis=f"x{panel}",
        yaxis=f"y{panel}",
        mode="markers",
        name=name,
        legendgroup=str(status),
        showlegend=not known,
        marker=marker(status, size=7, opacity=0.75),
        hovertemplate=f"trial %{{customdata}}<br>%{{x}}: %{{y:.4g}} {goal.unit}<extra></extra>",
    )


def mark_default(drawn: go.Figure, view: StudyView, name: str, goal: Objective, panel: str) -> None:
    """A diamond on the default recipe."""
    record = tables.default_trial(view)
    if record and tables.final_score(record) is not None:
        drawn.add_scatter(
            x=[slice_value(view, name, record)],
            y=[goal.drawn(record.score)],
            xaxis=f"x{panel}",
            yaxis=f"y{panel}",
            mode="markers",
            name="default recipe",
            legendgroup="default",
            showlegend=not panel,
            marker={"symbol": "diamond", "size": 11, "color": DEFAULT, "line": {"width": 1}},
            hovertemplate=f"default recipe<br>%{{x}}: %{{y:.4g}} {goal.unit}<extra></extra>",
        )


def slice_axis(view: StudyView, name: str) -> dict[str, Any]:
    """The axis of a hyperparameter on its own scale, a little wider than its range."""
    entry = tables.space(view).get(name, {})
    unit = ", ".join(word for word in (UNITS.get(name), "log" if entry.get("log") else "") if word)
    title = escape(name, 40) + (f" ({unit})" if unit else "")
    if only := tables.condition(entry):
        title += f"<br>{wrapped(f'only with {only}', 38, 76)}"
    low, high = tables.finite(entry.get("low")), tables.finite(entry.get("high"))
    if low is None or high is None:
        order = [escape(choice, 24) for choice in entry.get("choices", ())]
        ends = [-0.5, max(len(order), 1) - 0.5]
        return {"title": {"text": title}, "type": "category", "categoryorder": "array", "categoryarray": order, "range": ends}
    if entry.get("log") and low > 0:
        return {"title": {"text": title}} | log_range(low, high)
    if isinstance(entry.get("low"), int) and isinstance(entry.get("high"), int):
        return whole_axis(int(low), int(high), title)
    room = 0.04 * (high - low)
    return {"title": {"text": title}, "range": [low - room, high + room], "nticks": 6}


def log_range(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis from low to high; Plotly wants the range in powers of ten."""
    ends = math.log10(low), math.log10(high)
    room = 0.04 * (ends[1] - ends[0])
    return log_axis(ends[1] - ends[0], dense=1.2) | {"range": [ends[0] - room, ends[1] + room]}


def slice_value(view: StudyView, name: str, record: TrialRecord) -> object:
    """A trial's value as `add_slice` draws it; None, which is not drawn, when it does not use the hyperparameter."""
    value = record.params.get(name)
    return tables.finite(value) if value is None or "low" in tables.space(view).get(name, {}) else escape(value, 24)
