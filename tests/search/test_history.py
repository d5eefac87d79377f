"""What is kept of ended trials gives what looking at all of them gives."""

import random

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from hpsearch.search import history, samplers
from hpsearch.search.history import BEST, History
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
from hpsearch.types import Outcome, Progress, Status

SPACE = parse_spec({}).parameters()
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_the_median_is_numpys_to_the_last_bit(values):
    kept = History(1)
    for value in values:
        kept.note(create_trial(value=value, intermediate_values={10: value}))
    assert kept.median(10) == float(np.nanpercentile(values, 50))
    assert kept.median(20) is None


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("startup", "warmup"), [(0, 1), (5, 30)])
def test_the_median_pruner_says_what_optunas_does(direction, startup, warmup):
    rng, verdicts = random.Random(startup), set()
    study = optuna.create_study(direction=direction)
    kept = History(1 if direction == "minimize" else -1)
    ours, theirs = samplers.Median(kept, startup, warmup), optuna.pruners.MedianPruner(startup, n_warmup_steps=warmup)
    for _ in range(60):
        trial = study.ask()
        for percent in range(10, 101, 10):
            trial.report(round(rng.random(), 1), percent)  # rounded: equal ones must not differ either
            frozen = study.trials[-1]
            verdict = theirs.prune(study, frozen)
            assert ours.prune(study, frozen) == verdict
            verdicts.add(verdict)
        state = rng.choice([TrialState.COMPLETE, TrialState.PRUNED])
        study.tell(trial, rng.random() if state is TrialState.COMPLETE else None, state=state)
        kept.note(study.trials[-1])
    assert verdicts == {True, False}


def long_study(trials, kept=None, direction="minimize"):
    """A study with trials of every kind."""
    rng = random.Random(1)
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=1))
    space = samplers.distributions(SPACE)
    for _ in range(trials):
        trial, state = study.ask(space), rng.choice(STATES)
        if state is TrialState.RUNNING:
            continue
        trial.report(rng.random(), 10)
        study.tell(trial, rng.random() if state is TrialState.COMPLETE else None, state=state)
        if kept is not None:
            kept.note(study.get_trials(deepcopy=False)[trial.number])
    return study


def proposal(study, number, kept):
    study.sampler = samplers.make_sampler("tpe", SPACE, 0, number, kept)
    return samplers.suggested(study.ask(), SPACE, samplers.distributions(SPACE))


def test_a_history_that_is_not_long_is_modelled_as_a_whole(monkeypatch):
    monkeypatch.setattr(history, "MODELLED", 60)
    kept = History(1)
    assert proposal(long_study(60, kept), 60, kept) == proposal(long_study(60), 60, None)
    kept = History(1)
    part, whole = long_study(400, kept), long_study(400)
    assert [proposal(part, 400 + n, kept) for n in range(5)] != [proposal(whole, 400 + n, None) for n in range(5)]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_of_a_long_history_the_best_are_seen_and_a_sample_of_all(monkeypatch, direction):
    monkeypatch.setattr(history, "MODELLED", 80)
    kept = History(1 if direction == "minimize" else -1)
    study = long_study(400, kept, direction)
    seen = kept.glimpse(study, 7)._get_trials(deepcopy=False)
    complete = sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda t: kept.sign * t.value)
    assert {t.number for t in complete[:BEST]} <= {t.number for t in seen}
    assert 80 <= len(seen) <= 80 + BEST
    assert {t.state for t in seen} == set(STATES)
    assert [t.number for t in seen] == sorted(t.number for t in seen)
    assert kept.glimpse(study, 7)._get_trials(states=(TrialState.FAIL,)) == [t for t in seen if t.state is TrialState.FAIL]
    assert [t.number for t in kept.glimpse(study, 8)._get_trials()] != [t.number for t in seen]


def test_a_session_that_goes_on_knows_what_the_one_before_knew(tmp_path):
    def open_searcher():
        spec = parse_spec({"name": "s", "sampler": "tpe", "trials": 99, "objective": "accuracy"})
        return OptunaSearcher(spec, open_storage(f"sqlite:///{tmp_path}/hpsearch.db", create=True))

    first = open_searcher()
    for number in range(12):
        (trial,) = first.ask()
        for epoch in (1, 2):
            first.report(Progress(trial.number, epoch, 2, 1 / epoch, 1.0, {"accuracy": 0.1 * (number % 5)}, 0.0))
        status = Status.FAILED if number % 4 == 3 else Status.COMPLETE
        first.tell(Outcome(trial.number, status, 0.5, 2, metrics={"accuracy": 0.1 * (number % 5)}))
    first.close()
    second = open_searcher()
    assert second.history.best == first.history.best
    assert second.history.reports == first.history.reports
    assert (second.history.complete, second.history.best[0]) == (9, (-0.4, 4))
    second.close()
