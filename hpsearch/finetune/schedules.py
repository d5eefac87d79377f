"""How the learning rate goes through a trial, as a factor on its peak."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "cosine", "onecycle", "cyclical", "step")
START, END = 1 / 25, 1e-4  # onecycle: of the peak
RISE = 0.3  # onecycle: share of the steps until the peak
CYCLES, FLOOR = 4, 0.01  # cyclical
DROP, DROPS = 0.1, (0.5, 0.75)  # step: the factor of a drop, and after what share of the steps


def factor(name: str, step: int, steps: int, warmup: int) -> float:
    """Factor in (0, 1] at `step` (from 0) of `steps`, which rises linearly over the first `warmup` steps.

    cosine: half a cosine down to 0 (Loshchilov and Hutter, 2017). onecycle: its own rise and fall, `warmup` is ignored (Smith and
    Topin, 2018). cyclical: triangles, each half as high as the one before (Smith, 2017). step: a tenth after one half, a hundredth
    after three quarters of the steps that follow warm-up (as He et al., 2016, at 50 and 75 %). Raises ValueError for another name.
    """
    if name == "onecycle":
        return onecycle(step, steps)
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}: choose from {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    if name == "cyclical":
        return cyclical(step - warmup, steps - warmup)
    if name == "step":
        return DROP ** sum(step - warmup >= share * (steps - warmup) for share in DROPS)
    return 1.0


def onecycle(step: int, steps: int) -> float:
    """From START to 1 and down to END by halves of cosines: the shape of torch's OneCycleLR; a single step takes 1.

    The published ramps are straight. The momentum, which is cycled against the rate there, stays as it is.
    """
    peak = max(0, round(RISE * steps) - 1)
    if step < peak:
        return START + (1 - START) * 0.5 * (1 - math.cos(math.pi * step / peak))
    return END + (1 - END) * 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, steps - 1 - peak)))


def cyclical(step: int, steps: int) -> float:
    """From a peak down to FLOOR and up to half the peak, CYCLES times in all, the last without a rise: warm-up leads to the first peak.

    A slope takes two steps at least: short trials have fewer cycles.
    """
    cycles = max(1, min(CYCLES, steps // 4))
    place = (cycles - 0.5) * step / steps  # in cycles; peaks are at whole numbers
    peak = int(place + 0.5)
    return FLOOR + (0.5**peak - FLOOR) * (1 - 2 * abs(place - peak))
