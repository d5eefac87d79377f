"""Blocks, freezing, and the state a trial starts from."""

import pytest
import torch

from hpsearch.errors import FixInput
from hpsearch.finetune import models, names
from hpsearch.spec import parse_spec


@pytest.fixture
def model():
    return models.initial_state("glyphnet", 10, pretrained=True, seed=0)[0]


@pytest.mark.parametrize("k", range(7))
def test_prefix_and_suffix_make_up_the_whole(model, k):
    model.eval()
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.suffix(model.prefix(x, k), k), model(x))


def test_the_shapes_are_those_of_the_docstring(model):
    x = torch.zeros(2, 1, 16, 16)
    assert model(x).shape == (2, 10)
    assert [tuple(model.prefix(x, k).shape[1:]) for k in range(7)] == [
        (1, 16, 16),
        (16, 16, 16),
        (16, 16, 16),
        (32, 8, 8),
        (32, 8, 8),
        (64, 4, 4),
        (64, 4, 4),
    ]
    assert 165_000 < sum(p.numel() for p in model.parameters()) < 175_000


@pytest.mark.parametrize("k", range(7))
def test_freezing_leaves_exactly_the_later_blocks_and_the_head_trainable(model, k):
    names = {name for name, p in model.named_parameters() if p.requires_grad or model.freeze(k) is None}
    model.freeze(k)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if n.startswith("head") or int(n.split(".")[1]) >= k}
    assert set(model.trainable_state(k)) >= names
    assert all(not block.training for block in model.blocks[:k])
    assert all(block.training for block in model.blocks[k:])


def test_the_head_is_new_and_the_rest_is_pretrained():
    a, _ = models.initial_state("glyphnet", 10, pretrained=True, seed=0)
    b, _ = models.initial_state("glyphnet", 10, pretrained=True, seed=1)
    scratch, _ = models.initial_state("glyphnet", 10, pretrained=False, seed=0)
    assert torch.equal(a.blocks[3].conv1.weight, b.blocks[3].conv1.weight)
    assert not torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.blocks[3].conv1.weight, scratch.blocks[3].conv1.weight)
    assert torch.equal(a.head.weight, models.initial_state("glyphnet", 10, pretrained=True, seed=0)[0].head.weight)


def test_drawing_the_head_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    models.initial_state("glyphnet", 10, pretrained=False, seed=0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("model", "data", "weights", "near"), [("glyfnet", "digits", "none", "glyphnet"), ("glyphnet", "digit", "none", "digits")]
)
def test_an_unknown_name_is_refused_with_the_nearest(model, data, weights, near):
    with pytest.raises(FixInput, match=f"did you mean '{near}'"):
        names.check_names(model, data, weights, parse_spec({}).parameters())


def test_the_names_are_those_the_kernel_builds():
    assert {name: len(arch.build(10).blocks) for name, arch in models.ARCHITECTURES.items()} == names.MODELS


def test_a_range_deeper_than_the_model_is_refused():
    space = parse_spec({"space": {"frozen_layers": {"low": 0, "high": 9}}}).parameters()
    with pytest.raises(FixInput, match="glyphnet has 6 blocks before its head; lower it"):
        names.check_names("glyphnet", "digits", "none", space)


def test_dropout_keeps_the_expectation_and_its_own_generator():
    dropout = models.Dropout()
    dropout.rate = torch.tensor(0.4)
    dropout.generator = torch.Generator().manual_seed(0)
    x = torch.ones(200_000)
    y = dropout(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    dropout.generator.manual_seed(0)
    torch.manual_seed(99)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)
