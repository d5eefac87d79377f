"""What a trial's learning curve says about its training, in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpsearch.types import Params, Status, TrialRecord

SHORTEST = 3  # epochs below which nothing is said
BLOWN = 2.0  # times the first epoch's losses, both: diverged
SLOW = 0.1  # share of the first training loss that a rate large enough takes away
JUMP = 0.02  # share by which the training loss may rise between epochs at a rate that is too small
LOW = 0.1  # nats of training loss at which there is nothing left to learn
ROSE = 0.05  # share by which the validation loss ends above its minimum in over-fitting
NOISE = 0.01  # nats that it must rise at least
HIGH = 1.0, 0.5  # nats, and share of the first: losses that both end above both are high, as under-fitting has them
LENGTHS = frozenset({"epochs", "early_stopping"})  # settings that do not change how a training begins
ALIKE = 2  # epochs that must be equal before two trainings are said to be the same
FALLING = 0.05  # share that both losses lose in the last quarter of the epochs in under-fitting


def diagnose(record: TrialRecord) -> str:
    """The verdict on a trial, with its numbers; a function of the record's curve, error and remark alone."""
    verdict = by_curve(record)
    return f"{record.remark}; {verdict}" if record.remark else verdict


def diagnoses(records: Iterable[TrialRecord]) -> dict[int, str]:
    """The verdicts on trials that have ended, by number; with what is strange about several together."""
    found = {r.number: (r, diagnose(r)) for r in records if r.status.ended}
    said = {number: verdict for number, (_, verdict) in found.items()}
    for twin in twins(r for r, _ in found.values()):
        said[twin.second.number] += f"; {twin.sentence}"
    return said


def warnings_of(records: Sequence[TrialRecord], most: int = 5) -> list[str]:
    """What a person should know of a study's trainings beyond their scores, a line each; at most so many, and how many more."""
    found = [f"{r.name}: {r.remark}" for r in records if r.remark] + [twin.sentence for twin in twins(records)]
    return found[:most] + ([f"... and {len(found) - most:,} more like these"] if len(found) > most else [])


@dataclass(frozen=True, slots=True)
class Twin:
    """Two trainings that went the same way to the last bit under settings that differ."""

    first: TrialRecord
    second: TrialRecord
    differ: tuple[str, ...]  # settings

    @property
    def sentence(self) -> str:
        """What to think of it."""
        what = ", ".join(self.differ[:4]) + (f" and {len(self.differ) - 4} more" if len(self.differ) > 4 else "")
        verb = "differs" if len(self.differ) == 1 else "differ"
        return f"{self.second.name} has the very losses of {self.first.name}, though {what} {verb}: is that setting used at all?"


def twins(records: Iterable[TrialRecord]) -> tuple[Twin, ...]:
    """Trainings with equal losses in every epoch that both have, each with the first that it equals; results that were reused do not count.

    Two that differ in how long they were planned to go on may begin alike.
    """
    families: dict[tuple[float, float], list[TrialRecord]] = {}
    found = []
    for record in records:
        if not record.curve or record.reused:
            continue
        first = losses(record)[0]
        for other in families.get(first, ()):
            differ = tuple(name for name in settings_of(record) if settings_of(record)[name] != settings_of(other).get(name))
            pairs = list(zip(losses(record), losses(other), strict=False))
            if set(differ) - LENGTHS and len(pairs) >= ALIKE and all(a == b for a, b in pairs):
                found.append(Twin(other, record, differ))
                break
        families.setdefault(first, []).append(record)
    return tuple(found)


def losses(record: TrialRecord) -> list[tuple[float, float]]:
    """Both losses of each epoch."""
    return [(float(row.get("val_loss", math.nan)), float(row.get("train_loss", math.nan))) for row in record.curve]


def settings_of(record: TrialRecord) -> Params:
    """The configuration as the trainer used it: batches of at most 32 and of at most 25 may be the same ones."""
    return {**record.params, **record.effective}


def by_curve(record: TrialRecord) -> str:
    """The verdict on a trial by its curve."""
    rows = record.curve
    val, train = ([float(row.get(name, math.nan)) for row in rows] for name in ("val_loss", "train_loss"))
    epochs = [int(row.get("epoch", at)) for at, row in enumerate(rows, start=1)]
    if record.error and record.error.startswith("diverged"):
        return record.error
    for epoch, losses in zip(epochs, zip(val, train, strict=True), strict=True):
        if not all(map(math.isfinite, losses)):
            return f"diverged: a loss is no number at epoch {epoch}"
    if len(rows) < SHORTEST:
        return f"too short to tell: {len(rows)} epoch{'' if len(rows) == 1 else 's'}"
    if val[-1] > BLOWN * val[0] and train[-1] > BLOWN * train[0]:
        return f"diverged: {both(val, train, 0)}"
    lowest = min(range(len(val)), key=val.__getitem__)
    risen = val[-1] - val[lowest]
    if risen > max(NOISE, ROSE * val[lowest]) and train[-1] < train[lowest]:
        return f"over-fitting from epoch {epochs[lowest]}: {both(val, train, lowest)}"
    if train[-1] > LOW and fall(train, 0) < SLOW:
        # A rate that is too large makes losses jump; one that is too small lets them creep.
        if all(b <= (1 + JUMP) * a for a, b in pairwise(train)):
            rate = max(float(row.get("learning_rate", 0.0)) for row in rows)
            at = f" at a rate of at most {rate:.2g}" if rate else ""
            return f"learning rate too small: training loss fell by {100 * fall(train, 0):.1f} % in {len(rows)} epochs{at}"
        return f"under-fitting: both losses still high, {both(val, train, 0)}"
    late = len(rows) - 1 - max(1, len(rows) // 4)
    if train[-1] > LOW and min(fall(val, late), fall(train, late)) > FALLING:
        short = "cut short" if record.status is Status.PRUNED else "under-fitting"
        return f"{short}: both losses still falling since epoch {epochs[late]}, {both(val, train, late)}"
    if all(losses[-1] > max(HIGH[0], HIGH[1] * losses[0]) for losses in (val, train)):
        return f"under-fitting: both losses still high, {both(val, train, 0)}"
    return f"healthy: {both(val, train, 0)}"


def both(val: Sequence[float], train: Sequence[float], since: int) -> str:
    """Both losses from an epoch to the last, in nats."""
    return f"validation loss {val[since]:.3f} to {val[-1]:.3f}, training loss {train[since]:.3f} to {train[-1]:.3f}"


def fall(losses: Sequence[float], since: int) -> float:
    """The share of a loss that is gone at the end."""
    return (losses[since] - losses[-1]) / losses[since] if losses[since] > 0 else 0.0
