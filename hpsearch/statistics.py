"""Statistics that reports and comparisons rest on. Pure functions of numbers; scipy loads inside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n values with its interval; without one (None) where n is 1."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None


def mean_interval(values: Sequence[float], level: float = 0.95, overlap: float = 0.0) -> Estimate:
    """The mean of values with Student's interval at `level`.

    `overlap`: images validated on per image trained on, where the values come from folds of one set. Their training sets overlap,
    and the variance of the mean is taken as (1/n + overlap) times that of the values (Nadeau and Bengio, 2003).
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, n)
    from scipy.stats import t

    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = float(t.ppf(0.5 + level / 2, n - 1)) * math.sqrt(variance * (1 / n + overlap))
    return Estimate(mean, n, mean - half, mean + half)
