"""Checkpoints as people have them: found by the model's own names wherever they lie, checked tensor by tensor, and nothing in them runs."""

import argparse
import collections
import datetime
import os
import pathlib
import shutil
import types
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hpsearch.errors import FixInput
from hpsearch.finetune import checkpoints, names, pretrained
from hpsearch.finetune.parcel import unpacked
from hpsearch.service.guard import make_guard
from hpsearch.spec import parse_spec


class Net(nn.Module):
    """Two composites, a buffer of whole numbers, a mask with infinity, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.layer1 = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.register_buffer("index", torch.arange(6))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.fc = nn.Linear(8, 3)


def drawn(seed=1):
    """A state dict of the network as another training would leave it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
    net.stem[1].num_batches_tracked += seed
    return net.state_dict()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def load(content, within="", net=None, file="some.pth"):
    torch.save(content, file)
    net = net or Net()
    return net, pretrained.load(net, "fc", pathlib.Path(file), within)


def is_of(net, state):
    """Whether all but the head of a network is a state dict's."""
    return all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items() if not name.startswith("fc."))


PLACES = {
    "plain": lambda s: s,
    "network": lambda s: {"network": s, "epoch": 3},
    "model_state": lambda s: {"model_state": s},
    "any word at any depth": lambda s: {"a": {"b": [{"c": s}]}, "epoch": 1},
    "lightning": lambda s: {"state_dict": prefixed("resnet.", s) | {"loss.weight": torch.ones(3)}, "callbacks": {"x": torch.ones(())}},
    "a query encoder": lambda s: {"state_dict": prefixed("module.encoder_q.", s)},
    "keys of two kinds": lambda s: {"net": {"stem": {n[5:]: t for n, t in s.items() if n.startswith("stem.")}} | s},
    "a mapping a module": lambda s: {
        "stem": {n[5:]: t for n, t in s.items() if n.startswith("stem.")},
        "rest": torch.ones(2),
        **{n: t for n, t in s.items() if not n.startswith("stem.")},
    },
    "beside its optimiser": lambda s: {"optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}}, "model": s},
}


@pytest.mark.parametrize("name", PLACES)
def test_a_model_is_found_by_its_own_names_wherever_it_lies(folder, name):
    state = drawn()
    net, report = load(PLACES[name](state))
    assert is_of(net, state)
    assert (report.loaded, report.missing, report.mismatched, report.others) == (report.total, (), (), ())
    assert report.unexpected == {"lightning": ("loss.weight",), "a mapping a module": ("rest",)}.get(name, ())
    assert report.text() == "weights: 12 of 12 tensors from some.pth, the head is new" + (
        f"; 1 not in the model ({report.unexpected[0]})" if report.unexpected else ""
    )


@pytest.mark.parametrize("file", ["model_best.pth.tar", "last.ckpt", "a.pt", "pytorch_model.bin", "A.PTH"])
def test_every_usual_ending_is_a_file_of_weights(folder, file):
    assert names.is_file(file)
    assert is_of(load({"state_dict": drawn()}, file=file)[0], drawn())


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck, self.fc = Net(), nn.Linear(3, 3), nn.Linear(3, 2)


def test_a_file_of_the_backbone_alone_fills_the_backbone(folder):
    state = drawn()
    net, report = load({"state_dict": prefixed("module.", state)}, net=Wrapped())
    assert all(torch.equal(net.state_dict()[f"backbone.{name}"], tensor) for name, tensor in state.items())
    assert report.missing == ("neck.weight", "neck.bias")


SEVERAL = {  # what lies where; which is taken, whatever the order in the file
    "timm": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict", "state_dict_ema"),
    "momentum": (
        lambda a, b: {"state_dict": prefixed("module.base_encoder.", a) | prefixed("module.momentum_encoder.", b)},
        "state_dict.module.base_encoder",
        "state_dict.module.momentum_encoder",
    ),
    "query and key": (lambda a, b: prefixed("encoder_q.", a) | prefixed("encoder_k.", b), "encoder_q", "encoder_k"),
    "student and teacher": (lambda a, b: {"student": prefixed("backbone.", a), "teacher": b}, "student.backbone", "teacher"),
    "online and target": (lambda a, b: prefixed("online_encoder.", a) | prefixed("target_encoder.", b), "online_encoder", "target_encoder"),
    "words that say nothing": (lambda a, b: {"one": a, "two": b}, "one", "two"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_parts_the_one_that_is_no_average_is_taken_and_the_other_can_be_had(folder, name):
    make, taken, other = SEVERAL[name]
    a, b = drawn(1), drawn(2)
    net, report = load(make(a, b))
    assert is_of(net, a)
    assert report.text() == (
        "weights: 12 of 12 tensors from some.pth, the head is new; more than one part of the file fits, and "
        f"{taken} was taken: --weights some.pth#{other} takes the other"
    )
    net, report = load(make(a, b), other)
    assert is_of(net, b)
    assert report.text() == f"weights: 12 of 12 tensors from some.pth#{other}, the head is new"
    outer = other.partition(".")[0]
    assert is_of(load(make(a, b), outer)[0], a if outer == taken.partition(".")[0] else b), "an address may end before the names begin"


@pytest.mark.parametrize("name", ["query and key", "online and target", "momentum"])
def test_the_choice_does_not_hang_on_the_order_where_the_file_says_which_is_the_average(folder, name):
    a, b = drawn(1), drawn(2)
    state = SEVERAL[name][0](a, b)
    state = state.get("state_dict", state)
    save_file(state, "some.safetensors")  # sorts its names
    net = Net()
    pretrained.load(net, "fc", pathlib.Path("some.safetensors"))
    assert is_of(net, a)
    assert is_of(load(dict(reversed(state.items())))[0], a)


def test_the_part_that_fits_more_comes_before_one_that_is_no_average(folder):
    a, b = drawn(1), drawn(2)
    less = {name: tensor for name, tensor in a.items() if not name.startswith("layer1.1")}
    assert is_of(load({"model": less, "ema": b})[0], b)


def test_what_is_at_the_top_of_a_file_can_be_had_as_well(folder):
    a, b = drawn(1), drawn(2)
    less = {name: tensor for name, tensor in a.items() if not name.startswith("layer1.1")}
    net, report = load({**less, "model": b})
    assert is_of(net, b)
    assert report.text().endswith("and model was taken: --weights some.pth#. takes the other")
    net, report = load({**less, "model": b}, ".")
    assert torch.equal(net.stem[0].weight, a["stem.0.weight"])
    assert len(report.missing) == 2
    assert "what is at its top was taken: --weights some.pth#ema takes" in load({**a, "ema": b})[1].text()
    with pytest.raises(FixInput, match=r"nothing of this model is at '\.' in the weights file some.pth; it has model$"):
        load({"model": b}, ".")


def test_an_address_that_is_not_there_is_answered_with_those_that_are(folder):
    with pytest.raises(FixInput, match=r"nothing of this model is at 'emma' in the .* some.pth; it has state_dict, state_dict_ema$"):
        load({"state_dict": drawn(), "state_dict_ema": drawn(2)}, "emma")


def test_an_address_goes_with_the_file_through_every_door(folder):
    whole = "some.pth#state_dict.ema"
    assert names.file_and_part(whole) == ("some.pth", "state_dict.ema")
    assert [names.file_and_part(text)[1] for text in ("a.pth", "a.pth#", "a.pth#.", "a.pth#b.")] == ["", "", ".", "b"]
    assert names.file_and_part("odd#name.pth") == ("odd#name.pth", "")
    torch.save({"a": drawn()}, "some.pth")
    assert names.check_file(whole) == pathlib.Path("some.pth")
    names.check_names("resnet18", whole)
    with pytest.raises(FixInput, match=r"there is no weights file .*other.pth:"):
        names.check_file("other.pth#ema")
    config = {"fetch": lambda path: iter([b"x"]), "folder": str(folder), "weights": whole, "files": {"resnet18": "/far/some.pth"}}
    assert unpacked(config)["weights_here"] == {"resnet18": f"{folder}/some.pth#state_dict.ema"}


def test_a_server_looks_at_the_file_that_is_read_and_not_at_its_address(folder):
    (folder / "root").mkdir()
    guard = make_guard("127.0.0.1", "", (), [folder / "root"], False, folder)
    guard.admit(parse_spec({"weights": "root/a.pth#state_dict"}), folder)
    with pytest.raises(FixInput, match=r"weights: secret/a.pth is not in a folder"):
        guard.admit(parse_spec({"weights": "secret/a.pth#/../../root/b.pth"}), folder)


# ---------------------------------------------------------------- position embeddings


def transformer(size):
    from torchvision.models import VisionTransformer

    return VisionTransformer(size, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = transformer(32), nn.Linear(3, 3)


@pytest.mark.parametrize("prefix", ["", "module.", "any.word.", "_orig_mod.module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_position_embeddings_are_interpolated_whatever_stands_before_them(folder, prefix, dtype):
    source = {name: tensor.to(dtype) for name, tensor in transformer(64).state_dict().items()}  # 4 x 4 positions and the class token's
    source["encoder.pos_embedding"] = given = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = given.float()[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    right = F.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=True).flatten(2).permute(0, 2, 1)
    torch.save({"state": prefixed(prefix, source)}, "vit.pth")
    for net, where, head in ((transformer(32), "", "heads"), (Around(), "body.", "fc")):
        report = pretrained.load(net, head, pathlib.Path("vit.pth"))
        new = net.state_dict()[f"{where}encoder.pos_embedding"]
        assert torch.equal(new[:, :1], given[:, :1].float())
        assert torch.allclose(new[:, 1:], right, atol=1e-6)
        assert report.mismatched == ()


# ---------------------------------------------------------------- tensors that are no weights


def quantised(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


UNUSABLE = {
    "int8": (lambda t: (t * 100).to(torch.int8), r"has whole numbers \(int8\) in the place of weights"),
    "bool": (lambda t: t > 0, r"has whole numbers \(bool\)"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), r"has numbers of a few bits \(float8_e4m3fn\)"),
    "complex": (lambda t: t.to(torch.complex64), r"has complex numbers \(complex64\)"),
    "sparse": (lambda t: t.to_sparse(), r"is no ordinary tensor \(its layout is sparse coo\); save it with .to_dense\(\)"),
    "compressed": (lambda t: t.flatten(1).to_sparse_csr(), r"is no ordinary tensor \(its layout is sparse csr\)"),
    "quantised": (quantised, r"is quantised \(qint8\); save the weights from before that, or .dequantize\(\) them"),
    "meta": (lambda t: t.to("meta"), r"has a shape and no values \(device meta\)"),
    "nan": (lambda t: t.masked_fill(t == t.max(), float("nan")), "has NaN or infinity: its training had diverged"),
    "infinity": (lambda t: t.masked_fill(t == t.max(), float("inf")), "has NaN or infinity"),
    "too large": (lambda t: t.double() * 1e300, "has values beyond float32"),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quantize_per_tensor)")
@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("name", ["stem.0.weight", "layer1.1.weight", "stem.1.running_var"])
def test_what_is_no_usable_weight_is_refused_with_its_name_and_the_reason(folder, kind, name):
    spoil, reason = UNUSABLE[kind]
    state = drawn()
    if kind == "compressed" and state[name].ndim < 2:
        pytest.skip("compressed layouts have two dimensions")
    before = Net().state_dict()
    net = Net()
    net.load_state_dict(before)
    with pytest.raises(FixInput, match=rf"the weights file some.pth cannot be used: '{name}' {reason}") as caught:
        load({"model": {**state, name: spoil(state[name])}}, net=net)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items()), "a part of a refused file was taken"


def test_indexes_and_masks_are_weights_of_their_own_kind(folder):
    state = drawn()
    net, _ = load({**state, "index": state["index"].to(torch.int32), "mask": state["mask"].double()})
    assert is_of(net, state)
    with pytest.raises(FixInput, match="'index' has values that are not int64"):
        load({**state, "index": state["index"] + 0.5})
    with pytest.raises(FixInput, match="'mask' has NaN or infinity"):
        load({**state, "mask": state["mask"] * float("nan")})


def test_a_counter_that_was_averaged_with_the_weights_is_left_out(folder):
    state = drawn()
    averaged = {name: tensor.float() * 0.999 if name.endswith("tracked") else tensor for name, tensor in state.items()}
    net, report = load(averaged)
    assert (report.loaded, net.stem[1].num_batches_tracked.item()) == (report.total, 0)
    assert torch.equal(net.stem[0].weight, state["stem.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken_as_torch_converts_them(folder, dtype):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in drawn().items()}
    assert torch.equal(load(state)[0].stem[0].weight, state["stem.0.weight"].float())


def test_a_network_in_half_precision_is_not_given_infinity(folder):
    with pytest.raises(FixInput, match=r"'stem.0.weight' has values beyond float16, which the model computes in"):
        load({**drawn(), "stem.0.weight": torch.full((8, 3, 3, 3), 1e6)}, net=Net().half())


# ---------------------------------------------------------------- nothing runs

BESIDE = {
    "namespace": argparse.Namespace(lr=1, nested=argparse.Namespace(path=pathlib.Path("here"))),
    "simple namespace": types.SimpleNamespace(a=[1]),
    "numpy scalars": [np.float64(0.9), np.int64(3), np.bool_(True), np.float32(1), np.str_("a")],
    "numpy arrays": [np.arange(3), np.array(["a", None], dtype=object), np.array([(1, 2.0)], dtype="i4,f8"), np.random.get_state()],
    "numpy types": [np.dtype("float32"), np.float32, np.ndarray],
    "paths": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b")],
    "times": [datetime.datetime.now(datetime.UTC), datetime.date(2020, 1, 1), datetime.timedelta(1)],
    "collections": [collections.OrderedDict(a=1), collections.defaultdict(int, a=1), collections.deque([1], 3), collections.Counter("ab")],
    "torch": [torch.Size([1]), torch.float16, torch.device("cpu"), torch.nn.Parameter(torch.ones(1))],
    "python": [{1, 2}, frozenset({3}), b"bytes", bytearray(b"x"), 1j, slice(1, 2), range(3), int, 2**100],
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("new", [True, False])
def test_harmless_values_beside_the_weights_do_not_make_a_file_code(folder, kind, new):
    state = drawn()
    content = {"args": BESIDE[kind], "state_dict": collections.defaultdict(list, state), "deeper": {"x": BESIDE[kind]}}
    torch.save(content, "some.pth", _use_new_zipfile_serialization=new)
    net = Net()
    pretrained.load(net, "fc", pathlib.Path("some.pth"))
    assert is_of(net, state)


def test_stand_ins_are_gone_from_torch_once_a_file_is_read(folder):
    before = set(torch.serialization.get_safe_globals())
    load({"state_dict": drawn(), "args": argparse.Namespace()})
    assert set(torch.serialization.get_safe_globals()) == before


class Canary:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (shutil.copyfile, (__file__, self.path))


class Forged:
    """Pickled as a call of `function` with a canary among its arguments, and as its state."""

    def __init__(self, function, path):
        self.function, self.path = function, path

    def __reduce__(self):
        return (self.function, (Canary(self.path),), {"state": Canary(self.path)})


def objects(path):
    array = np.empty(1, dtype=object)
    array[0] = Canary(path)
    return array


TRAPS = {
    "bare": Canary,
    "in a namespace": lambda path: argparse.Namespace(lr=1, deep={"x": [Canary(path)]}),
    "as a namespace's arguments": lambda path: Forged(argparse.Namespace, path),
    "in an array of objects": objects,
    "in numpy's reconstruct": lambda path: Forged(np._core.multiarray._reconstruct, path),
    "in numpy's scalar": lambda path: Forged(np._core.multiarray.scalar, path),
    "in a default": lambda path: collections.defaultdict(list, {"a": Canary(path)}),
    "in a path": lambda path: Forged(pathlib.PurePosixPath, path),
    "by name": lambda path: [eval, os.system],
    "as a builtin": lambda path: Forged(eval, path),
    "by getattr": lambda path: Forged(getattr, path),
}


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("new", [True, False])
def test_nothing_in_a_file_runs_wherever_it_hides(folder, kind, new):
    canary = str(folder / "sang")
    torch.save({"state_dict": drawn(), "args": TRAPS[kind](canary)}, "some.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(FixInput, match=r"only tensors are loaded.*convert to safetensors"):
        pretrained.load(Net(), "fc", pathlib.Path("some.pth"))
    assert not os.path.exists(canary)
    if kind in ("bare", "in a namespace", "in an array of objects", "in a default"):
        torch.load("some.pth", weights_only=False)
        assert os.path.exists(canary), "the canary is a real one"


def test_numpy_argparse_and_pathlib_are_stood_for_and_never_called():
    called = {function for function, _ in checkpoints.ALLOWED}
    assert called == {checkpoints.Harmless, checkpoints.empty_mapping, checkpoints.empty_list}


def test_a_torchscript_archive_is_named_as_such(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save("some.pt")
    with pytest.raises(FixInput, match=r"some.pt is a TorchScript archive, which needs code to load.*save the state_dict\(\) of the model"):
        pretrained.load(Net(), "fc", pathlib.Path("some.pt"))


def test_mappings_that_hold_themselves_or_are_very_deep_end(folder):
    state = drawn()
    loop = {"state_dict": state}
    loop["self"] = loop
    assert is_of(load(loop)[0], state)
    deep = [torch.ones(1)]
    for _ in range(5000):
        deep = [deep]
    assert checkpoints.entries_of({"deep": deep}) == []
