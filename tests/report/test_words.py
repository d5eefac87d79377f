from __future__ import annotations

import math

import pytest
from report_samples import SPEC, failed, record, scored, view

from hpsearch.report import words
from hpsearch.types import Status


def test_the_verdict_says_what_was_gained_and_how_sure_that_is() -> None:
    study = view(record(0, losses=(0.55,), accuracy=0.87), record(37, losses=(0.41,), accuracy=0.912))
    assert words.verdict(study) == (
        "Trial 37 is best: val loss 0.410 nats, accuracy 91.2 %; the default recipe (trial 0) had 0.550 / 87.0 %: "
        "a gain of 4.2 points on 400 validation images, one seed: not yet confirmed on fresh seeds."
    )


def test_a_better_loss_with_a_worse_accuracy_is_not_called_a_gain_in_points() -> None:
    study = view(record(0, losses=(0.55,), accuracy=0.92), record(1, losses=(0.41,), accuracy=0.91))
    assert "a gain of 0.140 nats with 1.0 point less accuracy" in words.verdict(study)


@pytest.mark.parametrize(
    ("records", "part"),
    [
        ((), "No trial has run yet."),
        (
            (failed(0, "out of memory"),),
            "No trial was completed (1 failed), so there is no best configuration. Trial 0 failed: out of memory",
        ),
        ((record(0, Status.PRUNED),), "No trial was completed (1 pruned)"),
        ((record(0),), "The default recipe (trial 0) is still the best"),
        ((record(0, losses=(0.3,)), record(1, losses=(0.4,)), record(2, losses=(0.5,))), "None of the 2 other trials beat it."),
        ((failed(0), record(1)), "has no loss to compare with (failed), so what the search gained is unknown"),
        ((record(1),), "The default recipe is not among the trials"),
    ],
)
def test_verdicts_of_unusual_studies(records: tuple, part: str) -> None:  # type: ignore[type-arg]
    assert part in words.verdict(view(*records))


def test_a_verdict_without_accuracy_speaks_of_nats() -> None:
    study = view(record(0, losses=(0.5,), metrics={}), record(1, losses=(0.4,), metrics={}))
    assert "a gain of 0.100 nats on 400" in words.verdict(study)


def test_cards_hold_the_key_numbers() -> None:
    study = view(record(0, losses=(0.5,), accuracy=0.8), record(1, losses=(0.6, 0.4), accuracy=0.9), record(2, Status.PRUNED, (0.9,)))
    shown = {card.label: card for card in words.cards(study)}
    assert shown["Best validation loss"].value == "0.400 nats"
    assert shown["Best validation loss"].note == "trial 1, epoch 2 of 2; one seed"
    gain = shown["Gain over the default recipe"]
    assert (gain.value, gain.note) == ("0.100 nats", "loss 0.500 → 0.400 nats; accuracy +10.0 points; one seed")
    assert shown["Trials"].value == "3 of 50"
    assert "estimate" in shown["Saved by pruning"].note


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_missing_numbers_are_a_dash() -> None:
    assert {words.loss(None), words.loss(math.nan), words.percent(None), words.number(None), words.number(math.nan)} == {words.NONE}


def test_long_texts_are_one_short_line() -> None:
    assert words.shorten("a\n" * 300, 20) == "a a a a a a a a a a…"


def test_the_verdict_in_the_words_of_another_objective() -> None:
    study = scored(view(record(0, losses=(0.55,), accuracy=0.5), record(37, losses=(0.61,), accuracy=0.75)), "balanced_accuracy")
    assert words.verdict(study) == (
        "Trial 37 is best: balanced accuracy 72.0 %, accuracy 75.0 %; the default recipe (trial 0) had 48.0 % / 50.0 %: "
        "a gain of 24.0 points on 400 validation images, one seed: not yet confirmed on fresh seeds."
    )


def test_accuracy_as_the_objective_is_not_said_twice() -> None:
    study = scored(view(record(0, accuracy=0.5), record(1, accuracy=0.75)), "accuracy")
    assert "Trial 1 is best: accuracy 75.0 %; the default recipe (trial 0) had 50.0 %: a gain of 25.0 points on" in words.verdict(study)
    shown = {card.label: card for card in words.cards(study)}
    assert shown["Best accuracy"].value == "75.0 %"
    assert shown["Validation loss of the best"].value == "0.500 nats"
    assert "95 % interval" in shown["Validation loss of the best"].note
    assert "Accuracy of the best" not in shown
    assert (shown["Gain over the default recipe"].value, shown["Gain over the default recipe"].note) == (
        "+25.0 points",
        "accuracy 50.0 % → 75.0 %; one seed",
    )


def test_a_better_score_with_a_worse_accuracy_says_so() -> None:
    metrics = ({"accuracy": 0.9, "recall": 0.5}, {"accuracy": 0.89, "recall": 0.6})
    trials = (record(i, metrics=m, objective="recall") for i, m in enumerate(metrics))
    study = view(*trials, spec=SPEC | {"objective": "recall"})
    assert "a gain of 10.0 points with 1.0 point less accuracy" in words.verdict(study)


def test_a_default_recipe_without_a_score_is_not_compared() -> None:
    assert "has no score to compare with (failed)" in words.verdict(scored(view(failed(0), record(1)), "top5"))


def test_warnings_about_trainings_have_a_card() -> None:
    twin = record(1, losses=(0.9, 0.5), params={"dropout": 0.4})
    cards = {card.label: card for card in words.cards(view(record(0, losses=(0.9, 0.5)), twin))}
    assert cards["To look at"].value == "1 warning"
    assert "though dropout differs" in cards["To look at"].note
    assert "To look at" not in {card.label for card in words.cards(view(record(0), record(1, losses=(0.8, 0.4))))}
