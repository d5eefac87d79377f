"""What was proven, as blocks of a page: sentences, the gain table, the winner on the test images. What is not known is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hpsearch.proof import LABELS
from hpsearch.report.blocks import Cell, Grid, class_grid, csv_link
from hpsearch.report.data import class_names, class_table
from hpsearch.report.findings import MOST_EXAMPLES, Shown, example
from hpsearch.report.objective import LABELS as SCORES
from hpsearch.report.objective import objective
from hpsearch.report.tables import frame, wilson
from hpsearch.report.words import (
    NONE,
    between,
    bounds,
    duration,
    estimated,
    gained,
    loss,
    percent,
    score,
    seconds,
    several,
    shorten,
)
from hpsearch.types import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from hpsearch.proof import Candidate, Gain, Proof, Row
    from hpsearch.report.tables import StudyView
    from hpsearch.statistics import Estimate
    from hpsearch.types import Forgetting, Judged

WAYS = {  # rows of the gain table within a sentence
    "scratch": "training from scratch",
    "probe": "a linear probe",
    "default": "the default recipe",
    "tuned": "the default recipe at the best of three learning rates",
    "best": "the best of the search",
}
MOST_NOTES = 6


@dataclass(frozen=True, slots=True)
class Statements:
    """Sentences, each with what it is about, below what a reader must not miss."""

    items: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    kind: str = "statements"


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images with what is to be said of each."""

    title: str
    subtitle: str
    examples: tuple[Shown, ...]
    kind: str = "gallery"


# ---------------------------------------------------------------- in words


def proven(view: StudyView) -> tuple[Statements, ...]:
    """What confirmation says, and what each step bought."""
    proof = view.proof
    if proof is None:
        return ()
    goal = objective(view.spec)
    items = [*confirmation(proof, goal.name), *(bought(gain, goal.name) for gain in proof.gains)]
    items += [("Note", shorten(note, 300)) for note in proof.notes[:MOST_NOTES]]
    left = len(proof.notes) - MOST_NOTES
    items += [("Note", f"{several(left, 'more note')} stand in proof.json.")] if left > 0 else []
    return (Statements(tuple(items)),) if items else ()


def confirmation(proof: Proof, name: str) -> list[tuple[str, str]]:
    """Who stood up best when trained again, and who cannot be told from it."""
    goal = objective({"objective": name})
    if not proof.candidates:
        return []
    first, *rest = proof.candidates
    if name not in first.scores:
        return []
    of = f"the best of {several(len(proof.candidates), 'configuration')} that were" if rest else "the configuration that was"
    text = f"Trial {first.trial} is {of} trained again on {proof.how}: {goal.label} {estimated(goal, first.scores[name])}"
    text += f", mean{' with its 95 % interval' if first.scores[name].low is not None else ''}{failures(first)}."
    if first.selected is not None:
        text += f" The search selected it at {score(goal, first.selected)}, from one seed."
    if not proof.confirmed:
        text += " Some of these runs are still to come."
    alike = [c.trial for c in rest if not apart(c)]
    worse = [c for c in rest if apart(c)]
    items = [("Confirmed" if proof.confirmed else "Not confirmed yet", text)]
    if alike:
        items.append(("Alike", f"{several(first.scores[name].n, 'repetition')} cannot tell {trials(alike)} from it."))
    if worse:
        found = [f"trial {c.trial} is {gained(goal, negative(c.behind))}{failures(c)}" for c in worse if c.behind is not None]
        items.append(("Told apart", f"{found[0][0].upper()}{'; '.join(found)[1:]}."))
    return items


def apart(candidate: Candidate) -> bool:
    """Whether a candidate is worse than the first one by more than chance explains."""
    return candidate.behind is not None and candidate.behind.low is not None and candidate.behind.low > 0


def negative(e: Estimate) -> Estimate:
    """The same difference, seen from the other side."""
    return type(e)(-e.mean, e.n, None if e.high is None else -e.high, None if e.low is None else -e.low)


def failures(candidate: Candidate) -> str:
    """How often a candidate failed."""
    return f" (it failed in {candidate.failed} of {candidate.failed + len(candidate.runs)})" if candidate.failed else ""


def trials(numbers: Sequence[int]) -> str:
    """Trials by number."""
    found = [str(number) for number in numbers]
    return f"trial {found[0]}" if len(found) == 1 else f"trials {', '.join(found[:-1])} and {found[-1]}"


def bought(gain: Gain, name: str) -> tuple[str, str]:
    """What one step bought, in the score's units and in seconds of training."""
    keys = [key for key in dict.fromkeys((name, "accuracy")) if key in gain.points]
    points = ", ".join(f"{SCORES[key]} {gained(objective({'objective': key}), gain.points[key])}" for key in keys)
    before, after = WAYS[gain.before], WAYS[gain.after]
    n = max((e.n for e in gain.points.values()), default=1)
    if gain.reached is not None:
        when = f"{after} is as good after {duration(gain.reached)} of training as {before} at its best, after {duration(gain.until)}"
    else:
        when = f"{after} did not {'always ' if n > 1 else ''}become as good as {before}, whose best came after {duration(gain.until)}"
    cost = f" {duration(gain.cost)} of training went into the search." if gain.cost else ""
    text = f"{points}. {when[0].upper()}{when[1:]}.{cost}"
    return f"What {gain.what} bought", f"{text[0].upper()}{text[1:]}"


# ---------------------------------------------------------------- the gain table


def gain_table(view: StudyView) -> tuple[Grid, ...]:
    """A line for each way to come to a model."""
    proof = view.proof
    if proof is None or not proof.rows:
        return ()
    keys, tests = columns(proof, objective(view.spec).name)
    heads = [("way to a model", "text"), *((head(key), "num") for key in keys), *((f"test {SCORES[key]}", "num") for key in tests)]
    heads += [("time (s)", "num"), ("epochs", "num"), ("n", "num"), ("detail", "text")]
    rows = tuple(("best" if row.name == "best" else "", gain_cells(row, keys, tests)) for row in proof.rows)
    note = "Means over n trainings, measured on validation images" + (f" ({proof.how})" if proof.how else ", the study's own seed")
    note += ", below them their 95 % interval (Student)." if any(e.low is not None for r in proof.rows for e in r.scores.values()) else "."
    if tests:
        note += " Nothing was chosen by the test images."
    return (Grid("Ways to a model", tuple(heads), rows, *csv_link(view, "gain_table", gain_frame(proof)), note=note),)


def columns(proof: Proof, name: str) -> tuple[list[str], list[str]]:
    """Scores that are shown, on validation and on test images."""
    keys = [key for key in dict.fromkeys((name, "val_loss", "accuracy", "f1")) if any(key in row.scores for row in proof.rows)]
    shares = [key for key in dict.fromkeys((name, "accuracy")) if key != "val_loss"]
    return keys, [key for key in shares if any(key in row.test for row in proof.rows)]


def head(key: str) -> str:
    """A score's heading."""
    return "val loss (nats)" if key == "val_loss" else SCORES[key]


def gain_cells(row: Row, keys: Sequence[str], tests: Sequence[str]) -> tuple[Cell, ...]:
    """One line of the table."""
    measured = [*(estimate_cell(key, row.scores) for key in keys), *(estimate_cell(key, row.test) for key in tests)]
    epochs = Cell(NONE, "", "none") if row.epochs is None else Cell(f"{row.epochs:,}", row.epochs, "num")
    n = Cell(f"{len(row.runs):,}", len(row.runs), "num") if row.runs else Cell(NONE, "", "none")
    time = Cell(seconds(row.seconds.mean), row.seconds.mean, "num") if row.seconds else Cell("0", 0.0, "num")
    return Cell(LABELS[row.name], row.name, "name"), *measured, time, epochs, n, Cell(shorten(row.detail, 120), row.detail, "about-row")


def estimate_cell(key: str, scores: Mapping[str, Estimate]) -> Cell:
    """A mean, and its interval on a line of its own."""
    if key not in scores or not math.isfinite(scores[key].mean):
        return Cell(NONE, "", "none")
    goal, e = objective({"objective": key}), scores[key]
    ends = bounds(goal, e)
    return Cell(score(goal, e.mean, unit=False) + (f"\n{between(goal, *ends)}" if ends else ""), e.mean, "num lines")


def gain_frame(proof: Proof) -> pd.DataFrame:
    """The gain table in raw numbers: one row a way, every score with its interval."""
    keys = [key for key in OBJECTIVES if any(key in row.scores for row in proof.rows)]
    tests = [key for key in OBJECTIVES if any(key in row.test for row in proof.rows)]
    found: list[tuple[Any, ...]] = []
    for row in proof.rows:
        cells = [x for key in keys for x in ends_of(row.scores.get(key))] + [x for key in tests for x in ends_of(row.test.get(key))]
        found.append((row.name, LABELS[row.name], len(row.runs), *cells, *ends_of(row.seconds), row.epochs, row.detail))
    measured = [f"{key}{end}" for key in (*keys, *(f"test_{key}" for key in tests), "seconds") for end in ("", "_low", "_high")]
    return frame(found, ["row", "label", "n", *measured, "epochs", "detail"], measured).astype({"n": "int64", "epochs": "Int64"})


def ends_of(e: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Mean and interval; gaps where there is none."""
    return (None, None, None) if e is None else (e.mean, e.low, e.high)


# ---------------------------------------------------------------- the test images


def tested(view: StudyView) -> tuple[Statements, ...]:
    """The winner on the test images, and how often they have been looked at."""
    proof = view.proof
    if proof is None or not proof.openings:
        return ()
    items = [("On the test images", on_test(proof))]
    if proof.test is not None and proof.test.forgetting is not None:
        items.append(("Forgetting", forgotten(proof.test.forgetting)))
    return (Statements(tuple(items), tuple(looked_again(proof))),)


def on_test(proof: Proof) -> str:
    """What was measured there, and when."""
    judged, last = proof.test, proof.openings[-1]
    if judged is None:
        return f"They were looked at for trial {last['trial']} ({moment(last)}), which is not the winner any more, trial {proof.winner}."
    shown = [f"{SCORES[key]} {percent(judged.metrics[key])}" for key in ("accuracy", "f1") if key in judged.metrics]
    ends = wilson(judged.metrics["accuracy"], judged.images) if "accuracy" in judged.metrics and judged.images else None
    sure = f" (95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %)" if ends else ""
    scores = ", ".join([*(text + (sure if i == 0 else "") for i, text in enumerate(shown)), f"loss {loss(judged.loss)} nats"])
    often = "were looked at once" if len(proof.openings) == 1 else f"have been looked at {len(proof.openings)} times, last"
    images = several(judged.images, "test image")
    return f"The model of trial {proof.winner}: {scores}. The {images} {often} ({moment(last)}), after the search."


def looked_again(proof: Proof) -> list[str]:
    """A warning where the test images were looked at more than once."""
    if len(proof.openings) < 2:
        return []
    when = "; ".join(f"trial {o['trial']}, {moment(o)}" for o in (proof.openings if len(proof.openings) < 6 else proof.openings[:5]))
    return [
        f"The test images have been looked at {len(proof.openings)} times ({when}{'; …' if len(proof.openings) > 5 else ''}). "
        "Who chooses by what is seen there makes validation images of them: what they say of the winner is then too good."
    ]


def moment(opening: Mapping[str, Any]) -> str:
    """When the test images were looked at."""
    return f"{datetime.fromtimestamp(float(opening['at']), UTC):%Y-%m-%d %H:%M} UTC"


def forgotten(lost: Forgetting) -> str:
    """What the fine-tuned network still knows of the task that it was pretrained on."""
    text = f"On {shorten(lost.task, 60)}, the task of its pretraining, accuracy went from {percent(lost.before)} to {percent(lost.after)}"
    text += f" under the head of that time ({several(lost.images, 'image')} held out)."
    if lost.refitted_before is None or lost.refitted_after is None:
        return text
    features = f"from {percent(lost.refitted_before)} to {percent(lost.refitted_after)}"
    return f"{text} Under a new linear head it goes {features}: that is what the features themselves have lost."


def classes_on_test(view: StudyView) -> tuple[Grid, ...]:
    """How well the winner tells each class of the test images."""
    judged = view.proof.test if view.proof else None
    if view.proof is None or judged is None:
        return ()
    table = class_table(judged.per_class, class_names(view))
    title = f"Each class on the test images (trial {view.proof.winner})"
    return (class_grid(view, title, "test_classes", table, "test images"),) if len(table) else ()


def mistakes(view: StudyView) -> tuple[Gallery, ...]:
    """Test images that the winner is wrong about, the surest ones first."""
    judged = view.proof.test if view.proof else None
    if judged is None or not judged.mistakes:
        return ()
    shown = tuple(map(example, judged.mistakes[:MOST_EXAMPLES]))
    return (
        Gallery("Surest mistakes", f"{len(shown)} of {wrong(judged):,} wrong ones among {several(judged.images, 'test image')}", shown),
    )


def wrong(judged: Judged) -> int:
    """Images that were taken for another class."""
    return sum(n for i, row in enumerate(judged.confusion) for j, n in enumerate(row) if i != j)


PROOF: Mapping[str, Callable[[StudyView], tuple[Statements | Grid | Gallery, ...]]] = {
    "proven": proven,
    "gain_table": gain_table,
    "tested": tested,
    "test_classes": classes_on_test,
    "mistakes": mistakes,
}
"""Everything of a proof that a page can show, but its figures."""
