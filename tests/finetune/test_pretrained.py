"""Weights from real files, good and bad, and from torchvision's cache without a network."""

import os
import pickle
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune import models, pretrained
from tests.support.commands import run_command

MODEL = "shufflenet_v2_x0_5"
FILE = "shufflenetv2_x0.5-f707e7126e.pth"


@pytest.fixture(scope="module")
def source():
    """A state dict of the model with 1000 classes."""
    from torchvision.models import shufflenet_v2_x0_5

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return shufflenet_v2_x0_5().state_dict()


def build(weights, model=MODEL):
    return models.build(model, 5, str(weights), 0)


def loaded(built, source):
    """Whether everything outside the head is from the source, and the head is new."""
    assert built.initial["fc.weight"].shape == (5, 1024)
    return all(torch.equal(built.initial[name], tensor) for name, tensor in source.items() if not name.startswith("fc."))


def test_default_weights_come_from_torchvision_s_cache(folder, source, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(source, folder / "hub" / "checkpoints" / FILE)
    for weights in ("DEFAULT", "IMAGENET1K_V1", "imagenet1k_v1"):
        built = build(weights)
        assert loaded(built, source)
        assert (built.matched.loaded, built.matched.missing, built.matched.unexpected) == (built.matched.total, (), ())
        assert re.fullmatch(rf"weights: 280 of 280 tensors from .*{re.escape(FILE)}, the head is new", built.matched.text())


@pytest.mark.process
def test_without_a_network_the_error_says_what_to_bring_where(folder):
    code = f"from hpsearch.finetune import models\nmodels.build('{MODEL}', 5, 'DEFAULT', 0, say=print)"
    proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("https", "http")}
    env = {**os.environ, **proxies, "TORCH_HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("no_proxy", None), env.pop("NO_PROXY", None)
    done = run_command([sys.executable, "-c", code], env=env)
    assert done.returncode == 1
    assert done.stdout == f"Downloading {FILE} (5 MB) to {folder}/hub/checkpoints\n"
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"hpsearch.errors.FixSetup: the pretrained weights of {MODEL} are not at {folder}/hub/checkpoints/{FILE}")
    assert f"bring https://download.pytorch.org/models/{FILE} there" in error
    assert "or use weights: FILE, or weights: none" in error
    assert not list(folder.rglob("*.partial"))


def test_a_download_with_another_digest_is_refused(folder, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / FILE).write_bytes(b"something else")

    class Entry:
        url = (folder / FILE).as_uri()
        meta = {"_file_size": 1}  # noqa: RUF012

    monkeypatch.setattr(pretrained, "torchvision_weights", lambda name, weights: Entry)
    with pytest.raises(FixSetup, match="invalid hash value"):
        pretrained.torchvision_file(MODEL, "DEFAULT", lambda message: None)
    assert not (folder / "hub" / "checkpoints" / FILE).exists()


def test_a_misspelt_name_of_weights_gets_the_nearest():
    with pytest.raises(FixInput, match="has no weights called 'IMAGENET1K_V3': did you mean 'IMAGENET1K_V1'"):
        build("IMAGENET1K_V3")


WRAPPED = {
    "plain.pth": lambda s: s,
    "wrapped.pt": lambda s: {"state_dict": s, "epoch": 3},
    "twice.ckpt": lambda s: {"epoch": 1, "model": {"module": {f"model.{n}": t for n, t in s.items()}}},
    "parallel.bin": lambda s: {f"module.{n}": t for n, t in s.items()},
    "compiled.pth": lambda s: {"model_state_dict": {f"_orig_mod.module.{n}": t for n, t in s.items()}, "best": torch.zeros(())},
    "lightning.ckpt": lambda s: {"state_dict": {f"net.{n}": t for n, t in s.items()} | {"loss.weight": torch.ones(3)}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_checkpoint_is_unwrapped_and_stripped_of_prefixes(folder, source, name):
    torch.save(WRAPPED[name](source), folder / name)
    built = build(name)
    assert loaded(built, source)
    assert (built.matched.loaded, built.matched.missing, built.matched.mismatched) == (280, (), ())
    assert built.matched.unexpected == (("loss.weight",) if name == "lightning.ckpt" else ())


def test_safetensors_and_half_precision(folder, source):
    save_file({n: t.half() if t.is_floating_point() else t for n, t in source.items()}, folder / "half.safetensors")
    built = build(folder / "half.safetensors")
    assert built.initial["conv5.0.weight"].dtype == torch.float32
    assert torch.equal(built.initial["conv5.0.weight"], source["conv5.0.weight"].half().float())


def test_a_partial_match_is_told(folder, source):
    partial = {n: t for n, t in source.items() if not n.startswith("stage2.0.")}
    partial["conv1.0.weight"] = partial["conv1.0.weight"][:, :1].clone()
    partial["extra"] = torch.ones(2)
    torch.save(partial, "partial.pth")
    built = build("partial.pth")
    report = built.matched
    assert report.mismatched == ("conv1.0.weight [24, 1, 3, 3] for [24, 3, 3, 3]",)
    assert report.unexpected == ("extra",)
    assert all(n.startswith("stage2.0.") for n in report.missing)
    assert report.loaded + len(report.missing) + len(report.mismatched) == report.total
    assert re.fullmatch(
        r"weights: 254 of 280 tensors from partial.pth, the head is new; 25 not in the file \(stage2.*, \.\.\.\); "
        r"1 not in the model \(extra\); 1 of another shape \(conv1.0.weight \[24, 1, 3, 3\] for \[24, 3, 3, 3\]\)",
        report.text(),
    )
    scratch = build("none").initial
    assert torch.equal(built.initial["conv1.0.weight"], scratch["conv1.0.weight"])


def test_a_head_of_the_right_size_in_the_file_is_not_taken(folder, source):
    torch.save({**source, "fc.weight": torch.full((5, 1024), 9.0), "fc.bias": torch.full((5,), 9.0)}, "five.pth")
    assert not (build("five.pth").initial["fc.weight"] == 9).any()


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("form", ["torch", "pickle", "state"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(folder, source, form):
    trap = Trap(str(folder / "trapped"))
    if form == "pickle":
        (folder / "evil.pth").write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap if form == "torch" else {**source, "extra": trap}, folder / "evil.pth")
    with pytest.raises(FixInput, match=r"only tensors are loaded.*convert to safetensors"):
        build("evil.pth")
    assert not (folder / "trapped").exists()
    with open(folder / "evil.pth", "rb") as file:
        torch.load(file, weights_only=False) if form != "pickle" else pickle.load(file)
    assert (folder / "trapped").exists(), "the trap is a real one"


def bad_files(folder, source):
    torch.save(source, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    save_file(source, folder / "whole.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:5000])
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("not a checkpoint at all\n" * 50)
    (folder / "text.safetensors").write_text("not a checkpoint at all\n" * 50)
    (folder / "number.pth").write_text("epoch 3\n")
    (folder / "page.pth").write_text("<!DOCTYPE html>\n<html></html>\n")
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "noise.pth").write_bytes(bytes(range(255, 0, -1)) * 9)
    torch.save({"epoch": 3, "lr": 0.1}, folder / "numbers.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({**source, "conv5.0.weight": source["conv5.0.weight"] * float("nan")}, folder / "nan.pth")
    torch.save({f"layers.{i}.w": torch.ones(9) for i in range(9)}, folder / "other.pth")
    torch.save({n: t for n, t in source.items() if n.startswith(("conv1", "stage2"))}, folder / "little.pth")


BAD = {
    "truncated.pth": "damaged or no weights file",
    "truncated.safetensors": "damaged or no weights file",
    "empty.pth": "is empty",
    "text.pth": "is a text file that begins 'not a checkpoint at all",
    "text.safetensors": "is a text file that begins 'not a checkpoint at all",
    "number.pth": "is a text file that begins 'epoch 3'",
    "page.pth": "is a web page, not the weights: download the file itself",
    "pointer.pth": "is a Git LFS pointer, not the weights: run git lfs pull",
    "noise.pth": r"is damaged or no weights file \(\w+",
    "numbers.pt": "holds no state dict: its entries are epoch, lr",
    "tensor.pt": "holds no state dict: it is a Tensor",
    "nothing.pt": "holds no state dict: it has no entries",
    "nan.pth": "'conv5.0.weight' has NaN or infinity",
    "other.pth": r"gives 0% of the parameters.*Expected conv1.0.weight.*the file has layers.0.w, layers.1.w, layers.2.w",
    "little.pth": r"gives \d+% of the parameters outside the head",
    "absent.pth": "there is no weights file",
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_serve_is_refused_with_its_reason(folder, source, name):
    bad_files(folder, source)
    with pytest.raises(FixInput, match=BAD[name]) as caught:
        build(name)
    assert name in str(caught.value)
    assert not re.search(r"\(\d+\)", str(caught.value))
    assert "\n" not in str(caught.value)


def test_names_of_published_files_are_those_that_torchvision_s_loaders_rewrite(folder):
    from torchvision.models import densenet121, vit_b_32

    state = densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", n): t for n, t in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, "dense.pth")
    assert build("dense.pth", "densenet121").matched.missing == ()
    state = vit_b_32().state_dict()
    swap = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = {re.sub(r"\.mlp\.[03]\.", lambda m: swap[m[0]], n): t for n, t in state.items()}
    assert old.keys() != state.keys()
    save_file(old, "vit.safetensors")
    built = models.build("vit_b_32", 5, "vit.safetensors", 0, {"size": 64})  # 4 positions from 49
    assert (built.matched.missing, built.matched.mismatched) == ((), ())
    assert built.initial["encoder.pos_embedding"].shape == (1, 5, 768)


def test_glyphnet_from_a_file_of_its_own(folder):
    other = models.build("glyphnet", 62, "none", 4)
    save_file(other.initial, "glyphs.safetensors")
    built = models.build("glyphnet", 10, "glyphs.safetensors", 0)
    assert torch.equal(built.initial["blocks.5.conv2.weight"], other.initial["blocks.5.conv2.weight"])
    assert built.initial["head.weight"].shape == (10, 64)
