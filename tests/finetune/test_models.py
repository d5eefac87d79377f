"""Models by name, with a new head: the embedded one, torchvision's, and the user's own."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from hpsearch.errors import FixInput
from hpsearch.finetune import models, names, pretrained


@pytest.fixture
def model():
    return models.build("glyphnet", 10, "DEFAULT", 0).model


def test_glyphnet_s_forward_is_that_of_its_blocks_pooled(model):
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    model.eval()
    by_hand = x
    for block in model.net.blocks:
        by_hand = block(by_hand)
    assert torch.equal(model.net.head(by_hand.mean(dim=(2, 3))), model(x))
    assert [tuple(model.prefix(x, k).shape[1:]) for k in range(7)] == [
        (1, 16, 16),
        (16, 16, 16),
        (16, 16, 16),
        (32, 8, 8),
        (32, 8, 8),
        (64, 4, 4),
        (64,),
    ]
    assert 165_000 < sum(p.numel() for p in model.parameters()) < 175_000


@pytest.mark.parametrize("k", range(7))
def test_freezing_leaves_exactly_the_later_blocks_and_the_head_trainable(model, k):
    model.freeze(k)
    found = {name for name, p in model.net.named_parameters() if p.requires_grad}
    assert found == {n for n, _ in model.net.named_parameters() if n.startswith("head") or int(n.split(".")[1]) >= k}
    assert set(model.trainable_state(k)) >= found
    assert all(not block.training for block in model.net.blocks[:k])
    assert all(block.training for block in model.net.blocks[k:])


def test_the_head_is_new_and_the_rest_is_pretrained():
    a, b, again = (models.build("glyphnet", 10, "DEFAULT", seed).model.net for seed in (0, 1, 0))
    scratch = models.build("glyphnet", 10, "none", 0).model.net
    assert torch.equal(a.blocks[3].conv1.weight, b.blocks[3].conv1.weight)
    assert not torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.blocks[3].conv1.weight, scratch.blocks[3].conv1.weight)
    assert torch.equal(a.head.weight, again.head.weight)


def test_drawing_the_head_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    models.build("glyphnet", 10, "none", 0)
    assert torch.equal(torch.rand(1), expected)


def test_the_initial_state_is_a_copy_and_restores_the_model(model):
    built = models.build("mnasnet0_5", 4, "none", 0, {"size": 32})
    before = {name: tensor.clone() for name, tensor in built.initial.items()}
    built.model.freeze(0)
    built.model(torch.randn(2, 3, 32, 32))
    assert not all(torch.equal(before[n], t) for n, t in built.model.net.state_dict().items())
    built.model.restore(built.initial)
    assert all(torch.equal(before[n], t) for n, t in built.model.net.state_dict().items())


def test_a_checkpoint_loads_into_torchvision_s_own_model():
    from torchvision.models import resnet18

    built = models.build("resnet18", 7, "none", 0)
    net = resnet18(num_classes=7)
    net.load_state_dict(built.initial, strict=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net.eval()(x), built.model.eval()(x))
    assert built.matched.text() == "weights: drawn from the seed"


def test_scratch_weights_are_a_function_of_the_seed():
    a, b, c = (models.build("squeezenet1_1", 3, "none", seed).initial for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["features.0.weight"], c["features.0.weight"])


def test_the_dropout_before_the_head_gives_way_and_others_stay():
    net = models.build("vgg11", 3, "none", 0).model.net
    assert isinstance(net.classifier[5], nn.Identity)
    assert isinstance(net.classifier[2], nn.Dropout)
    assert isinstance(models.build("googlenet", 3, "none", 0).model.net.dropout, nn.Identity)


def test_the_sampled_dropout_acts_on_the_input_of_the_head():
    model = models.build("resnet18", 3, "none", 0).model
    model.freeze(len(model.blocks))
    x = torch.randn(8, 512)
    model.dropout.rate = torch.tensor(0.5)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= 0.5
    torch.manual_seed(0)
    assert torch.equal(model.suffix(x, 9), model.head(x * mask / 0.5))


@pytest.mark.parametrize(
    ("name", "weights", "overrides", "expected"),
    [
        ("glyphnet", "DEFAULT", None, (16, 16, "bilinear")),
        ("glyphnet", "none", {"size": 32}, (32, 32, "bilinear")),
        ("resnet18", "DEFAULT", None, (224, 256, "bilinear")),
        ("resnet50", "IMAGENET1K_V2", {}, (224, 232, "bilinear")),
        ("resnet50", "imagenet1k_v1", {}, (224, 256, "bilinear")),
        ("inception_v3", "none", None, (299, 342, "bilinear")),
        ("swin_t", "DEFAULT", {"size": 112}, (112, 116, "bicubic")),
        ("resnet18", "DEFAULT", {"size": 96, "resize": 96, "interpolation": "nearest"}, (96, 96, "nearest")),
    ],
)
def test_preprocessing_is_that_of_the_weights_changed_as_asked(name, weights, overrides, expected):
    p = models.preprocessing(name, weights, overrides)
    assert (p.size, p.resize, p.interpolation) == expected
    assert p.channels == (1 if name == "glyphnet" else 3)
    if name != "glyphnet":
        assert p.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sise": 3}, "did you mean 'size'"),
        ({"size": 0}, "pixels from 1"),
        ({"size": "big"}, "pixels from 1"),
        ({"size": 64, "resize": 32}, "smaller than"),
        ({"mean": [0.1, 0.2]}, "takes 3 channels"),
        ({"mean": "red"}, "numbers"),
        ({"std": 0}, "above 0"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(FixInput, match=message):
        models.preprocessing("resnet18", "DEFAULT", overrides)


def test_one_mean_serves_all_channels():
    assert models.preprocessing("resnet18", "none", {"mean": 0.5, "std": [0.25]}).std == (0.25,) * 3


def test_describe_gives_shapes_and_what_is_left_to_train():
    rows = models.describe("resnet18", 10)
    assert [row.shape for row in rows[::4]] == [(64, 56, 56), (128, 28, 28), (512,)]
    assert rows[-1].trainable == 5130
    assert rows[0].parameters + rows[0].trainable == 11_181_642
    assert models.describe("vit_b_32", overrides={"size": 64})[0].shape == (5, 768)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 32), ("maxvit_t", 100), ("vit_b_16", 100)])
def test_a_size_that_the_model_cannot_take_is_refused(name, size):
    with pytest.raises(FixInput, match=r"change preprocess\.size"):
        models.describe(name, overrides={"size": size})


def test_the_static_names_are_torchvision_s_registry():
    import torchvision

    assert sorted(torchvision.models.list_models(module=torchvision.models)) == sorted(names.TORCHVISION)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("glyfnet", "none", "did you mean 'glyphnet'"),
        ("resnet5", "DEFAULT", "did you mean 'resnet50'"),
        ("my models:net", "DEFAULT", "package.module:function"),
        ("resnet18", "some/model", "or a file ending in"),
        ("resnet18", "missing.pth", "there is no weights file"),
        ("glyphnet", "IMAGENET1K_V1", "has no weights called"),
        ("glyphnet", "DEFAULTS", "did you mean 'DEFAULT'[?] A file of weights would do too"),
        ("a.b:c", "IMAGENET1K_V1", "has no weights called"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(model, weights, message):
    with pytest.raises(FixInput, match=message):
        names.check_names(model, weights)


@pytest.mark.parametrize(
    ("model", "weights"), [("glyphnet", "DEFAULT"), ("resnet18", "imagenet1k_v1"), ("a.b:c", "none"), ("vit_h_14", "none")]
)
def test_good_names_pass(model, weights):
    names.check_names(model, weights)


@pytest.mark.process
def test_names_load_nothing_heavy_and_the_embedded_model_no_torchvision():
    code = "import sys, hpsearch.finetune.names; assert not {'torch', 'numpy'} & set(sys.modules)\n"
    code += "from hpsearch.finetune import models; models.build('glyphnet', 10, 'DEFAULT', 0)\n"
    code += "assert not {'torchvision', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dropout_keeps_the_expectation_and_follows_the_default_generator():
    dropout = models.Dropout()
    dropout.rate = torch.tensor(0.4)
    torch.manual_seed(0)
    x = torch.ones(200_000)
    y = dropout(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)


OWN = """
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
    def forward(self, x):
        return x + F.dropout(F.relu(self.bn(self.conv(x))), 0.5, self.training)

class Net(nn.Module):
    def __init__(self, num_classes, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 4, 4)
        self.body = nn.Sequential(*[Block(8) for _ in range(3)])
        self.fc = nn.Linear(8, num_classes)
    def forward(self, x, scale=None):
        x = self.body(self.stem(x))
        return self.fc((x if scale is None else x * scale).mean((2, 3)))

class Branching(Net):
    def forward(self, x):
        x = self.body(self.stem(x))
        if x.mean() > 100:
            x = x * 2
        return self.fc(x.mean((2, 3)))

class Dropping(Net):
    def forward(self, x):
        x = F.dropout(self.body(self.stem(x)), 0.5, self.training)
        return self.fc(x.mean((2, 3)))

class Sequence(Net):
    def forward(self, x):
        x = self.body(self.stem(x)).flatten(2).permute(2, 0, 1)
        x = torch.tanh(x)
        return self.fc(self.extra(x).mean(0))
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.extra = nn.Linear(8, 8)

class Auxiliary(Net):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

def net(num_classes): return Net(num_classes)
def pretrained_net(num_classes, pretrained):
    made = Net(num_classes)
    if pretrained:
        nn.init.constant_(made.stem.weight, 0.25)
    return made
def gray(num_classes): return Net(num_classes, 1)
def branching(num_classes): return Branching(num_classes)
def dropping(num_classes): return Dropping(num_classes)
def sequence(num_classes): return Sequence(num_classes)
def thousand(num_classes): return Net(1000)
def pair(num_classes): return Pair(num_classes)
def auxiliary(num_classes): return Auxiliary(num_classes)
def text(num_classes): return "net"
def broken(num_classes): raise ZeroDivisionError("no luck")
def two_arguments(num_classes, width): return Net(num_classes)
def no_argument(): return Net(3)
def backbone(num_classes):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Net(16)
            self.top = nn.Linear(16, num_classes)
        def forward(self, x):
            return self.top(torch.relu(self.backbone(x)))
    return Wrapped()
"""
SMALL = {"size": 32}


@pytest.fixture
def own(folder):
    (folder / "own_models.py").write_text(OWN)
    path = [*sys.path]
    yield folder
    sys.modules.pop("own_models", None)
    sys.path[:] = path


def test_a_model_of_one_s_own_is_cut_into_blocks(own):
    built = models.build("own_models:net", 4, "DEFAULT", 0, SMALL)
    model = built.model
    assert (model.cacheable, model.reason) == (True, "")
    assert [b.name for b in model.blocks] == ["stem: stem", "body.0", "body.1", "body.2"]
    assert (built.preprocessing.size, built.preprocessing.channels) == (32, 3)
    x = torch.randn(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model.suffix(model.prefix(x, 2), 2), model.net(x))
    assert built.initial["body.0.bn.num_batches_tracked"] == 0, "trying the model moved its statistics"
    assert built.matched.text() == "weights: as the model comes"
    model.freeze(1)
    assert (model.net.body.training, model.net.body[0].bn.training) == (True, True)
    assert [row.shape for row in models.describe("own_models:net", 4, SMALL)] == [(8, 8, 8)] * 3 + [(8,)]


def test_weights_none_takes_a_model_that_has_no_say_in_it_and_tells_that(own):
    built = models.build("own_models:net", 4, "none", 0, SMALL)
    assert built.matched.text() == (
        "weights: as the model comes (it takes no `pretrained`, so hpsearch cannot tell whether it is untrained)"
    )
    assert models.build("own_models:pretrained_net", 4, "none", 0, SMALL).matched.text() == "weights: drawn from the seed"


@pytest.mark.parametrize(("name", "reason"), [("branching", "cannot trace"), ("dropping", "something else in training mode")])
def test_a_model_that_cannot_be_cut_is_still_frozen(own, name, reason):
    model = models.build(f"own_models:{name}", 4, "DEFAULT", 0, SMALL).model
    assert not model.cacheable
    assert reason in model.reason
    assert [b.name for b in model.blocks] == ["stem", "body.0", "body.1", "body.2"]
    x = torch.randn(4, 3, 32, 32)
    assert model.prefix(x, 3) is x
    trainable = model.freeze(2)
    before = {n: t.clone() for n, t in model.net.state_dict().items()}
    model.dropout.rate = torch.tensor(0.5)
    first = model.suffix(x, 2)
    first.sum().backward()
    torch.optim.SGD(trainable, 0.1).step()
    after, live = model.net.state_dict(), set(model.trainable_state(2))
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert {"fc.weight", "body.1.conv.weight", "body.1.bn.running_mean"} <= moved <= live
    assert live == {n for n in before if n.startswith(("body.1", "body.2", "fc"))}
    assert not any(m.training for m in model.net.body[0].modules())
    assert model.frozen() == 2
    assert model.features(x).shape == (4, 8)
    model.eval()
    assert torch.equal(model(x), model.head(model.features(x)))
    model.train()
    assert not torch.equal(model(x), model(x)), "the sampled dropout does not act"
    assert [row.shape for row in models.describe(f"own_models:{name}", 4, SMALL)] == [()] * 4


def test_an_activation_without_the_images_first_is_not_kept(own):
    model = models.build("own_models:sequence", 4, "DEFAULT", 0, SMALL).model
    assert model.cacheable
    x = torch.randn(5, 3, 32, 32)
    assert all(model.prefix(x, k).shape[0] == 5 for k in range(len(model.blocks) + 1))


def test_a_head_of_another_size_is_replaced(own):
    model = models.build("own_models:thousand", 4, "DEFAULT", 0, SMALL).model
    assert model.net.fc.out_features == 4


def test_a_backbone_inside_a_model_is_cut_too(own):
    blocks = models.build("own_models:backbone", 4, "DEFAULT", 0, SMALL).model.blocks
    assert [b.name for b in blocks] == ["stem: backbone.stem", "backbone.body.0", "backbone.body.1", "backbone.body.2", "backbone.fc"]


def test_gray_images_for_a_model_with_one_channel(own):
    assert models.preprocessing("own_models:gray", "DEFAULT") == models.Preprocessing(224, 256, (0.5,), (0.5,))
    built = models.build("own_models:gray", 4, "DEFAULT", 0, SMALL)
    assert built.preprocessing.channels == 1


def test_own_weights_pretrained_none_and_from_a_file(own):
    stem = {w: models.build("own_models:pretrained_net", 4, w, 0, SMALL).initial["stem.weight"] for w in ("DEFAULT", "none")}
    assert (stem["DEFAULT"] == 0.25).all()
    assert not (stem["none"] == 0.25).all()
    other = models.build("own_models:net", 9, "DEFAULT", 5, SMALL)
    torch.save({"state_dict": {f"module.{n}": t for n, t in other.initial.items()}}, "mine.ckpt")
    built = models.build("own_models:net", 4, "mine.ckpt", 0, SMALL)
    assert torch.equal(built.initial["body.1.conv.weight"], other.initial["body.1.conv.weight"])
    assert built.matched == pretrained.WeightsReport("mine.ckpt", 20, 20)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("own_modes:net", "DEFAULT", "importing 'own_modes' failed"),
        ("own_models:nett", "DEFAULT", "did you mean 'net'"),
        ("own_models:broken", "DEFAULT", r"failed at broken\(num_classes=4\): ZeroDivisionError: no luck"),
        ("own_models:no_argument", "DEFAULT", "is called with num_classes, the number of classes, and it is no_argument[(][)]: write"),
        ("own_models:two_arguments", "DEFAULT", "it is two_arguments[(]num_classes, width[)]: write def two_arguments"),
        ("own_models:text", "DEFAULT", "must return a torch.nn.Module; text.* returned str"),
        ("own_models:pair", "DEFAULT", "must return a tensor of logits.*in eval mode it returned tuple"),
        ("own_models:auxiliary", "DEFAULT", "in training mode it returned tuple"),
    ],
)
def test_a_function_that_gives_no_model_is_refused(own, name, weights, message):
    with pytest.raises(FixInput, match=message):
        models.build(name, 4, weights, 0, SMALL)
