from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.comparison import POINTS, Run, areas, compare, pairs, run_of
from hpsearch.errors import FixInput
from hpsearch.types import Setup, Status, TrialRecord
from hpsearch.verdict import too_few, verdict

INF = math.inf


def record(number, cost=None, status=Status.COMPLETE, **changes):
    values = {
        "number": number,
        "status": status,
        "params": {},
        "origin": "sampled",
        "attempt": 1,
        "val_loss": cost,
        "best_epoch": None,
        "seconds": 2.0,
        "started": 0.0,
        "ended": float(number),
        "metrics": {},
        "effective": {},
        "curve": (),
        "checkpoint": None,
        "error": None,
    }
    return TrialRecord(**(values | changes))


def run(sampler, repeat, *costs, pruned=(), pace=1.0):
    return Run(sampler, repeat, costs, tuple(pace * i for i in range(1, len(costs) + 1)), tuple(i in pruned for i in range(len(costs))))


def simulated(seed, n, gains, trials=15):
    """Runs that share a common start and a common difficulty in each repeat; a sampler's gain is what its best trial saves."""
    rng = np.random.default_rng(seed)
    found = []
    for repeat in range(n):
        start = 0.5 + 0.05 * rng.normal()
        for sampler, gain in gains.items():
            costs = (start, *(start - gain - 0.02 * rng.gumbel(size=trials - 1)).tolist())
            found.append(Run(sampler, repeat, costs, tuple(np.cumsum(rng.uniform(1, 2, trials)).tolist()), (False,) * trials))
    return found


# ---------------------------------------------------------------- runs


def test_a_run_is_a_study_in_order_of_ending():
    records = [
        record(0, 0.5, ended=2.0),
        record(1, 0.1, Status.PRUNED, ended=1.0),
        record(2, None, Status.FAILED, ended=3.0, seconds=0.5),
        record(3, 0.4, ended=4.0),
        record(4, None, Status.RUNNING, ended=None),
        record(-1, 0.01, setup=Setup("reference", 0), ended=0.5),
    ]
    found = run_of("tpe", 3, records)
    assert found == Run("tpe", 3, (0.1, 0.5, INF, 0.4), (2.0, 4.0, 4.5, 6.5), (True, False, False, False))
    assert found.curve == (INF, 0.5, 0.5, 0.4)  # the pruned trial counts as a trial and as time, not as the best
    assert found.final == 0.4


def test_a_run_of_a_score_has_negative_costs_and_a_failed_trial_has_none():
    shares = [record(i, 0.5, metrics={"accuracy": a}, objective="accuracy") for i, a in enumerate((0.8, 0.9))]
    assert run_of("tpe", 0, [*shares, record(2, 0.1, Status.FAILED)]).costs == (-0.8, -0.9, INF)
    assert run_of("tpe", 0, []).final == INF


def test_only_repeats_that_every_sampler_has_are_compared():
    found = compare([run("a", 0, 1.0), run("a", 1, 1.0), run("b", 1, 2.0), run("b", 2, 2.0), run("b", 3, 2.0)])
    assert (found.repeats, found.left_out) == ((1,), 3)
    assert "3 runs left out" in " ".join(verdict(found))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "at least two samplers"),
        ([run("a", 0, 1.0)], "at least two samplers"),
        ([run("a", 0, 1.0), run("b", 1, 1.0)], "same seeds"),
        ([run("a", 0, 1.0), run("a", 0, 1.0), run("b", 0, 1.0)], "two runs of sampler a are repeat 0"),
        ([run("a", 0), run("b", 0)], "no trial has ended"),
    ],
)
def test_nothing_to_compare_is_refused(runs, message):
    with pytest.raises(FixInput, match=message):
        compare(runs)


# ---------------------------------------------------------------- curves, areas, targets


def test_curves_areas_and_reaching_by_hand():
    a, b = run("a", 0, 1.0, 0.5, 0.0), run("b", 0, 1.0, 1.0, 0.5, pace=2.0)
    found = compare([b, a], target=0.5)
    first, second = found.standings
    assert (first.sampler, first.rank, second.rank) == ("a", 1.0, 2.0)
    assert first.area.mean == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert (first.areas, first.areas_seconds) == ((first.area.mean,), (first.area_seconds.mean,))
    assert second.area.mean == pytest.approx((1.0 + 1.0 + 0.5) / 3)
    assert first.area_seconds.mean == pytest.approx((1.0 + 1.0 + 0.5) / 6)  # a second before the first value, then 1.0, 0.5, 0.0 to 6 s
    assert second.area_seconds.mean == 1.0
    assert (first.reach.trials, first.reach.seconds, second.reach.trials) == ((2.0,), (2.0,), (3.0,))
    assert found.by_trials[0].median == (1.0, 0.5, 0.0)
    assert found.by_trials[1].reached == (0.0, 0.0, 1.0)
    assert len(found.by_seconds[0].at) == POINTS + 1
    assert found.by_seconds[0].median[0] == INF
    assert found.by_seconds[1].at[-1] == 6.0


def test_a_run_that_never_reaches_the_target_counts_in_the_median():
    runs = [run("a", i, 1.0, *([0.1] if i < 2 else [])) for i in range(5)] + [run("b", i, 1.0, 1.0, 0.1) for i in range(5)]
    a, b = sorted(compare(runs, target=0.2).standings, key=lambda s: s.sampler)
    assert (a.reach.share, a.reach.median_trials, a.reach.trials) == (0.4, INF, (2, 2, INF, INF, INF))
    assert (b.reach.share, b.reach.median_trials, b.reach.median_seconds) == (1.0, 3.0, 3.0)


def test_by_default_half_of_each_samplers_runs_reach_the_target():
    found = compare(simulated(1, 6, {"a": 0.0, "b": 0.02, "c": 0.1}))
    assert all(s.reach.share >= 0.5 for s in found.standings)
    assert min(s.reach.share for s in found.standings) == 0.5


def test_bands_are_median_and_quartiles():
    runs = [run("a", i, float(i)) for i in range(5)] + [run("b", i, INF if i < 3 else 1.0) for i in range(5)]
    bands = {band.sampler: band for band in compare(runs).by_trials}
    assert (bands["a"].low, bands["a"].median, bands["a"].high) == ((1.0,), (2.0,), (3.0,))
    assert (bands["b"].low, bands["b"].median, bands["b"].high) == ((1.0,), (INF,), (INF,))


def test_runs_without_a_value_rank_last_and_are_told():
    found = compare([*(run("a", i, 1.0, 0.5) for i in range(6)), *(run("b", i, INF, INF) for i in range(6))])
    assert [s.sampler for s in found.standings] == ["a", "b"]
    assert found.pairs[0].real
    assert "b ended without any value in 6 of 6 repeats" in " ".join(verdict(found))
    assert "inf" not in " ".join(verdict(found)).replace("finite", "")
    assert all(math.isnan(area) for area in areas([run("a", 0, INF), run("b", 0, INF)])[0])
    nothing = compare([*(run("a", i, INF) for i in range(6)), *(run("b", i, INF) for i in range(6))])
    assert nothing.pairs[0].ties == 6
    assert "equal in every repeat" in " ".join(verdict(nothing))


def test_trials_that_took_no_time_can_be_compared():
    found = compare([Run(s, 0, (1.0, 0.5), (0.0, 0.0), (False, False)) for s in "ab"])
    assert found.by_seconds[0].median == (0.5,) * (POINTS + 1)
    assert found.standings[0].area_seconds.mean == 0.0


def test_a_sampler_whose_run_has_no_trial_has_found_nothing():
    found = compare([run("a", 0, 1.0, 0.5), run("b", 0)])
    assert [s.finals for s in found.standings] == [(0.5,), (INF,)]
    assert (found.trials, found.by_trials[1].median) == ((0, 2), (INF, INF))


def test_a_run_without_a_value_has_the_regret_of_the_worst_beginning():
    by_trials, _ = areas([run("a", 0, 1.0, 0.0), run("b", 0, 3.0, 1.0), run("c", 0, INF, INF)])
    assert by_trials == pytest.approx((0.25, 1.0, 1.5))
    assert areas([run("a", 0, 1.0), run("b", 0, 1.0)])[0] == (0.0, 0.0)  # nobody gained anything


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(-5, 5), st.integers(1, 9))
def test_adding_to_all_costs_and_permuting_runs_changes_no_conclusion(seed, constant, factor):
    runs = simulated(seed, 5, {"a": 0.0, "b": 0.01, "c": 0.02}, trials=6)
    order = np.random.default_rng(seed).permutation(len(runs))
    moved = [replace(runs[i], costs=tuple(factor * cost + constant for cost in runs[i].costs)) for i in order]
    before, after = compare(runs), compare(moved)
    key = {(p.better, p.worse): (p.p, p.holm, p.wins, p.needed) for p in before.pairs}
    assert {(p.better, p.worse): (p.p, p.holm, p.wins, p.needed) for p in after.pairs} == key
    for s in before.standings:
        other = next(o for o in after.standings if o.sampler == s.sampler)
        assert (other.rank, other.reach.trials) == (s.rank, s.reach.trials)
        assert (other.area.mean, other.area_seconds.mean) == pytest.approx((s.area.mean, s.area_seconds.mean), abs=1e-9)


# ---------------------------------------------------------------- pairs and verdicts


def test_a_pair_by_hand():
    (found,) = pairs({"a": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "b": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]})
    assert (found.better, found.worse, found.n, found.wins, found.ties) == ("b", "a", 6, 6, 0)
    assert (found.p, found.holm, found.rank_biserial) == (2 / 64, 2 / 64, 1.0)
    assert (found.shift.median, found.shift.low, found.shift.high) == pytest.approx((0.35, 0.1, 0.6))
    assert found.real
    assert found.needed is None


def test_the_undecided_are_told_how_many_repeats_they_take():
    rng = np.random.default_rng(4)
    base = rng.normal(size=8)
    found = pairs({"a": (base + rng.normal(0.35, 1, 8)).tolist(), "b": base.tolist()})[0]
    assert not found.real
    assert found.needed > 8
    close = pairs({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 1.0, 4.0, 3.0]})[0]
    assert close.needed is None


@pytest.mark.parametrize(
    ("n", "samplers", "words"), [(1, 2, "One repeat"), (5, 2, "cannot reach p < 0.05"), (6, 3, "at least 7 repeats (6 for")]
)
def test_too_few_repeats_are_told(n, samplers, words):
    assert words in too_few(n, samplers)
    found = compare(simulated(0, n, {f"s{i}": 0.2 * i for i in range(samplers)}))
    said = " ".join(verdict(found))
    assert words in said
    assert " is better than " not in said
    assert "ends better" not in said
    assert not any(pair.real for pair in found.pairs)


def test_enough_repeats_are_not_warned_of():
    assert [too_few(*enough) for enough in ((6, 2), (7, 3), (8, 4), (10, 6))] == [""] * 4


def test_one_repeat_names_nobody_before_another():
    said = verdict(compare([run("good", 0, 1.0, 0.1), run("bad", 0, 1.0, 0.9)]))
    assert not any("good" in sentence or "bad" in sentence for sentence in said)


def test_a_winner_is_named_where_the_tests_bear_it_out():
    said = verdict(compare(simulated(2, 10, {"random": 0.0, "tpe": 0.0, "gp": 0.2})))
    assert "gp is better than every other sampler." in said
    assert any(sentence.startswith("gp ends better than random by 0.") and "in 10 of 10 repeats" in sentence for sentence in said)
    assert any(sentence.startswith("Within the noise: ") and "random" in sentence and "tpe" in sentence for sentence in said)
    two = verdict(compare(simulated(2, 10, {"random": 0.0, "gp": 0.2})))
    assert "gp is better than random." in two


def test_a_circle_has_no_best():
    found = compare(simulated(2, 7, {"a": 0.0, "b": 0.0, "c": 0.0}, 5))
    circle = [replace(p, better=a, worse=b, holm=0.01) for p, (a, b) in zip(found.pairs, ("ab", "bc", "ca"), strict=True)]
    assert "none is the best" in " ".join(verdict(replace(found, pairs=tuple(circle))))
    chain = [replace(p, better=a, worse=b, holm=h) for p, (a, b), h in zip(found.pairs, ("ab", "ac", "bc"), (0.01, 0.2, 0.3), strict=True)]
    assert "b is worse than another sampler; nothing here beats " in " ".join(verdict(replace(found, pairs=tuple(chain))))


def test_scores_are_spoken_of_in_points():
    runs = [run(s, i, -0.80, -0.80 - gain - 0.001 * i) for i in range(6) for s, gain in (("a", 0.1), ("b", 0.02 - 0.002 * i))]
    said = " ".join(verdict(compare(runs, "accuracy")))
    assert "a is better than b." in said
    assert "points (95 % interval 8 to" in said
    assert "by the accuracy that runs end with" in said
    assert "To reach 81.8 %" in said
    assert "-" not in said.replace("signed-rank", "")


def test_unequal_numbers_of_trials_are_told():
    said = " ".join(verdict(compare([run("a", 0, 1.0, 1.0), run("b", 0, 1.0)])))
    assert "1 to 2 trials a run" in said
    assert "differ in their number of trials" in said


def test_under_the_null_hardly_any_verdict_finds_a_difference():
    gains = {"a": 0.01, "b": 0.01, "c": 0.01}
    found = 0
    for seed in range(300):
        finals = {name: [r.final for r in simulated(seed, 8, gains, 6) if r.sampler == name] for name in gains}
        found += any(pair.real for pair in pairs(finals))
    assert found / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_a_large_effect_is_found_and_a_middling_one_about_as_often_as_its_power_says():
    rng, level = np.random.default_rng(0), 200
    large = middling = 0
    for _ in range(level):
        base = rng.normal(size=10)
        large += pairs({"a": base.tolist(), "b": (base - rng.normal(2.5, 1, 10)).tolist()})[0].real
        middling += pairs({"a": base.tolist(), "b": (base - rng.normal(0.8, 1, 10)).tolist()})[0].real
    assert large / level > 0.99
    assert middling / level == pytest.approx(0.6, abs=0.1)


def test_the_verdict_itself_is_calibrated():
    for seed in range(8):
        said = verdict(compare(simulated(100 + seed, 7, {"a": 0.0, "b": 0.0}, 5)))
        assert any("noise" in sentence for sentence in said)
        said = verdict(compare(simulated(seed, 7, {"a": 0.0, "b": 0.3}, 5)))
        assert "b is better than a." in said
