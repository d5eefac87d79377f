"""Weights from files and from torchvision: only tensors are ever read, and a partial match is told, never silent."""

from __future__ import annotations

import pickle
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune.checkpoints import COUNTER, ENOUGH, Entry, Part, entries_of, misfit, open_file, others_of, parts_of, shape, unusable
from hpsearch.finetune.cuts import name_is
from hpsearch.finetune.names import check_file, is_file, is_own
from hpsearch.finetune.printable import escaped
from hpsearch.finetune.zoo import takes_pretrained, torchvision_weights

GLYPHNET_FILE = Path(__file__).parent / "weights" / "glyphnet.safetensors"
TIMEOUT = 30  # seconds without a byte, after which a download is given up
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError, SafetensorError)
CODE = ("GLOBAL", "Can only", "Trying to")  # in torch's messages about pickles that are more than tensors


@dataclass(frozen=True)
class WeightsReport:
    """What of a model's tensors, its new head aside, came from `source`."""

    source: str  # a path, or "drawn from the seed", or "as the model comes", with why
    loaded: int = 0  # tensors taken
    total: int = 0  # tensors of the model outside the head (BatchNorm's counters of batches aside)
    missing: tuple[str, ...] = ()  # in the model, not in the source
    unexpected: tuple[str, ...] = ()  # in the source, not in the model
    mismatched: tuple[str, ...] = ()  # in both with different shapes
    part: str = ""  # which of the parts that fit was taken, where there are several
    others: tuple[str, ...] = ()  # the other parts
    note: str = ""  # what else is to be known of the model

    def text(self) -> str:
        """One line."""
        end = [self.note] if self.note else []
        if not self.total:
            return "; ".join([f"weights: {self.source}", *end])
        parts = [f"weights: {self.loaded} of {self.total} tensors from {self.source}, the head is new"]
        kinds = (("not in the file", self.missing), ("not in the model", self.unexpected), ("of another shape", self.mismatched))
        parts += [f"{len(names)} {what} ({first(names)})" for what, names in kinds if names]
        if self.others:
            file = self.source.partition("#")[0]
            takes = "takes the other" if len(self.others) == 1 else f"takes another, and so {first(self.others[1:])}"
            taken = "what is at its top" if self.part == "." else self.part
            parts.append(f"more than one part of the file fits, and {taken} was taken: --weights {file}#{self.others[0]} {takes}")
        return "; ".join([*parts, *end])


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


def read(path: Path) -> list[Entry]:
    """The tensors of a .safetensors file or a torch checkpoint. FixInput when there are none in it."""
    try:
        if path.stat().st_size == 0:
            raise FixInput(f"the weights file {path} is empty; fetch it again")
        content = open_file(path)
    except UNREADABLE as error:
        raise refusal(path, error) from error
    entries = entries_of(content)
    if not entries:
        raise FixInput(f"the weights file {path} holds no state dict: {kinds(content)}; save model.state_dict(), or convert to safetensors")
    return entries


def refusal(path: Path, error: Exception) -> FixInput:
    """Why a file could not be read as tensors."""
    message = str(error)
    if "TorchScript" in message:
        return FixInput(
            f"the weights file {path} is a TorchScript archive, which needs code to load, and only tensors are loaded: "
            "save the state_dict() of the model that it was made from, or convert that to safetensors"
        )
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


def kinds(content: Any) -> str:
    """What a file has instead of tensors."""
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    return f"its entries are {first([escaped(str(key)) for key in content])}" if content else "it has no entries"


def load(net: nn.Module, head: str, path: Path, within: str = "") -> WeightsReport:
    """Copy into `net` the tensors of a file that match in name and shape, the head's aside; only those `within` an address, if given.

    Raises FixInput when nothing is at that address, when no tensor matches, when those that do are fewer than half of the parameters, or
    when one is no usable weight.
    """
    own = net.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if not of_head(name, head)}
    target = {name: tensor for name, tensor in wanted.items() if not name.endswith(COUNTER)}
    every = read(path)
    entries = [entry for entry in every if within in ("", ".") or f"{entry.address}.".startswith(f"{within}.")]
    parts = [part for part in parts_of(entries, wanted) if within != "." or not part.prefix]
    if not parts and within:
        elsewhere = parts_of(every, wanted)
        apart = [*elsewhere[:1], *others_of(elsewhere[0], elsewhere, 1)] if elsewhere else []
        known = [place(part) for part in apart] or [entry.address for entry in every]
        raise FixInput(
            f"nothing of this model is at '{escaped(within)}' in the weights file {path}; it has {first(list(map(escaped, known)))}"
        )
    chosen = parts[0] if parts else Part("")
    for name, entry in chosen.found.items():
        if not name.endswith(COUNTER) and (reason := unusable(entry.tensor, own[name])):
            raise FixInput(f"the weights file {path} cannot be used: '{name}' {reason}")
    state = positions(net, {name: entry.tensor for name, entry in chosen.found.items()})
    taken = [name for name in target if name in state and shape(state[name]) == shape(target[name])]
    others = others_of(chosen, parts, ENOUGH * sum(tensor.numel() for tensor in target.values()))
    report = WeightsReport(
        f"{path}#{within}" if within else str(path),
        len(taken),
        len(target),
        missing=tuple(name for name in target if name not in state),
        unexpected=unexpected(entries, chosen, others, head),
        mismatched=tuple(f"{n} {[*(shape(state[n]) or ())]} for {[*target[n].shape]}" for n in target if n in state and n not in taken),
        part=escaped(place(chosen)) if others else "",
        others=tuple(escaped(place(other)) for other in others),
    )
    enough(net, head, entries, taken, report)
    for name in taken:
        if reason := misfit(state[name], own[name]):
            raise FixInput(f"the weights file {path} cannot be used: '{name}' {reason}")
    counters = [n for n in state if n.endswith(COUNTER) and not unusable(state[n], own[n]) and not misfit(state[n], own[n])]
    with torch.no_grad():
        for name in (*taken, *counters):
            own[name].copy_(state[name])
    return report


def place(part: Part) -> str:
    """Where a part is in its file."""
    return part.prefix.rstrip(".") or "."


def unexpected(entries: list[Entry], chosen: Part, others: list[Part], head: str) -> tuple[str, ...]:
    """Names of tensors beside those of the chosen part that neither it nor another part has, the head's and counters aside."""
    taken = chosen.addresses()
    holders = {entry.holder for entry in chosen.found.values()}
    elsewhere = {address for other in others for address in other.addresses()}
    found = []
    for entry in entries:
        name = entry.address.removeprefix(chosen.prefix) if entry.address.startswith(chosen.prefix) else entry.name
        apart = entry.address in elsewhere or any(other.prefix and entry.address.startswith(other.prefix) for other in others)
        if entry.holder in holders and entry.address not in taken and not apart:
            found += [] if of_head(chosen.within + name, head) or name.endswith(COUNTER) else [escaped(name)]
    return tuple(found)


def of_head(name: str, head: str) -> bool:
    """Whether a tensor belongs to the head, which may be a tensor itself."""
    return name_is(name, head)


def enough(net: nn.Module, head: str, entries: list[Entry], taken: list[str], report: WeightsReport) -> None:
    """Raise FixInput unless what is taken makes up half of the parameters outside the head."""
    sizes = {name: p.numel() for name, p in net.named_parameters() if not of_head(name, head)}
    share = sum(sizes.get(name, 0) for name in taken) / max(1, sum(sizes.values()))
    if sizes and (not taken or share < ENOUGH):
        detail = f"; of another shape: {first(report.mismatched, 2)}" if report.mismatched else ""
        raise FixInput(
            f"the weights file {report.source} does not fit this model: it gives {share:.0%} of the parameters outside the head. "
            f"Expected {first(list(sizes))}; the file has {first([escaped(entry.address) for entry in entries])}{detail}; "
            "use a file made for this model, or weights: none"
        )


def positions(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """For torchvision's Vision Transformers at another image size: position embeddings interpolated, as torchvision does."""
    for where, module in net.named_modules():
        wanted = getattr(getattr(module, "encoder", None), "pos_embedding", None)
        name = f"{where}.encoder.pos_embedding".lstrip(".")
        if name not in state or wanted is None or state[name].shape == wanted.shape or not is_transformer(module):
            continue
        from torchvision.models.vision_transformer import interpolate_embeddings

        inner = {"encoder.pos_embedding": state[name].float()}
        try:
            new = interpolate_embeddings(module.image_size, module.patch_size, inner)
        except (ValueError, RuntimeError):
            continue  # not a square: told as a mismatch
        state = {**state, name: new["encoder.pos_embedding"]}
    return state


def is_transformer(module: nn.Module) -> bool:
    """Whether a module is torchvision's Vision Transformer, or made from it."""
    return any(base.__module__ == "torchvision.models.vision_transformer" for base in type(module).__mro__)


def weights_file(name: str, weights: str, say: Callable[[str], None]) -> Path:
    """The file that a model's `weights` are in: the user's, the embedded one, or torchvision's."""
    if is_file(weights):
        return check_file(weights)
    if name == "glyphnet":
        if not GLYPHNET_FILE.is_file():
            raise FixSetup(f"the pretrained weights of 'glyphnet' are missing: {GLYPHNET_FILE}; reinstall hpsearch")
        return GLYPHNET_FILE
    return torchvision_file(name, weights, say)
