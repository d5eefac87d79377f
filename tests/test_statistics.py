from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.statistics import (
    MOST_REPEATS,
    SIMULATED,
    best_so_far,
    bootstrap_mean,
    critical_rank_sum,
    differences,
    first_reached,
    friedman,
    holm,
    least_pairs,
    mean_interval,
    power,
    pseudo_median,
    quantiles,
    ranks,
    regret,
    repeats_needed,
    sign_distribution,
    signed_rank,
    standardised,
    step_mean,
    step_values,
    unbiased,
)

INF, NAN = math.inf, math.nan
whole = st.integers(-6, 6).map(float)
costs = st.lists(st.tuples(st.floats(-10, 10) | st.sampled_from([INF, NAN]), st.booleans()), max_size=20)


def flips(values):
    """Slow twin: p of the signed-rank test by all signs of the differences that are not zero."""
    sizes = [float(r) for r in scipy.stats.rankdata(np.abs(values))]
    moving = [(r, v) for r, v in zip(sizes, values, strict=True) if v]
    seen = abs(sum(r if v > 0 else -r for r, v in moving))
    all_signs = list(itertools.product((-1, 1), repeat=len(moving)))
    return sum(abs(sum(s * r for s, (r, _) in zip(signs, moving, strict=True))) >= seen - 1e-9 for signs in all_signs) / len(all_signs)


# ---------------------------------------------------------------- intervals and quantiles


def test_students_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_the_bootstrap_is_scipys_and_repeats():
    values = [float(v) for v in np.random.default_rng(0).gamma(2, size=12)]
    found = bootstrap_mean(values)
    assert found == bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    slow = np.random.default_rng(5).choice(values, (40_000, 12)).mean(axis=1)
    assert found.low < found.mean < found.high
    assert (found.low, found.high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.15 * np.ptp(slow))
    assert bootstrap_mean(values, level=0.5).low > found.low


def test_the_bootstrap_makes_no_interval_of_too_little():
    assert bootstrap_mean([1.0, 2.0, 3.0, 4.0]).low is None
    assert bootstrap_mean([1.0, 2.0, 3.0, 4.0, INF]).mean == INF
    assert bootstrap_mean([1.0, 2.0, 3.0, 4.0, INF]).high is None
    assert math.isnan(bootstrap_mean([NAN, 1.0]).mean)
    assert (bootstrap_mean([0.1] * 7).low, bootstrap_mean([0.1] * 7).high) == pytest.approx((0.1, 0.1))


def test_the_bootstrap_covers_about_what_it_says():
    rng = np.random.default_rng(3)
    found = [bootstrap_mean(rng.normal(size=12).tolist(), resamples=400) for _ in range(300)]
    assert 0.86 <= sum(e.low <= 0 <= e.high for e in found) / 300 <= 0.97


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=15), st.floats(0, 1))
def test_quantiles_are_numpys_while_finite(values, share):
    assert quantiles([[v] for v in values], share)[0] == pytest.approx(np.quantile(values, share), abs=1e-9)


def test_quantiles_know_infinity():
    column = [[1.0], [2.0], [INF], [INF]]
    assert [quantiles(column, share)[0] for share in (0.0, 1 / 3, 0.5, 0.75, 1.0)] == [1.0, 2.0, INF, INF, INF]


# ---------------------------------------------------------------- curves


@settings(deadline=None)
@given(costs)
def test_the_best_so_far_never_rises_and_is_the_least_counted(events):
    curve = best_so_far([c for c, _ in events], [counts for _, counts in events])
    assert len(curve) == len(events)
    for i, best in enumerate(curve):
        assert best == min((c for c, counts in events[: i + 1] if counts and not math.isnan(c)), default=INF)
        assert i == 0 or best <= curve[i - 1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-5, 5)), max_size=10), st.lists(st.integers(-1, 22), max_size=8))
def test_step_values_are_those_of_the_last_event(events, grid):
    times = sorted(t for t, _ in events)
    values = [float(v) for _, v in events]
    slow = [next((v for t, v in reversed(list(zip(times, values, strict=True))) if t <= at), 99.0) for at in grid]
    assert step_values(times, values, grid, before=99.0).tolist() == slow


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-5, 5)), max_size=10), st.integers(0, 10), st.integers(1, 12))
def test_the_area_under_steps_is_that_of_narrow_rectangles(events, start, length):
    times, values = sorted(t for t, _ in events), [float(v) for _, v in events]
    rectangles = step_values(times, values, np.arange(start, start + length), before=7.0)
    assert step_mean(times, values, start, start + length, before=7.0) == pytest.approx(float(np.mean(rectangles)))


def test_areas_by_hand():
    assert step_mean([1, 2, 3], [1.0, 0.5, 0.0], 1, 4) == 0.5
    assert step_mean([10.0], [0.0], 0.0, 20.0, before=1.0) == 0.5
    assert step_mean([0.0], [3.0], 0.0, 0.0) == 3.0  # no time has passed
    assert step_mean([], [], 0.0, 2.0, before=1.5) == 1.5


def test_regret_and_reaching_by_hand():
    assert regret([INF, 3.0, 2.0, 1.0], best=1.0, scale=2.0, before=1.5) == (1.5, 1.0, 0.5, 0.0)
    assert [first_reached((5, 9, 12), (INF, 3.0, 2.0), target) for target in (4, 3, 2.5, 1)] == [9, 9, 12, INF]


# ---------------------------------------------------------------- the paired test


@settings(deadline=None)
@given(st.lists(whole, min_size=1, max_size=9))
def test_the_signed_rank_test_is_exact_with_ties_and_zeros(values):
    assert signed_rank(values).p == pytest.approx(flips(values))


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=25, unique=True), st.data())
def test_the_signed_rank_test_is_scipys(sizes, data):
    values = [size * data.draw(st.sampled_from((-1, 1))) for size in sizes]
    found = signed_rank(values)
    assert found.p == pytest.approx(scipy.stats.wilcoxon(values, method="exact").pvalue)
    assert found.d_z == pytest.approx(np.mean(values) / np.std(values, ddof=1))
    negative = signed_rank([-v for v in values])
    assert (negative.p, negative.rank_biserial) == (found.p, -found.rank_biserial)


def test_the_signed_rank_test_is_scipys_pratt_with_zeros():
    values = [0.0, 0.0, 1.0, -2.0, 2.0, 3.0, 4.0, 5.0, -1.0]
    scipys = scipy.stats.wilcoxon(values, zero_method="pratt", method=scipy.stats.PermutationMethod(n_resamples=10**6))
    assert signed_rank(values).p == pytest.approx(scipys.pvalue)
    assert signed_rank(values).zeros == 2


def test_the_signed_rank_test_by_hand():
    assert signed_rank([1, 2, 3, 4, 5]).p == 2 / 32
    assert signed_rank([1, 2, 3, 4, 5, 6]).p == 2 / 64
    assert signed_rank([3, 1, -2]).rank_biserial == pytest.approx((3 + 1 - 2) / 6)
    assert (signed_rank([0.0, 0.0]).p, signed_rank([0.0, 0.0]).rank_biserial, signed_rank([0.0, 0.0]).d_z) == (1.0, 0.0, 0.0)
    assert signed_rank([5.0]).p == 1.0
    assert signed_rank([INF, 1.0, 2.0]).rank_biserial == 1.0
    assert math.isnan(signed_rank([INF, 1.0, 2.0]).d_z)
    for bad in ([], [1.0, NAN]):
        with pytest.raises(ValueError, match="at least one pair"):
            signed_rank(bad)


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), max_size=10))
def test_the_null_distribution_is_that_of_fair_signs(sizes):
    shares = sign_distribution(sizes)
    sums = [sum(chosen) for k in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, k)]
    assert shares.tolist() == pytest.approx([sums.count(at) / len(sums) for at in range(sum(sizes) + 1)])


@settings(deadline=None)
@given(st.lists(st.tuples(whole, whole), min_size=1, max_size=10), st.integers(-1000, 1000), st.randoms())
def test_adding_to_all_costs_and_permuting_repeats_leave_the_test_alone(pairs, constant, random):
    before = signed_rank(differences([a / 400 for a, _ in pairs], [b / 400 for _, b in pairs]))
    random.shuffle(pairs)
    after = signed_rank(differences([a / 400 + constant / 7 for a, _ in pairs], [b / 400 + constant / 7 for _, b in pairs]))
    assert (after.p, after.zeros, after.rank_biserial) == (before.p, before.zeros, before.rank_biserial)
    assert after.d_z == pytest.approx(before.d_z, rel=1e-6, nan_ok=True)


def test_equal_steps_of_accuracy_tie_and_two_runs_without_a_value_are_equal():
    assert 0.3 - 0.2 != 0.2 - 0.1
    assert differences([0.3, 0.2], [0.2, 0.1]) == (0.1, 0.1)
    assert differences([INF, INF, 1.0], [INF, 1.0, INF]) == (0.0, INF, -INF)


def test_standardised_differences_at_the_edges():
    assert standardised([2.0, 2.0]) == INF
    assert standardised([-2.0, -2.0]) == -INF
    assert math.isnan(standardised([2.0]))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=1, max_size=14, unique_by=abs))
def test_the_interval_of_a_shift_excludes_zero_exactly_where_the_test_does(values):
    values = [v for v in values if v] or [1.0]
    found, p = pseudo_median(values), signed_rank(values).p
    means = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    assert found.median == pytest.approx(np.median(means))
    if len(values) < 6:
        assert found.low is None
    elif 0 not in means:
        assert (found.low > 0 or found.high < 0) == (p <= 0.05)


def test_the_interval_of_a_shift_with_infinite_differences():
    found = pseudo_median([INF, INF, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (found.low, found.high) == (2.0, INF)
    assert pseudo_median([INF, -INF]).median == 0.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_monotone_and_never_below_the_raw_p(ps):
    corrected = holm(ps)
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(raw <= p <= 1 for raw, p in zip(ps, corrected, strict=True))
    assert [corrected[i] for i in order] == sorted(corrected)
    rejected = 0  # slow twin: step down until the first that is not rejected
    while rejected < len(ps) and (len(ps) - rejected) * ps[order[rejected]] <= 0.05:
        rejected += 1
    assert sum(p <= 0.05 for p in corrected) == rejected


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()


# ---------------------------------------------------------------- power


def test_the_fewest_pairs_that_can_show_anything():
    assert [least_pairs(comparisons=m) for m in (1, 3, 6, 10, 15)] == [6, 7, 8, 9, 10]
    assert signed_rank([1.0] * 5).p >= 0.05 > signed_rank([1.0] * 6).p
    assert power(100.0, 5) == 0.0
    assert critical_rank_sum(5) == 16  # above the greatest sum, 15


@pytest.mark.parametrize("n", range(6, 14))
def test_the_critical_sum_is_where_p_falls_to_five_percent(n):
    def p(rank_sum):
        return 2 * float(sign_distribution(range(1, n + 1))[rank_sum:].sum())

    assert p(critical_rank_sum(n)) <= 0.05 < p(critical_rank_sum(n) - 1)


@pytest.mark.parametrize(("d_z", "n"), [(0.8, 8), (0.8, 10), (0.8, 16), (0.3, 40), (0.0, 12)])
def test_power_is_the_share_of_samples_that_scipy_finds_significant(d_z, n):
    samples = np.random.default_rng(7).normal(d_z, 1, (2000, n))
    slow = np.mean(scipy.stats.wilcoxon(samples, axis=1, method="exact").pvalue <= 0.05)
    assert power(d_z, n) == pytest.approx(slow, abs=0.035)
    assert power(-d_z, n) == pytest.approx(power(d_z, n), abs=0.03)


def test_power_at_eight_tenths_of_a_standard_deviation():
    assert [round(power(0.8, n), 2) for n in (8, 10, 16)] == pytest.approx([0.43, 0.60, 0.82], abs=0.02)


@pytest.mark.parametrize("d_z", [0.1, 0.3, 0.5])
def test_the_simulation_and_the_approximation_meet(d_z):
    assert power(d_z, SIMULATED) == pytest.approx(power(d_z, SIMULATED + 1), abs=0.025)


def test_repeats_needed_are_the_fewest_with_that_power():
    for d_z, alpha in [(2.0, 0.05), (0.8, 0.05), (0.8, 0.05 / 6), (0.3, 0.05)]:
        n = repeats_needed(d_z, alpha)
        assert power(d_z, n, alpha) >= 0.8 > power(d_z, n - 1, alpha)
    assert repeats_needed(0.8) in (15, 16)
    assert repeats_needed(INF) == least_pairs()
    assert repeats_needed(-0.8) == repeats_needed(0.8)
    assert repeats_needed(0.0) is repeats_needed(0.02) is repeats_needed(NAN) is None
    assert repeats_needed(0.1) < MOST_REPEATS


def test_few_pairs_make_an_effect_too_large():
    rng = np.random.default_rng(1)
    seen = [standardised(rng.normal(0.5, 1, 8).tolist()) for _ in range(4000)]
    assert np.mean(seen) > 0.54
    assert np.mean([unbiased(d, 8) for d in seen]) == pytest.approx(0.5, abs=0.02)
    assert unbiased(1.0, 2) == 1.0


# ---------------------------------------------------------------- ranks


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3).map(float), min_size=3, max_size=3), min_size=2, max_size=8))
def test_friedmans_statistic_is_scipys_and_ranks_share(rows):
    found = ranks(rows)
    for row, own in zip(rows, found, strict=True):
        assert list(own) == [sum(b < a for b in row) + (row.count(a) + 1) / 2 for a in row]
    if all(len(set(row)) == 1 for row in rows):
        assert friedman(rows, 50).p == 1.0
    else:
        assert friedman(rows, 50).chi_squared == pytest.approx(scipy.stats.friedmanchisquare(*zip(*rows, strict=True)).statistic)


def test_friedmans_p_is_exact_where_that_can_be_counted_and_scipys_for_many_rows():
    rows = [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0]]
    orders = list(itertools.permutations((1, 2, 3)))
    spread = [sum((sum(column) - 8) ** 2 for column in zip(*table, strict=True)) for table in itertools.product(orders, repeat=4)]
    seen = sum((sum(column) - 8) ** 2 for column in zip(*ranks(rows), strict=True))
    assert friedman(rows).p == pytest.approx(sum(s >= seen for s in spread) / len(spread), abs=0.012)
    many = np.random.default_rng(2).normal([0, 0.1, 0.25], 1, (80, 3)).tolist()
    assert friedman(many).p == pytest.approx(scipy.stats.friedmanchisquare(*zip(*many, strict=True)).pvalue, abs=0.02)


def test_infinite_costs_rank_last_together():
    assert ranks([[INF, 1.0, INF]]) == ((2.5, 1.0, 2.5),)
