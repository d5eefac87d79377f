"""Schedules: what holds for all of them, and the shape of each."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.finetune.schedules import SCHEDULES, factor


def factors(name, steps, warmup=0):
    return [factor(name, step, steps, warmup) for step in range(steps)]


@given(st.sampled_from(SCHEDULES), st.integers(1, 500), st.integers(0, 600))
def test_factors_are_positive_and_at_most_one(name, steps, warmup):
    assert all(0 < f <= 1 for f in factors(name, steps, warmup))  # and so no nan


@given(st.sampled_from(SCHEDULES), st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_the_peak_is_reached_right_after_a_linear_warmup(name, steps, share):
    warmup = int(share * steps)
    f = factors(name, steps, warmup)
    assert max(f) == 1
    if name != "onecycle":
        assert f[warmup] == 1
        assert f[:warmup] == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup)])


@given(st.sampled_from(SCHEDULES), st.integers(1, 20), st.integers(20, 40))
def test_a_warmup_longer_than_the_trial_only_rises(name, steps, warmup):
    if name != "onecycle":
        assert factors(name, steps, warmup) == [(i + 1) / (warmup + 1) for i in range(steps)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_single_step_takes_the_peak(name):
    assert factors(name, 1) == [1]


@given(st.integers(1, 500), st.floats(0, 1))
def test_cosine_falls_to_nearly_zero(steps, share):
    warmup = round(share * steps)
    f = factors("cosine", steps, warmup)
    assert f[warmup:] == sorted(f[warmup:], reverse=True)
    if warmup < steps:
        assert f[-1] == 0.5 * (1 + math.cos(math.pi * (steps - 1 - warmup) / (steps - warmup)))


def test_cosine_is_at_one_half_half_way():
    assert factor("cosine", 60, 100, 20) == pytest.approx(0.5)


def test_constant_stays():
    assert factors("constant", 5, 2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_step_drops_twice():
    assert factors("step", 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_warmup_delays_the_drops():
    assert factors("step", 12, 4)[4:] == factors("step", 8)


@pytest.mark.parametrize("steps", [10, 40, 200])
def test_onecycle_is_that_of_torch(steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=steps, div_factor=25, final_div_factor=1e4 / 25)
    theirs = []
    for _ in range(steps):
        theirs.append(reference.get_last_lr()[0])
        optimiser.step()
        if len(theirs) < steps:
            reference.step()
    assert factors("onecycle", steps) == pytest.approx(theirs)


def test_onecycle_ignores_warmup():
    assert factors("onecycle", 30, 17) == factors("onecycle", 30, 0)


def test_cycles_halve():
    f = factors("cyclical", 700)  # seven slopes of 100 steps: down, and three times up and down
    peaks = [i for i in range(1, 699) if f[i - 1] < f[i] > f[i + 1]]
    valleys = [i for i in range(1, 699) if f[i - 1] > f[i] < f[i + 1]]
    assert (peaks, valleys) == ([200, 400, 600], [100, 300, 500])
    assert [f[i] for i in peaks] == pytest.approx([0.5, 0.25, 0.125])
    assert [f[i] for i in valleys] == pytest.approx([0.01] * 3)
    assert f[50] == pytest.approx((1 + 0.01) / 2)  # straight
    assert f[-1] == pytest.approx(0.01, abs=0.002)


def test_short_trials_have_fewer_cycles():
    f = factors("cyclical", 7)
    assert f == sorted(f, reverse=True)


def test_another_name_is_told():
    with pytest.raises(ValueError, match="no schedule 'linear': choose from constant"):
        factor("linear", 0, 10, 0)
