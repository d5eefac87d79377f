"""Numbers as a person reads them, and the verdict of a study in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpsearch.diagnosis import diagnose, warnings_of
from hpsearch.report.objective import Objective, objective
from hpsearch.report.tables import StudyView, Summary, finite, summary, wilson
from hpsearch.types import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hpsearch.proof import Proof
    from hpsearch.statistics import Estimate
    from hpsearch.types import TrialRecord

NONE = "–"
FATES: Mapping[Status, str] = {
    Status.COMPLETE: "complete",
    Status.PRUNED: "pruned",
    Status.FAILED: "failed",
    Status.RUNNING: "running",
    Status.WAITING: "waiting",
    Status.PAUSED: "paused",
}


@dataclass(frozen=True, slots=True)
class Card:
    """One number of the header."""

    label: str
    value: str
    note: str


def number(value: object) -> str:
    """A hyperparameter or measurement: integers whole with a comma at thousands, floats with four digits, nothing as a dash."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return NONE if value != value else f"{value:.4g}"


def loss(value: object) -> str:
    """A loss in nats, three digits."""
    x = finite(value)
    return NONE if x is None else f"{x:.3g}" if abs(x) >= 10 or 0 < abs(x) < 0.01 else f"{x:.3f}"


def score(goal: Objective, value: object, unit: bool = True) -> str:
    """A score with its unit; nats can be left out."""
    return percent(value) if not goal.is_loss else f"{loss(value)} nats" if unit else loss(value)


def percent(share: object) -> str:
    """A share in [0, 1] as percent."""
    x = finite(share)
    return NONE if x is None else f"{100 * x:.1f} %"


def seconds(value: object) -> str:
    """Seconds with one digit."""
    x = finite(value)
    return NONE if x is None else f"{x:.1f}"


def estimated(goal: Objective, e: Estimate, unit: bool = True) -> str:
    """A mean with its interval, where there is one."""
    ends = bounds(goal, e)
    return score(goal, e.mean, unit) + (f" {between(goal, *ends)}" if ends else "")


def bounds(goal: Objective, e: Estimate) -> tuple[float, float] | None:
    """An interval within what the score can be: no loss is negative, no share above 1."""
    if e.low is None or e.high is None or not math.isfinite(e.high - e.low):
        return None
    return max(0.0, e.low), e.high if goal.is_loss else min(1.0, e.high)


def between(goal: Objective, low: float, high: float) -> str:
    """An interval in brackets."""
    return f"[{low:.3f}, {high:.3f}]" if goal.is_loss else f"[{100 * low:.1f}, {100 * high:.1f}]"


def gained(goal: Objective, e: Estimate) -> str:
    """A difference, positive where it is for the better, in words that leave no doubt which way it goes and whether it may be none."""
    word, sign = ("better", 1.0) if e.mean >= 0 else ("worse", -1.0)
    scale, digits = sign * goal.factor, 3 if goal.is_loss else 1
    text = f"{word} by {scale * e.mean:.{digits}f} {'nats' if goal.is_loss else 'points'}"
    if e.low is None or e.high is None:
        return text
    low, high = sorted((scale * e.low, scale * e.high))
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]{', which may be chance' if low <= 0 else ''}"


def points(value: float) -> str:
    """A difference of percentages."""
    return f"{value:.1f} point{'' if f'{value:.1f}' == '1.0' else 's'}"


def several(n: int, what: str) -> str:
    """A count with its noun."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


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
    return ", ".join(f"{numbers.counts[status]:,} {word}" for status, word in FATES.items() if numbers.counts[status]) or "none yet"


def on_images(numbers: Summary) -> str:
    """On what a loss or accuracy was measured."""
    return f" on {several(numbers.val_images, 'validation image')}" if numbers.val_images else ""


def verdict(view: StudyView) -> str:
    """What the study found, how sure that is, and what is missing; in one or two sentences."""
    s, goal = summary(view), objective(view.spec)
    if not view.records:
        return "No trial has run yet."
    if s.best is None:
        return f"No trial was completed ({counts(s)}), so there is no best configuration." + first_error(view)
    if view.proof is not None and (text := proven(view.proof, goal, s)):
        return text + on_test(view.proof)
    return one_seed(view, s, goal) + (on_test(view.proof) if view.proof else "")


def proven(proof: Proof, goal: Objective, s: Summary) -> str:
    """What confirmation says of the winner; nothing where there was none."""
    found = next((c for c in proof.candidates if proof.confirmed and s.best and c.trial == s.best.number), None)
    if found is None or s.best is None or goal.name not in found.scores:
        return ""
    who = f"The default recipe (trial {found.trial})" if s.best is s.default else f"Trial {found.trial}"
    shown = [f"{'val loss' if goal.is_loss else goal.label} {estimated(goal, found.scores[goal.name])}"]
    if goal.name != "accuracy" and "accuracy" in found.scores:
        shown.append(f"accuracy {percent(found.scores['accuracy'].mean)}")
    text = f"{who} is confirmed on {proof.how}: {', '.join(shown)}{on_images(s) if 'fold' not in proof.how else ''}."
    search = next((g for g in proof.gains if g.what == "the search" and goal.name in g.points), None)
    if search is None or s.best is s.default:
        return text
    return f"{text} Against the default recipe on the same {proof.how.split(' ', 1)[-1]} that is {gained(goal, search.points[goal.name])}."


def on_test(proof: Proof) -> str:
    """What the test images say, and how often they were asked."""
    if proof.test is None or "accuracy" not in proof.test.metrics:
        return ""
    often = "looked at once" if len(proof.openings) == 1 else f"looked at {len(proof.openings)} times"
    return f" On {several(proof.test.images, 'test image')}, {often}: accuracy {percent(proof.test.metrics['accuracy'])}."


def one_seed(view: StudyView, s: Summary, goal: Objective) -> str:
    """What the search alone says."""
    assert s.best is not None
    result = f"{'val loss' if goal.is_loss else goal.label} {score(goal, s.best.score)}" + accuracy(goal, s.best.metrics, ", accuracy ")
    caution = f"{on_images(s)}, one seed: not yet confirmed on fresh seeds."
    if s.best is s.default:
        return f"The default recipe (trial {s.best.number}) is still the best: {result}{on_images(s)}, one seed. {no_gain(view)}"
    head = f"Trial {s.best.number} is best: {result}"
    if s.default is None:
        return f"{head}{caution} The default recipe is not among the trials, so what the search gained is unknown."
    if s.gain is None:
        fate = f"The default recipe (trial {s.default.number}) has no {goal.noun} to compare with ({FATES[s.default.status]})"
        return f"{head}{caution} {fate}, so what the search gained is unknown."
    usual = f"the default recipe (trial {s.default.number}) had {score(goal, s.default.score, unit=False)}"
    return f"{head}; {usual}{accuracy(goal, s.default.metrics, ' / ')}: {gain(goal, s)}{caution}"


def gain(goal: Objective, s: Summary) -> str:
    """What the best trial gained over the default recipe; s.gain is known."""
    own = f"a gain of {loss(s.gain)} nats" if goal.is_loss else f"a gain of {points(s.gain or 0.0)}"
    if s.accuracy_gain is None or (s.accuracy_gain >= 0 and not goal.is_loss):
        return own
    if s.accuracy_gain > 0:
        return f"a gain of {points(s.accuracy_gain)}"
    return f"{own} with {'no change in' if s.accuracy_gain == 0 else points(-s.accuracy_gain) + ' less'} accuracy"


def no_gain(view: StudyView) -> str:
    """Why the default recipe is the best."""
    tried = len(view.records) - 1
    return f"None of the {tried} other trials beat it." if tried > 1 else "No other trial beat it." if tried else "No other trial has run."


def accuracy(goal: Objective, metrics: Mapping[str, float], before: str) -> str:
    """The accuracy after `before`, or nothing when it was not measured or is the score itself."""
    known = goal.name != "accuracy" and finite(metrics.get("accuracy")) is not None
    return before + percent(metrics["accuracy"]) if known else ""


def first_error(view: StudyView) -> str:
    """The first failure's reason."""
    failed = next((r for r in view.records if r.error), None)
    return f" Trial {failed.number} failed: {shorten(failed.error or '')}" if failed else ""


def shorten(text: str, length: int = 160) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def cards(view: StudyView) -> list[Card]:
    """The header's key numbers, and how the best trial's training went."""
    s, goal = summary(view), objective(view.spec)
    planned = view.spec.get("trials")
    ended = len(view.records) - s.counts[Status.RUNNING] - s.counts[Status.WAITING]
    reused = sum(bool(r.reused) for r in view.records)
    fates = counts(s) + (f"; {reused:,} reused" if reused else "")
    shown = [Card("Trials", f"{ended:,} of {planned:,}" if isinstance(planned, int) and planned > ended else f"{ended:,}", fates)]
    confirmed = confirmed_cards(view, goal, s)
    if s.best and confirmed:
        found, _, reason = diagnose(s.best).partition(": ")
        shown = [*confirmed, Card("Training of the winner", found, reason), *shown]
    elif s.best:
        where = (
            f"trial {s.best.number}" + (f", epoch {s.best.best_epoch} of {len(s.best.curve)}" if s.best.best_epoch else "") + "; one seed"
        )
        shown.insert(0, Card(f"Best {goal.label}", score(goal, s.best.score), where))
        found, _, reason = diagnose(s.best).partition(": ")
        shown[1:1] = [
            *accuracy_card(goal, s, s.best),
            *test_card(view),
            *gain_card(goal, s, s.best),
            Card("Training of the best", found, reason),
        ]
    shown.append(Card("Training time", duration(s.seconds), "sum over trials"))
    pruned = s.counts[Status.PRUNED]
    estimate = "estimate: epochs not run × mean epoch of each pruned trial"
    shown.append(Card("Saved by pruning", f"≈ {duration(s.saved)}" if pruned else "0 s", estimate if pruned else "no trial was pruned"))
    if worrying := warnings_of((*view.records, *view.runs)):
        shown.append(Card("To look at", several(len(worrying), "warning"), shorten(worrying[0])))
    return shown


def confirmed_cards(view: StudyView, goal: Objective, s: Summary) -> list[Card]:
    """The winner's scores where it was trained again, and what it gained; none without confirmation."""
    proof = view.proof
    found = next((c for c in proof.candidates if s.best and c.trial == s.best.number), None) if proof and proof.confirmed else None
    if proof is None or found is None or s.best is None or goal.name not in found.scores:
        return []
    cards = [mean_card(f"Confirmed {goal.label}", goal, found.scores[goal.name], f"trial {found.trial}, {proof.how}")]
    other = objective({"objective": "val_loss" if goal.name == "accuracy" else "accuracy"})
    if other.name in found.scores:
        cards.append(mean_card(f"Confirmed {other.label}", other, found.scores[other.name], proof.how))
    search = next((g for g in proof.gains if g.what == "the search" and goal.name in g.points), None)
    if search is None:
        return [*cards, *test_card(view), *gain_card(goal, s, s.best)]
    e = search.points[goal.name]
    value = f"{e.mean:+.3f} nats" if goal.is_loss else f"{100 * e.mean:+.1f} points"
    note = f"{goal.label} {gained(goal, e)}; {proof.how}"
    return [*cards, *test_card(view), Card("Gain over the default recipe", value if goal.sign < 0 else value.replace("+", ""), note)]


def mean_card(label: str, goal: Objective, e: Estimate, about: str) -> Card:
    """A mean over repetitions."""
    ends = bounds(goal, e)
    return Card(label, score(goal, e.mean), f"{about}, mean" + (f"; 95 % interval {between(goal, *ends)}" if ends else ""))


def test_card(view: StudyView) -> list[Card]:
    """The winner's accuracy on the test images."""
    judged = view.proof.test if view.proof else None
    if view.proof is None or judged is None or "accuracy" not in judged.metrics:
        return []
    times = len(view.proof.openings)
    share = judged.metrics["accuracy"]
    note = f"{interval(share, judged.images)}, looked at {'once' if times == 1 else f'{times} times'}"
    return [Card("Test accuracy", percent(share), note)]


def interval(share: float, images: int) -> str:
    """How far so few images can be trusted."""
    low, high = wilson(share, images)
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f} % ({several(images, 'image')})"


def accuracy_card(goal: Objective, s: Summary, best: TrialRecord) -> list[Card]:
    """Accuracy with its interval; where accuracy is the score, the interval alone."""
    share = finite(best.metrics.get("accuracy"))
    if share is None or not 0 <= share <= 1:
        return []
    note = interval(share, s.val_images) if s.val_images else ""
    if goal.name == "accuracy":
        return [Card("Validation loss of the best", f"{loss(best.val_loss)} nats", f"accuracy: {note}" if note else "")]
    return [Card("Accuracy of the best", percent(share), note)]


def gain_card(goal: Objective, s: Summary, best: TrialRecord) -> list[Card]:
    """The gain over the default recipe in the unit of the objective, with the scores that it comes from."""
    if s.default is None or best is s.default or s.gain is None:
        return []
    before, after = score(goal, s.default.score, unit=False), score(goal, best.score)
    value = f"{loss(s.gain)} nats" if goal.is_loss else f"{s.gain:+.1f} points"
    also = goal.name != "accuracy" and s.accuracy_gain is not None
    accuracy = f"; accuracy {s.accuracy_gain:+.1f} points" if also else ""
    return [Card("Gain over the default recipe", value, f"{'loss' if goal.is_loss else goal.label} {before} → {after}{accuracy}; one seed")]
