"""Samplers compared, drawn: pure functions of a `Comparison`, each with the table behind it. Tables hold raw scores, axes have units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from hpsearch.report.objective import Objective, objective
from hpsearch.report.style import (
    BEST,
    COLOURS,
    DEFAULT,
    Drawn,
    escape,
    figure,
    nothing,
    panels,
    series,
    translucent,
    value_axis,
    whole_axis,
)
from hpsearch.report.tables import finite, frame
from hpsearch.report.words import several
from hpsearch.types import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hpsearch.comparison import Band, Comparison, Pair


QUARTILES = ("median", "first_quartile", "third_quartile")
WORSE, NOISE, BETTER = COLOURS[Status.PRUNED], DEFAULT, BEST


# ---------------------------------------------------------------- best so far


def anytime(c: Comparison) -> Drawn:
    """The best score so far over trials: median and quartiles of each sampler's runs."""
    table = curves(c, c.by_trials, "trial")
    drawn = figure("Best so far over trials", f"{count(c)}; {bands_are(c)}", 440)
    first, last = 1, c.trials[1]
    drawn.update_layout(xaxis=whole_axis(first, last, "trials ended"))
    return draw_curves(drawn, c, table, "trial", "trial %{x}"), table


def anytime_seconds(c: Comparison) -> Drawn:
    """The best score so far over seconds of training, summed over the trials of a run."""
    table = curves(c, c.by_seconds, "seconds")
    drawn = figure("Best so far over training time", f"{count(c)}; {bands_are(c)}; a run that has ended keeps what it found", 440)
    drawn.update_layout(xaxis={"title": {"text": "training time (s), summed over trials"}, "rangemode": "tozero"})
    return draw_curves(drawn, c, table, "seconds", "%{x:.3~s} s"), table


def curves(c: Comparison, bands: Sequence[Band], at: str) -> pd.DataFrame:
    """One row a sampler and point of the grid; gaps where so few runs have a value that there is no median or quartile."""
    goal = objective({"objective": c.objective})
    rows = []
    for band in bands:
        low, high = (band.low, band.high) if goal.sign > 0 else (band.high, band.low)
        values = zip(band.at, band.median, low, high, strict=True)
        rows += [(band.sampler, x, *(raw(goal, cost) for cost in costs)) for x, *costs in values]
    return frame(rows, ["sampler", at, *QUARTILES], (at, *QUARTILES))


def draw_curves(drawn: go.Figure, c: Comparison, table: pd.DataFrame, at: str, hover: str) -> go.Figure:
    """A line of medians and a band of quartiles for each sampler, as steps."""
    goal = objective({"objective": c.objective})
    if not table["median"].notna().any():
        return nothing(drawn, f"No trial has a {goal.noun}.")
    drawn.update_layout(yaxis=axis([*table["median"], *table["first_quartile"], *table["third_quartile"]], goal))
    for i, standing in enumerate(c.standings):
        rows, look = table[table["sampler"] == standing.sampler], series(i)
        whole = rows.dropna(subset=list(QUARTILES))
        if c.n > 1 and len(whole):
            x, low = steps(whole[at].tolist(), [goal.drawn(v) for v in whole["first_quartile"]])
            _, high = steps(whole[at].tolist(), [goal.drawn(v) for v in whole["third_quartile"]])
            drawn.add_scatter(
                x=[*x, *x[::-1]],
                y=[*low, *high[::-1]],
                mode="lines",
                fill="toself",
                fillcolor=translucent(look.colour),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=f"{i}",
                name=f"{escape(standing.sampler, 32)}, quartiles",
            )
    for i, standing in enumerate(c.standings):  # lines above all bands
        rows, look = table[table["sampler"] == standing.sampler], series(i)
        drawn.add_scatter(
            x=rows[at].tolist(),
            y=[goal.drawn(v) for v in rows["median"]],
            mode="lines",
            name=escape(standing.sampler, 32),
            legendgroup=f"{i}",
            line={"color": look.colour, "width": 2.4, "dash": look.dash, "shape": "hv"},
            hovertemplate=f"{escape(standing.sampler, 32)}, {hover}<br>%{{y:.4g}} {goal.unit}<extra></extra>",
        )
    return drawn


def steps(x: Sequence[float], y: Sequence[Any]) -> tuple[list[float], list[Any]]:
    """The corners of a line that keeps each value up to the next point."""
    return [x[0], *(at for at in x[1:] for _ in (0, 1))], [*(value for value in y[:-1] for _ in (0, 1)), y[-1]]


# ---------------------------------------------------------------- what runs end with


def final_values(c: Comparison) -> Drawn:
    """The score that each run ends with, and each sampler's mean with its bootstrap interval."""
    goal = objective({"objective": c.objective})
    rows: list[tuple[Any, ...]] = []
    for s in c.standings:
        ends = (s.final.low, s.final.high) if goal.sign > 0 else (s.final.high, s.final.low)
        found = [raw(goal, cost) for cost in (s.final.mean, *ends)]
        rows += [(s.sampler, repeat, raw(goal, cost), *found) for repeat, cost in zip(c.repeats, s.finals, strict=True)]
    table = frame(rows, ["sampler", "repeat", goal.name, "mean", "low", "high"], (goal.name, "mean", "low", "high"))
    interval = ", a diamond the mean" if c.n > 1 else ""
    interval += " with its 95 % interval (bootstrap)" if table["low"].notna().any() else ""
    drawn = figure("What runs end with", f"{count(c)}; a mark a run{interval}")
    if not table[goal.name].notna().any():
        return nothing(drawn, f"No trial has a {goal.noun}."), table
    for i, standing in enumerate(c.standings):
        own, look = table[table["sampler"] == standing.sampler], series(i)
        known = own[own[goal.name].notna()]
        name = escape(standing.sampler, 32)
        drawn.add_scatter(
            x=[i - 0.12 + place for place in spread(len(known), 0.3)],
            y=[goal.drawn(v) for v in known[goal.name]],
            customdata=known["repeat"].tolist(),
            mode="markers",
            name=name,
            marker={"color": look.colour, "symbol": look.symbol, "size": 8, "opacity": 0.75, "line": {"width": 0.7}},
            hovertemplate=f"{name}, repeat %{{customdata}}<br>%{{y:.4g}} {goal.unit}<extra></extra>",
        )
        mean, low, high = (goal.drawn(v) for v in own.iloc[0][["mean", "low", "high"]])
        if mean is not None and c.n > 1:
            bars = {} if low is None or high is None else {"array": [high - mean], "arrayminus": [mean - low], "type": "data"}
            drawn.add_scatter(
                x=[i + 0.22],
                y=[mean],
                error_y=bars | {"color": look.colour, "thickness": 2, "width": 6} if bars else None,
                mode="markers",
                name=f"{name}, mean",
                showlegend=False,
                marker={"color": look.colour, "symbol": "diamond", "size": 12, "line": {"width": 1}},
                hovertemplate=f"{name}, mean of {len(own)}<br>%{{y:.4g}} {goal.unit}<extra></extra>",
            )
    missing = table.groupby("sampler")[goal.name].apply(lambda column: int(column.isna().sum()))
    labels = [s.sampler for s in c.standings]
    lacks = [f"<br>{missing[name]} without a value" if missing[name] else "" for name in labels]
    drawn.update_layout(
        xaxis=places([escape(name, 24) + lack for name, lack in zip(labels, lacks, strict=True)]),
        yaxis=axis([*table[goal.name], *table["low"], *table["high"]], goal),
        showlegend=False,
        meta={"narrow": {"xaxis.ticktext": [escape(name, 9) + lack for name, lack in zip(labels, lacks, strict=True)]}},
    )
    return drawn, table


# ---------------------------------------------------------------- ranks


def ranks(c: Comparison) -> Drawn:
    """How often each sampler took each place, and its mean place."""
    rows = [(s.sampler, repeat, rank, s.rank) for s in c.standings for repeat, rank in zip(c.repeats, s.ranks, strict=True)]
    table = frame(rows, ["sampler", "repeat", "rank", "mean_rank"], ("rank", "mean_rank"))
    chance = f", a diamond the mean rank; were all equal, so unequal by chance: {p_text(c.friedman.p)} (Friedman)" if c.n > 1 else ""
    drawn = figure("Ranks", f"{count(c)}; 1 is best; a circle: in how many repeats{chance}", 130 + 62 * len(c.standings))
    for i, standing in enumerate(c.standings):
        own, look, name = table[table["sampler"] == standing.sampler], series(i), escape(standing.sampler, 32)
        taken = own.groupby("rank")["repeat"].apply(list)
        drawn.add_scatter(
            x=taken.index.tolist(),
            y=[i] * len(taken),
            customdata=[", ".join(map(str, repeats[:12])) + (", …" if len(repeats) > 12 else "") for repeats in taken],
            text=[f"{len(repeats)}" for repeats in taken],
            mode="markers+text",
            name=name,
            marker={
                "color": translucent(look.colour, 0.3),
                "symbol": "circle",
                "size": [16 + 22 * math.sqrt(len(repeats) / c.n) for repeats in taken],
                "opacity": 1,
                "line": {"width": 1.2, "color": look.colour},
            },
            hovertemplate=f"{name}: rank %{{x}} in %{{text}} of {several(c.n, 'repeat')} (%{{customdata}})<extra></extra>",
        )
        if c.n > 1:
            drawn.add_scatter(
                x=[standing.rank],
                y=[i + 0.4],
                mode="markers+text",
                text=[f"{standing.rank:.2f}"],
                textposition="middle right" if standing.rank <= (len(c.standings) + 1) / 2 else "middle left",
                name=f"{name}, mean",
                marker={"color": look.colour, "symbol": "diamond", "size": 10, "line": {"width": 0.7}},
                hovertemplate=f"{name}: mean rank %{{x:.2f}}<extra></extra>",
            )
    names = [escape(s.sampler, 24) for s in c.standings]
    drawn.update_layout(
        xaxis=whole_axis(1, len(names), "rank by the score that a run ends with") | {"showgrid": True},
        yaxis=places(names) | {"range": [len(names) - 0.4, -0.6]},
        showlegend=False,
        meta={"narrow": {"yaxis.ticktext": [escape(s.sampler, 9) for s in c.standings]}},
    )
    return drawn, table


# ---------------------------------------------------------------- pairs


def pairs(c: Comparison) -> Drawn:
    """Each two samplers: how far apart, and how sure that is; read along a row."""
    goal = objective({"objective": c.objective})
    table = pair_table(c)
    correction = f", corrected for {len(c.pairs)} pairs (Holm)" if len(c.pairs) > 1 else ""
    what = f"by how many {'nats' if goal.is_loss else 'percentage points'} the row ends better than the column, and below it the p of that"
    text = f"{count(c)}; {what} (Wilcoxon signed-rank{correction}); coloured where p &lt; 0.05"
    names = [s.sampler for s in c.standings]
    drawn = figure("Differences between samplers", text, 150 + 62 * len(names))
    cells = {(p.better, p.worse): (p, 1) for p in c.pairs} | {(p.worse, p.better): (p, -1) for p in c.pairs}
    for kind, colour in ((1, BETTER), (-1, WORSE), (0, NOISE)):
        chosen = [(a, b, p, sign) for (a, b), (p, sign) in cells.items() if (sign if p.real else 0) == kind]
        for a, b, *_ in chosen:
            drawn.add_shape(cell(names.index(b), names.index(a), translucent(colour, 0.3 if kind else 0.1)))
        if chosen:
            drawn.add_scatter(
                x=[names.index(b) for _, b, *_ in chosen],
                y=[names.index(a) for a, *_ in chosen],
                mode="text",
                text=[f"{difference(goal, p, sign)}<br>{p_text(p.holm, len(names) <= 4)}" for *_, p, sign in chosen],
                customdata=[story(goal, p) for *_, p, _ in chosen],
                name={1: "the row is better", -1: "the row is worse", 0: "within the noise"}[kind],
                hovertemplate="%{customdata}<extra></extra>",
            )
    end = len(names) - 0.5
    drawn.update_layout(
        xaxis=places([escape(name, 18) for name in names]) | {"range": [-0.5, end], "side": "top", "ticks": ""},
        yaxis=places([escape(name, 18) for name in names]) | {"range": [end, -0.5], "ticks": ""},
        showlegend=False,
        margin={"l": 56, "r": 16, "t": 100, "b": 16},
        meta={"narrow": {f"{side}axis.ticktext": [escape(name, 8) for name in names] for side in "xy"} | {"font.size": 10.5}},
    )
    return drawn, table


def pair_table(c: Comparison) -> pd.DataFrame:
    """One row a pair, the surest first: a difference in raw units of the score, and what the test makes of it."""
    measured = ["difference", "low", "high", "p", "holm_p", "rank_biserial", "d_z"]
    columns = ["better", "worse", "repeats", "better_in", "equal_in", *measured, "repeats_needed", "real"]
    rows = [
        (
            *(p.better, p.worse, p.n, p.wins, p.ties),
            *(finite(x) for x in (p.shift.median, p.shift.low, p.shift.high, p.p, p.holm, p.rank_biserial, p.d_z)),
            *(p.needed, p.real),
        )
        for p in c.pairs
    ]
    return frame(rows, columns, measured).astype({"repeats": "int64", "better_in": "int64", "equal_in": "int64", "repeats_needed": "Int64"})


def cell(x: int, y: int, colour: str) -> dict[str, Any]:
    """A field of the matrix."""
    corners = {"x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.46, "y1": y + 0.46}
    return {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": colour, **corners}


def difference(goal: Objective, p: Pair, sign: int) -> str:
    """By how much the row is better, in units of the axis."""
    value = finite(p.shift.median)
    return "–" if value is None else f"{goal.factor * sign * value:+.2g}".replace("-", "−") if value else "0"


def p_text(p: float, letter: bool = True) -> str:
    """A p-value, with its letter where there is room."""
    return ("p " if letter else "") + ("&lt; 0.001" if p < 0.001 else f"{'= ' if letter else ''}{p:.2g}")


def story(goal: Objective, p: Pair) -> str:
    """What is known of a pair, for the pointer."""
    lines = [f"{escape(p.better, 32)} better than {escape(p.worse, 32)} in {p.wins} of {several(p.n, 'repeat')}"]
    if p.shift.low is not None and p.shift.high is not None and math.isfinite(p.shift.low) and math.isfinite(p.shift.high):
        lines.append(f"95 % interval {goal.factor * p.shift.low:.2g} to {goal.factor * p.shift.high:.2g}")
    lines.append(f"rank biserial {p.rank_biserial:.2f}" + (f", d<sub>z</sub> {p.d_z:.2f}" if math.isfinite(p.d_z) else ""))
    return "<br>".join(lines + ([f"about {p.needed} repeats would tell them apart"] if p.needed else []))


# ---------------------------------------------------------------- reaching the target


def reach(c: Comparison) -> Drawn:
    """The share of each sampler's runs that have reached the target, over trials and over seconds of training."""
    goal = objective({"objective": c.objective})
    rows = []
    for over, bands in (("trials", c.by_trials), ("seconds", c.by_seconds)):
        rows += [(band.sampler, over, x, share) for band in bands for x, share in zip(band.at, band.reached, strict=True)]
    table = frame(rows, ["sampler", "over", "at", "reached"], ("at", "reached"))
    target = raw(goal, c.target)
    text = "none" if target is None else f"{goal.drawn(target):.4g} {goal.unit}"
    drawn = figure("Reaching the target", f"{count(c)}; target: {goal.label} {text} or {'less' if goal.is_loss else 'more'}")
    if target is None:
        return nothing(drawn, f"There is no target: a sampler has no {goal.noun} in most of its runs."), table
    title = {"text": "runs that have reached it (%)"}
    ends = {"range": [-2, 104], "title": title}
    drawn.update_layout(
        xaxis=whole_axis(1, c.trials[1], "trials ended"),
        xaxis2={"title": {"text": "training time (s), summed over trials"}, "rangemode": "tozero", "anchor": "y2"},
        yaxis=ends,
        yaxis2=ends | {"title": {"text": ""}, "anchor": "x2"},
    )
    for i, standing in enumerate(c.standings):
        look, name = series(i), escape(standing.sampler, 32)
        for panel, over, unit in (("", "trials", " trials"), ("2", "seconds", " s")):
            own = table[(table["sampler"] == standing.sampler) & (table["over"] == over)]
            drawn.add_scatter(
                x=own["at"].tolist(),
                y=[100 * share for share in own["reached"]],
                xaxis=f"x{panel}",
                yaxis=f"y{panel}",
                mode="lines",
                name=name,
                legendgroup=f"{i}",
                showlegend=not panel,
                line={"color": look.colour, "width": 2.4, "dash": look.dash, "shape": "hv"},
                hovertemplate=f"{name}: %{{y:.0f}} % after %{{x:.4~g}}{unit}<extra></extra>",
            )
    drawn = panels(drawn, 2, columns=2)
    drawn.layout.meta["narrow"]["yaxis2.title.text"] = title["text"]
    return drawn, table


# ---------------------------------------------------------------- small things


def count(c: Comparison) -> str:
    """How many runs a figure rests on."""
    low, high = c.trials
    trials = several(high, "trial") if low == high else f"{low:,} to {several(high, 'trial')}"
    return f"n = {several(c.n, 'repeat')} of each of {len(c.standings)} samplers, {trials} a run"


def bands_are(c: Comparison) -> str:
    """What line and band are."""
    return "line: median, band: quartiles of the repeats" if c.n > 1 else "one seed: another may turn the order round"


def raw(goal: Objective, cost: float | None) -> float | None:
    """The score that a cost stands for, in raw units; None for none."""
    return None if cost is None or not math.isfinite(cost) else goal.sign * cost


def axis(values: Sequence[float], goal: Objective) -> dict[str, Any]:
    """The axis of scores: a share is never drawn logarithmically."""
    return value_axis(values, goal.axis) if goal.is_loss else {"title": {"text": goal.axis}}


def places(names: Sequence[str]) -> dict[str, Any]:
    """An axis of names at whole numbers."""
    n = len(names)
    return {"tickmode": "array", "tickvals": list(range(n)), "ticktext": list(names), "range": [-0.6, n - 0.4], "showgrid": False}


def spread(n: int, width: float) -> list[float]:
    """n places side by side around 0."""
    step = min(0.09, width / max(1, n - 1))
    return [step * (i - (n - 1) / 2) for i in range(n)]


COMPARISON_FIGURES: Mapping[str, Callable[[Comparison], Drawn]] = {
    "anytime": anytime,
    "anytime_seconds": anytime_seconds,
    "final_values": final_values,
    "ranks": ranks,
    "pairs": pairs,
    "reach": reach,
}
"""Every figure that a page about samplers can show."""
