"""One trial of a study beside the default recipe and the best, and where it stands: pure functions of a view that names a trial."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from hpsearch.diagnosis import diagnose
from hpsearch.errors import NotFound
from hpsearch.report import tables
from hpsearch.report.blocks import CLASS_SHARES, LABELS, Cell, Grid, Words, cell, csv_link, near, pairs, recipe_yaml
from hpsearch.report.data import class_names, class_table
from hpsearch.report.objective import Objective, objective
from hpsearch.report.style import (
    BEST,
    COLOURS,
    DEFAULT,
    DRAWN_FATES,
    SYMBOLS,
    VIOLET,
    Drawn,
    figure,
    marker,
    nothing,
    panels,
    score_axis,
    value_axis,
    whole_axis,
)
from hpsearch.report.words import (
    FATES,
    NONE,
    duration,
    loss,
    number,
    percent,
    several,
    shorten,
)
from hpsearch.types import TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpsearch.report.tables import StudyView


ORIGINS = {
    "default": "the default recipe",
    "sampled": "proposed by the sampler",
    "grid": "a point of the grid",
    "initial": "common to all samplers of a comparison",
    "warm": "from an earlier study",
    "portfolio": "a recipe that is known to be good",
}
ROLES = {"this": "this trial", "default": "default recipe", "best": "best trial"}  # whose curve


# ---------------------------------------------------------------- who


def trial_of(view: StudyView) -> TrialRecord:
    """The trial that the view is about; NotFound, with the numbers there are, when the study has none of its number."""
    found = next((r for r in view.records if r.number == view.trial), None)
    if found is None:
        numbers = [r.number for r in view.records]
        there = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "no trial has run yet"
        raise NotFound(f"'{shorten(view.name, 80)}' has no trial {view.trial}: {there}")
    return found


def company(view: StudyView) -> dict[str, TrialRecord]:
    """The trial and whom it is drawn beside: the default recipe and the best trial, where these are others."""
    found = {"this": trial_of(view)}
    for role, record in (("default", tables.default_trial(view)), ("best", tables.best_trial(view))):
        if record is not None and all(record.number != other.number for other in found.values()):
            found[role] = record
    return found


def file_name(view: StudyView, what: str) -> str:
    """What a table of the trial is called, as part of a file's name."""
    return f"trial-{view.trial}-{what}"


# ---------------------------------------------------------------- tables


def configuration(view: StudyView) -> pd.DataFrame:
    """One row a hyperparameter: this trial's value and the one it was trained with, the default recipe's, the best trial's, the range."""
    record, best = trial_of(view), tables.best_trial(view)
    usual = {row["parameter"]: row["default_recipe"] for row in tables.configuration(view).to_dict("records")}
    rows: list[tuple[Any, ...]] = []
    for name in tables.parameters(view):
        value = record.params.get(name)
        used = record.effective.get(name, value)
        ranged = tables.describe(tables.space(view).get(name, {}))
        rows.append((name, value, used, usual.get(name), best.params.get(name) if best else None, ranged, tables.edge(view, name, value)))
    for name, value in tables.craft(view).items():
        if name not in tables.parameters(view):
            rows.append((name, *[value] * 4, tables.describe({}), None))
    return tables.frame(rows, ["parameter", "trial", "as_trained", "default_recipe", "best", "searched", "edge"])


def curves(view: StudyView) -> pd.DataFrame:
    """One row an epoch of the trial, the default recipe and the best trial: whose, then each metric."""
    roles = {record.number: role for role, record in company(view).items()}
    table = tables.curves(view)
    table = table[table["trial"].isin(list(roles))].copy()
    table.insert(0, "curve", [roles[n] for n in table["trial"]])
    return table


def standing(view: StudyView) -> pd.DataFrame:
    """One row a trial with a score, the best first: rank, trial, fate, score. Equal scores share a rank."""
    goal = objective(view.spec)
    scored = [(goal.sign * x, r, x) for r in view.records if (x := tables.finite(r.score)) is not None]
    scored.sort(key=lambda row: (row[0], row[1].number))
    rows, rank, last = [], 0, None
    for place, (cost, record, value) in enumerate(scored, start=1):
        rank, last = (rank, last) if cost == last else (place, cost)
        rows.append((rank, record.number, str(record.status), value))
    return tables.frame(rows, ["rank", "trial", "status", goal.name], (goal.name,)).astype({"rank": "int64", "trial": "int64"})


def classes(view: StudyView) -> pd.DataFrame:
    """One row a class as the trial sees it, lowest recall first, with the best trial's recall beside it."""
    record, best = trial_of(view), tables.best_trial(view)
    names = class_names(view)
    table = class_table(record.per_class, names)
    other = class_table(best.per_class if best else {}, names)
    recalls = dict(zip(other["class"], other["recall"], strict=True))
    return table.assign(best_recall=pd.Series([recalls.get(name) for name in table["class"]], dtype="float64"))


# ---------------------------------------------------------------- what a page shows


def trial_configuration(view: StudyView) -> Grid:
    """The configuration beside the default recipe's and the best trial's, with a study file that trains it again."""
    record, frame, others = trial_of(view), configuration(view), company(view)
    rows = []
    for name, value, used, default, best, ranged, edge in frame.itertuples(index=False):
        remark = f"on the {edge} edge of what was searched" if edge else ""
        if used != value and not near(used, value):
            remark = f"trained with {number(used)}" + (f"; {remark}" if remark else "")
        rows.append(
            {
                "hyperparameter": Cell(shorten(name, 40), "", "name"),
                f"trial {record.number}": Cell(shorten(number(value), 90), "", f"num {'changed' if value != default else ''}"),
                "default recipe": Cell(shorten(number(default), 90), "", "num"),
                "best": Cell(shorten(number(best), 90), "", "num"),
                "searched": Cell(shorten(ranged, 90), "", "name"),
                "remark": Cell(remark, "", "remark"),
            }
        )
    left = {"best"} if "best" not in others else set()
    left |= {"default recipe"} if record.origin == "default" else set()
    left |= set() if any(row["remark"].text for row in rows) else {"remark"}
    best_number = others["best"].number if "best" in others else None
    heads = {"best": (f"best (trial {best_number})", "num"), "default recipe": ("default recipe", "num")}
    shown = [key for key in (rows[0] if rows else ()) if key not in left]
    words = ("hyperparameter", "searched", "remark")
    return Grid(
        f"The configuration of trial {record.number}",
        tuple(heads.get(key, (key, "text" if key in words else "num")) for key in shown),
        tuple(("", tuple(row[key] for key in shown)) for row in rows),
        *csv_link(view, file_name(view, "configuration"), frame),
        copy=recipe_yaml(view, record, f"trial-{record.number}"),
        copy_title="A study file that trains this configuration again",
        note=beside(view),
    )


def beside(view: StudyView) -> str:
    """Whom the trial is shown beside, in words."""
    record, others = trial_of(view), company(view)
    best = tables.best_trial(view)
    same = [what for what, other in (("the default recipe", tables.default_trial(view)), ("the best trial", best)) if other is record]
    told = f"Trial {record.number} is {' and '.join(same)}. " if same else ""
    names = [f"{ROLES[role]} (trial {other.number})" for role, other in others.items() if role != "this"]
    return told + (f"Beside it: {', '.join(names)}." if names else "")


def trial_curves(view: StudyView) -> Drawn:
    """Losses, the score and the learning rate over epochs: the trial, and thin beside it the default recipe and the best trial."""
    table, others, goal = curves(view), company(view), objective(view.spec)
    record, images = others["this"], tables.validation_images(view)
    n = f"n = {several(images, 'validation image')}; " if images else ""
    kept = "; dotted: the epoch whose weights are kept" if record.best_epoch else ""
    drawn = figure("Learning curves", f"{n}{several(len(record.curve), 'epoch')} of trial {record.number}, one seed{kept}")
    if not any(len(other.curve) for other in others.values()):
        return nothing(drawn, "It did not finish an epoch, and there is no other trial to show."), table
    main = "accuracy" if goal.is_loss else goal.name
    shown = [
        (column, title, unit, factor)
        for column, title, unit, factor in (
            ("val_loss", "validation loss (nats)", "nats", 1.0),
            ("train_loss", "training loss (nats)", "nats", 1.0),
            (main, f"{LABELS.get(main, main)} on validation images (%)", "%", 100.0),
            ("learning_rate", "learning rate (per step)", "per step", 1.0),
        )
        if column in table and table[column].notna().any()
    ]
    longest = int(table["epoch"].max())
    for i, (column, title, unit, factor) in enumerate(shown):
        panel = "" if i == 0 else str(i + 1)
        axis = value_axis(table[column], title) if factor == 1 else {"title": {"text": title}}
        if column == "learning_rate":  # Plotly gives a constant of 0.001 an axis to 1
            axis |= {"tickformat": "~e"} if "type" in axis else {"range": [0, 1.15 * table[column].max()], "tickformat": "~g"}
        drawn.update_layout({f"xaxis{panel}": whole_axis(1, longest, "epoch") | {"anchor": f"y{panel}"}})
        drawn.update_layout({f"yaxis{panel}": axis | {"anchor": f"x{panel}"}})
        for role in ("default", "best", "this"):  # the later ones lie above
            if role in others:
                add_role(drawn, table[table["curve"] == role], role, others[role], column, panel, unit, factor)
        if record.best_epoch:
            line = {"color": DEFAULT, "dash": "dot", "width": 1.5}
            ends = {"x0": record.best_epoch, "x1": record.best_epoch, "y0": 0, "y1": 1}
            drawn.add_shape(type="line", xref=f"x{panel}", yref=f"y{panel} domain", line=line, **ends)
    return panels(drawn, len(shown), columns=2, height=290), table


def add_role(
    drawn: go.Figure, rows: pd.DataFrame, role: str, record: TrialRecord, column: str, panel: str, unit: str, factor: float
) -> None:
    """One trial's line in one panel; the legend names it once."""
    known = rows[rows[column].notna()]
    if known.empty:
        return
    own = role == "this"
    colour = colour_of(record) if own else {"default": DEFAULT, "best": BEST}[role]
    name = f"{ROLES[role]} ({record.number})"
    drawn.add_scatter(
        x=known["epoch"].tolist(),
        y=[factor * v for v in known[column]],
        xaxis=f"x{panel}",
        yaxis=f"y{panel}",
        mode="lines+markers" if own or len(known) == 1 else "lines",
        name=name,
        legendgroup=role,
        showlegend=not any(trace.legendgroup == role for trace in drawn.data),
        line={"color": colour, "width": 2.6 if own else 1.3, "dash": "dash" if role == "default" else "solid"},
        marker={"size": 6, "color": colour},
        hovertemplate=f"{name}, epoch %{{x}}: %{{y:.4g}} {unit}<extra></extra>",
    )


def colour_of(record: TrialRecord) -> str:
    """The colour of the trial itself: that of its fate, and one that nothing else has where it has not ended."""
    return COLOURS[record.status] if record.status.ended else VIOLET


def trial_standing(view: StudyView) -> Drawn:
    """All trials with a score, the best first, and this one among them."""
    table, record, goal = standing(view), trial_of(view), objective(view.spec)
    total = len(view.records)
    n = f"n = {len(table):,} of {several(total, 'trial')} (those with a {goal.noun}; pruned ones with what they had reached), one seed"
    drawn = figure("Among all trials", n, 380)
    if table.empty:
        return nothing(drawn, f"No trial has a {goal.noun} yet."), table
    drawn.update_layout(xaxis=whole_axis(1, len(table), "place, the best first"), yaxis=score_axis(table, goal))
    places = table.assign(place=range(1, len(table) + 1))
    special = {other.number: role for role, other in company(view).items()}
    for status in DRAWN_FATES:
        rows = places[(places["status"] == status) & ~places["trial"].isin(list(special))]
        if len(rows):
            add_places(drawn, rows, goal, f"{FATES[status]} ({len(rows):,})", marker(status, size=6, opacity=0.6))
    for role in ("default", "best", "this"):
        rows = places[places["trial"].isin([n for n, of in special.items() if of == role])]
        if len(rows):
            add_places(drawn, rows, goal, f"{ROLES[role]} ({rows['trial'].iloc[0]})", look_of(role, record))
    return drawn, table


def add_places(drawn: go.Figure, rows: pd.DataFrame, goal: Objective, name: str, look: dict[str, Any]) -> None:
    """Some trials in their places."""
    drawn.add_scatter(
        x=rows["place"].tolist(),
        y=[goal.drawn(v) for v in rows[goal.name]],
        customdata=rows[["trial", "rank"]].to_numpy().tolist(),
        mode="markers",
        name=name,
        marker=look,
        hovertemplate=f"trial %{{customdata[0]}}, rank %{{customdata[1]}}<br>%{{y:.4g}} {goal.unit}<extra></extra>",
    )


def look_of(role: str, record: TrialRecord) -> dict[str, Any]:
    """The mark of the trial itself, of the default recipe and of the best."""
    if role == "this":
        return {"symbol": SYMBOLS[record.status], "size": 17, "color": colour_of(record), "line": {"width": 2}}
    symbol, colour = ("diamond", DEFAULT) if role == "default" else ("star", BEST)
    return {"symbol": symbol, "size": 12 if role == "default" else 15, "color": colour, "line": {"width": 1}}


def trial_classes(view: StudyView) -> Grid:
    """How well the trial tells each class, beside the best trial's recall; no rows when it was not recorded."""
    record, frame, others = trial_of(view), classes(view), company(view)
    rows = []
    for name, n, *shares, best in frame.itertuples(index=False):
        counted = Cell(NONE, "", "none") if n != n else Cell(f"{n:,.0f}", n, "num")
        measured = [cell(key, value) for key, value in zip(CLASS_SHARES, shares, strict=True)]
        compared = [cell("recall", best)] if "best" in others else []
        rows.append(("", (Cell(shorten(name, 60), name, "wrap class"), counted, *measured, *compared)))
    heads = [("class", "text"), (LABELS["images"], "num"), *((LABELS.get(key, key), "num") for key in CLASS_SHARES)]
    heads += [(f"recall, best trial ({others['best'].number})", "num")] if "best" in others else []
    title, note = f"Each class in trial {record.number}", "Lowest recall first. Few images, little certainty."
    link = csv_link(view, file_name(view, "classes"), frame)
    return Grid(title, tuple(heads), tuple(rows), *link, sortable=True, note=note)


def trial_facts(view: StudyView) -> Grid:
    """What happened to the trial, one fact a row."""
    r = trial_of(view)
    known: list[tuple[str, str | None]] = [
        ("fate", FATES[r.status]),
        ("diagnosis", diagnose(r) if r.status.ended else None),
        ("origin", ORIGINS.get(r.origin, r.origin)),
        ("attempt", str(r.attempt)),
        ("trained in", shorten(r.reused, 160) or None),
        ("epochs", f"{len(r.curve)} of {tables.planned_epochs(view, r)} planned" + (f", best {r.best_epoch}" if r.best_epoch else "")),
        ("training", duration(tables.finite(r.seconds) or 0.0)),
        ("validation loss", f"{loss(r.val_loss)} nats" if tables.finite(r.val_loss) is not None else None),
        *((LABELS.get(key, key), percent(value)) for key, value in r.metrics.items() if key in (*tables.METRICS, *tables.FURTHER)),
        ("trained with", differing(r)),
        ("begun", moment(r.started)),
        ("ended", moment(r.ended)),
        ("weights", "kept with the study" if r.checkpoint else "not kept: only the best trial's are"),
    ]
    frame = tables.frame([(what, value) for what, value in known if value], ["fact", "value"])
    return pairs(view, f"Trial {r.number} from beginning to end", file_name(view, "facts"), frame)


def differing(record: TrialRecord) -> str | None:
    """Hyperparameters that the trainer used otherwise than they were asked for."""
    pairs = [(name, value, record.effective.get(name, value)) for name, value in record.params.items()]
    found = [f"{name} {number(used)} for {number(value)}" for name, value, used in pairs if used != value and not near(used, value)]
    return shorten(", ".join(found), 300) or None


def moment(at: float | None) -> str | None:
    """A point in time."""
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def trial_error(view: StudyView) -> Words:
    """Why the trial failed, in full."""
    error = trial_of(view).error
    return Words("The error in full", (error,) if error else (), code=True)


TRIAL_FIGURES: Mapping[str, Callable[[StudyView], Drawn]] = {"trial_curves": trial_curves, "trial_standing": trial_standing}
TRIAL: Mapping[str, Callable[[StudyView], Grid | Words]] = {
    "trial_configuration": trial_configuration,
    "trial_classes": trial_classes,
    "trial_facts": trial_facts,
    "trial_error": trial_error,
}
"""Everything of one trial that a page can show, but its figures."""
