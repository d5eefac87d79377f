"""A layer that should learn and does not is named; one that learns, or is frozen, never is."""

import pytest
import torch

from hpsearch.types import Job, Status, Trial
from tests.finetune.test_kernel import make, train
from tests.kernels import PARAMS


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return make(tmp_path_factory.mktemp("idle"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "more",
    [
        {"frozen_layers": 0},
        {"frozen_layers": 3},
        {"frozen_layers": 6},
        {"frozen_layers": 6, "unfreeze_epochs": 1},
        {"frozen_layers": 0, "weight_decay": 0.0, "learning_rate": 1e-5},
        {"frozen_layers": 0, "layer_decay": 0.5, "l2_sp": 0.01, "clip_norm": 1.0},
    ],
    ids=str,
)
def test_a_network_that_learns_gives_no_remark(kernel, optimizer, more):
    outcome = train(kernel, optimizer=optimizer, **more)[-1]
    assert (outcome.status, outcome.remark) == (Status.COMPLETE, "")


def cut(kernel, at):
    """From now on no gradient passes below the block `at`, as a `detach` or a `no_grad` in somebody's forward pass would have it."""
    model = kernel.resident().model
    whole = model.cuts.runs[at]
    runs = (*model.cuts.runs[:at], lambda net, x: whole(net, x.detach()), *model.cuts.runs[at + 1 :])
    object.__setattr__(model.cuts, "runs", runs)


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.01), ("adamw", 0.0), ("sgd", 0.0), ("sgd", 0.01)])
def test_layers_that_no_gradient_reaches_are_named(tmp_path, optimizer, decay):
    kernel = make(tmp_path)
    cut(kernel, 3)
    outcome = train(kernel, optimizer=optimizer, weight_decay=decay)[-1]
    assert outcome.status is Status.COMPLETE
    assert outcome.remark.startswith("no gradient: blocks.0.")
    assert "did not learn in 28 steps" in outcome.remark
    frozen = train(kernel, optimizer=optimizer, weight_decay=decay, frozen_layers=3)[-1]
    assert frozen.remark == ""


def test_a_trial_that_was_stopped_says_so_too(tmp_path):
    kernel = make(tmp_path)
    cut(kernel, 1)
    session = kernel.session(Job(0, (Trial(0, PARAMS),)))
    step = next(session)
    while not step or step[-1].epoch < 2 or hasattr(step[-1], "status"):
        step = session.send(frozenset({0}) if step and step[-1].epoch == 2 else frozenset())
    (outcome,) = session.send(frozenset({0}))
    assert outcome.status is Status.PRUNED
    assert outcome.remark.startswith("no gradient: blocks.0.")


def test_too_few_steps_tell_nothing(tmp_path):
    kernel = make(tmp_path)
    cut(kernel, 3)
    assert train(kernel, epochs=1, batch_size=64)[-1].remark == ""


def test_looking_changes_nothing(kernel):
    train(kernel)
    before = {name: t.clone() for name, t in kernel.resident().model.net.state_dict().items()}
    train(kernel)
    assert all(torch.equal(t, before[name]) for name, t in kernel.resident().model.net.state_dict().items())
