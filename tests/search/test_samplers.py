"""What our way of making samplers changes, and what it must not."""

import optuna
import pytest

from hpsearch.errors import FixSetup
from hpsearch.search import samplers
from hpsearch.spec import SAMPLERS, parse_spec

SPACE = parse_spec({}).parameters()


def asked(make, n):
    """Parameters of `n` trials whose values depend on them."""
    space = samplers.distributions(SPACE)
    study = optuna.create_study()
    out = []
    for number in range(n):
        study.sampler = make(number)
        trial = study.ask(dict(space))
        study.tell(trial, trial.params["dropout"] + abs(trial.params["frozen_layers"] - 3) + trial.params["learning_rate"])
        out.append(trial.params)
    return out


OPTUNAS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=samplers.STARTUP_TRIALS),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=samplers.STARTUP_TRIALS),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=2, warn_independent_sampling=False),
}


@pytest.mark.parametrize("name", OPTUNAS)
def test_a_sampler_told_its_space_proposes_what_optunas_own_does(name):
    trials = 16 if name == "gp" else 40
    ours = asked(lambda number: samplers.make_sampler(name, SPACE, 0, number), trials)
    theirs = asked(lambda number: OPTUNAS[name](samplers.seed_for(0, number, "sampler")), trials)
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "conditional", "choices"), [("tpe", False, True), ("gp", False, True), ("cmaes", False, False), ("qmc", True, True)]
)
def test_what_is_modelled_together_does_not_depend_on_which_trials_came_first(name, conditional, choices):
    given = {"optimizer": ["adamw", "sgd"], "momentum": {"low": 0.5, "high": 0.9}}
    joint = samplers.joint_space(name, parse_spec({"space": given}).parameters())
    assert ("momentum" in joint, "optimizer" in joint) == (conditional, choices)
    assert {"learning_rate", "epochs"} <= set(joint)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_states_its_policy_towards_pruned_trials(name):
    assert name in samplers.POLICY


def test_a_missing_package_is_named_before_the_first_trial(monkeypatch):
    monkeypatch.setitem(samplers.NEEDS, "cmaes", ("no_such_package",))
    with pytest.raises(FixSetup, match="pip install no_such_package"):
        samplers.preflight("cmaes")


def test_only_slow_samplers_are_asked_ahead_and_tpe_only_for_many_workers():
    assert [samplers.ask_ahead(name, 8) for name in ("random", "tpe", "gp")] == [0, 0, 1]
    assert [samplers.ask_ahead("tpe", workers) for workers in (16, 256)] == [1, 16]


@pytest.mark.parametrize(
    ("sampler", "space", "says"),
    [
        ("tpe", {}, ""),
        (
            "tpe",
            dict.fromkeys(("learning_rate", "batch_size", "epochs", "weight_decay", "frozen_layers"), 1) | {"dropout": 0.1},
            "nothing",
        ),
        (
            "cmaes",
            {"batch_size": [8, 16], "learning_rate": 0.1, "epochs": 3, "weight_decay": 0.1, "dropout": 0.1, "frozen_layers": 1},
            "CMA-ES",
        ),
        ("random", {"batch_size": [8, 16], "learning_rate": 0.1, "epochs": 3, "weight_decay": 0.1, "dropout": 0.1, "frozen_layers": 1}, ""),
    ],
)
def test_what_a_sampler_cannot_do_is_said_before_it_begins(sampler, space, says):
    said = samplers.describe_limits(sampler, parse_spec({"sampler": sampler, "space": space}).parameters())
    assert said.startswith(says)
    assert bool(said) == bool(says)


@pytest.mark.parametrize(("sampler", "least"), [("tpe", 10), ("gp", 10), ("cmaes", 2), ("random", 0), ("grid", 0), ("qmc", 0)])
def test_random_draws_of_a_model_are_called_that(sampler, least):
    for complete in range(12):
        assert bool(samplers.describe_random(sampler, {"COMPLETE": complete, "FAILED": 12 - complete})) == (complete < least)
        pruned = samplers.describe_random(sampler, {"COMPLETE": complete, "PRUNED": 12 - complete})
        assert bool(pruned) == (complete < least and sampler != "tpe")
