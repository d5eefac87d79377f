"""Who was stopped when: trials at the rungs of halving; under other pruners, the share that still trained."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from hpsearch.report import tables
from hpsearch.report.style import COLOURS, Drawn, figure, translucent
from hpsearch.report.words import several
from hpsearch.spec import PrunerSpec, rung_levels
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hpsearch.report.tables import StudyView


STEP = 10  # percent of the planned epochs
STARTED = (Status.COMPLETE, Status.PRUNED, Status.FAILED, Status.PAUSED)
ENDS = {  # column -> how it is drawn
    "went_on": ("went on", COLOURS[Status.COMPLETE]),
    "pruned": ("ended there", COLOURS[Status.PRUNED]),
    "paused": ("waits there", COLOURS[Status.PAUSED]),
    "failed": ("failed before the next", COLOURS[Status.FAILED]),
}


class Rung(NamedTuple):
    """What became of the trials that reached a rung."""

    percent: int  # of their planned epochs
    reached: int
    went_on: int
    pruned: int
    paused: int
    failed: int


class Share(NamedTuple):
    """What had become of all trials at a share of their planned epochs."""

    percent: int
    alive: int
    pruned: int
    failed: int


def rungs(view: StudyView) -> Drawn | None:
    """Rung survival where the pruner is `halving`, else the trials alive over their planned epochs; None where nothing was stopped."""
    trials = [r for r in tables.ordered(view) if r.status in STARTED and (r.curve or r.status is Status.COMPLETE)]
    pruner: Mapping[str, Any] = view.spec.get("pruner") or {}
    fates = {r.status for r in trials}
    if pruner.get("name") == "halving":
        return by_rung(view, trials, pruner) if fates & {Status.PRUNED, Status.PAUSED} else None
    return by_share(view, trials) if Status.PRUNED in fates else None


def progress(view: StudyView, record: TrialRecord) -> float:
    """Percent of its planned epochs that a trial trained; one that is complete trained all it was to."""
    return 100.0 if record.status is Status.COMPLETE else 100 * len(record.curve) / tables.planned_epochs(view, record)


# ---------------------------------------------------------------- halving


def by_rung(view: StudyView, trials: list[TrialRecord], pruner: Mapping[str, Any]) -> Drawn:
    """A bar a rung: how many reached it, and what became of them there."""
    rows = survivors(view, trials, pruner)
    ended = several(sum(r.status is Status.PRUNED for r in trials), "trial")
    text = f"n = {several(len(trials), 'trial')}, {ended} stopped for good; a rung is a share of a trial's own planned epochs"
    drawn = figure("Rung survival", f"{text}; beside each bar: how many went on, then or later", 190 + 44 * len(rows))
    for name, (label, colour) in ENDS.items():
        counts = [getattr(row, name) for row in rows]
        if any(counts):
            drawn.add_bar(
                x=counts,
                y=list(range(len(rows))),
                orientation="h",
                name=label,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"%{{x}} {label}<extra></extra>",
            )
    for i, row in enumerate(rows):
        drawn.add_annotation(x=row.reached, y=i, text=f"{row.went_on:,} of {row.reached:,}", showarrow=False, xanchor="left", xshift=6)
    names = ["start", *(f"{row.percent} %" for row in rows[1:])]
    ticks = {"tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": names, "autorange": "reversed"}
    drawn.update_layout(
        barmode="stack",
        bargap=0.3,
        legend={"traceorder": "normal"},
        xaxis={"title": {"text": "trials"}, "range": [0, 1.25 * max(row.reached for row in rows)]},
        yaxis={"title": {"text": "rung (% of planned epochs)"}, **ticks},
    )
    return drawn, pd.DataFrame(rows, columns=Rung._fields)


def survivors(view: StudyView, trials: list[TrialRecord], pruner: Mapping[str, Any]) -> list[Rung]:
    """One row for the start, one for each rung."""
    usual = PrunerSpec(name="halving")
    first = round(100 * (tables.finite(pruner.get("warmup")) or 0.0 if "warmup" in pruner else usual.warmup))
    levels = [0, *rung_levels(first, int(tables.finite(pruner.get("reduction_factor")) or usual.reduction_factor))]
    top = {r.number: max(level for level in levels if level <= progress(view, r)) for r in trials}
    rows = []
    for level in levels:
        here = [r for r in trials if top[r.number] == level and r.status is not Status.COMPLETE]
        fates = [sum(r.status is fate for r in here) for fate in (Status.PRUNED, Status.PAUSED, Status.FAILED)]
        reached = sum(top[r.number] >= level for r in trials)
        rows.append(Rung(level, reached, reached - len(here), *fates))
    return rows


# ---------------------------------------------------------------- other pruners


def by_share(view: StudyView, trials: list[TrialRecord]) -> Drawn:
    """Trials alive, pruned and failed over the share of their planned epochs, stacked."""
    rows = shares(view, trials)
    n, stopped = len(trials), rows[-1].pruned
    middle = f"half of these within {median(view, trials):.0f} % of their planned epochs"
    text = f"n = {several(n, 'trial')}, of which {stopped:,} were stopped by the pruner, {middle}"
    drawn = figure("How long trials lived", text, 360)
    looks = (("alive", "alive", Status.COMPLETE), ("pruned", "pruned", Status.PRUNED), ("failed", "failed", Status.FAILED))
    for name, label, fate in looks:
        counts = [getattr(row, name) for row in rows]
        if any(counts):
            drawn.add_scatter(
                x=[row.percent for row in rows],
                y=[100 * count / n for count in counts],
                customdata=counts,
                mode="lines",
                stackgroup="all",
                name=label,
                line={"color": COLOURS[fate], "width": 1.2},
                fillcolor=translucent(COLOURS[fate], 0.55),
                hovertemplate=f"%{{customdata}} of {n:,} {label} at %{{x}} % of their epochs: %{{y:.0f}} %<extra></extra>",
            )
    across = {"title": {"text": "share of a trial's planned epochs (%)"}, "range": [0, 100], "dtick": 20}
    drawn.update_layout(legend={"traceorder": "normal"}, xaxis=across, yaxis={"title": {"text": "trials (%)"}, "range": [0, 100]})
    return drawn, pd.DataFrame(rows, columns=Share._fields)


def shares(view: StudyView, trials: list[TrialRecord]) -> list[Share]:
    """One row for every tenth of the planned epochs; a trial is alive at those that it trained."""
    rows = []
    for percent in range(0, 101, STEP):
        over = [r for r in trials if r.status is not Status.COMPLETE and progress(view, r) < percent]
        pruned, failed = (sum(r.status is fate for r in over) for fate in (Status.PRUNED, Status.FAILED))
        rows.append(Share(percent, len(trials) - pruned - failed, pruned, failed))
    return rows


def median(view: StudyView, trials: list[TrialRecord]) -> float:
    """The share of their planned epochs that half of the pruned trials did not get beyond."""
    return statistics.median_high([progress(view, r) for r in trials if r.status is Status.PRUNED])
