"""The optimiser against torch's own class, and the schedule's shape."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.finetune import optim


def test_it_steps_exactly_as_torchs_fused_adamw():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rate = torch.tensor(1e-2)
    mine = optim.AdamW(ours.parameters(), rate, 0.1)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}], lr=rate, fused=True
    )
    for step in range(20):
        rate.fill_(1e-2 * (1 + step % 3))
        x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
        for model, opt in ((ours, mine), (theirs, reference)):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_weight_decay_spares_biases_and_normalisation():
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(1.0)
    opt = optim.AdamW(layer.parameters(), torch.tensor(0.1), weight_decay=0.5)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert layer[0].weight.unique().item() == pytest.approx(1 - 0.1 * 0.5)
    assert all(p.unique().item() == 1 for p in (layer[0].bias, layer[1].weight, layer[1].bias))


@given(steps=st.integers(1, 500), share=st.floats(0, 1))
def test_the_schedule_rises_to_one_and_falls_to_nearly_zero(steps, share):
    warmup = round(share * steps)
    factors = [optim.warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < steps:
        assert factors[warmup] == 1
        assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * (steps - 1 - warmup) / (steps - warmup))))
