from __future__ import annotations

import math

import pytest
from report_samples import PETS, data_report, lifelike, record, scored, view

from hpsearch.report import data, findings, tables
from hpsearch.report.blocks import facts, per_class


def test_class_counts_are_largest_first_with_their_share() -> None:
    report = data_report(("a", "b", "c"), counts={"test": (1, 1, 1), "val": (2, 2), "train": (3, 30, 10), "extra": (0, 0, 0)})
    table = data.class_counts(report)
    assert list(table.columns) == ["class", "train", "val", "test", "extra", "all", "share"]
    assert table["class"].tolist() == ["b", "c", "a"]
    assert table["all"].tolist() == [33, 11, 6]
    assert table["val"].tolist() == [2, 0, 2]
    assert table["share"].sum() == pytest.approx(1)


def test_a_split_named_like_a_column_does_not_replace_it() -> None:
    table = data.class_counts(data_report(("a",), counts={"all": (3,), "class": (4,)}))
    assert table.to_dict("records") == [{"class": "a", "split.all": 3, "split.class": 4, "all": 7, "share": 1.0}]


def test_facts_hold_the_images_of_each_split() -> None:
    facts = dict(
        data.data_facts(data_report(("a", "b"), counts={"val": (1, 2), "train": (3, 4)}, facts={"x": 0.123456, "y": None})).to_numpy()
    )
    assert (facts["images: train"], facts["images: val"], facts["x"]) == ("7", "3", "0.1235")
    assert "y" not in facts


def test_data_cards() -> None:
    shown = {card.label: card for card in data.data_cards(data_report())}
    assert shown["Classes"].value == "8"
    assert (shown["Findings"].value, shown["Findings"].note) == ("1 error", "2 warnings, 1 note")
    assert shown["Left out"].value == "2 files"


@pytest.mark.parametrize(
    ("counts", "each"), [((12, 12), "12 images in each"), ((1, 1), "1 image in each"), ((12, 1797), "12 to 1,797 images in each")]
)
def test_sizes_of_classes_are_said_once_and_with_commas(counts: tuple[int, int], each: str) -> None:
    report = data_report(("a", "b"), counts={"train": counts})
    shown = {card.label: card for card in data.data_cards(report)}
    assert shown["Classes"].note == each
    assert shown["Images"].value == f"{sum(counts):,}"
    (grid,) = (block for block in findings.data(view(data=report)) if block.kind == "table" and block.sortable)
    assert grid.rows[0][1][1].text == f"{max(counts):,}"


def test_facts_that_count_have_commas_and_names_do_not() -> None:
    shown = {
        cells[0].text: cells[1].text for _, cells in facts(view(facts={"images": {"test": 1297}, "seed": 2026, "digest": "12345678"})).rows
    }
    assert shown == {"images.test": "1,297", "seed": "2026", "digest": "12345678"}


SCORES = {"images": [5.0, 0.0, 9.0, 7.0], "precision": [0.5, 0.0, 1.0, 0.9], "recall": [0.9, math.nan, 0.2, 0.4], "f1": [0.6, 0.0, 0.3]}


def test_per_class_is_worst_recall_first_under_the_names_of_the_facts() -> None:
    study = view(record(0), record(1, losses=(0.1,), per_class=SCORES), facts={"classes": ["a", "b", "c"]})
    table = data.per_class(study)
    assert table["class"].tolist() == ["c", "class 3", "a", "b"]
    assert table["recall"].tolist()[:3] == [0.2, 0.4, 0.9]
    assert math.isnan(table["recall"].iloc[3])
    assert math.isnan(table["f1"].iloc[1])


@pytest.mark.parametrize("classes", [None, 4, "abcd", []])
def test_classes_without_names_are_numbered(classes: object) -> None:
    study = view(record(0, per_class=SCORES), facts={"classes": classes})
    assert data.per_class(study)["class"].tolist() == ["class 2", "class 3", "class 0", "class 1"]


def test_the_table_of_classes_is_sortable_and_empty_without_results() -> None:
    grid = per_class(scored(lifelike(20), "accuracy"))
    assert grid.sortable
    assert {cells[0].text for _, cells in grid.rows} == set(PETS)
    recalls = [cells[3].sort for _, cells in grid.rows]
    assert recalls == sorted(recalls, key=float)
    assert per_class(lifelike(20)).rows == ()
    assert per_class(view()).rows == ()


# ---------------------------------------------------------------- another objective


def test_history_takes_the_best_in_the_direction_of_the_objective() -> None:
    study = scored(view(*(record(i, accuracy=a, losses=(a,)) for i, a in enumerate((0.6, 0.5, 0.8)))), "accuracy")
    table = tables.history(study)
    assert list(table.columns) == ["trial", "status", "accuracy", "best_so_far", "default_recipe", "error"]
    assert table["best_so_far"].tolist() == [0.6, 0.6, 0.8]
    best = tables.best_trial(study)
    assert best is not None
    assert best.number == 2


def test_the_gain_is_in_points_where_the_objective_is_a_share() -> None:
    study = scored(view(record(0, accuracy=0.5), record(1, accuracy=0.75)), "balanced_accuracy")
    numbers = tables.summary(study)
    assert numbers.gain == pytest.approx(24)
    assert numbers.accuracy_gain == pytest.approx(25)


def test_further_metrics_are_columns_only_where_they_were_measured() -> None:
    assert not {"balanced_accuracy", "top5"} & set(tables.trials(lifelike(3)).columns)
    table = tables.trials(scored(lifelike(3), "val_loss"))
    assert list(table.columns)[-3:] == ["top5", "diagnosis", "error"]
