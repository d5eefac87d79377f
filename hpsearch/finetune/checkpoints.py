"""What a file of weights holds: opened without running anything in it, its tensors by address, and which of them are a model's.

An *address* is the keys that lead to a tensor, joined by dots: "state_dict.module.layer1.0.conv1.weight". A *part* is all tensors whose
addresses are one prefix and then the model's own names. So wrappers need not be known by name: whatever stands before is the prefix.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# Names in the files that torchvision publishes, which its own loaders rewrite too: DenseNet's and Vision Transformer's.
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
AVERAGE = re.compile(r"(?:^|[._])(?:ema|momentum|teacher|target|swa|shadow|avg|averaged?|k)(?=[._])")  # settles ties, nothing else
COUNTER = ".num_batches_tracked"  # of BatchNorm; files from before PyTorch 0.4.1 have none
ENOUGH = 0.5  # of a model's parameters outside the head: what gives less is another model's
DEEPEST = 100  # mappings inside one another
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Harmless:
    """Stands for a value that is no tensor: takes what a pickle gives it, and does nothing."""

    def __new__(cls, *values: Any) -> Harmless:
        """Forget the arguments."""
        del values
        return super().__new__(cls)

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def empty_mapping(*values: Any) -> dict[Any, Any]:
    """Stands for a mapping with a default: the entries follow in the pickle."""
    del values
    return {}


def empty_list(*values: Any) -> list[Any]:
    """Stands for a queue: the items follow in the pickle."""
    del values
    return []


# What people save beside tensors. None of these is imported or called: each name is read as a stand-in from above.
MODULES = {
    "argparse": ("Namespace",),
    "builtins": ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": ("dtype", "ndarray", *sorted({kind.__name__ for kind in np.sctypeDict.values()})),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "types": ("SimpleNamespace",),
    "uuid": ("UUID",),
}
ALLOWED: list[Any] = [
    *((Harmless, f"{module}.{name}") for module, names in MODULES.items() for name in names),
    (empty_mapping, "collections.defaultdict"),
    (empty_list, "collections.deque"),
]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file."""

    address: str
    name: str  # its key in the mapping that holds it
    holder: int  # which mapping that is
    tensor: Tensor


@dataclass
class Part:
    """The tensors of a file at one prefix, by their names in the model."""

    prefix: str  # before the model's names in the addresses: "", "state_dict.module."
    within: str = ""  # before the file's names in the model's: "backbone." where the file is of that alone
    found: dict[str, Entry] = field(default_factory=dict)
    size: int = 0  # elements of those that have the model's shape

    def addresses(self) -> set[str]:
        """Where its tensors are in the file."""
        return {entry.address for entry in self.found.values()}


def open_file(path: Path) -> Any:
    """The content of a .safetensors file or a torch checkpoint: tensors are read, harmless values stood for, all else raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of before it refuses; the refusal is enough
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)


def entries_of(content: Any) -> list[Entry]:
    """Every tensor in the mappings and lists of a file, in their order; each mapping counts where it comes first."""
    return list(walk(content, "", 0, set()))


def walk(value: Any, address: str, depth: int, seen: set[int]) -> Iterator[Entry]:
    """The tensors below `value`."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if id(value) in seen or depth > DEEPEST:
        return
    seen.add(id(value))
    for key, inner in items:
        if not isinstance(key, str | int):
            continue
        there = f"{address}.{key}" if address else str(key)
        if isinstance(inner, Tensor):
            yield Entry(there, str(key), id(value), inner)
        elif isinstance(inner, Mapping | list | tuple):
            yield from walk(inner, there, depth + 1, seen)


def parts_of(entries: Iterable[Entry], target: Mapping[str, Tensor]) -> list[Part]:
    """The parts of a file that have names of the model, those that fit best first.

    Among those that fit alike, one whose prefix says that it is an average of the other (EMA, teacher, momentum encoder) comes later, and
    else what is later in the file does.
    """
    parts: dict[tuple[str, str], Part] = {}
    for within in bodies(target):
        names = {name.removeprefix(within): name for name in target if name.startswith(within)}
        deepest = max(name.count(".") for name in names) + 1
        for entry in entries:
            for address in dict.fromkeys((entry.address, renamed(entry.address))):
                for start in starts(address, deepest):
                    if (name := names.get(address[start:])) is not None:
                        part = parts.setdefault((within, address[:start]), Part(address[:start], within))
                        part.found.setdefault(name, entry)
    for part in parts.values():
        fitting = (name for name, entry in part.found.items() if shape(entry.tensor) == shape(target[name]))
        part.size = sum(target[name].numel() for name in fitting if not name.endswith(COUNTER))
    return sorted(parts.values(), key=lambda part: (-part.size, AVERAGE.search(part.prefix) is not None))


def shape(tensor: Tensor) -> tuple[int, ...] | None:
    """The shape of a tensor, where it has one."""
    return None if tensor.is_nested else tuple(tensor.shape)


def starts(address: str, most: int) -> Iterator[int]:
    """Where the last 1, 2, ... components of an address begin, at most `most` of them."""
    end = len(address)
    for _ in range(most):
        end = address.rfind(".", 0, end)
        yield end + 1
        if end < 0:
            return


def renamed(address: str) -> str:
    """An address as today's torchvision would have it."""
    for pattern, new in RENAMED:
        address = pattern.sub(new, address)
    return address


def bodies(target: Mapping[str, Tensor]) -> list[str]:
    """Prefixes in a model's names under which half of it lies, from "" on: a file may be of that module alone."""
    total = sum(tensor.numel() for tensor in target.values())
    found, prefix = [""], ""
    while target:
        sizes: dict[str, int] = {}
        for name, tensor in target.items():
            if name.startswith(prefix) and "." in name[len(prefix) :]:
                child = f"{prefix}{name[len(prefix) :].partition('.')[0]}."
                sizes[child] = sizes.get(child, 0) + tensor.numel()
        prefix = max(sizes, key=lambda child: sizes[child], default="")
        if not prefix or sizes[prefix] < ENOUGH * total:
            break
        found.append(prefix)
    return found


def others_of(chosen: Part, parts: Iterable[Part], least: float) -> list[Part]:
    """Parts besides the chosen one with at least `least` elements, none of which shares a tensor with it or with one before."""
    taken, found = chosen.addresses(), []
    for part in parts:
        if part.size >= least and not taken & (here := part.addresses()):
            taken |= here
            found.append(part)
    return found


def unusable(tensor: Tensor, own: Tensor) -> str:
    """Why a tensor of a file cannot become the model's `own`, with what to do, by its kind alone; "" when it can."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").replace("_", " ")
        return f"is no ordinary tensor (its layout is {layout}); save it with .to_dense()"
    if tensor.device.type != "cpu":
        return f"has a shape and no values (device {tensor.device}); save the model after its weights have been loaded"
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        return f"is quantised ({kind}); save the weights from before that, or .dequantize() them"
    if tensor.is_complex() and not own.is_complex():
        return f"has complex numbers ({kind}), and the model's are real; use a file made for this model"
    if not tensor.is_complex() and tensor.dtype not in FLOATS and (own.is_floating_point() or own.is_complex()):
        least = "numbers of a few bits" if tensor.is_floating_point() else "whole numbers"
        return f"has {least} ({kind}) in the place of weights, as quantised models do; save the weights from before that, as float32"
    if tensor.dtype not in (*FLOATS, *WHOLE) and not tensor.is_complex():
        return f"has numbers of a kind that the model has not ({kind}, and its own are {own.dtype}); use a file made for this model"
    return ""


def misfit(tensor: Tensor, own: Tensor) -> str:
    """Why the values of a tensor, of a kind that can be used, cannot be the model's `own`; "" when they can."""
    new = tensor.to(own.dtype)
    if not (own.is_floating_point() or own.is_complex()):
        same = bool((new.to(tensor.dtype) == tensor).all())
        return "" if same else f"has values that are not {str(own.dtype).removeprefix('torch.')}; use a file made for this model"
    if bool((new.isfinite() | (new == own)).all()):  # a mask of the model's own may hold infinity
        return ""
    if bool(tensor.isfinite().all()):
        return f"has values beyond {str(own.dtype).removeprefix('torch.')}, which the model computes in; scale or clip them"
    return "has NaN or infinity: its training had diverged; use another file"
