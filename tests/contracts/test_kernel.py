"""The contract of `protocols.Kernel`, over every kernel."""

import json
import math
from dataclasses import replace

import pytest

from hpsearch.finetune.family import Family
from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.spec import parse_spec
from hpsearch.types import Facts, Job, Outcome, Progress, Status, Trial
from tests.kernels import PARAMS, CurveKernel


def finetune(folder):
    return FineTuneKernel(parse_spec({}).resolved() | {"folder": str(folder), "threads": 1, "device": "cpu"})


def family(folder):
    """Two models, of which trials that name none train the first."""
    spec = parse_spec({"model": "glyphnet", "weights": "none", "space": {"model": ["glyphnet", "mnasnet0_5"]}, "preprocess": {"size": 32}})
    return Family(spec.resolved() | {"folder": str(folder), "threads": 1, "device": "cpu"})


@pytest.fixture(params=["finetune", "family", "curves"], scope="module")
def kernel(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {"finetune": finetune, "family": family}[request.param](folder) if request.param != "curves" else CurveKernel({})


def drive(kernel, trials, stop_at=None):
    """All items a session yields, stopping each trial of `stop_at` {trial: epoch} after that epoch."""
    session = kernel.session(Job(0, tuple(trials)))
    items, stop = [], None
    while True:
        try:
            step = session.send(stop)
        except StopIteration:
            return items
        items += step
        stop = frozenset(i.trial for i in step if isinstance(i, Progress) and (stop_at or {}).get(i.trial) == i.epoch)


def timeless(item):
    return replace(item, seconds=0.0, **({"checkpoint": None} if isinstance(item, Outcome) else {"images_per_second": None}))


def test_facts_are_json(kernel):
    facts = kernel.facts()
    assert isinstance(facts, Facts)
    assert json.loads(json.dumps(dict(facts.values))) == dict(facts.values)
    assert {type(v) for v in facts.values.values()} <= {str, int, float, bool, list, dict}  # torch's own classes would import torch


def test_every_epoch_is_reported_once_in_order_and_the_outcome_comes_last(kernel):
    *progress, outcome = drive(kernel, [Trial(3, PARAMS)])
    assert [p.epoch for p in progress] == [1, 2, 3, 4]
    assert all(p.trial == 3 and p.epochs == 4 for p in progress)
    assert isinstance(outcome, Outcome)
    assert outcome.status is Status.COMPLETE


def test_the_score_is_the_loss_of_the_best_epoch(kernel):
    *progress, outcome = drive(kernel, [Trial(1, {**PARAMS, "learning_rate": 3e-2, "epochs": 6})])
    best = min(progress, key=lambda p: p.val_loss)
    assert (outcome.val_loss, outcome.epoch) == (best.val_loss, best.epoch)
    assert dict(outcome.metrics) == dict(best.metrics)


def test_a_trial_told_to_stop_ends_pruned_with_its_best_so_far(kernel):
    *progress, outcome = drive(kernel, [Trial(1, PARAMS)], stop_at={1: 2})
    assert [p.epoch for p in progress] == [1, 2]
    assert outcome.status is Status.PRUNED
    assert outcome.val_loss == min(p.val_loss for p in progress)
    assert outcome.checkpoint is None
    assert outcome.effective["epochs"] == 4  # as planned: what was run is in the curve


def test_a_job_of_several_trials_gives_an_outcome_for_each(kernel):
    items = drive(kernel, [Trial(0, PARAMS), Trial(5, {**PARAMS, "epochs": 2})], stop_at={0: 1})
    outcomes = {i.trial: i.status for i in items if isinstance(i, Outcome)}
    assert outcomes == {0: Status.PRUNED, 5: Status.COMPLETE}


def test_the_same_trial_gives_the_same_bits_whatever_ran_before(kernel):
    first = [timeless(i) for i in drive(kernel, [Trial(2, PARAMS)])]
    drive(kernel, [Trial(9, {**PARAMS, "frozen_layers": 4, "learning_rate": 1e-2})], stop_at={9: 1})
    assert [timeless(i) for i in drive(kernel, [Trial(2, PARAMS)])] == first


def test_numbers_are_finite_and_the_outcome_holds_the_effective_hyperparameters(kernel):
    *progress, outcome = drive(kernel, [Trial(4, {**PARAMS, "dropout": 0.25})])
    assert all(math.isfinite(v) for p in progress for v in p.row().values())
    assert {k: outcome.effective[k] for k in PARAMS} == pytest.approx({**PARAMS, "dropout": 0.25})


def test_a_trial_that_cannot_be_trained_is_an_outcome_not_an_exception(tmp_path):
    kernel = finetune(tmp_path)
    (outcome,) = drive(kernel, [Trial(0, {k: v for k, v in PARAMS.items() if k != "dropout"})])
    assert outcome.status is Status.FAILED
    assert "dropout" in (outcome.error or "")
    assert drive(kernel, [Trial(1, PARAMS)])[-1].status is Status.COMPLETE
