"""Where good values lie and where the time went: frozen layers by learning rate, training time by frozen layers and fate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from hpsearch.report import tables
from hpsearch.report.contours import contours
from hpsearch.report.objective import objective
from hpsearch.report.parallel import parallel
from hpsearch.report.style import BEST, COLOURS, DRAWN_FATES, Drawn, figure, translucent
from hpsearch.report.survival import rungs
from hpsearch.report.words import FATES, several
from hpsearch.types import SIGNS, Status, TrialRecord

if TYPE_CHECKING:
    from hpsearch.report.tables import StudyView


BINS = 6  # of the learning rate
LEAST = 8  # trials with a score below which a map says nothing


class Field(NamedTuple):
    """One field of the map."""

    frozen_layers: int
    low: float  # of the learning rate
    high: float
    best: float  # score, raw
    trial: int  # that has it
    trials: int


def frozen_by_rate(view: StudyView) -> Drawn | None:
    """The best score of each number of frozen layers in each range of the learning rate; None unless both are searched."""
    fields, goal = map_fields(view), objective(view.spec)
    if not fields:
        return None
    levels, bins = sorted({f.frozen_layers for f in fields}), sorted({(f.low, f.high) for f in fields})
    order = sorted(fields, key=lambda f: goal.sign * f.best)  # colour by order: a few diverged trials would take all of it
    at = {(f.frozen_layers, f.low): (f, 1 - place / len(order)) for place, f in enumerate(order)}
    grid = [[at.get((level, low)) for low, _ in bins] for level in levels]
    text = [["" if c is None else f"{shown(goal.factor * c[0].best, goal.is_loss)}<br>n = {c[0].trials}" for c in row] for row in grid]
    n = sum(f.trials for f in fields)
    subtitle = f"n = {several(n, 'trial')} with a score, pruned ones with the best they had come to; in each field the best and how many"
    drawn = figure("Frozen layers and learning rate", f"{subtitle}; {goal.axis}, one seed; framed: the best field", 150 + 52 * len(levels))
    drawn.add_heatmap(
        z=[[None if c is None else c[1] for c in row] for row in grid],
        text=text,
        texttemplate="%{text}",
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale=[[0.0, translucent(BEST, 0.04)], [1.0, translucent(BEST, 0.6)]],
        showscale=False,
        xgap=2,
        ygap=2,
        name="best",
    )
    x, y = bins.index((order[0].low, order[0].high)), levels.index(order[0].frozen_layers)
    line = {"color": BEST, "width": 2.5}
    drawn.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line=line)
    axis = {"tickmode": "array", "ticks": "", "showgrid": False}
    across = axis | {"tickvals": list(range(len(bins))), "ticktext": [f"{power(low)} to {power(high)}" for low, high in bins]}
    drawn.update_layout(
        showlegend=False,
        xaxis=across | {"title": {"text": "learning rate (per step)"}},
        yaxis=axis | {"title": {"text": "frozen layers"}, "tickvals": list(range(len(levels))), "ticktext": [str(v) for v in levels]},
        meta={"narrow": {"xaxis.ticktext": [power(low, 0) for low, _ in bins]}},
    )
    return drawn, pd.DataFrame(fields, columns=Field._fields)


def power(value: float, digits: int = 1) -> str:
    """A learning rate, short."""
    return f"{value:.{digits}e}".replace("e-0", "e-")


def shown(value: float, loss: bool) -> str:
    """A score in a field."""
    return f"{value:.3f}" if loss else f"{value:.1f}"


def map_fields(view: StudyView) -> list[Field]:
    """Every field with a trial in it; none where the map would say nothing."""
    if not {"learning_rate", "frozen_layers"} <= set(tables.searched(view)):
        return []
    scored = [r for r in tables.ordered(view) if math.isfinite(r.cost) and depth(r) is not None]
    placed = [(r, rate) for r in scored if (rate := tables.finite(r.params.get("learning_rate"))) is not None and rate > 0]
    rates = [rate for _, rate in placed]
    if len(placed) < LEAST or min(rates) == max(rates):
        return []
    low, step = math.log10(min(rates)), (math.log10(max(rates)) - math.log10(min(rates))) / BINS
    groups: dict[tuple[int, int], list[TrialRecord]] = {}
    for record, rate in placed:
        place = min(BINS - 1, int((math.log10(rate) - low) / step))
        groups.setdefault((depth(record) or 0, place), []).append(record)
    found = []
    for (level, place), records in sorted(groups.items()):
        best = min(records, key=lambda r: (r.cost, r.number))
        score = SIGNS[best.objective] * best.cost
        found.append(Field(level, 10 ** (low + place * step), 10 ** (low + (place + 1) * step), score, best.number, len(records)))
    return found


def depth(record: TrialRecord) -> int | None:
    """How many layers a trial freezes."""
    value = record.params.get("frozen_layers")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Spent(NamedTuple):
    """The time of the trials of one depth and fate."""

    frozen_layers: int
    status: str
    trials: int
    epochs: int
    seconds: float
    steps_seconds: float | None  # of these in training steps, where measured; the rest: validation, frozen features, waiting for others
    images_per_second: float | None  # mean over epochs, where measured


def time_spent(view: StudyView) -> Drawn | None:
    """Seconds of training by number of frozen layers, stacked by fate; None before anything was trained."""
    rows = spent(view)
    if not rows:
        return None
    levels = sorted({row.frozen_layers for row in rows})
    total = {level: math.fsum(row.seconds for row in rows if row.frozen_layers == level) for level in levels}
    epochs = {level: sum(row.epochs for row in rows if row.frozen_layers == level) for level in levels}
    n = sum(row.trials for row in rows)
    speeds = {level: speed(rows, level) for level in levels}
    shares = {level: in_steps(rows, level) for level in levels}
    rated = ", training images a second" if any(speeds.values()) else ""
    rated = (", share of it in training steps" if any(share is not None for share in shares.values()) else "") + rated
    drawn = figure(
        "Where the time went",
        f"n = {several(n, 'trial')}: {by_fate(rows)}; beside each bar: seconds an epoch{rated}",
        170 + 34 * len(levels),
    )
    for status in DRAWN_FATES:
        by_level = {row.frozen_layers: row for row in rows if row.status == str(status)}
        if by_level:
            drawn.add_bar(
                x=[by_level[level].seconds if level in by_level else 0.0 for level in levels],
                y=list(range(len(levels))),
                customdata=[by_level[level].trials if level in by_level else 0 for level in levels],
                orientation="h",
                name=FATES[status],
                marker={"color": COLOURS[status], "line": {"width": 0}},
                hovertemplate=f"%{{customdata}} {FATES[status]}: %{{x:.1f}} s<extra></extra>",
            )
    for i, level in enumerate(levels):
        text = f"{total[level] / max(1, epochs[level]):.2g} s"
        text += f", {100 * share:.0f} %" if (share := shares[level]) is not None else ""
        text += f", {rounded(rate)}/s" if (rate := speeds[level]) else ""
        drawn.add_annotation(x=total[level], y=i, text=text, showarrow=False, xanchor="left", xshift=6)
    ticks = {"tickmode": "array", "tickvals": list(range(len(levels))), "ticktext": [str(level) for level in levels]}
    drawn.update_layout(
        barmode="stack",
        bargap=0.3,
        xaxis={"title": {"text": "training time (s)"}, "range": [0, (1.4 if rated else 1.2) * max(1e-9, *total.values())]},
        meta={"narrow": {"xaxis.range": [0, (2.0 if rated else 1.35) * max(1e-9, *total.values())]}},
        yaxis={"title": {"text": "frozen layers"}, **ticks},
    )
    return drawn, pd.DataFrame(rows, columns=Spent._fields)


def by_fate(rows: list[Spent]) -> str:
    """How many trials of each fate there were, and the seconds that they trained."""
    same = {status: [row for row in rows if row.status == str(status)] for status in (Status.COMPLETE, Status.PRUNED, Status.FAILED)}
    return ", ".join(
        f"{sum(row.trials for row in found):,} {FATES[status]} ({math.fsum(row.seconds for row in found):,.3g} s)"
        for status, found in same.items()
        if found
    )


def speed(rows: list[Spent], level: int) -> float | None:
    """Training images a second at one number of frozen layers, mean over epochs; None where it was not measured."""
    known = [(row.images_per_second, row.epochs) for row in rows if row.frozen_layers == level and row.images_per_second is not None]
    return math.fsum(rate * n for rate, n in known) / sum(n for _, n in known) if known else None


def in_steps(rows: list[Spent], level: int) -> float | None:
    """The share of the time at one number of frozen layers that went into training steps; None where it was not measured."""
    known = [(row.steps_seconds, row.seconds) for row in rows if row.frozen_layers == level and row.steps_seconds is not None]
    whole = math.fsum(seconds for _, seconds in known)
    return math.fsum(steps for steps, _ in known) / whole if whole else None


def rounded(value: float) -> str:
    """A rate with two digits: 850, 12k."""
    return f"{value / 1000:.2g}k" if 1000 <= value < 1e5 else f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def spent(view: StudyView) -> list[Spent]:
    """One row a number of frozen layers and fate."""
    groups: dict[tuple[int, Status], list[TrialRecord]] = {}
    images = view.facts.get("train_images", 0)
    for record in tables.ordered(view):
        level, known = depth(record), tables.finite(record.seconds) is not None
        if record.status in DRAWN_FATES and record.curve and level is not None and known:
            groups.setdefault((level, record.status), []).append(record)
    found = []
    for (level, status), records in sorted(groups.items()):
        rates = [rate for r in records for row in r.curve if (rate := tables.finite(row.get("images_per_second"))) is not None]
        rate = math.fsum(rates) / len(rates) if rates else None
        seconds, epochs = math.fsum(r.seconds for r in records), sum(len(r.curve) for r in records)
        measured = bool(images) and len(rates) == epochs and all(rates)
        steps = min(seconds, math.fsum(images / each for each in rates)) if measured else None
        found.append(Spent(level, str(status), len(records), epochs, seconds, steps, rate))
    return found


LANDSCAPE: Mapping[str, Callable[[StudyView], Drawn | None]] = {
    "contours": contours,
    "frozen_by_rate": frozen_by_rate,
    "time_spent": time_spent,
    "rungs": rungs,
    "parallel": parallel,
}
"""Every figure of this kind that a page can show."""
