"""The data of a study: where its pixels lie, and which image belongs to which split."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune.images import Preprocessing

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Some rows of the images, with labels: `images` (all N, C, H, W) uint8 may be a file mapped into memory."""

    images: Tensor
    rows: Tensor  # (n,) int64
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """(m, C, H, W) uint8 of the split's chosen positions."""
        return self.images[self.rows[chosen]]


@dataclass(frozen=True)
class Data:
    """Three splits of one labelled set."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str  # of pixels, labels and splits


def from_index(path: Path) -> Data:
    """The data that `prepare` left an index of: the images stay in their file, shared by all workers through the page cache."""
    with np.load(path, allow_pickle=False) as index:
        images = mapped(Path(str(index["images"])), tuple(index["shape"]))
        parts = {name: Split(images, torch.from_numpy(index[f"{name}_rows"]), torch.from_numpy(index[f"{name}_labels"])) for name in SPLITS}
        return Data(tuple(map(str, index["classes"])), **parts, digest=str(index["digest"]))


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Images in a file as a tensor that must not be written to.

    The file may be larger than memory; a mapping with private writes would be refused then.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=shape))


def save_index(path: Path, images: Path, shape: Sequence[int], data: Data) -> None:
    """Write what `from_index` reads."""
    parts = {f"{name}_{what}": getattr(getattr(data, name), what).numpy() for name in SPLITS for what in ("rows", "labels")}
    np.savez(
        path, images=np.array(str(images)), shape=np.array(shape), classes=np.array(data.classes), digest=np.array(data.digest), **parts
    )


def digits(size: int) -> tuple[Tensor, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits (Alpaydin and Kaynak, 1998): (1797, 1, size, size) uint8 and labels.

    The originals are 8x8 with 17 gray levels; they are enlarged bilinearly. The file is read from the installed
    package without importing it: `sklearn.datasets` costs a worker 1 to 5 s of start, for 57 KB.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise FixSetup("the embedded digits come with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    small = torch.from_numpy(pixels.reshape(-1, 1, 8, 8)).float()
    large = F.interpolate(small * (255 / 16), size=(size, size), mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8), labels.astype(np.int64)


# ---------------------------------------------------------------- splits


def divide(
    labels: np.ndarray,
    classes: Sequence[str],
    split: Mapping[str, Any],
    seed: int,
    given: Sequence[str | None] | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Positions (sorted) of train, val and test.

    `given` splits stay as they are. What is missing is cut from the training images, class by class, at random by `seed`: first
    `train_per_class` for training where asked for, then shares (or numbers, in proportion to the classes) for validation and
    test. Images of one group (copies of each other) stay together. Raises FixInput naming classes too small for that.
    """
    given = given if given is not None else [None] * len(labels)
    parts = {name: [i for i, s in enumerate(given) if s == name] for name in SPLITS}
    wanted = {"val": split["val"], "test": split["test"]}
    cut = [name for name in ("val", "test") if not parts[name] and wanted[name] != 0]
    pool = np.array(sorted(parts["train"] + [i for i, s in enumerate(given) if s is None]), dtype=np.int64)
    if not cut:
        parts["train"] = list(pool)
        return {name: np.array(sorted(part), dtype=np.int64) for name, part in parts.items()}
    parts["train"] = []
    groups = groups if groups is not None else np.arange(len(labels))
    taken: dict[int, str] = {}  # group -> split
    rng = np.random.default_rng(seed)
    for label in range(len(classes)):
        members = rng.permutation(pool[labels[pool] == label])
        quota = quotas(classes[label], len(members), len(pool), split, cut)
        copies: dict[int, list[int]] = {}  # group -> its images, in the order drawn
        for member in members.tolist():
            copies.setdefault(int(groups[member]), []).append(member)
        for group, images in copies.items():
            part = taken.get(group) or next((name for name, n in quota.items() if n > 0), None)
            if part is not None:  # else: beyond what train_per_class and the shares ask for
                taken[group] = part
                quota[part] = quota.get(part, 0) - len(images)
                parts[part] += images
    return {name: np.array(sorted(part), dtype=np.int64) for name, part in parts.items()}


def quotas(name: str, members: int, pool: int, split: Mapping[str, Any], cut: Sequence[str]) -> dict[str, int]:
    """How many images of one class go where, in the order in which they are dealt; FixInput when the class is too small."""

    def wanted(part: str) -> int:
        value = float(split[part])
        share = value if value < 1 else value / pool
        return max(1, round(share * members))

    per_class = split["train_per_class"]
    numbers = {part: wanted(part) for part in cut if split[part] is not None}
    rest = "test" if per_class and "test" in cut and split["test"] is None else "train"
    needed = sum(numbers.values()) + (per_class or 1) + (rest == "test")
    if members < needed:
        told = ", ".join(f"{n} {word}" for n, word in ((per_class or 1, "training"), *((n, SPLIT_WORDS[p]) for p, n in numbers.items())))
        raise FixInput(
            f"class {name} has {members} images: too few for {told}{' and 1 test' if rest == 'test' else ''} image(s); "
            "add images, remove the class, or lower split.val, split.test or split.train_per_class"
        )
    dealt = {"train": per_class} if per_class else {}
    return {**dealt, **numbers, **({rest: members} if rest not in dealt else {})}


SPLIT_WORDS = {"val": "validation", "test": "test"}


def data_digest(pixels: str, labels: np.ndarray, parts: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """BLAKE2b over a digest of the pixels, labels, classes and splits, in hexadecimal (16 characters)."""
    h = hashlib.blake2b("\n".join((pixels, *classes)).encode("utf-8", "surrogateescape"), digest_size=8)
    for array in (labels, *(parts[name] for name in SPLITS)):
        h.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return h.hexdigest()


def assemble(images: Tensor, labels: np.ndarray, classes: Sequence[str], parts: Mapping[str, np.ndarray], pixels: str) -> Data:
    """Splits over one store of images; `pixels` is a digest of its content."""
    splits = {name: Split(images, torch.from_numpy(parts[name]), torch.from_numpy(labels[parts[name]])) for name in SPLITS}
    return Data(tuple(classes), **splits, digest=data_digest(pixels, labels, parts, classes))


def embedded(pre: Preprocessing, split: Mapping[str, Any], seed: int) -> Data:
    """The embedded digits at the size and number of channels that a model wants, divided."""
    images, labels = digits(pre.size)
    images = images.expand(-1, pre.channels, -1, -1)
    classes = tuple("0123456789")
    parts = divide(labels, classes, split, seed)
    return assemble(images, labels, classes, parts, hashlib.blake2b(images.numpy().tobytes(), digest_size=8).hexdigest())


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, C, H, W) to float32 with the mean and standard deviation that the pretrained weights expect, per channel."""
    shape = (1, len(mean), 1, 1)
    return (
        images.float()
        .div_(255)
        .sub_(images.new_tensor(mean, dtype=torch.float32).view(shape))
        .div_(images.new_tensor(std, dtype=torch.float32).view(shape))
    )
