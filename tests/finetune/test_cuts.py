"""Blocks of real architectures: they make up the network, and frozen ones do not change by one bit."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpsearch.finetune import cuts, models
from hpsearch.finetune.names import TORCHVISION

# One small member of each family: blocks, pixels of the smallest image that is quick to try it with.
FAMILIES = {
    "glyphnet": (6, 16),
    "alexnet": (7, 64),
    "convnext_tiny": (22, 64),
    "densenet121": (8, 64),
    "efficientnet_b0": (18, 64),
    "googlenet": (12, 64),
    "inception_v3": (16, 96),
    "maxvit_t": (14, 224),
    "mnasnet0_5": (20, 64),
    "mobilenet_v2": (19, 64),
    "mobilenet_v3_small": (14, 64),
    "regnet_y_400mf": (17, 64),
    "resnet18": (9, 64),
    "shufflenet_v2_x0_5": (18, 64),
    "squeezenet1_1": (9, 64),
    "swin_t": (16, 64),
    "swin_v2_t": (16, 64),
    "vgg11_bn": (10, 64),
    "vit_b_32": (13, 64),
}
# Of the others, counted on the meta device.
BLOCKS = {
    "efficientnet_b7": 57,
    "efficientnet_v2_s": 42,
    "regnet_x_400mf": 23,
    "resnet50": 17,
    "resnet152": 51,
    "vgg16": 15,
    "vgg16_bn": 15,
    "vit_b_16": 13,
    "vit_h_14": 33,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    blocks, size = FAMILIES[request.param]
    built = models.build(request.param, 5, "none", 0, {"size": size})
    images = torch.randn(4, built.preprocessing.channels, size, size, generator=torch.Generator().manual_seed(0))
    return request.param, built, images, blocks


def restore(built):
    built.model.restore(built.initial)
    return built.model


def test_every_cut_splits_the_network_without_changing_it(family):
    _, built, images, blocks = family
    model, x = restore(built), images[:2]
    assert model.cacheable
    assert len(model.blocks) == blocks
    for training in (False, True):
        model.freeze(0)
        model.train(training)
        torch.manual_seed(1)
        with torch.no_grad():
            whole = model.net(x)
            assert whole.shape == (2, 5)
            torch.manual_seed(1)
            activation = x
            for k in range(blocks + 1):
                if not training or k in (0, blocks // 2, blocks):
                    if training:  # the draws of dropout and stochastic depth have to come in the same order
                        torch.manual_seed(1)
                        activation = model.prefix(x, k)
                    before = activation.clone()
                    assert torch.equal(model.suffix(activation, k), whole), (training, k)
                    assert torch.equal(activation, before), "a kept activation was overwritten"
                    assert activation.shape[0] == 2
                if not training:
                    activation = model.cuts.runs[k](model.net, activation) if k < blocks else activation


def test_what_a_network_keeps_to_itself_starts_anew_with_each_trial():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.seen += 1
            return x + self.seen

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Counting(), nn.Flatten(), nn.Linear(16, 2))
    model = models.FineTuneModel(net, cuts.find(net))
    initial = {name: t.clone() for name, t in net.state_dict().items()}
    net(torch.zeros(1, 3, 4, 4))
    model.restore(initial)
    assert net[1].seen == 0


def test_frozen_blocks_do_not_change_by_one_bit(family):
    _, built, images, blocks = family
    model, k = restore(built), blocks // 2
    trainable = model.freeze(k)
    live = set(model.trainable_state(k))
    assert {name for name, p in model.net.named_parameters() if p.requires_grad} <= live
    assert model.frozen() == k
    # Far below what random weights bear, so that nothing overflows; the deepest of them still move.
    optimiser = torch.optim.SGD(trainable, lr=1e-3)
    model.dropout.rate = torch.tensor(0.2)
    for _ in range(2):
        loss = F.cross_entropy(model(images), torch.tensor([0, 1, 2, 3]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.dropout.rate = torch.tensor(0.0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    now = model.net.state_dict()
    for name, tensor in built.initial.items():
        if name not in live:
            assert torch.equal(tensor, now[name]), name
    assert not torch.equal(built.initial[model.cuts.head + ".weight"], now[model.cuts.head + ".weight"])
    moving = [name for name in live if name.endswith("running_mean")]
    assert all(not torch.equal(built.initial[name], now[name]) for name in moving)


def test_with_everything_frozen_only_the_head_trains(family):
    _, built, images, blocks = family
    model = restore(built)
    assert {id(p) for p in model.freeze(blocks)} == {id(p) for p in model.head.parameters()}
    assert set(model.trainable_state(blocks)) == {f"{model.cuts.head}.{name}" for name in model.head.state_dict()}
    weighted = {name for name, m in model.net.named_modules() if name and list(m.state_dict())}
    assert {name for name in weighted if model.net.get_submodule(name).training} == {n for n in weighted if model.cuts.head.startswith(n)}
    every = model.freeze(0)
    assert len(every) == len({id(p) for p in every}) == len(list(model.net.parameters()))
    assert sum(b.parameters for b in model.blocks) + sum(p.numel() for p in model.head.parameters()) == sum(p.numel() for p in every)
    assert set(model.trainable_state(0)) == set(built.initial)
    assert all(b.parameters for b in model.blocks)
    assert len({b.name for b in model.blocks}) == blocks
    features = model.features(images)
    assert features.ndim == 2
    assert features.shape[0] == 4
    assert features.shape[1] == (model.head.in_features if isinstance(model.head, nn.Linear) else model.head.in_channels)
    assert model.net.training, "features() must put the mode back"


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_large_models_are_counted_without_their_weights(name):
    rows = models.describe(name)
    assert len(rows) == BLOCKS[name]
    assert [row.index for row in rows] == list(range(1, len(rows) + 1))
    assert all(a.trainable - b.trainable == b.parameters for a, b in itertools.pairwise(rows))


@pytest.mark.parametrize("name", sorted(set(TORCHVISION) - set(FAMILIES) - set(BLOCKS)))
def test_every_other_model_is_cut(name):
    from hpsearch.finetune import zoo

    size = models.preprocessing(name, "none").size
    with zoo.Shapes():
        net = zoo.known_net(name, 3, size)
    model = models.known_model(name, net.to("meta"), 3)
    assert model.cacheable
    assert len(model.blocks) >= 8
    assert len(model.freeze(len(model.blocks))) in (1, 2)
    assert model.head.weight.shape[0] == 3


DENSENET = [f"{part}{i}" for i in range(1, 5) for part in ("denseblock", "transition")][:-1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["stem: conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))]),
        ("vit_b_32", ["stem: conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))]),
        ("glyphnet", ["stem: blocks.0", *(f"blocks.{i}" for i in range(1, 6))]),
        ("squeezenet1_1", [f"{'' if i else 'stem: '}features.{i}" for i in (0, 3, 4, 6, 7, 9, 10, 11, 12)]),
        ("densenet121", ["stem: features.conv0", *(f"features.{part}" for part in DENSENET)]),
    ],
)
def test_blocks_have_the_names_of_the_network_s_own_parts(name, expected):
    assert [row.name for row in models.describe(name)] == expected


class Loose(nn.Module):
    """Weights of its own, a shared layer, and an activation that overwrites its input."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.shared = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("shift", torch.ones(4))
        self.unused = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.shared(self.first(x))
        x = self.second(self.relu(x)) * self.scale + self.shift
        return self.fc(self.shared(x) * torch.ones(4))


def test_shared_layers_loose_parameters_constants_and_unused_layers():
    net = Loose()
    found = cuts.find(net)
    model = models.FineTuneModel(net, found)
    assert [(b.name, b.parameters) for b in found.blocks] == [("stem: first", 20), ("shared", 20), ("second", 24)]
    assert {id(p) for p in model.freeze(2)} == {id(p) for p in (*net.second.parameters(), *net.fc.parameters(), net.scale)}
    assert not any(p.requires_grad for p in net.unused.parameters())
    assert set(model.trainable_state(2)) == {"second.weight", "second.bias", "scale", "shift", "fc.weight", "fc.bias"}
    assert "unused.weight" in net.state_dict()
    x = torch.randn(2, 4)
    for k in range(4):
        assert torch.equal(model.suffix(model.prefix(x, k), k), net(x))
    if torch.cuda.is_available():
        assert model.to("cuda")(x.cuda()).shape == (2, 3)
    assert model.to("meta")(x.to("meta")).device.type == "meta"  # constants move along


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Before(), Before()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.b(self.a(x)))


class Before(nn.Module):
    """A block that begins with an activation in place."""

    def __init__(self):
        super().__init__()
        self.relu, self.linear, self.more = nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.more(self.linear(self.relu(x)))


def test_a_block_that_overwrites_its_input_leaves_a_kept_activation_alone():
    net = Overwriting()
    model = models.FineTuneModel(net, cuts.find(net))
    assert [b.name for b in model.blocks] == ["stem: a", "b"]
    with torch.no_grad():
        for k in range(3):
            kept = model.prefix(torch.randn(8, 4), k)
            before = kept.clone()
            model.suffix(kept, k)
            assert torch.equal(kept, before)


def test_a_head_alone_has_no_blocks():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model = models.FineTuneModel(net, cuts.find(net))
    x = torch.randn(2, 3, 2, 2)
    assert model.blocks == ()
    assert torch.equal(model.suffix(model.prefix(x, 0), 0), net(x))
    assert model.features(x).shape == (2, 12)


def test_a_copy_of_a_model_is_independent():
    model = models.build("glyphnet", 3, "none", 0).model
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.net.parameters():
            p.zero_()
    x = torch.randn(2, 1, 16, 16)
    model.eval(), twin.eval()
    assert twin(x).abs().sum() == 0
    assert model(x).abs().sum() > 0


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(4, 4)), "last layer with weights is no Linear"),
        (nn.Sequential(SHARED, nn.ReLU(), SHARED), "'0' is called more than once|'2' is called more than once"),
        (nn.Sequential(nn.ReLU()), "calls no Linear or Conv2d"),
        (nn.Sequential(nn.LSTM(4, 4)), "calls no Linear or Conv2d"),
    ],
)
def test_a_network_without_a_head_at_its_end_says_so(net, reason):
    with pytest.raises(cuts.NoCuts, match=reason):
        cuts.find(net)
