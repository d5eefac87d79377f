"""The page of one trial: tables, figures, words, and every fate a trial can have."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
from proof_samples import shown, stored
from report_samples import AWKWARD, FULL, HOSTILE, PETS, SPACE, SPEC, crafted, failed, lifelike, record, scored, view
from test_page import STUDIES, Reader, check

from hpsearch.errors import FixInput, NotFound
from hpsearch.report import tables, trial, trial_words
from hpsearch.report.blocks import Words
from hpsearch.report.page import blocks, load_page, render
from hpsearch.report.tables import StudyView
from hpsearch.spec import parse_spec
from hpsearch.types import OBJECTIVES, Status
from hpsearch.yamlfile import parse_yaml


def of(study: StudyView, number: int) -> StudyView:
    return replace(study, trial=number)


def number_of(study: StudyView, status: Status) -> int:
    return next(r.number for r in study.records if r.status is status and r.number)


def page(study: StudyView) -> str:
    return " ".join(" ".join(check(render(study, load_page("trial")), study).words).split())


# ---------------------------------------------------------------- who


@pytest.mark.parametrize("number", [-1, 50, 10**20])
def test_a_trial_that_does_not_exist_is_refused_with_the_range(number: int) -> None:
    with pytest.raises(NotFound, match=re.escape(f"'digits-tpe' has no trial {number}: its trials are 0 to 49")):
        render(of(lifelike(50), number), load_page("trial"))
    with pytest.raises(NotFound, match="no trial has run yet"):
        render(of(view(), 0), load_page("trial"))


@pytest.mark.parametrize("name", [*trial.TRIAL, *trial.TRIAL_FIGURES])
def test_what_is_about_one_trial_wants_its_number(name: str) -> None:
    with pytest.raises(FixInput, match="--trial N"):
        blocks(lifelike(5), name)


def test_nobody_stands_beside_themselves() -> None:
    study = lifelike(50)
    best = tables.best_trial(study)
    assert best is not None
    assert set(trial.company(of(study, 0))) == {"this", "best"}
    assert set(trial.company(of(study, best.number))) == {"this", "default"}
    assert set(trial.company(of(study, number_of(study, Status.PRUNED)))) == {"this", "default", "best"}
    assert set(trial.company(of(view(record(0)), 0))) == {"this"}


# ---------------------------------------------------------------- tables


def test_the_configuration_stands_beside_the_default_and_the_best() -> None:
    study = lifelike(50)
    number = number_of(study, Status.PRUNED)
    best, own = tables.best_trial(study), next(r for r in study.records if r.number == number)
    assert best is not None
    table = trial.configuration(of(study, number)).set_index("parameter")
    for name, entry in SPACE.items():
        assert table.loc[name, "trial"] == own.params[name]
        assert table.loc[name, "best"] == best.params[name]
        assert table.loc[name, "default_recipe"] == entry["default"]
    assert table.loc["learning_rate", "searched"] == "0.0001 to 0.1 (log)"


def test_a_setting_that_the_trainer_used_otherwise_is_named() -> None:
    own = record(1, params={"batch_size": 32})
    own = replace(own, effective={**own.effective, "batch_size": 25, "learning_rate": own.params["learning_rate"] * (1 + 1e-9)})
    study = of(view(record(0), own), 1)
    grid = trial.trial_configuration(study)
    remarks = {cells[0].text: cells[-1].text for _, cells in grid.rows}
    assert remarks["batch_size"] == "trained with 25"
    assert remarks["learning_rate"] == ""
    assert "batch_size 25 for 32" in page(study)


def test_the_study_file_trains_the_trial_again() -> None:
    study = crafted(30)
    study = replace(study, spec={**study.spec, "split": {"train_per_class": 10, "val": 400}})
    for number in (0, 7, 23):
        values = parse_yaml(trial.trial_configuration(of(study, number)).copy, "the recipe")
        own = next(r for r in study.records if r.number == number)
        assert values["name"] == f"trial-{number}"
        assert values["trials"] == 1
        assert values["recipe"]["learning_rate"] == own.params["learning_rate"]
        assert values["recipe"]["mixup"] == 0.2
        parse_spec(values)


def test_curves_hold_three_trials_and_no_more() -> None:
    study = lifelike(50)
    number = number_of(study, Status.PRUNED)
    drawn, table = trial.trial_curves(of(study, number))
    best = tables.best_trial(study)
    assert best is not None
    assert dict(table.groupby("curve")["trial"].first()) == {"this": number, "default": 0, "best": best.number}
    own = next(r for r in study.records if r.number == number)
    assert (table["curve"] == "this").sum() == len(own.curve)
    assert [trace.name for trace in drawn.data if trace.showlegend] == [
        "default recipe (0)",
        f"best trial ({best.number})",
        f"this trial ({number})",
    ]
    assert len(drawn.data) == 4 * 3
    assert f"n = 400 validation images; {len(own.curve)} epoch" in drawn.layout.title.subtitle.text
    titles = [drawn.layout[f"yaxis{i}"].title.text for i in ("", 2, 3, 4)]
    assert titles == ["validation loss (nats)", "training loss (nats)", "accuracy on validation images (%)", "learning rate (per step)"]
    width = {trace.legendgroup: trace.line.width for trace in drawn.data}
    assert width["this"] > width["best"] == width["default"]


def test_a_constant_rate_fills_its_axis() -> None:
    drawn, _ = trial.trial_curves(of(view(record(0)), 0))
    assert drawn.layout.yaxis4.range == pytest.approx((0, 1.15e-3))


def test_standing_ranks_all_that_have_a_score() -> None:
    study = view(record(0, losses=(0.5,)), record(1, losses=(0.3,)), record(2, losses=(0.5,)), failed(3), record(4, losses=(math.nan, 0.9)))
    table = trial.standing(of(study, 2))
    assert table[["rank", "trial"]].to_numpy().tolist() == [[1, 1], [2, 0], [2, 2], [4, 4]]
    assert trial_words.ranked(of(study, 2)) == (2, 4)
    assert trial_words.ranked(of(study, 3)) is None
    assert [round(trial_words.percentile(n, 4)) for n in (1, 2, 4)] == [100, 67, 0]
    assert trial_words.percentile(1, 1) == 100
    drawn, _ = trial.trial_standing(of(study, 2))
    assert drawn.layout.title.subtitle.text.startswith("n = 4 of 5 trials (those with a loss")


def test_more_is_better_where_the_objective_is_a_share() -> None:
    study = scored(lifelike(30), "accuracy")
    table = trial.standing(of(study, 5))
    assert table["accuracy"].is_monotonic_decreasing
    text = page(of(study, int(table["trial"].iloc[-1])))
    assert f"rank {len(table)} of {len(table)}" in text
    assert re.search(r"The best trial \(\d+\) is better by \d+\.\d points", text)


def test_each_class_stands_beside_the_best_trials_recall() -> None:
    study = scored(lifelike(30), "f1")
    best, number = tables.best_trial(study), number_of(study, Status.PRUNED)
    assert best is not None
    table = trial.classes(of(study, number))
    assert table["recall"].is_monotonic_increasing
    recalls = dict(zip(PETS, best.per_class["recall"], strict=True))
    assert dict(zip(table["class"], table["best_recall"], strict=True)) == recalls
    assert trial.trial_classes(of(study, number)).columns[-1][0] == f"recall, best trial ({best.number})"
    assert trial.trial_classes(of(study, best.number)).columns[-1][0] == "F1"


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_page_speaks_of_its_objective(objective: str) -> None:
    study = scored(lifelike(20), objective)
    text = page(of(study, 3))
    label = {"val_loss": "val loss", "f1": "F1", "top5": "top-5 accuracy"}.get(objective, objective.replace("_", " "))
    assert f"Trial 3 was completed: {label} " in text or f"Trial 3 was stopped by the pruner: {label} " in text
    assert "rank " in text


def test_every_fate_is_told() -> None:
    own = {
        Status.COMPLETE: record(1),
        Status.PRUNED: record(1, Status.PRUNED, (0.9,)),
        Status.FAILED: failed(1, "the loss became NaN\n  in epoch 2"),
        Status.RUNNING: record(1, Status.RUNNING, (0.9,), val_loss=None, best_epoch=None),
        Status.WAITING: record(1, Status.WAITING, (), val_loss=None, best_epoch=None, started=None, ended=None),
        Status.PAUSED: record(1, Status.PAUSED, (0.9, 0.8)),
    }
    said = {
        Status.COMPLETE: "was completed",
        Status.PRUNED: "was stopped by the pruner",
        Status.FAILED: "Trial 1 failed: the loss became NaN in epoch 2",
        Status.RUNNING: "Trial 1 is running; it has no loss.",
        Status.WAITING: "was interrupted and is to be trained again; it has no loss.",
        Status.PAUSED: "waits at a rung: val loss 0.800",
    }
    for status, trial_record in own.items():
        assert said[status] in page(of(view(record(0), trial_record), 1)), status


def test_an_error_is_shown_in_full() -> None:
    error = "line one\n" + "x" * 900 + "\nthe last line"
    (words,) = blocks(of(view(record(0), failed(1, error)), 1), "trial_error")
    assert isinstance(words, Words)
    assert words.lines == (error,)
    assert "The error in full" not in page(of(view(record(0)), 0))


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.records])
def test_the_page_of_the_first_and_last_trial_of_any_study(name: str) -> None:
    for number in (0, len(STUDIES[name].records) - 1):
        page(of(STUDIES[name], number))


def test_a_study_of_failures_alone_has_a_page_for_each() -> None:
    study = view(failed(0), failed(1, losses=(0.9,)), importance=())
    assert "Trial 0 failed: the validation loss became NaN" in page(of(study, 0))
    assert "Trial 1 failed" in page(of(study, 1))
    notes = [drawn(of(study, 0))[0].layout.annotations for drawn in trial.TRIAL_FIGURES.values()]
    assert [note.text.replace("<br>", " ") for (note,) in notes] == [
        "It did not finish an epoch, and there is no other trial to show.",
        "No trial has a loss yet.",
    ]


def test_a_confirmed_winner_counts_as_the_best() -> None:
    study = shown(stored())
    best = tables.best_trial(study)
    assert best is not None
    assert "It is the best trial." in page(of(study, best.number))


# ---------------------------------------------------------------- the page


def test_the_csv_files_hold_what_is_drawn() -> None:
    study = of(FULL, 7)
    links = [a for tag, a in Reader(render(study, load_page("trial"))).elements if tag == "a"]
    names = [a["download"] for a in links]
    assert names == [f"digits-tpe-trial-7-{what}.csv" for what in ("configuration", "curves", "standing", "classes", "facts")]


def test_hostile_names_stay_text() -> None:
    space = SPACE | {HOSTILE: {"choices": [HOSTILE, "b"], "default": "b"}}
    own = replace(record(1, params={HOSTILE: HOSTILE}), origin=HOSTILE, reused=HOSTILE)
    bad = replace(failed(2, HOSTILE), params={HOSTILE: HOSTILE})
    study = view(record(0, params={HOSTILE: "b"}), own, bad, name=HOSTILE, spec=SPEC | {"space": space, "model": HOSTILE})
    for number in (0, 1, 2):
        page(of(study, number))
    page(of(scored(lifelike(10), "f1", AWKWARD), 3))


def test_the_trial_as_data_is_json() -> None:
    study = of(FULL, 7)
    values = trial_words.trial_json(study)
    assert json.loads(json.dumps(values))["number"] == 7
    assert values["rank"] <= values["of"]
    assert {row["parameter"] for row in values["configuration"]} >= set(SPACE)


def test_a_table_survives_its_csv() -> None:
    table = trial.standing(of(FULL, 7))
    again = pd.read_csv(StringIO(table.to_csv(index=False)))
    assert again["trial"].tolist() == table["trial"].tolist()
