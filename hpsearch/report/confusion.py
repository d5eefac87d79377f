"""Who is taken for whom: the confusion matrix of the winner on the test images."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpsearch.report.data import class_name, class_names
from hpsearch.report.style import BEST, COLOURS, escape, figure, translucent
from hpsearch.report.tables import frame
from hpsearch.report.words import percent, several
from hpsearch.types import Status

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from hpsearch.report.tables import StudyView
    from hpsearch.types import Judged

MOST_CLASSES = 100  # in the heat map; of more, those with the most mistakes
SHARED = 12  # classes up to which it holds its share, too
NUMBERED = 20  # classes up to which every field holds its count
LABELLED, LABELLED_NARROW = 25, 13  # classes that have room for their names, and on a phone


def confusion(view: StudyView) -> tuple[go.Figure, pd.DataFrame] | None:
    """Which classes of the test images the winner takes for which."""
    judged = view.proof.test if view.proof else None
    if view.proof is None or judged is None or not judged.confusion:
        return None
    names, table = class_names(view), confusion_table(judged, class_names(view))
    shown = drawn_classes(judged)
    k = len(shown)
    left = f"; the {k} of {len(judged.confusion)} classes with the most mistakes are drawn" if k < len(judged.confusion) else ""
    text = f"n = {several(judged.images, 'test image')}; a row a true class, colour its share in %: green right, orange wrong{left}"
    side = 150 + k * (44 if k <= SHARED else 26 if k <= NUMBERED else 18 if k <= 40 else 8)
    drawn = figure(f"Who is taken for whom (trial {view.proof.winner})", text + confused(judged, names), side)
    counts = [[judged.confusion[i][j] if j < len(judged.confusion[i]) else 0 for j in shown] for i in shown]
    totals = [max(1, sum(judged.confusion[i])) for i in shown]
    worst = max((100 * n / totals[i] for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)
    labels = [escape(class_name(names, i), 40) for i in shown]
    for right, colour, most in ((True, BEST, 100.0), (False, COLOURS[Status.PRUNED], max(worst, 1.0))):
        add_fields(drawn, counts, totals, labels, right, colour, most)
    step = math.ceil(k / LABELLED)
    places, end = list(range(0, k, step)), k - 0.5
    few = list(range(0, k, max(1, math.ceil(k / LABELLED_NARROW)))) if k > LABELLED else places
    axis = {"tickmode": "array", "tickvals": places, "ticks": "", "showgrid": False}
    short = 18 if k <= 12 else 12
    drawn.update_layout(
        xaxis=axis | {"ticktext": [cut(labels[i], short) for i in places], "range": [-0.5, end], "title": {"text": "taken for"}},
        yaxis=axis | {"ticktext": [cut(labels[i], 24) for i in places], "range": [end, -0.5], "title": {"text": "true class"}},
        showlegend=False,
        meta={
            "narrow": {
                "height": min(side, 520),
                "xaxis.tickvals": few,
                "yaxis.tickvals": few,
                "xaxis.ticktext": [cut(labels[i], 8) for i in few],
                "yaxis.ticktext": [cut(labels[i], 12) for i in few],
                "xaxis.tickfont.size": 10,
                "yaxis.tickfont.size": 10,
                "yaxis.title.text": "",
            }
        },
    )
    return drawn, table


def add_fields(
    drawn: go.Figure, counts: list[list[int]], totals: list[int], labels: list[str], right: bool, colour: str, most: float
) -> None:
    """The diagonal, or everything beside it; empty fields stay paper."""
    chosen = [[n if n and (i == j) == right else None for j, n in enumerate(row)] for i, row in enumerate(counts)]
    share = [[None if n is None else 100 * n / totals[i] for n in row] for i, row in enumerate(chosen)]
    what = [
        [f"{labels[i]} taken for {labels[j]}<br>{n} of {totals[i]} ({percent(n / totals[i])})" if n else "" for j, n in enumerate(row)]
        for i, row in enumerate(chosen)
    ]
    numbered = len(counts) <= NUMBERED
    drawn.add_heatmap(
        z=share,
        text=[["" if n is None else field(n, totals[i], len(counts)) for n in row] for i, row in enumerate(chosen)] if numbered else None,
        texttemplate="%{text}" if numbered else None,
        hovertext=what,
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
        colorscale=[[0.0, translucent(colour, 0.12)], [1.0, translucent(colour, 0.85 if numbered is False else 0.6)]],
        zmin=0,
        zmax=most,
        showscale=False,
        xgap=1 if numbered else 0,
        ygap=1 if numbered else 0,
        name="right" if right else "wrong",
    )


def field(n: int, total: int, classes: int) -> str:
    """What a field says: a count, and its share of the row where there is room."""
    return f"{n:,}<br>{100 * n / total:.0f} %" if classes <= SHARED else f"{n:,}"


def confusion_table(judged: Judged, names: Sequence[str]) -> pd.DataFrame:
    """One row for each two classes that were seen together: images, and their share of the true class."""
    rows = [
        (class_name(names, i), class_name(names, j), n, n / sum(row))
        for i, row in enumerate(judged.confusion)
        for j, n in enumerate(row)
        if n
    ]
    return frame(rows, ["class", "taken_for", "images", "share"], ("share",)).astype({"images": "int64"})


def drawn_classes(judged: Judged) -> list[int]:
    """All classes, or those with the most mistakes, in their order."""
    matrix = judged.confusion
    if len(matrix) <= MOST_CLASSES:
        return list(range(len(matrix)))
    missed = {i: sum(n for j, n in enumerate(row) if j != i) for i, row in enumerate(matrix)}
    return sorted(sorted(missed, key=lambda i: (-missed[i], i))[:MOST_CLASSES])


def confused(judged: Judged, names: Sequence[str]) -> str:
    """The pairs that are confused most, in words."""
    pairs = [(n, i, j) for i, row in enumerate(judged.confusion) for j, n in enumerate(row) if n and i != j]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:3]
    said = [
        f"{escape(class_name(names, i), 30)} taken for {escape(class_name(names, j), 30)} ({n} of {sum(judged.confusion[i])})"
        for n, i, j in worst
    ]
    return f". Most often: {', '.join(said)}" if said else ""


def cut(label: str, length: int) -> str:
    """An escaped label of at most so many characters, never cut within an escape."""
    return label if len(label) <= length else escape(html.unescape(label), length)
