"""Each learning curve gives its verdict, and none makes it fail."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.diagnosis import diagnose, diagnoses, twins, warnings_of
from hpsearch.types import Status, TrialRecord

VERDICTS = (
    "diverged",
    "learning rate too small: ",
    "over-fitting from epoch ",
    "under-fitting: ",
    "healthy",
    "too short to tell",
    "cut short: ",
)
LOSSES = st.floats(0.0, 1e6) | st.sampled_from([math.nan, math.inf])


def record(val, train, rate=1e-3, error=None):
    curve = [
        {"epoch": e, "val_loss": v, "train_loss": t, "learning_rate": rate} for e, (v, t) in enumerate(zip(val, train, strict=True), 1)
    ]
    status = Status.FAILED if error else Status.COMPLETE
    return TrialRecord(0, status, {}, "sampled", 1, None, None, 1.0, None, None, {}, {}, curve, None, error)


@pytest.mark.parametrize(
    ("val", "train", "verdict"),
    [
        ([], [], "too short to tell: 0 epochs"),
        ([1.0], [1.0], "too short to tell: 1 epoch"),
        ([2.0, math.nan], [2.0, 2.0], "diverged: a loss is no number at epoch 2"),
        ([2.0, 5.0, 9.0], [2.0, 4.0, 7.0], "diverged: validation loss 2.000 to 9.000, training loss 2.000 to 7.000"),
        (
            [2.3, 2.29, 2.28],
            [2.3, 2.29, 2.28],
            "learning rate too small: training loss fell by 0.9 % in 3 epochs at a rate of at most 0.001",
        ),
        ([2.4, 2.39, 2.37], [2.5, 2.51, 2.49], "learning rate too small"),
        ([2.3, 2.4, 2.3], [2.3, 2.4, 2.29], "under-fitting: both losses still high"),
        ([2.0, 1.0, 1.2, 1.5], [2.0, 1.0, 0.5, 0.1], "over-fitting from epoch 2: validation loss 1.000 to 1.500"),
        ([2.0, 1.8, 1.6, 1.4], [2.0, 1.7, 1.4, 1.1], "under-fitting: both losses still falling since epoch 3"),
        ([2.4, 1.7, 1.6, 1.6], [2.7, 1.8, 1.7, 1.7], "under-fitting: both losses still high, validation loss 2.400 to 1.600"),
        ([0.3, 0.28, 0.28], [0.5, 0.35, 0.34], "healthy"),  # pretrained weights that were nearly there
        ([2.0, 1.0, 0.5, 0.49], [2.0, 1.0, 0.4, 0.35], "healthy: validation loss 2.000 to 0.490"),
        ([0.5, 0.495, 0.5], [0.05, 0.05, 0.05], "healthy"),
    ],
)
def test_a_curve_gives_its_verdict(val, train, verdict):
    assert diagnose(record(val, train)).startswith(verdict)


def test_a_trial_that_the_pruner_stopped_was_cut_short_and_not_to_blame():
    falling = replace(record([2.0, 1.8, 1.6, 1.4], [2.0, 1.7, 1.4, 1.1]), status=Status.PRUNED)
    assert diagnose(falling).startswith("cut short: both losses still falling since epoch 3")


def test_a_trial_that_failed_by_divergence_says_how():
    assert diagnose(record([1.0], [1.0], error="diverged: training loss is nan")) == "diverged: training loss is nan"


@given(st.lists(st.tuples(LOSSES, LOSSES), max_size=12))
def test_every_curve_has_one_line_and_a_known_verdict(losses):
    text = diagnose(record([v for v, _ in losses], [t for _, t in losses]))
    assert text.startswith(VERDICTS)
    assert "\n" not in text


@given(st.lists(st.tuples(st.floats(0.2, 10), st.floats(0.2, 10)), min_size=3, max_size=12))
def test_over_fitting_is_said_only_where_validation_rose_and_training_fell(losses):
    val, train = zip(*losses, strict=True)
    text = diagnose(record(val, train))
    if text.startswith("over-fitting"):
        at = int(text.split(":")[0].split()[-1]) - 1
        assert val[at] == min(val) < val[-1]
        assert train[-1] < train[at]


# ---------------------------------------------------------------- several trials together


def trial(number, losses, params, **more):
    r = record(losses, [2 * loss for loss in losses])
    return replace(r, number=number, params=params, **more)


def pairs(*records):
    return [(twin.first.number, twin.second.number, twin.differ) for twin in twins(records)]


A, B = {"dropout": 0.1, "epochs": 3}, {"dropout": 0.4, "epochs": 3}


def test_two_trials_of_one_curve_under_settings_that_differ_are_named():
    records = [trial(0, [2.0, 1.0, 0.9], A), trial(1, [2.0, 1.0, 0.8], B), trial(2, [2.0, 1.0, 0.9], B)]
    assert pairs(*records) == [(0, 2, ("dropout",))]
    (text,) = warnings_of(records)
    assert text == "trial-0002 has the very losses of trial-0000, though dropout differs: is that setting used at all?"
    assert diagnoses(records)[2].endswith(text)
    assert text not in diagnoses(records)[0] + diagnoses(records)[1]


def test_a_trial_that_was_cut_short_is_a_twin_of_one_that_went_on():
    assert pairs(trial(0, [2.0, 1.0, 0.9], A), trial(1, [2.0, 1.0], B, status=Status.PRUNED)) == [(0, 1, ("dropout",))]


@pytest.mark.parametrize(
    "other",
    [
        trial(1, [2.0, 1.0, 0.9], A),  # the same configuration
        trial(1, [2.0, 1.0, 0.9, 0.8], {**A, "epochs": 4}),  # the same, planned longer
        trial(1, [2.0, 1.0, math.nextafter(0.9, 1)], B),
        trial(1, [2.0], B),  # too short to tell
        trial(1, [2.0, 1.0, 0.9], B, reused="s-tpe-r1, trial 0"),
        trial(1, [2.0, 1.0, 0.9], B, effective={"dropout": 0.1}),  # both came to the same
        trial(1, [], B),
    ],
)
def test_curves_that_may_be_equal_are_not_held_against_anybody(other):
    assert pairs(trial(0, [2.0, 1.0, 0.9], A, effective={"dropout": 0.1}), other) == []


def test_many_twins_are_said_in_few_lines():
    records = [trial(n, [2.0, 1.0], {"dropout": n / 100}) for n in range(30)]
    assert len(twins(records)) == 29
    lines = warnings_of(records)
    assert len(lines) == 6
    assert lines[-1] == "... and 24 more like these"


@pytest.mark.process
def test_what_a_trial_remarks_comes_before_its_verdict():
    r = replace(record([2.0, 1.0, 0.5], [2.0, 1.0, 0.5]), remark="no gradient: conv1 (of 4 layers)")
    assert diagnose(r).startswith("no gradient: conv1 (of 4 layers); ")
    assert warnings_of([r]) == ["trial-0000: no gradient: conv1 (of 4 layers)"]
