"""Statistics that reports and comparisons rest on. Pure functions of numbers; numpy and scipy load inside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

ALPHA = 0.05  # two-sided level of every test
POWER = 0.8  # wanted, when repeats are counted that a difference would take
MOST_REPEATS = 1000  # a difference that takes more is none that matters
LEAST_RESAMPLED = 5  # values that the bootstrap makes an interval of; three have ten different resamples
SIMULATED = 60  # pairs up to which the power of the paired test is simulated; a normal distribution describes it beyond


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n values with its interval; without one (None) where n is 1."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Estimate:
        """The same in another unit; a negative factor turns the interval round."""
        if self.low is None or self.high is None:
            return Estimate(factor * self.mean, self.n)
        low, high = sorted((factor * self.low, factor * self.high))
        return Estimate(factor * self.mean, self.n, low, high)


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


def bootstrap_mean(values: Sequence[float], level: float = 0.95, resamples: int = 4000, seed: int = 0) -> Estimate:
    """The mean of values with its bootstrap interval at `level`, corrected for bias and skewness (BCa; Efron, 1987).

    `seed` makes it repeat. With few values it covers less than it claims (Efron and Tibshirani, 1993, chapter 14): there is none for fewer
    than LEAST_RESAMPLED, nor where a value is infinite or nan, which the mean then is too.
    """
    n = len(values)
    mean = math.fsum(values) / n if all(map(math.isfinite, values)) else sum(values)
    if n < LEAST_RESAMPLED or not math.isfinite(mean):
        return Estimate(mean, n)
    if max(values) == min(values):
        return Estimate(mean, n, mean, mean)  # BCa divides by the spread
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap((values,), np.mean, confidence_level=level, n_resamples=resamples, method="BCa", rng=np.random.default_rng(seed))
    return Estimate(mean, n, float(found.confidence_interval.low), float(found.confidence_interval.high))


def quantiles(rows: Sequence[Sequence[float]] | Sequence[Array] | Array, share: float) -> Array:
    """The quantile of each column, between neighbours in proportion (Hyndman and Fan, 1996, type 7); infinite values are the largest.

    numpy's own makes nan of two infinite neighbours.
    """
    import numpy as np

    ordered = np.sort(np.asarray(rows, dtype=float), axis=0)
    place = share * (len(ordered) - 1)
    low, high, weight = ordered[math.floor(place)], ordered[math.ceil(place)], place % 1
    found: Array = low if weight == 0 else (1 - weight) * low + weight * high
    return found


# ---------------------------------------------------------------- curves


def best_so_far(costs: Sequence[float], counted: Sequence[bool]) -> tuple[float, ...]:
    """The least counted cost up to each trial, infinite before there is one; a nan improves on nothing."""
    best, curve = math.inf, []
    for cost, counts in zip(costs, counted, strict=True):
        if counts and cost < best:
            best = cost
        curve.append(best)
    return tuple(curve)


def step_values(times: Sequence[float], values: Sequence[float], grid: Sequence[float] | Array, before: float = math.inf) -> Array:
    """A step function on a grid: the value of the last event at or before each point; `before` ahead of the first event.

    `times` never fall; after the last event its value stays.
    """
    import numpy as np

    found: Array = np.asarray([before, *values], dtype=float)[np.searchsorted(times, grid, side="right")]
    return found


def step_mean(times: Sequence[float], values: Sequence[float], start: float, end: float, before: float = math.inf) -> float:
    """The area under a step function from `start` to `end`, over its length."""
    import numpy as np

    if end <= start:
        return float(step_values(times, values, [end], before)[0])
    edges = np.unique(np.clip([start, *times, end], start, end))
    return float(np.sum(step_values(times, values, edges[:-1], before) * np.diff(edges)) / (end - start))


def regret(curve: Sequence[float], best: float, scale: float, before: float) -> tuple[float, ...]:
    """How far each value of a best-so-far curve is above `best`, in units of `scale`; `before` while there is no value yet."""
    return tuple((value - best) / scale if math.isfinite(value) else before for value in curve)


def first_reached(times: Sequence[float], curve: Sequence[float], target: float) -> float:
    """The time at which a best-so-far curve is at or below `target`; infinite if it never is."""
    return next((time for time, value in zip(times, curve, strict=True) if value <= target), math.inf)


# ---------------------------------------------------------------- tests of pairs


@dataclass(frozen=True, slots=True)
class SignedRank:
    """Wilcoxon's signed-rank test of paired differences."""

    n: int  # pairs, those without a difference included
    zeros: int  # pairs without a difference
    p: float  # two-sided, exact
    rank_biserial: float  # in [-1, 1]; 1: every difference is positive (Kerby, 2014)
    d_z: float  # mean difference over the differences' standard deviation (Cohen, 1988); nan where one is infinite or n is 1


@dataclass(frozen=True, slots=True)
class Shift:
    """How far apart two paired samples lie: the pseudo-median of the differences, its interval where n allows one."""

    median: float
    low: float | None = None
    high: float | None = None


def differences(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    """a - b of each pair, 0 where both are infinite.

    What floating point adds is rounded off (12 digits of the larger): shares of one number of images differ by equal steps, which tie.
    """
    return tuple(0.0 if x == y else difference(x, y) for x, y in zip(a, b, strict=True))


def difference(x: float, y: float) -> float:
    """x - y without what rounding added to it."""
    if not math.isfinite(x - y):
        return x - y
    return round(x - y, 11 - math.floor(math.log10(max(abs(x), abs(y)))))


def signed_rank(values: Sequence[float]) -> SignedRank:
    """Wilcoxon's signed-rank test (1945) that differences are symmetric about 0, two-sided and exact for every n.

    Zeros are ranked and then left out (Pratt, 1959): leaving them out first can make a p-value smaller by adding a zero. Equal sizes share
    their mean rank, and the null distribution is that of the ranks at hand under all 2^n signs, so ties need no approximation.
    """
    import numpy as np
    from scipy.stats import rankdata

    found = np.asarray(values, dtype=float)
    if not len(found) or np.isnan(found).any():
        raise ValueError("a paired test needs at least one pair, and no nan among the differences")
    n, sizes = len(found), np.rint(2 * rankdata(np.abs(found))).astype(int)  # doubled, so that mean ranks are whole
    up, down = int(sizes[found > 0].sum()), int(sizes[found < 0].sum())
    null = sign_distribution([int(size) for size in sizes[found != 0]])
    p = min(1.0, 2 * float(null[max(up, down) :].sum()))
    return SignedRank(n, int((found == 0).sum()), p, (up - down) / (n * (n + 1)), standardised(values))


def sign_distribution(ranks: Sequence[int]) -> Array:
    """P(sum = 0, 1, ...) of the ranks with a positive sign when every sign is a fair coin."""
    import numpy as np

    shares = np.zeros(sum(ranks) + 1)
    shares[0], reached = 1.0, 0
    for rank in ranks:
        shares[: reached + rank + 1] /= 2
        shares[rank : reached + rank + 1] += shares[: reached + 1].copy()
        reached += rank
    return shares


def standardised(values: Sequence[float]) -> float:
    """Mean over standard deviation (n - 1); infinite where all are equal and not 0, 0 where all are 0, nan for less than 2 values."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    if min(values) == max(values):
        return 0.0 if values[0] == 0 else math.copysign(math.inf, values[0])
    mean = math.fsum(values) / len(values)
    return mean / math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def pseudo_median(values: Sequence[float], level: float = 0.95) -> Shift:
    """The median of all means of two values (Hodges and Lehmann, 1963), with the interval of the signed-rank test.

    Without ties it excludes 0 exactly where the test's p is below 1 - level; fewer than 6 values have no 95 % interval.
    """
    import numpy as np

    found, n = np.asarray(values, dtype=float), len(values)
    i, j = np.triu_indices(n)
    with np.errstate(invalid="ignore"):
        means = np.sort(np.nan_to_num((found[i] + found[j]) / 2, nan=0.0, posinf=math.inf, neginf=-math.inf))
    median = float(quantiles(means[:, None], 0.5)[0]) if np.isfinite(means).all() else float(means[len(means) // 2])
    outside = len(means) - critical_rank_sum(n, 1 - level)  # so many means on either side are too many
    return Shift(median) if outside < 0 else Shift(median, float(means[outside]), float(means[-1 - outside]))


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number, at least as large as the raw ones (Holm, 1979): no more than 5 % of families err at 0.05."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, largest = [1.0] * len(ps), 0.0
    for step, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - step) * ps[i]))
        corrected[i] = largest
    return tuple(corrected)


# ---------------------------------------------------------------- power


def least_pairs(alpha: float = ALPHA, comparisons: int = 1) -> int:
    """Pairs below which the signed-rank test cannot reach p < alpha, were all differences of one sign: 2 / 2^n is its least p. 6 at 0.05.

    Of several comparisons that Holm corrects, the first needs alpha over their number: 7 pairs for 3, 8 for 6, 9 for 10, 10 for 15.
    """
    n = 1
    while 2 / 2**n >= alpha / comparisons:
        n += 1
    return n


@cache
def critical_rank_sum(n: int, alpha: float = ALPHA) -> int:
    """The least sum of positive ranks at which the two-sided test of n untied pairs has p <= alpha; more than there is if none has."""
    if n > SIMULATED:
        from scipy.special import ndtri

        middle, spread = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.ceil(middle + 0.5 + spread * float(ndtri(1 - alpha / 2)))
    above = sign_distribution(range(1, n + 1))[::-1].cumsum()
    return len(above) - int((above <= alpha / 2 * (1 + 1e-9)).sum())


@cache
def power(d_z: float, n: int, alpha: float = ALPHA) -> float:
    """The chance that the signed-rank test of n pairs has p <= alpha when differences are normal with mean d_z standard deviations.

    Simulated (10,000 samples of one seed: +- 1 point) up to 60 pairs, for at 0.8 sd a normal approximation is 8 points off with 8 pairs;
    beyond, Lehmann's (1975, section 4.2). At 0.05: 0.8 sd takes 16 pairs for 82 %, and 43 % see it with 8.
    """
    if n < least_pairs(alpha):
        return 0.0
    import numpy as np

    critical, total = critical_rank_sum(n, alpha), n * (n + 1) // 2
    if n <= SIMULATED:
        drawn = np.random.default_rng(n).normal(d_z, 1.0, (10_000, n))
        positive = np.take_along_axis(drawn > 0, np.abs(drawn).argsort(axis=1), axis=1)
        sums = positive @ np.arange(1, n + 1)
        return float(((sums >= critical) | (sums <= total - critical)).mean())
    from scipy.special import ndtr, owens_t

    one, two = float(ndtr(abs(d_z))), float(ndtr(math.sqrt(2) * abs(d_z)))  # P(X > 0), P(X + Y > 0)
    three = two - 2 * float(owens_t(math.sqrt(2) * abs(d_z), 1 / math.sqrt(3)))  # P(X + Y > 0 and X + Z > 0)
    mean = n * one + n * (n - 1) / 2 * two
    variance = n * one * (1 - one) + n * (n - 1) / 2 * two * (1 - two) + n * (n - 1) * (one**2 + two - 2 * one * two)
    variance += n * (n - 1) * (n - 2) * (three - two**2)
    return float(ndtr((mean - critical + 0.5) / math.sqrt(max(variance, 1e-12))))


@cache
def repeats_needed(d_z: float, alpha: float = ALPHA, wanted: float = POWER) -> int | None:
    """Pairs that give the signed-rank test the wanted power at an effect of d_z (to two decimals); None beyond MOST_REPEATS.

    An effect seen in few pairs is itself uncertain, and so is this number: an order of magnitude for planning, no promise.
    """
    effect = round(abs(d_z), 2)
    low, high = least_pairs(alpha) - 1, MOST_REPEATS
    if math.isnan(effect) or power(min(effect, 100.0), high, alpha) < wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(min(effect, 100.0), middle, alpha) >= wanted else (middle, high)
    return high


def unbiased(d_z: float, n: int) -> float:
    """A standardised difference as it would be in many pairs: few make it too large (Hedges, 1981)."""
    return d_z * (1 - 3 / (4 * (n - 1) - 1)) if n > 2 else d_z


# ---------------------------------------------------------------- ranks


@dataclass(frozen=True, slots=True)
class Friedman:
    """Friedman's test that no column of a table of repeats tends to smaller ranks than another."""

    chi_squared: float
    p: float  # by permutation


def ranks(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """The rank of each value in its row: 1 is the least, equal ones share the mean of theirs."""
    from scipy.stats import rankdata

    return tuple(tuple(float(rank) for rank in rankdata(row)) for row in rows)


def friedman(rows: Sequence[Sequence[float]], resamples: int = 10_000, seed: int = 0) -> Friedman:
    """Friedman's test (1937), corrected for ties; a row is a repeat, a column a sampler.

    Its p comes from shuffling ranks within rows (`resamples` times, of one `seed`): chi-squared is a poor guide with few repeats.
    """
    import numpy as np

    found = np.asarray(ranks(rows))
    n, k = found.shape
    spread = float(((found - (k + 1) / 2) ** 2).sum())
    if spread == 0:
        return Friedman(0.0, 1.0)

    def scaled(sums: Array) -> Any:
        return (k - 1) / spread * ((sums - n * (k + 1) / 2) ** 2).sum(axis=-1)

    rng, seen = np.random.default_rng(seed), scaled(found.sum(axis=0))
    shuffled = np.stack([rng.permuted(np.tile(row, (resamples, 1)), axis=1) for row in found])
    extreme = int((scaled(shuffled.sum(axis=0)) >= seen * (1 - 1e-9)).sum())
    return Friedman(float(seen), (1 + extreme) / (1 + resamples))
