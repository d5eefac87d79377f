"""The optimisers against torch's own classes, and what each term of the regularisation does to the weights."""

import pytest
import torch

from hpsearch.finetune.optim import Hyper, Moments, Optimiser
from hpsearch.finetune.recipe import Recipe

USUAL = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2, "weight_decay": 0.1, "dropout": 0.0, "frozen_layers": 0}


def make(layer, kind="adamw", depths=(), by_depth=False, layer_decay=1.0, anchors=False, **values):
    hyper = Hyper.on(torch.device("cpu"))
    hyper.set(Recipe.of(USUAL | values))
    params = list(layer.parameters())
    depth = dict(zip(params, depths or [0] * len(params), strict=True))
    optimiser = Optimiser(Moments(kind), depth, hyper, {p: p.detach().clone() for p in params} if anchors else {}, by_depth)
    optimiser.reset(layer_decay)
    return optimiser


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_it_steps_as_torchs_own(kind):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = make(ours, kind, momentum=0.8)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    rate = mine.hyper.learning_rate
    if kind == "adamw":
        reference = torch.optim.AdamW(groups, lr=rate, fused=True)
    else:
        reference = torch.optim.SGD(groups, lr=1e-2, momentum=0.8, nesterov=True)
    for step in range(20):
        rate.fill_(1e-2 * (1 + step % 3))
        for group in reference.param_groups:
            group["lr"] = rate if kind == "adamw" else rate.item()
        x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
        for model, opt in ((ours, mine), (theirs, reference)):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalisation(kind):
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(1.0)
    opt = make(layer, kind, learning_rate=0.1, weight_decay=0.5, momentum=0.0)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert layer[0].weight.unique().item() == pytest.approx(1 - 0.1 * 0.5)
    assert all(p.unique().item() == 1 for p in (layer[0].bias, layer[1].weight, layer[1].bias))


def test_layers_further_from_the_head_move_less_by_the_decay_to_their_depth():
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(3)))
    before = [p.detach().clone() for p in layers.parameters()]
    opt = make(layers, "sgd", depths=(2, 1, 0), by_depth=True, layer_decay=0.5, weight_decay=0.0, momentum=0.0)
    for p in layers.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    moved = [(b - p).mean().item() for b, p in zip(before, layers.parameters(), strict=True)]
    assert moved == pytest.approx([0.0025, 0.005, 0.01], rel=1e-4)


def test_a_norm_above_the_limit_is_scaled_to_it_and_one_below_left():
    layer = torch.nn.Linear(3, 2)
    for scale, expected in ((10.0, 1.0), (0.1, 0.1 * 8**0.5)):
        opt = make(layer, clip_norm=1.0)
        for p in layer.parameters():
            p.grad = torch.full_like(p, scale)
        opt.regularise(frozenset({"clip_norm"}))
        assert torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item() == pytest.approx(expected, rel=1e-4)


def test_penalties_add_their_gradients():
    layer = torch.nn.Linear(3, 2)
    opt = make(layer, anchors=True, l1=0.5, l2_sp=2.0)
    with torch.no_grad():
        layer.weight += 0.25
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    opt.regularise(frozenset({"l1"}))
    assert torch.equal(layer.weight.grad, 0.5 * layer.weight.sign())
    assert layer.bias.grad.abs().sum() == 0
    opt.regularise(frozenset({"l2_sp"}))
    torch.testing.assert_close(layer.weight.grad, 0.5 * layer.weight.detach().sign() + 2.0 * 0.25)


def test_a_trial_finds_the_optimiser_as_new():
    layer = torch.nn.Linear(3, 2)
    opt = make(layer)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert all(t.abs().sum() > 0 for t in opt.state().values())
    opt.reset(1.0)
    assert all(t.abs().sum() == 0 for t in opt.state().values())
