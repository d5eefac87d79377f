"""What a trial's learning curve says about its training, in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from hpsearch.types import Status, TrialRecord

SHORTEST = 3  # epochs below which nothing is said
BLOWN = 2.0  # times the first epoch's losses, both: diverged
SLOW = 0.1  # share of the first training loss that a rate large enough takes away
JUMP = 0.02  # share by which the training loss may rise between epochs at a rate that is too small
LOW = 0.1  # nats of training loss at which there is nothing left to learn
ROSE = 0.05  # share by which the validation loss ends above its minimum in over-fitting
NOISE = 0.01  # nats that it must rise at least
HIGH = 1.0, 0.5  # nats, and share of the first: losses that both end above both are high, as under-fitting has them
FALLING = 0.05  # share that both losses lose in the last quarter of the epochs in under-fitting


def diagnose(record: TrialRecord) -> str:
    """The verdict on a trial, with its numbers; a function of the record's curve and error alone."""
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
