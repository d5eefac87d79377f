from __future__ import annotations

import math

import pytest
from report_samples import CRAFT, SPACE, SPEC, crafted, failed, lifelike, record, view

from hpsearch.report import tables
from hpsearch.types import Status

THREE = view(
    record(2, Status.PRUNED, (1.2, 1.0), params={"epochs": 8}, seconds=3.0),
    record(0, losses=(0.9, 0.6, 0.7), accuracy=0.85),
    record(1, losses=(0.8, 0.4), accuracy=0.9, params={"learning_rate": 1e-2}),
)


def test_trials_are_one_row_each_in_order_of_number() -> None:
    table = tables.trials(THREE)
    assert table["number"].tolist() == [0, 1, 2]
    assert table["val_loss"].tolist() == [0.6, 0.4, 1.0]
    assert table["best_epoch"].tolist() == [2, 2, 2]
    assert table["epochs_trained"].tolist() == [3, 2, 2]
    assert table["learning_rate"].tolist() == [1e-3, 1e-2, 1e-3]
    assert list(table.columns) == [*tables.FIXED_COLUMNS[:3], *SPACE, *tables.FIXED_COLUMNS[3:]]


def test_a_hyperparameter_named_like_a_column_does_not_replace_it() -> None:
    table = tables.trials(view(record(0, params={"seconds": 5})))
    assert table["seconds"].tolist() == [0.2]
    assert table["param.seconds"].tolist() == [5]


def test_curves_are_long_with_progress_in_percent_of_planned_epochs() -> None:
    table = tables.curves(THREE)
    assert len(table) == 7
    assert table[table["trial"] == 0]["progress"].tolist() == [10, 20, 30]
    assert table[table["trial"] == 2]["progress"].tolist() == [12.5, 25]
    assert table[table["trial"] == 1]["val_loss"].tolist() == [0.8, 0.4]
    assert {"train_loss", "accuracy", "f1", "learning_rate", "seconds"} <= set(table.columns)


def test_best_so_far_counts_complete_trials_only_and_never_rises() -> None:
    study = view(record(0, losses=(0.6,)), record(1, Status.PRUNED, (0.1,)), record(2, losses=(0.7,)), record(3, losses=(0.5,)), failed(4))
    table = tables.history(study)
    assert table["best_so_far"].tolist() == [0.6, 0.6, 0.6, 0.5, 0.5]
    assert set(table["default_recipe"]) == {0.6}
    assert math.isnan(table["val_loss"].iloc[4])


def test_summary_against_numbers_made_by_hand() -> None:
    numbers = tables.summary(THREE)
    assert numbers.best is not None
    assert numbers.default is not None
    assert (numbers.best.number, numbers.default.number) == (1, 0)
    assert numbers.gain == pytest.approx(0.2)
    assert numbers.accuracy_gain == pytest.approx(5.0)
    assert numbers.counts == {
        Status.COMPLETE: 2,
        Status.PRUNED: 1,
        Status.FAILED: 0,
        Status.RUNNING: 0,
        Status.WAITING: 0,
        Status.PAUSED: 0,
    }
    assert numbers.seconds == pytest.approx(0.3 + 0.2 + 3.0)
    assert numbers.saved == pytest.approx((8 - 2) * 3.0 / 2)
    assert numbers.val_images == 400


def test_a_study_without_a_complete_trial_has_no_best_and_no_gain() -> None:
    for study in (view(), view(failed(0)), view(record(0, Status.PRUNED)), view(record(0, losses=(math.nan,)))):
        numbers = tables.summary(study)
        assert (numbers.best, numbers.gain, numbers.accuracy_gain) == (None, None, None)


def test_infinite_and_missing_losses_never_win() -> None:
    study = view(record(0, losses=(0.5,)), record(1, val_loss=-math.inf), record(2, val_loss=math.nan), record(3, val_loss=None))
    assert tables.best_trial(study) is study.records[0]


def test_the_earlier_of_equal_trials_is_best() -> None:
    assert tables.best_trial(view(record(2, losses=(0.5,)), record(1, losses=(0.5,)))).number == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value", "edge"),
    [
        ("learning_rate", 1e-4, "low"),
        ("learning_rate", 1.1e-4, "low"),  # log scale: 1.4 % of the three decades
        ("learning_rate", 2e-4, None),
        ("learning_rate", 0.1, "high"),
        ("epochs", 4, "low"),
        ("epochs", 5, None),
        ("epochs", 16, "high"),
        ("dropout", 0.0, None),  # nothing lies below zero
        ("dropout", 0.495, "high"),
        ("frozen_layers", 0, None),
        ("frozen_layers", 6, None),  # all six blocks: there are no more
        ("batch_size", 16, None),  # a choice has no edge
        ("unknown", 1, None),
    ],
)
def test_edges_that_could_be_moved(name: str, value: float, edge: str | None) -> None:
    assert tables.edge(view(), name, value) == edge


@pytest.mark.parametrize(("blocks", "edge"), [(6, None), (["a"] * 6, None), (9, "high"), (None, "high")])
def test_all_blocks_frozen_is_an_edge_only_where_the_model_has_more(blocks: object, edge: str | None) -> None:
    assert tables.edge(view(facts={"blocks": blocks}), "frozen_layers", 6) == edge


@pytest.mark.parametrize(
    ("name", "entry", "value", "edge"),
    [
        ("crop", {"low": 0.3, "high": 1.0}, 1.0, None),  # the whole image: there is no more
        ("crop", {"low": 0.3, "high": 0.9}, 0.9, "high"),
        ("crop", {"low": 0.3, "high": 1.0}, 0.3, "low"),
        ("randaugment", {"low": 0, "high": 10}, 10, None),
        ("optimizer", {"choices": ["adamw", "sgd"]}, "adamw", None),
        ("momentum", {"low": 0.5, "high": 0.99}, None, None),
    ],
)
def test_edges_beyond_the_core(name: str, entry: dict[str, object], value: object, edge: str | None) -> None:
    assert tables.edge(view(spec=SPEC | {"space": {name: entry}}), name, value) == edge


def test_what_a_trial_does_not_use_is_missing_and_what_the_study_fixes_is_listed() -> None:
    study = crafted(30)
    table = tables.trials(study)
    assert table["momentum"].isna().tolist() == [r.params["optimizer"] != "sgd" for r in study.records]
    rows = tables.configuration(study).set_index("parameter")
    assert list(rows.index) == [*SPACE, *CRAFT, "mixup", "label_smoothing"]
    assert rows.loc["momentum", "default_recipe"] is None
    assert rows.loc["momentum", "searched"] == "0.5 to 0.99, only with optimizer sgd"
    assert rows.loc["mixup"].tolist() == [0.2, 0.2, 0.2, "fixed", None]


def test_configuration_puts_the_best_beside_the_default_recipe() -> None:
    table = tables.configuration(THREE).set_index("parameter")
    assert table.loc["learning_rate", "best"] == 1e-2
    assert table.loc["learning_rate", "default_recipe"] == 1e-3
    assert table.loc["learning_rate", "searched"] == "0.0001 to 0.1 (log)"
    assert table.loc["batch_size", "searched"] == "one of 16, 32, 64"


def test_fixed_parameters_are_not_searched() -> None:
    space = {
        "learning_rate": {"value": 0.01},
        "dropout": {"low": 0.1, "high": 0.1},
        "epochs": {"low": 1, "high": 5},
        "batch_size": {"choices": [1, 2]},
    }
    assert tables.searched(view(spec=SPEC | {"space": space})) == ["epochs", "batch_size"]


def test_the_number_of_validation_images_is_found_in_facts_or_study() -> None:
    assert tables.validation_images(view(facts={"val_images": 123})) == 123
    assert tables.validation_images(view(facts={"images": {"validation": 7}})) == 7
    assert tables.validation_images(view(facts={"val_loss": 3})) == 400
    assert tables.validation_images(view(facts={}, spec={})) is None


def test_facts_are_flat_text() -> None:
    table = tables.facts(view(facts={"blocks": ["stem", "block1"], "images": {"train": 100}, "none": None}))
    assert table.to_numpy().tolist() == [["blocks", "stem, block1"], ["images.train", "100"]]


def test_wilson_interval_of_364_in_400() -> None:
    """Reference: the closed form evaluated by hand for p = 0.91, n = 400."""
    low, high = tables.wilson(0.91, 400)
    assert (low, high) == (pytest.approx(0.8780, abs=2e-4), pytest.approx(0.9343, abs=2e-4))


def test_a_thousand_trials() -> None:
    study = lifelike(1000)
    assert len(tables.trials(study)) == len(tables.history(study)) == 1000
    assert tables.curves(study)["trial"].nunique() == 1000
