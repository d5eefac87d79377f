"""Numbers as a person reads them, and the verdict of a study in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpsearch.report.tables import StudyView, Summary, finite, summary, wilson
from hpsearch.types import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

NONE = "–"
FATES: Mapping[Status, str] = {
    Status.COMPLETE: "complete",
    Status.PRUNED: "pruned",
    Status.FAILED: "failed",
    Status.RUNNING: "running",
    Status.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True)
class Card:
    """One number of the header."""

    label: str
    value: str
    note: str


def number(value: object) -> str:
    """A hyperparameter or measurement: integers whole, floats with four digits, nothing as a dash."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    return NONE if value != value else f"{value:.4g}"


def loss(value: object) -> str:
    """A loss in nats, three digits."""
    x = finite(value)
    return NONE if x is None else f"{x:.3g}" if abs(x) >= 10 or 0 < abs(x) < 0.01 else f"{x:.3f}"


def percent(share: object) -> str:
    """A share in [0, 1] as percent."""
    x = finite(share)
    return NONE if x is None else f"{100 * x:.1f} %"


def seconds(value: object) -> str:
    """Seconds with one digit."""
    x = finite(value)
    return NONE if x is None else f"{x:.1f}"


def points(value: float) -> str:
    """A difference of percentages."""
    return f"{value:.1f} point{'' if f'{value:.1f}' == '1.0' else 's'}"


def several(n: int, what: str) -> str:
    """A count with its noun."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def duration(time: float) -> str:
    """Seconds as hours, minutes and seconds: the two largest."""
    if time < 59.5:
        return f"{time:.1f} s" if time < 9.95 else f"{time:.0f} s"
    minutes, rest = divmod(round(time), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counts(numbers: Summary) -> str:
    """How many trials had each fate."""
    return ", ".join(f"{numbers.counts[status]} {word}" for status, word in FATES.items() if numbers.counts[status]) or "none yet"


def on_images(numbers: Summary) -> str:
    """On what a loss or accuracy was measured."""
    return f" on {numbers.val_images} validation images" if numbers.val_images else ""


def verdict(view: StudyView) -> str:
    """What the study found, how sure that is, and what is missing; in one or two sentences."""
    s = summary(view)
    if not view.records:
        return "No trial has run yet."
    if s.best is None:
        return f"No trial was completed ({counts(s)}), so there is no best configuration." + first_error(view)
    result = f"val loss {loss(s.best.val_loss)} nats" + accuracy(s.best.metrics, ", accuracy ")
    caution = f"{on_images(s)}, one seed: not yet confirmed on fresh seeds."
    if s.best is s.default:
        return f"The default recipe (trial {s.best.number}) is still the best: {result}{on_images(s)}. {no_gain(view)}"
    head = f"Trial {s.best.number} is best: {result}"
    if s.default is None:
        return f"{head}{caution} The default recipe is not among the trials, so what the search gained is unknown."
    if s.loss_gain is None:
        fate = f"The default recipe (trial {s.default.number}) has no loss to compare with ({FATES[s.default.status]})"
        return f"{head}{caution} {fate}, so what the search gained is unknown."
    usual = f"the default recipe (trial {s.default.number}) had {loss(s.default.val_loss)}" + accuracy(s.default.metrics, " / ")
    return f"{head}; {usual}: {gain(s)}{caution}"


def gain(s: Summary) -> str:
    """What the best trial gained over the default recipe; s.loss_gain is known."""
    nats = f"a gain of {loss(s.loss_gain)} nats"
    if s.accuracy_gain is None:
        return nats
    if s.accuracy_gain > 0:
        return f"a gain of {points(s.accuracy_gain)}"
    return f"{nats} with {'no change in' if s.accuracy_gain == 0 else points(-s.accuracy_gain) + ' less'} accuracy"


def no_gain(view: StudyView) -> str:
    """Why the default recipe is the best."""
    tried = len(view.records) - 1
    return f"None of the {tried} other trials beat it." if tried > 1 else "No other trial beat it." if tried else "No other trial has run."


def accuracy(metrics: Mapping[str, float], before: str) -> str:
    """The accuracy after `before`, or nothing when it was not measured."""
    return before + percent(metrics["accuracy"]) if finite(metrics.get("accuracy")) is not None else ""


def first_error(view: StudyView) -> str:
    """The first failure's reason."""
    failed = next((r for r in view.records if r.error), None)
    return f" Trial {failed.number} failed: {shorten(failed.error or '')}" if failed else ""


def shorten(text: str, length: int = 160) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def cards(view: StudyView) -> list[Card]:
    """The header's key numbers."""
    s = summary(view)
    planned = view.spec.get("trials")
    ended = len(view.records) - s.counts[Status.RUNNING] - s.counts[Status.WAITING]
    shown = [Card("Trials", f"{ended} of {planned}" if isinstance(planned, int) and planned > ended else str(ended), counts(s))]
    if s.best:
        where = f"trial {s.best.number}" + (f", epoch {s.best.best_epoch} of {len(s.best.curve)}" if s.best.best_epoch else "")
        shown.insert(0, Card("Best validation loss", f"{loss(s.best.val_loss)} nats", where))
        shown[1:1] = accuracy_cards(s)
    shown.append(Card("Training time", duration(s.seconds), "sum over trials"))
    pruned = s.counts[Status.PRUNED]
    estimate = "estimate: epochs not run × mean epoch of each pruned trial"
    shown.append(Card("Saved by pruning", f"≈ {duration(s.saved)}" if pruned else "0 s", estimate if pruned else "no trial was pruned"))
    return shown


def interval(share: float, images: int) -> str:
    """How far so few images can be trusted."""
    low, high = wilson(share, images)
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f} % ({images} images)"


def accuracy_cards(s: Summary) -> list[Card]:
    """Accuracy with its interval, and the gain with the noise of so few images."""
    shown = []
    best = finite(s.best.metrics.get("accuracy")) if s.best else None
    if best is not None and 0 <= best <= 1:
        note = interval(best, s.val_images) if s.val_images else ""
        shown.append(Card("Accuracy of the best", percent(best), note))
    if s.default and s.best is not s.default and s.loss_gain is not None:
        value = f"{s.accuracy_gain:+.1f} points" if s.accuracy_gain is not None else f"{s.loss_gain:.3f} nats"
        losses = f"loss {loss(s.default.val_loss)} → {loss(s.best.val_loss if s.best else None)} nats"
        shown.append(Card("Gain over the default recipe", value, f"{losses}; one seed"))
    return shown
