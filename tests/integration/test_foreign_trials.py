"""Trials that another program enqueues in a study of ours, or adds to it, take part where they fit."""

import json
import logging

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tests.support.commands import run_hpsearch

pytestmark = pytest.mark.process

WORDS = ["run", "--name", "s", "--workers", "1", "--no-tracking", "--set", "space.epochs=2", "--set", "space.batch_size=64"]
WORDS += ["--set", "space.frozen_layers.low=5"]
ASKED = {"learning_rate": 0.01, "weight_decay": 0.001, "dropout": 0.2, "frozen_layers": 5}


def trials(folder):
    return json.loads(run_hpsearch(folder, "show", "s", "--json").stdout)["trials"]


@pytest.fixture
def study(tmp_path):
    run_hpsearch(tmp_path, *WORDS, "--trials", 2)
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/hpsearch.db")


def test_what_was_enqueued_is_trained_as_asked_and_what_does_not_fit_fails_with_the_reason(tmp_path, study):
    study.enqueue_trial(ASKED)
    study.enqueue_trial({"learning_rate": 0.02})
    study.enqueue_trial({"learning_rate": 7.0})
    study.enqueue_trial({"momentum": 0.9})
    study.enqueue_trial({"epochs": 3})
    run_hpsearch(tmp_path, *WORDS, "--trials", 8)
    found = trials(tmp_path)
    assert len(found) == 8
    assert {key: found[2]["params"][key] for key in ASKED} == ASKED
    assert (found[2]["status"], found[2]["origin"], found[2]["attempt"]) == ("COMPLETE", "enqueued", 1)
    default = found[0]["params"]
    assert found[3]["params"] == default | {"learning_rate": 0.02}
    assert found[3]["status"] == "COMPLETE"
    for trial, reason in zip(found[4:7], ("learning_rate is 7.0, outside", "the study has no momentum", "epochs is 3, and"), strict=True):
        assert trial["status"] == "FAILED"
        assert reason in trial["error"]
    stored = {trial.number: trial for trial in study.get_trials()}
    assert stored[2].params == ASKED
    assert stored[4].state is TrialState.FAIL


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "qmc", "grid"])
def test_what_was_added_teaches_the_sampler_and_wins_nothing(tmp_path, sampler):
    words = [*WORDS, "--sampler", sampler, "--set", "space.learning_rate.grid=[0.001,0.01]", "--set", "space.dropout=0.1"]
    words += ["--set", "space.weight_decay=0.01"]
    run_hpsearch(tmp_path, *words, "--trials", 2)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/hpsearch.db")
    known = study.get_trials()[1]
    study.add_trial(optuna.trial.create_trial(params=known.params, distributions=known.distributions, value=0.01))
    far = {"learning_rate": FloatDistribution(1e-3, 10.0, log=True)}
    study.add_trial(optuna.trial.create_trial(params={"learning_rate": 5.0}, distributions=far, value=0.02))
    odd = {"layers": IntDistribution(1, 9)}
    study.add_trial(optuna.trial.create_trial(params={"layers": 3}, distributions=odd, value=0.03))
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    run_hpsearch(tmp_path, *words, "--trials", 8)
    found = trials(tmp_path)
    assert [t["status"] for t in found[2:6]] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAILED"]
    assert found[2]["origin"] == "added"
    assert {t["status"] for t in found[6:]} <= {"COMPLETE", "PRUNED"}
    best = json.loads(run_hpsearch(tmp_path, "best", "s", "--json").stdout)
    assert best["number"] not in (2, 3, 4)
    run_hpsearch(tmp_path, "export", "s", "-o", tmp_path / "out")
    run_hpsearch(tmp_path, "report", "s")
    assert json.loads(run_hpsearch(tmp_path, "list", "--json").stdout)[0]["best_trial"] == best["number"]
