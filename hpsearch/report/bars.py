"""How many images each class has: horizontal bars, stacked by split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpsearch.report import data, tables
from hpsearch.report.style import COLOURS, DEFAULT, escape, figure, nothing
from hpsearch.report.words import several
from hpsearch.types import Status

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from hpsearch.report.tables import StudyView

MOST_BARS = 100  # with more classes, the largest half and the smallest half of these
SPLIT_COLOURS = {"train": COLOURS[Status.COMPLETE], "val": COLOURS[Status.PRUNED], "test": DEFAULT}
OTHER_COLOUR = COLOURS[Status.FAILED]


def class_counts(view: StudyView) -> tuple[go.Figure, pd.DataFrame]:
    """Images of each class, the largest at the top; a view without a data report has none."""
    report = view.data
    table = data.class_counts(report) if report else tables.frame([], ["class", "all", "share"])
    drawn = figure("Images of each class", "n = 0 images")
    if report is None or table.empty:
        return nothing(drawn, "No class has been counted."), table
    rows = table if len(table) <= MOST_BARS else table.iloc[[*range(MOST_BARS // 2), *range(len(table) - MOST_BARS // 2, len(table))]]
    left = f"; the {MOST_BARS // 2} largest and smallest are drawn" if len(rows) < len(table) else ""
    pitch = 30 if len(rows) <= 12 else 21 if len(rows) <= 40 else 14  # pixels a class
    n = f"n = {several(data.images(report), 'image')} in {len(table):,} class{'' if len(table) == 1 else 'es'}"
    drawn.update_layout(title={"subtitle": {"text": f"{n}, largest first{left}"}}, height=150 + pitch * len(rows))
    places = list(range(len(rows)))
    names = [escape(name, 60) for name in rows["class"]]
    for split in data.splits(report):
        drawn.add_bar(
            x=rows[data.split_column(split)].tolist(),
            y=places,
            customdata=names,
            orientation="h",
            name=escape(split, 24),
            marker={"color": SPLIT_COLOURS.get(split, OTHER_COLOUR), "line": {"width": 0}},
            hovertemplate=f"%{{customdata}}<br>%{{x:,}} images<extra>{escape(split, 24)}</extra>",
        )
    labels = {"tickmode": "array", "tickvals": places, "tickfont": {"size": 12 if pitch > 14 else 10.5}}
    drawn.update_layout(
        barmode="stack",
        legend={"traceorder": "normal"},
        bargap=0.25,
        xaxis={"title": {"text": "images"}, "rangemode": "tozero", "showgrid": True, "tickformat": ",~g"},
        yaxis=labels | {"ticktext": [escape(name, 28) for name in rows["class"]], "range": [len(rows) - 0.4, -0.6]},
        meta={"narrow": {"yaxis.ticktext": [escape(name, 14) for name in rows["class"]]}},
    )
    return drawn, table
