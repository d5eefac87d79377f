"""Figures of what was proven: pure functions of a `StudyView`, each with the table behind it; None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from hpsearch.proof import LABELS, Proof, Row, scores
from hpsearch.report.confusion import confusion
from hpsearch.report.objective import Objective, objective
from hpsearch.report.style import BEST, COLOURS, DEFAULT, VIOLET, Drawn, Series, escape, figure, log_axis, panels, score_axis, translucent
from hpsearch.report.tables import finite, frame
from hpsearch.report.words import bounds, several
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpsearch.report.tables import StudyView
    from hpsearch.statistics import Estimate


LOOKS = {  # the same in every figure
    "majority": Series(DEFAULT, "solid", "hexagon"),
    "scratch": Series(COLOURS[Status.FAILED], "9px,3px,2px,3px", "x"),
    "probe": Series(COLOURS[Status.PRUNED], "6px,3px", "square"),
    "default": Series(DEFAULT, "5px,3px,1px,3px", "hexagon"),
    "tuned": Series(COLOURS[Status.COMPLETE], "2px,3px", "triangle-up"),
    "best": Series(BEST, "solid", "diamond"),
}
TEST = VIOLET
BEYOND = 0.6  # of the width of all marks: how far an interval may stretch the axis


# ---------------------------------------------------------------- the gain table


def gain(view: StudyView) -> Drawn | None:
    """Each way to a model: every training, their mean and its interval; beside it the test images."""
    proof, goal = view.proof, objective(view.spec)
    rows = [row for row in proof.rows if goal.name in row.scores] if proof else []
    if proof is None or not rows:
        return None
    records, judged = by_name(view), test_scores(proof, goal.name)
    table = frame(gain_rows(rows, records, judged, goal.name), ["row", "run", "split", goal.name, "mean", "low", "high"], (goal.name,))
    tests = any(goal.name in row.test for row in rows)
    subtitle = f"{count(view, rows)}{'; a square below: on test images' if tests else ''}"
    drawn = figure("What each way comes to", subtitle, 150 + 62 * len(rows))
    for i, row in enumerate(rows):
        look, name = LOOKS[row.name], LABELS[row.name]
        each = [score_of_run(records[run], goal.name) for run in row.runs if run in records]
        add_dots(drawn, goal, [x for x in each if x is not None], i, look.colour, f"{name}, one training")
        if row.name != "majority":
            add_mean(drawn, goal, row.scores[goal.name], i, look, f"{name}, validation", row.name == "best")
        if goal.name in row.test:
            add_dots(drawn, goal, [judged[run] for run in row.runs if run in judged], i + 0.27, TEST, f"{name}, one training on test")
            add_mean(drawn, goal, row.test[goal.name], i + 0.27, Series(TEST, "solid", "square"), f"{name}, test", False)
    labels = [bold(LABELS[row.name], row.name == "best") for row in rows]
    trained = [row for row in rows if row.runs] or rows
    found = [e for row in trained for e in (row.scores[goal.name], *([row.test[goal.name]] if goal.name in row.test else []))]
    drawn.update_layout(**rows_layout(goal, labels, found, table[table["run"] != ""][goal.name]))
    for i, row in enumerate(rows):
        if row.name == "majority":
            add_majority(drawn, goal, row.scores[goal.name].mean, i)
    if tests and goal.is_loss:
        drawn.layout.xaxis.title.text = f"loss ({goal.unit}), less is better"
    return drawn, table


def add_majority(drawn: go.Figure, goal: Objective, value: float, y: float) -> None:
    """Guessing the commonest class: an arrow at the edge where it is so bad that it would squeeze all others."""
    x, (low, high) = goal.factor * value, drawn.layout.xaxis.range
    room = 0.012 * (high - low)
    at, symbol = (x, "hexagon") if low <= x <= high else (low + room, "triangle-left") if x < low else (high - room, "triangle-right")
    drawn.add_scatter(
        x=[at],
        y=[y],
        mode="markers+text",
        text=[f"{x:.3g} {goal.unit}"],
        textposition="middle right" if at <= (low + high) / 2 else "middle left",
        cliponaxis=False,
        name=LABELS["majority"],
        marker={"color": DEFAULT, "symbol": symbol, "size": 11, "line": {"width": 1}},
        hovertemplate=f"{LABELS['majority']}: {x:.4g} {goal.unit}<extra></extra>",
    )


def gain_rows(rows: Sequence[Row], records: Mapping[str, TrialRecord], judged: Mapping[str, float], key: str) -> list[tuple[Any, ...]]:
    """One row a training and split, with the mean of its kind."""
    found: list[tuple[Any, ...]] = []
    for row in rows:
        e, test = row.scores[key], row.test.get(key)
        found += [(row.name, run, "val", score_of_run(records.get(run), key), e.mean, e.low, e.high) for run in row.runs]
        found += [] if row.runs else [(row.name, "", "val", e.mean, e.mean, e.low, e.high)]
        if test is not None:
            found += [(row.name, run, "test", judged.get(run), test.mean, test.low, test.high) for run in row.runs]
    return found


def count(view: StudyView, rows: Sequence[Row]) -> str:
    """How much the marks rest on, and what they are."""
    n, how = max((len(row.runs) for row in rows), default=0), view.proof.how if view.proof else ""
    images = finite(view.facts.get("val_images"))
    on = f" on {several(int(images), 'validation image')}" if images and "fold" not in how else ""
    if n < 2:
        return f"n = 1 training each{on}, one seed: how much chance there is in it is not known"
    return f"n = {n} trainings each{on} ({escape(how)}); a dot a training, a large mark the mean with its 95 % interval"


# ---------------------------------------------------------------- confirmation


def confirmed(view: StudyView) -> Drawn | None:
    """The configurations that were trained again, beside what the search selected them by."""
    proof, goal = view.proof, objective(view.spec)
    candidates = [c for c in proof.candidates if goal.name in c.scores] if proof else []
    if proof is None or not candidates:
        return None
    records = by_name(view)
    rows = [
        (c.trial, run, score_of_run(records.get(run), goal.name), c.scores[goal.name].mean, *ends(c.scores[goal.name]), c.selected)
        for c in candidates
        for run in c.runs
    ]
    table = frame(rows, ["trial", "run", goal.name, "mean", "low", "high", "selected"], (goal.name, "mean", "low", "high", "selected"))
    n = f"n = {several(len(candidates), 'configuration')}, each trained again on {escape(proof.how)}"
    marks = "a dot a training, a large mark the mean with its 95 % interval"
    text = f"{n}; {marks}; hollow: the one score it was selected by, which luck flatters"
    drawn = figure("Trained again", text, 150 + 54 * len(candidates))
    for i, c in enumerate(candidates):
        wins, name = proof.confirmed and c.trial == proof.winner, f"trial {c.trial}"
        look = Series(BEST if wins else COLOURS[Status.COMPLETE], "solid", "diamond")
        each = [x for run in c.runs if (x := score_of_run(records.get(run), goal.name)) is not None]
        add_dots(drawn, goal, each, i, look.colour, f"{name}, trained again")
        add_mean(drawn, goal, c.scores[goal.name], i, look, f"{name}, mean", wins)
        if finite(c.selected) is not None:
            drawn.add_scatter(
                x=[goal.drawn(c.selected)],
                y=[i - 0.3],
                mode="markers",
                name=f"{name}, as selected",
                marker={"symbol": "circle-open", "size": 11, "color": look.colour, "line": {"width": 2, "color": look.colour}},
                hovertemplate=f"{name}, in the search: %{{x:.4g}} {goal.unit}<extra></extra>",
            )
    labels = [bold(f"trial {c.trial}", proof.confirmed and c.trial == proof.winner) for c in candidates]
    values = [*table[goal.name], *table["selected"]]
    drawn.update_layout(**rows_layout(goal, labels, [c.scores[goal.name] for c in candidates], values))
    return drawn, table


# ---------------------------------------------------------------- how soon


def how_soon(view: StudyView) -> Drawn | None:
    """Scores over training time and over images trained on: how soon each way gets where."""
    proof, goal = view.proof, objective(view.spec)
    records = by_name(view)
    rows = [row for row in proof.rows if any(run in records and records[run].curve for run in row.runs)] if proof else []
    if len(rows) < 2:
        return None
    rows = [row for row in rows if row.name != "tuned" or all(row.runs != other.runs for other in rows if other.name == "default")]
    table = soon_table(view, rows, records)
    keys = [key for key in dict.fromkeys((goal.name, "accuracy")) if table[key].notna().any()]
    overs = [over for over in ("seconds", "images") if table[over].notna().any()]
    n = max(len(row.runs) for row in rows)
    thin = f"n = {n} trainings each, thin lines; thick: their mean" if n > 1 else "n = 1 training each, one seed"
    drawn = figure("How soon each way gets there", f"{thin}; a way to the left takes less time, or fewer images")
    for at, (key, over) in enumerate((key, over) for key in keys for over in overs):
        panel, measure = "" if at == 0 else str(at + 1), objective({"objective": key})
        for row in rows:
            add_way(drawn, table[table["row"] == row.name], row.name, measure, over, panel)
        drawn.update_layout(
            {
                f"xaxis{panel}": soon_axis(table[over], over) | {"anchor": f"y{panel}"},
                f"yaxis{panel}": score_axis(table, measure) | {"anchor": f"x{panel}"},
            }
        )
    return panels(drawn, len(keys) * len(overs), columns=len(overs)), table


def soon_table(view: StudyView, rows: Sequence[Row], records: Mapping[str, TrialRecord]) -> pd.DataFrame:
    """One row an epoch of every training; images: how many were trained on until then."""
    keys = list(dict.fromkeys((objective(view.spec).name, "val_loss", "accuracy")))
    each, found = images_an_epoch(view), []
    for row in rows:
        for run in row.runs:
            for epoch in records[run].curve if run in records else ():
                images = None if each is None else each * epoch["epoch"]
                found.append((row.name, run, epoch["epoch"], finite(epoch.get("seconds")), images, *(finite(epoch.get(k)) for k in keys)))
    return frame(found, ["row", "run", "epoch", "seconds", "images", *keys], ["epoch", "seconds", "images", *keys])


def images_an_epoch(view: StudyView) -> float | None:
    """Training images of one training: of folds, all but one fold of training and validation images."""
    train, val, cv = finite(view.facts.get("train_images")), finite(view.facts.get("val_images")), view.spec.get("cv")
    if not cv:
        return train
    return None if train is None or val is None else (train + val) * (1 - 1 / cv["times"])


def add_way(drawn: go.Figure, table: pd.DataFrame, name: str, goal: Objective, over: str, panel: str) -> None:
    """One way in one panel: each training as a thin line, their mean by epoch as a thick one."""
    look, known = LOOKS[name], table[table[goal.name].notna() & table[over].notna()]
    if known.empty:
        return
    axes, unit = {"xaxis": f"x{panel}", "yaxis": f"y{panel}", "legendgroup": name}, "s" if over == "seconds" else "images"
    runs = [curve for _, curve in known.groupby("run", sort=False)]
    if len(runs) > 1:
        x = [v for curve in runs for v in (*curve[over].tolist(), None)]
        y = [v for curve in runs for v in (*(goal.drawn(v) for v in curve[goal.name]), None)]
        thin = {"color": translucent(look.colour, 0.4), "width": 1}
        drawn.add_scatter(x=x, y=y, mode="lines", line=thin, hoverinfo="skip", showlegend=False, name=LABELS[name], **axes)
    whole = known.groupby("epoch").filter(lambda rows: len(rows) == len(runs)) if len(runs) > 1 else known
    mean = whole.groupby("epoch")[[over, goal.name]].mean()
    drawn.add_scatter(
        x=mean[over].tolist(),
        y=[goal.drawn(v) for v in mean[goal.name]],
        customdata=mean.index.tolist(),
        mode="lines+markers",
        name=LABELS[name],
        showlegend=not panel,
        line={"color": look.colour, "width": 3 if name == "best" else 2.2, "dash": look.dash},
        marker={"size": 6, "color": look.colour, "symbol": look.symbol, "line": {"width": 0.5}},
        hovertemplate=f"{LABELS[name]}, epoch %{{customdata}}<br>%{{y:.4g}} {goal.unit} after %{{x:.4~s}} {unit}<extra></extra>",
        **axes,
    )


def soon_axis(values: pd.Series[float], over: str) -> dict[str, Any]:
    """Time or images; logarithmic where the ways differ by more than a decade."""
    title = {"text": "training time (s)" if over == "seconds" else "images trained on (epochs × training images)"}
    known = [x for x in map(finite, values) if x]
    decades = math.log10(max(known) / min(known)) if known and min(known) > 0 else 0.0
    ticks = log_axis(decades) | {"tickformat": "~g"} if over == "seconds" and decades > 1.3 else {"rangemode": "tozero"}
    return {"title": title} | ticks


# ---------------------------------------------------------------- small things


def by_name(view: StudyView) -> dict[str, TrialRecord]:
    """Every training by the name that a proof calls it."""
    return {r.name: r for r in (*view.records, *view.runs)}


def test_scores(proof: Proof, key: str) -> dict[str, float]:
    """What each training scored on the test images when they were last looked at, by name."""
    if proof.test is None:
        return {}
    found = {j["name"]: j["loss"] if key == "val_loss" else j["metrics"].get(key) for j in proof.openings[-1]["judged"]}
    return {name: value for name, value in found.items() if finite(value) is not None}


def score_of_run(record: TrialRecord | None, key: str) -> float | None:
    """A score of a training at its kept epoch."""
    return None if record is None else finite(scores(record).get(key))


def ends(e: Estimate) -> tuple[float | None, float | None]:
    """An interval, or two gaps."""
    return e.low, e.high


def add_dots(drawn: go.Figure, goal: Objective, values: Sequence[float], y: float, colour: str, name: str) -> None:
    """A small dot for each training, where there are several."""
    if len(values) > 1:
        drawn.add_scatter(
            x=[goal.drawn(v) for v in values],
            y=[y + 0.12] * len(values),
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": "circle", "size": 5.5, "opacity": 0.6, "line": {"width": 0}},
            hovertemplate=f"{name}: %{{x:.4g}} {goal.unit}<extra></extra>",
        )


def add_mean(drawn: go.Figure, goal: Objective, e: Estimate, y: float, look: Series, name: str, wins: bool) -> None:
    """A mean with its interval."""
    found, mean = bounds(goal, e), goal.drawn(e.mean)
    bars = (
        {} if found is None or mean is None else {"array": [goal.factor * found[1] - mean], "arrayminus": [mean - goal.factor * found[0]]}
    )
    text = f"<br>95 % interval {goal.factor * found[0]:.4g} to {goal.factor * found[1]:.4g}" if found else ""
    drawn.add_scatter(
        x=[mean],
        y=[y],
        error_x=bars | {"type": "data", "color": look.colour, "thickness": 2.4 if wins else 1.6, "width": 5} if bars else None,
        mode="markers",
        name=name,
        marker={
            "color": look.colour,
            "symbol": look.symbol,
            "size": 14 if wins else 9 if look.symbol == "square" else 11,
            "line": {"width": 1},
        },
        hovertemplate=f"{name}{f', mean of {e.n}' if e.n > 1 else ''}: %{{x:.4g}} {goal.unit}{text}<extra></extra>",
    )


def rows_layout(goal: Objective, labels: Sequence[str], found: Sequence[Estimate], values: Iterable[object]) -> dict[str, Any]:
    """Lines from the top down over an axis of scores, which no wide interval may stretch beyond reading."""
    marks = [goal.factor * x for x in map(finite, [*values, *(e.mean for e in found)]) if x is not None]
    low, high = min(marks), max(marks)
    room = max(high - low, 0.02 * abs(high), 1e-9)
    reached = [goal.factor * x for e in found for x in bounds(goal, e) or ()]
    low, high = max(min([low, *reached]), low - BEYOND * room), min(max([high, *reached]), high + BEYOND * room)
    pad = 0.04 * (high - low or 1.0)
    axis = {"tickmode": "array", "tickvals": list(range(len(labels))), "ticks": "", "range": [len(labels) - 0.4, -0.6], "showgrid": False}
    better = "less is better" if goal.sign > 0 else "more is better"
    return {
        "xaxis": {"title": {"text": f"{goal.axis}, {better}"}, "range": [low - pad, high + pad], "showgrid": True, "tickformat": "~g"},
        "yaxis": axis | {"ticktext": list(labels)},
        "showlegend": False,
        "meta": {"narrow": {"yaxis.tickfont.size": 11}},
    }


def bold(label: str, wins: bool) -> str:
    """A label, bold where it won; ours, so it may be markup."""
    return f"<b>{label}</b>" if wins else label


PROVEN: Mapping[str, Callable[[StudyView], Drawn | None]] = {
    "gain": gain,
    "confirmed": confirmed,
    "how_soon": how_soon,
    "confusion": confusion,
}
"""Every figure of a proof that a page can show."""
