"""What our way of making samplers changes, and what it must not."""

import optuna
import pytest

from hpsearch.errors import FixSetup
from hpsearch.search import samplers
from hpsearch.spec import SAMPLERS, parse_spec


def asked(make, n):
    """Parameters of `n` trials whose values depend on them."""
    space = samplers.distributions(parse_spec({}).parameters())
    study = optuna.create_study()
    out = []
    for number in range(n):
        study.sampler = make(space, number)
        trial = study.ask(dict(space))
        study.tell(trial, trial.params["dropout"] + abs(trial.params["frozen_layers"] - 3) + trial.params["learning_rate"])
        out.append(trial.params)
    return out


def test_a_tpe_told_its_space_proposes_what_optunas_own_does():
    ours = asked(lambda space, number: samplers.make_sampler("tpe", space, 0, number), 25)
    seeds = [samplers.seed_for(0, number, "sampler") for number in range(25)]
    theirs = asked(lambda space, number: optuna.samplers.TPESampler(seed=seeds[number], n_startup_trials=samplers.STARTUP_TRIALS), 25)
    assert ours == theirs


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_states_its_policy_towards_pruned_trials(name):
    assert name in samplers.POLICY


def test_a_missing_package_is_named_before_the_first_trial(monkeypatch):
    monkeypatch.setitem(samplers.NEEDS, "cmaes", ("no_such_package",))
    with pytest.raises(FixSetup, match="pip install no_such_package"):
        samplers.preflight("cmaes")
