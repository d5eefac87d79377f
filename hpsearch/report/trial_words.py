"""One trial of a study in words, as the header of its page, and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpsearch.diagnosis import diagnose
from hpsearch.report import tables
from hpsearch.report.objective import Objective, objective
from hpsearch.report.trial import ORIGINS, configuration, standing, trial_of
from hpsearch.report.words import FATES, Card, accuracy, duration, interval, percent, points, score, several, shorten
from hpsearch.types import Status, TrialRecord

if TYPE_CHECKING:
    from hpsearch.report.tables import StudyView


def ranked(view: StudyView) -> tuple[int, int] | None:
    """The trial's rank and how many trials have one; None without a score."""
    table = standing(view)
    found = table[table["trial"] == view.trial]
    return None if found.empty else (int(found["rank"].iloc[0]), len(table))


def trial_json(view: StudyView) -> dict[str, Any]:
    """The trial as data: who it is, where it stands, what differs."""
    record, found = trial_of(view), ranked(view)
    return {
        "number": record.number,
        "verdict": trial_verdict(view),
        "diagnosis": diagnose(record) if record.status.ended else None,
        "rank": found[0] if found else None,
        "of": found[1] if found else None,
        "percentile": percentile(*found) if found else None,
        "configuration": configuration(view).to_dict("records"),
        "error": record.error,
    }


def percentile(rank: int, n: int) -> float:
    """The share of the other trials that are not better, in percent."""
    return 100.0 if n < 2 else 100 * (n - rank) / (n - 1)


def trial_verdict(view: StudyView) -> str:
    """What came of the trial, in a sentence or two."""
    record, goal = trial_of(view), objective(view.spec)
    best, default = tables.best_trial(view), tables.default_trial(view)
    value = tables.finite(record.score)
    if value is None:
        why = f": {shorten(record.error)}" if record.error else f"; it has no {goal.noun}."
        return f"Trial {record.number} {fate(record)}{why}"
    text = f"Trial {record.number} {fate(record)}: {'val loss' if goal.is_loss else goal.label} {score(goal, value)}"
    text += accuracy(goal, record.metrics, ", accuracy ")
    if found := ranked(view):
        text += f", rank {found[0]:,} of {found[1]:,}."
    if record is best:
        text += " It is the best trial."
    elif best is not None and (behind := goal.gain(value, tables.finite(best.score))) is not None:
        text += f" The best trial ({best.number}) is {amount(goal, behind)}."
    if default is not None and default is not record and (gained := goal.gain(tables.finite(default.score), value)) is not None:
        text += f" Against the default recipe it is {amount(goal, gained)}."
    return f"{text} All from one seed."


def fate(record: TrialRecord) -> str:
    """What became of the trial."""
    words = {
        Status.COMPLETE: "was completed",
        Status.PRUNED: f"was {record.error}" if record.error else "was stopped by the pruner",
        Status.FAILED: "failed",
        Status.WAITING: "was interrupted and is to be trained again",
        Status.PAUSED: "waits at a rung",
    }
    return words.get(record.status, f"is {FATES[record.status]}")


def amount(goal: Objective, better: float) -> str:
    """A difference for the better or the worse."""
    word = "better" if better >= 0 else "worse"
    return f"{word} by {f'{abs(better):.3f} nats' if goal.is_loss else points(abs(better))}"


def trial_cards(view: StudyView) -> list[Card]:
    """The key numbers of the trial."""
    record, goal = trial_of(view), objective(view.spec)
    cards = []
    if tables.finite(record.score) is not None:
        about = f"epoch {record.best_epoch} of {len(record.curve)}; one seed" if record.best_epoch else "one seed"
        label = goal.label[0].upper() + goal.label[1:]
        cards.append(Card(label, score(goal, record.score), about))
    if found := ranked(view):
        rank, n = found
        better = f"as good as or better than {percentile(rank, n):.0f} % of the others" if n > 1 else "the only one"
        cards.append(Card("Rank", f"{rank:,} of {n:,}", f"{better}; trials without a {goal.noun} are not counted"))
    share, images = tables.finite(record.metrics.get("accuracy")), tables.validation_images(view)
    if share is not None and 0 <= share <= 1 and goal.name != "accuracy":
        cards.append(Card("Accuracy", percent(share), interval(share, images) if images else ""))
    if record.status.ended:
        found_, _, reason = diagnose(record).partition(": ")
        cards.append(Card("Diagnosis", shorten(found_, 40), shorten(reason, 160)))
    planned = tables.planned_epochs(view, record)
    cards.append(Card("Training", duration(tables.finite(record.seconds) or 0.0), f"{len(record.curve)} of {several(planned, 'epoch')}"))
    cards.append(Card("Attempt", str(record.attempt), ORIGINS.get(record.origin, record.origin)))
    return cards


def trial_chips(view: StudyView) -> list[tuple[str, str]]:
    """What the trial is of."""
    record = trial_of(view)
    shown = [("study", shorten(view.name, 80)), ("fate", FATES[record.status]), ("origin", record.origin)]
    for key in ("model", "data", "sampler"):
        value = record.params.get(key) or view.spec.get(key)
        shown += [(key, shorten(str(value), 80))] if value is not None else []
    return shown
