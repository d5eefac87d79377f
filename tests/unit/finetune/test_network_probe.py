"""What is found out about networks by running them: channels, head, whether outputs are logits; each against plain torch."""

import copy
import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hpsearch.errors import FixInput
from hpsearch.finetune import architectures, export, models, network_probe, standalone
from hpsearch.finetune.cuts import Head
from hpsearch.finetune.own import own_model
from hpsearch.finetune.zoo import RGB, changed, own_preprocessing

SIZE = 16
SMALL = changed(RGB, {"size": SIZE})
CLASSES = 5


def trunk(channels=3, width=8):
    layers = [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def tried(net, classes=CLASSES):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return own_model("nets:some", net, classes, SMALL)


def images(n=4, channels=3):
    return torch.randn(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


class Base(nn.Module):
    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.body, self.fc = trunk(), nn.Linear(8, outputs)


# ---------------------------------------------------------------- the head


class HeadFirst(nn.Module):
    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.classifier, self.body = nn.Conv2d(8, outputs, 1), nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        return self.classifier(self.body(x)).mean((2, 3))


class HeadFirstBranching(HeadFirst):
    """Cannot be traced."""

    def forward(self, x):
        return super().forward(x if x.mean() < 100 else x * 2)


class Auxiliary(Base):
    """Calls a layer after its head that its logits do not hang on."""

    def __init__(self, outputs=CLASSES):
        super().__init__(outputs)
        self.decoder = nn.Linear(8, outputs)

    def forward(self, x):
        features = self.body(x)
        logits = self.fc(features)
        self.seen = self.decoder(features)
        return logits


class Nothing(Auxiliary):
    """Adds nothing of its second head."""

    def forward(self, x):
        features = self.body(x)
        return self.fc(features) + 0 * self.decoder(features)


class Cosine(nn.Module):
    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.body, self.fc = trunk(), nn.Linear(8, outputs, bias=False)
        self.scale = nn.Parameter(torch.tensor(16.0))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(self.body(x)), F.normalize(self.fc.weight))


class CosineEarly(Cosine):
    """Prepares its weights before anything else."""

    def forward(self, x):
        weight = F.normalize(self.fc.weight)
        return self.scale * F.linear(F.normalize(self.body(x)), weight)


class CosineNormed(Cosine):
    """Has its weights made anew at each use."""

    def __init__(self, outputs=CLASSES):
        super().__init__(outputs)
        nn.utils.parametrizations.weight_norm(self.fc)


class Prototypes(nn.Module):
    """Distances to learned points behind an embedding; no layer gives the logits."""

    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.body, self.embed, self.points = trunk(), nn.Linear(8, 6), nn.Parameter(torch.randn(outputs, 6))

    def forward(self, x):
        return -(self.embed(self.body(x)).unsqueeze(1) - self.points).square().sum(-1)


class Matrix(nn.Module):
    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.body, self.weight = trunk(), nn.Parameter(torch.randn(8, outputs))

    def forward(self, x):
        return self.body(x) @ self.weight


class CosineLayer(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 8))

    def forward(self, x):
        return 10 * F.linear(F.normalize(x), F.normalize(self.weight))


class Custom(nn.Module):
    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.head, self.body = CosineLayer(outputs), trunk()

    def forward(self, x):
        return self.head(self.body(x))


class Maxout(Base):
    """Two numbers for each score."""

    def __init__(self, outputs=CLASSES):
        super().__init__(2 * outputs)

    def forward(self, x):
        return self.fc(self.body(x)).unflatten(1, (-1, 2)).amax(2)


class Scaled(Base):
    """A factor for each class behind the head is no head."""

    def __init__(self, outputs=CLASSES):
        super().__init__(outputs)
        self.scale = nn.Parameter(torch.ones(1, outputs))

    def forward(self, x):
        return self.fc(self.body(x)) * self.scale


HEADS = {  # head, whether blocks are cut, whether it can be replaced
    HeadFirst: ("classifier", True, True),
    HeadFirstBranching: ("classifier", False, True),
    Auxiliary: ("fc", True, True),
    Nothing: ("fc", True, True),
    Scaled: ("fc", True, True),
    Cosine: ("fc", True, False),
    CosineEarly: ("fc", True, False),
    CosineNormed: ("fc", True, False),
    Prototypes: ("points", True, False),
    Matrix: ("weight", True, False),
    Custom: ("head", True, False),
    Maxout: ("fc", True, False),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_what_the_logits_come_from_and_alone_is_trained_when_all_is_frozen(kind):
    head, cacheable, _ = HEADS[kind]
    net = kind()
    alone = copy.deepcopy(net).eval()
    model = tried(net)
    assert (model.cuts.head, model.cacheable) == (head, cacheable), model.reason
    model.eval()
    with torch.no_grad():
        expected = alone(images())
        for k in range(len(model.blocks) + 1):
            assert torch.allclose(model.suffix(model.prefix(images(), k), k), expected, atol=1e-6)
    assert model.features(images()).shape[0] == 4
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    trainable = model.freeze(len(model.blocks))
    x = model.prefix(images(), len(model.blocks))
    optimiser = torch.optim.SGD(trainable, 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(model.suffix(x, len(model.blocks)), torch.tensor([0, 1, 2, 3])).backward()
        optimiser.step()
    moved = {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name == head or name.startswith(f"{head}.") for name in moved)
    assert not any(name.startswith(("body.", "embed.")) for name in moved), "what is frozen has moved"
    model.dropout.rate = torch.tensor(0.5)
    assert not torch.equal(model.suffix(x, len(model.blocks)), model.suffix(x, len(model.blocks))), "the sampled dropout does not act"


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_another_number_of_classes_is_replaced_or_refused_with_the_remedy(kind):
    head, _, replaceable = HEADS[kind]
    net = kind(9)
    body = copy.deepcopy(net.body.state_dict())
    if not replaceable or kind is Scaled:
        with pytest.raises(FixInput) as caught:
            tried(net)
        if kind is not Scaled:
            assert f"gives 9 scores for 5 classes, and its head '{head}' cannot be replaced" in str(caught.value)
            assert "let the function make it for num_classes, or end in nn.Linear" in str(caught.value)
        return
    if kind is Nothing:
        net.decoder = nn.Linear(8, CLASSES)
        net.forward = lambda x: net.fc(net.body(x))
    model = tried(net)
    assert model(images()).shape == (4, CLASSES)
    assert all(torch.equal(tensor, model.net.body.state_dict()[name]) for name, tensor in body.items() if "running" not in name)


def test_weights_from_a_file_leave_a_head_alone_that_is_a_tensor(tmp_path):
    from hpsearch.finetune import pretrained

    net, source = Matrix(), Matrix().state_dict()
    model = tried(net)
    own = model.net.weight.clone()
    torch.save(source, tmp_path / "some.pth")
    report = pretrained.load(model.net, model.cuts.head, tmp_path / "some.pth")
    assert (report.loaded, report.missing, report.unexpected) == (6, (), ())
    assert torch.equal(model.net.weight, own)


class Untraceable(Cosine):
    def forward(self, x):
        return super().forward(x if x.mean() < 100 else x * 2)


def test_a_head_that_is_not_called_in_a_network_that_cannot_be_traced_is_refused_with_the_remedy():
    with pytest.raises(
        FixInput, match=r"gets its scores from 'fc', which it uses without calling it, and torch.fx cannot trace it.*nn.Linear"
    ):
        tried(Untraceable())


def test_a_network_that_hangs_on_no_weights_has_nothing_to_train():
    with pytest.raises(FixInput, match="has no layer with weights that its outputs depend on"):
        tried(nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Threshold(1e9, 0.0)), 3)


class CalledBackwards(nn.Module):
    """Registers its blocks last to first, and cannot be traced."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, CLASSES)
        self.third, self.second, self.first = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = self.first(x) if x.mean() < 100 else x
        return self.fc(self.third(self.second(x)).mean((2, 3)))


def test_blocks_that_cannot_be_cut_are_frozen_in_the_order_of_their_calls():
    model = tried(CalledBackwards())
    assert [block.name for block in model.blocks] == ["first", "second", "third"]
    assert {id(p) for p in model.freeze(2)} == {id(p) for p in (*model.net.third.parameters(), *model.net.fc.parameters())}


class Broken(Base):
    def forward(self, x):
        return self.fc(self.body(x)) * float("nan")


def test_a_network_that_gives_nan_is_refused_for_that():
    with pytest.raises(FixInput, match="gives NaN or infinity for images of normal random numbers"):
        tried(Broken())


class Counting(Base):
    """Counts its calls in a buffer that it saves and one that it keeps to itself, in its head too, in any mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("saved", torch.zeros(()))
        self.register_buffer("loose", torch.zeros(()), persistent=False)
        self.fc.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.saved += 1
        self.loose += 1
        self.fc.calls += 1
        return self.fc(self.body(x))


def test_trying_a_network_leaves_no_trace_in_it():
    net = Counting()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert own_preprocessing(net, {"size": SIZE}).channels == 3
    model = tried(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
    assert model.net.loose == 0


def test_trying_a_network_leaves_no_semaphore_behind(monkeypatch):
    """A process that ends with one says so on the terminal; tqdm makes it with its first bar."""
    import tqdm

    monkeypatch.delattr(tqdm.tqdm, "_lock", raising=False)
    assert tried(HeadFirst()).cacheable
    assert not hasattr(tqdm.tqdm, "_lock")


# ---------------------------------------------------------------- channels


class Repeats(nn.Module):
    """Takes gray and colour."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(trunk(), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.net(x.expand(-1, 3, -1, -1))


def flat(channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * SIZE * SIZE, CLASSES))


CHANNELS = {
    "colour": (lambda: nn.Sequential(trunk(3), nn.Linear(8, CLASSES)), 3, 3),
    "gray": (lambda: nn.Sequential(trunk(1), nn.Linear(8, CLASSES)), 1, 1),
    "its head first": (HeadFirst, 3, 3),
    "no convolution, colour": (lambda: flat(3), 3, 3),
    "no convolution, gray": (lambda: flat(1), 1, 1),
    "any": (Repeats, 3, 1),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(CLASSES)), 3, 1),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_found_by_trying(name):
    make, without, with_one_mean = CHANNELS[name]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    net = make()
    after = torch.random.get_rng_state()
    assert own_preprocessing(net, {"size": SIZE}).channels == without
    assert own_preprocessing(net, {"size": SIZE, "mean": 0.5}).channels == with_one_mean
    assert torch.equal(torch.random.get_rng_state(), after), "trying it drew from the global generator"
    assert not torch.equal(state, after) or name == "lazy"


@pytest.mark.parametrize("n", [2, 4, 7])
def test_other_channels_are_refused_with_their_number(n):
    with pytest.raises(FixInput, match=f"your model takes images of {n} channels; hpsearch gives it 1 .gray. or 3 .RGB."):
        own_preprocessing(nn.Sequential(trunk(n), nn.Linear(8, CLASSES)), {"size": SIZE})


@pytest.mark.parametrize("n", [1, 3])
def test_a_network_that_fails_on_this_size_fails_for_that_and_not_for_its_channels(n):
    net = nn.Sequential(nn.Conv2d(n, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 16 * 16, CLASSES))
    expects = own_preprocessing(net, {"size": SIZE})
    assert expects.channels == n
    with pytest.raises(FixInput, match=f"fails on images of {n} x 16 x 16: RuntimeError: .*mat1 and mat2.*see preprocess.size"):
        own_model("nets:some", net, CLASSES, expects)


# ---------------------------------------------------------------- lazy layers

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6), nn.Dropout(0.2),
                         nn.LazyLinear(num_classes))

class Cosine(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(n, 8))
    def forward(self, x):
        return 9 * F.linear(F.normalize(self.conv(x).mean((2, 3))), F.normalize(self.weight))

class Maxout(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2 * n)
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3))).unflatten(1, (-1, 2)).amax(2)

def cosine(num_classes): return Cosine(num_classes)
def maxout(num_classes): return Maxout(num_classes)
def log_softmax(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes), nn.LogSoftmax(1))
"""


@pytest.fixture
def nets(folder):
    (folder / "probed_nets.py").write_text(NETS)
    yield folder
    sys.modules.pop("probed_nets", None)


def test_lazy_layers_are_made_before_anything_is_counted(nets):
    built = models.build("probed_nets:lazy", CLASSES, "DEFAULT", 0, {"size": 8})
    assert [tuple(t.shape) for name, t in built.initial.items() if name.endswith("weight")] == [(4, 3, 3, 3), (4,), (6, 144), (5, 6)]
    rows = models.describe("probed_nets:lazy", CLASSES, {"size": 8})
    assert [row.parameters for row in rows] == [4 * 27 + 4 + 8, 144 * 6 + 6]
    assert rows[-1].trainable == 6 * 5 + 5
    again = models.build("probed_nets:lazy", CLASSES, "DEFAULT", 0, {"size": 8}).initial
    assert all(torch.equal(tensor, again[name]) for name, tensor in built.initial.items())


@pytest.mark.parametrize("name", ["lazy", "cosine", "maxout", "log_softmax"])
def test_an_exported_network_gives_the_logits_of_the_trained_one(nets, name):
    model = f"probed_nets:{name}"
    built = models.build(model, CLASSES, "DEFAULT", 0, {"size": 8})
    pre = built.preprocessing
    head, dropout = export.layers(model, CLASSES, pre)
    shape = {"size": 8, "channels": 3, "mean": list(pre.mean), "std": list(pre.std)}
    config = {"model": model, "arguments": architectures.arguments(model, CLASSES, 8), "head": head, "dropout": dropout}
    config |= {"classes": list("abcde"), "preprocessing": shape}
    (nets / "config.json").write_text(json.dumps(config))
    save_file(built.initial, nets / "model.safetensors")
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (pre.mean, pre.std))
    with torch.no_grad():
        expected = built.model.eval()((pixels.float() / 255 - mean) / std)
    space = {"__name__": "predict", "__file__": str(nets / "predict.py")}
    exec(compile(export.script(model), "predict.py", "exec"), space)
    sys.path.insert(0, str(nets))
    try:
        for names in (space, vars(standalone)):
            net, read = names["load"](nets)
            assert torch.allclose(names["logits"](net, pixels, read), expected, atol=1e-5)
    finally:
        sys.path.remove(str(nets))


# ---------------------------------------------------------------- logits or probabilities


class Ends(Base):
    """Ends in a function of the logits."""

    def __init__(self, end, outputs=CLASSES):
        super().__init__(outputs)
        self.end = end

    def forward(self, x):
        return self.end(self.fc(self.body(x)))


class OnlyInEvaluation(Base):
    def forward(self, x):
        z = self.fc(self.body(x))
        return z if self.training else z.softmax(1)


class CosineSoftmax(Cosine):
    def forward(self, x):
        return super().forward(x).softmax(1)


class PooledSigmoid(HeadFirst):
    def forward(self, x):
        return self.classifier(self.body(x)).sigmoid().mean((2, 3))


PROBABILITIES = {
    "softmax": (lambda: Ends(nn.Softmax(1)), "softmax"),
    "softmax of two": (lambda: Ends(nn.Softmax(1), 2), "softmax"),
    "softmax by function": (lambda: Ends(lambda z: F.softmax(z / 3, dim=-1)), "softmax"),
    "softmax in evaluation": (OnlyInEvaluation, "softmax"),
    "softmax behind a cosine": (CosineSoftmax, "softmax"),
    "sigmoid": (lambda: Ends(nn.Sigmoid()), "sigmoid"),
    "sigmoid of two": (lambda: Ends(nn.Sigmoid(), 2), "sigmoid"),
    "hard sigmoid": (lambda: Ends(nn.Hardsigmoid()), "sigmoid"),
    "sigmoid of maps, averaged": (PooledSigmoid, "sigmoid"),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_in_the_place_of_logits_are_refused_with_the_remedy(name):
    make, kind = PROBABILITIES[name]
    classes = 2 if "two" in name else CLASSES
    message = rf"the model nets:some gives probabilities and not logits .*: leave out the {kind} at its end; the loss and"
    with pytest.raises(FixInput, match=message) as caught:
        tried(make(), classes)
    assert "\n" not in str(caught.value)


def test_log_softmax_at_the_end_is_said_and_changes_neither_loss_nor_gradient(nets):
    built = models.build("probed_nets:log_softmax", CLASSES, "DEFAULT", 0, {"size": 8})
    assert built.matched.text() == (
        "weights: as the model comes; the model ends in log_softmax, which changes neither loss nor probabilities and may be left out"
    )
    logits, labels = torch.randn(6, CLASSES, dtype=torch.double, requires_grad=True), torch.arange(6) % CLASSES
    plain, ended = F.cross_entropy(logits, labels), F.cross_entropy(logits.log_softmax(1), labels)
    (a,), (b,) = torch.autograd.grad(plain, logits), torch.autograd.grad(ended, logits)
    assert torch.allclose(plain, ended, atol=1e-12)
    assert torch.allclose(a, b, atol=1e-12)


def random_network(seed):
    """A network with logits: of any width, end and size of weights, some with outputs that happen to lie between 0 and 1."""
    draw = torch.Generator().manual_seed(seed)

    def choose(*values):
        return values[int(torch.randint(len(values), (), generator=draw))]

    torch.manual_seed(seed)
    classes, width = choose(2, 3, 10), choose(2, 8)
    ends = (nn.Identity(), nn.BatchNorm1d(classes), nn.ReLU(), nn.Softplus(), nn.LeakyReLU(), nn.GELU(), nn.LayerNorm(classes))
    end = choose(*ends[: -1 if classes == 2 else None])  # of two numbers it leaves the signs alone, and sigmoid of those is a softmax
    convolutional = choose(True, False)
    head = nn.Conv2d(width, classes, 1) if convolutional else nn.Linear(width, classes)
    scale, bias = choose(0.0, 1e-3, 1.0, 100.0), choose("zero", "half", "shares", "as drawn", "large")
    with torch.no_grad():
        head.weight.mul_(scale)
        if bias != "as drawn":
            head.bias.fill_({"zero": 0.0, "half": 0.5, "shares": 1 / classes, "large": 50.0}[bias])
    body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), choose(nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.GELU()))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, head, *pool, end) if convolutional else nn.Sequential(body, *pool, head, end), classes


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_real_logits_raise_no_alarm_however_they_are_drawn(start):
    between = 0
    for seed in range(start, start + 100):
        net, classes = random_network(seed)
        net.eval()
        x = images()
        with torch.no_grad():
            z = net(x)
        between += bool(((z >= 0) & (z <= 1)).all())
        head = network_probe.find_head(net, x, network_probe.calls_of(net, x))
        assert isinstance(net.get_submodule(head.name), nn.Conv2d | nn.Linear)
        assert net.get_submodule(head.name).weight.shape[0] == classes
        assert network_probe.scale_of(net, head, x, z) == "", (seed, net)
        layer, kind = ((nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid"), (nn.LogSoftmax(1), "log_softmax"))[seed % 3]
        assert network_probe.scale_of(nn.Sequential(net, layer), Head(f"0.{head.name}", classes), x, layer(z)) == kind, (seed, net, kind)
    assert between > 5, "none of them lies between 0 and 1 by chance, so that this says little"
