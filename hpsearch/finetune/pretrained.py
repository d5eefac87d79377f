"""Weights from files and from torchvision: only tensors are ever read, and a partial match is told, never silent."""

from __future__ import annotations

import itertools
import pickle
import re
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune.names import check_file, is_file, is_own
from hpsearch.finetune.zoo import takes_pretrained, torchvision_weights

GLYPHNET_FILE = Path(__file__).parent / "weights" / "glyphnet.safetensors"
TIMEOUT = 30  # seconds without a byte, after which a download is given up
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params", "model_ema", "state_dict_ema", "ema")
PREFIXES = ("module.", "model.", "net.", "backbone.", "_orig_mod.", "encoder.")  # of wrappers: DataParallel, Lightning, torch.compile
# Names in the files that torchvision publishes, which its own loaders rewrite too: DenseNet's and Vision Transformer's.
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
COUNTER = ".num_batches_tracked"  # of BatchNorm; files from before PyTorch 0.4.1 have none
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError, SafetensorError)
CODE = ("GLOBAL", "Can only", "Trying to", "TorchScript")  # in torch's messages about pickles that are more than tensors


@dataclass(frozen=True)
class WeightsReport:
    """What of a model's tensors, its new head aside, came from `source`."""

    source: str  # a path, or "drawn from the seed", or "as the model comes", with why
    loaded: int = 0  # tensors taken
    total: int = 0  # tensors of the model outside the head (BatchNorm's counters of batches aside)
    missing: tuple[str, ...] = ()  # in the model, not in the source
    unexpected: tuple[str, ...] = ()  # in the source, not in the model
    mismatched: tuple[str, ...] = ()  # in both with different shapes

    def text(self) -> str:
        """One line."""
        if not self.total:
            return f"weights: {self.source}"
        parts = [f"weights: {self.loaded} of {self.total} tensors from {self.source}, the head is new"]
        kinds = (("not in the file", self.missing), ("not in the model", self.unexpected), ("of another shape", self.mismatched))
        parts += [f"{len(names)} {what} ({first(names)})" for what, names in kinds if names]
        return "; ".join(parts)


def without_file(name: str, weights: str) -> WeightsReport:
    """Where the weights of a model come from that none were loaded into."""
    if weights.lower() != "none":
        return WeightsReport("as the model comes")
    if is_own(name) and not takes_pretrained(name):
        return WeightsReport("as the model comes (it takes no `pretrained`, so hpsearch cannot tell whether it is untrained)")
    return WeightsReport("drawn from the seed")


def first(names: tuple[str, ...] | list[str], n: int = 3) -> str:
    """The first names of many."""
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def torchvision_file(name: str, weights: str, say: Callable[[str], None]) -> Path:
    """The file of torchvision's weights for a model, downloaded into torch.hub's folder unless it is there.

    Raises FixInput for an unknown name of weights, FixSetup when the file is not there and cannot be fetched.
    """
    entry = torchvision_weights(name, weights)
    path = Path(torch.hub.get_dir(), "checkpoints", entry.url.rsplit("/", 1)[-1])
    if path.is_file():
        return path
    say(f"Downloading {path.name} ({entry.meta['_file_size']:.0f} MB) to {path.parent}")
    digest = torch.hub.HASH_REGEX.search(path.name)
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(path), digest.group(1) if digest else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise FixSetup(
            f"the pretrained weights of {name} are not at {path} and could not be downloaded ({error}); "
            f"bring {entry.url} there from a machine with a network, or use weights: FILE, or weights: none"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return path


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a torch checkpoint, by name, unwrapped. FixInput when there is no such thing in it."""
    try:
        if path.stat().st_size == 0:
            raise FixInput(f"the weights file {path} is empty; fetch it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of before it refuses; the refusal is enough
            tensors_only = path.suffix.lower() == ".safetensors"
            content = load_file(path) if tensors_only else torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise refusal(path, error) from error
    state = unwrap(content)
    if not state:
        raise FixInput(f"the weights file {path} holds no state dict: {kinds(content)}; save model.state_dict(), or convert to safetensors")
    return state


def refusal(path: Path, error: Exception) -> FixInput:
    """Why a file could not be read as tensors."""
    message = str(error)
    if ("Unsupported operand" in message and is_pickle(path)) or any(sign in message for sign in CODE):
        named = re.search(r"GLOBAL ([\w.]+)", message)
        what = f" ({named.group(1)})" if named else ""
        return FixInput(
            f"the weights file {path} needs code to load{what}, and only tensors are loaded: "
            "a pickle can run anything; save model.state_dict() alone, or convert to safetensors"
        )
    if what := what_it_is(path):
        return FixInput(f"the weights file {path} is {what}")
    line = (message.splitlines() or [""])[0][:200]
    reason = f": {line}" if " " in line else ""  # a KeyError's number tells nothing
    return FixInput(f"the weights file {path} is damaged or no weights file ({type(error).__name__}{reason}); fetch or save it again")


def what_it_is(path: Path) -> str:
    """What a file is that should have been weights, and what to do; "" for bytes that say nothing."""
    with path.open("rb") as file:
        head = file.read(512)
    try:
        text = head.decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""
    if "\0" in text or not text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        return ""
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the weights: run git lfs pull"
    if text.lower().startswith(("<!doctype html", "<html")):
        return "a web page, not the weights: download the file itself"
    return f"a text file that begins '{' '.join(text.split())[:40]}', not weights: give a file that model.state_dict() was saved in"


def is_pickle(path: Path) -> bool:
    """Whether a file is a plain pickle, of a protocol that torch.save does not use."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, however many wrappers around it; empty when there is none."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    inner = (unwrap(content[key]) for key in WRAPPERS if key in content)
    return next((state for state in inner if len(state) > len(tensors)), tensors)


def kinds(content: Any) -> str:
    """What a file has instead of tensors."""
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    return f"its entries are {first([str(key) for key in content])}" if content else "it has no entries"


def load(net: nn.Module, head: str, path: Path) -> WeightsReport:
    """Copy into `net` the tensors of a file that match in name and shape, the head's aside.

    Raises FixInput when none match, when they are fewer than half of the parameters, or when one has NaN or infinity.
    """
    own = net.state_dict()
    target = {name: t for name, t in own.items() if not of_head(name, head) and not name.endswith(COUNTER)}
    state = fitting(positions(net, read(path)), target)
    taken = [name for name in target if name in state and state[name].shape == target[name].shape]
    report = WeightsReport(
        str(path),
        len(taken),
        len(target),
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(n for n in state if n not in target and not of_head(n, head) and not n.endswith(COUNTER)),
        mismatched=tuple(f"{n} {[*state[n].shape]} for {[*target[n].shape]}" for n in target if n in state and n not in taken),
    )
    enough(net, head, state, taken, report)
    for name in taken:
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise FixInput(f"the weights file {path} has NaN or infinity in '{name}': its training had diverged; use another")
    counters = [name for name in own if name.endswith(COUNTER) and name in state and not of_head(name, head)]
    with torch.no_grad():
        for name in (*taken, *counters):
            own[name].copy_(state[name])
    return report


def of_head(name: str, head: str) -> bool:
    """Whether a tensor belongs to the head."""
    return name.startswith(head + ".")


def enough(net: nn.Module, head: str, state: dict[str, Tensor], taken: list[str], report: WeightsReport) -> None:
    """Raise FixInput unless what is taken makes up half of the parameters outside the head."""
    sizes = {name: p.numel() for name, p in net.named_parameters() if not of_head(name, head)}
    share = sum(sizes.get(name, 0) for name in taken) / max(1, sum(sizes.values()))
    if sizes and (not taken or share < 0.5):
        detail = f"; of another shape: {first(report.mismatched, 2)}" if report.mismatched else ""
        raise FixInput(
            f"the weights file {report.source} does not fit this model: it gives {share:.0%} of the parameters outside the head. "
            f"Expected {first(list(sizes))}; the file has {first(list(state))}{detail}; use a file made for this model, or weights: none"
        )


def fitting(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the names as in `target`: renamed as torchvision does, and stripped of the prefixes that match most."""
    for pattern, new in RENAMED:
        state = {pattern.sub(new, name): tensor for name, tensor in state.items()}
    strips = [""] + ["".join(pair) for n in (1, 2) for pair in itertools.product(PREFIXES, repeat=n)]

    def matches(prefix: str) -> int:
        return sum(
            tensor.numel() for name, tensor in stripped(state, prefix).items() if name in target and target[name].shape == tensor.shape
        )

    return stripped(state, max(strips, key=matches))


def stripped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names without `prefix`; those that do not have it stay."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()} if prefix else state


def positions(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """For torchvision's Vision Transformers at another image size: position embeddings interpolated, as torchvision does."""
    name = "encoder.pos_embedding"
    wanted = getattr(getattr(net, "encoder", None), "pos_embedding", None)
    if name not in state or wanted is None or state[name].shape == wanted.shape or not type(net).__module__.startswith("torchvision"):
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    try:
        return dict(interpolate_embeddings(net.image_size, net.patch_size, dict(state)))
    except (ValueError, RuntimeError):
        return state  # not a square: told as a mismatch


def weights_file(name: str, weights: str, say: Callable[[str], None]) -> Path:
    """The file that a model's `weights` are in: the user's, the embedded one, or torchvision's."""
    if is_file(weights):
        return check_file(weights)
    if name == "glyphnet":
        if not GLYPHNET_FILE.is_file():
            raise FixSetup(f"the pretrained weights of 'glyphnet' are missing: {GLYPHNET_FILE}; reinstall hpsearch")
        return GLYPHNET_FILE
    return torchvision_file(name, weights, say)
