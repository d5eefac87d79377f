"""The data of a study: where its pixels lie, and which image belongs to which split."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
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
from hpsearch.seeds import seed_for

SPLITS = ("train", "val", "test")
DIGITS = tuple("0123456789")


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
    groups: Tensor | None = None  # (n,) of the training, then the validation images: equal for copies of one another

    def splits(self) -> dict[str, Split]:
        """By name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def from_index(path: Path) -> Data:
    """The data that `prepare` left an index of: the images stay in their file, shared by all workers through the page cache."""
    with np.load(path, allow_pickle=False) as index:
        images = mapped(Path(str(index["images"])), tuple(index["shape"]))
        parts = {name: Split(images, torch.from_numpy(index[f"{name}_rows"]), torch.from_numpy(index[f"{name}_labels"])) for name in SPLITS}
        groups = torch.from_numpy(index["groups"]) if "groups" in index else None
        return Data(tuple(map(str, index["classes"])), **parts, digest=str(index["digest"]), groups=groups)


def index_name(model: str | None, models: int) -> str:
    """The file in a study's folder that `from_index` reads, for one of its models."""
    return "split.npz" if model is None or models < 2 else f"split-{model.replace(':', '-')}.npz"


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Images in a file as a tensor that must not be written to.

    The file may be larger than memory; a mapping with private writes would be refused then.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=shape))


def save_index(
    path: Path,
    images: Path,
    shape: Sequence[int],
    classes: Sequence[str],
    rows: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    digest: str,
    groups: np.ndarray | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write what `from_index` reads: rows of the file `images` (of `shape`) and labels, by split; whole or not at all.

    `names` of images, of some splits, are for people: `names_in` reads them.
    """
    aside = path.with_suffix(f".{os.getpid()}.npz")
    arrays: dict[str, Any] = {f"{name}_rows": rows[name] for name in SPLITS} | {f"{name}_labels": labels[name] for name in SPLITS}
    arrays |= {"shape": np.array(shape), "classes": np.array(classes), "digest": np.array(digest)}
    arrays |= {} if groups is None else {"groups": groups}
    # As bytes: NumPy's own strings would take four times the longest name for each.
    arrays |= {
        f"{part}_names": np.frombuffer("\0".join(n).encode("utf-8", "surrogateescape"), np.uint8) for part, n in (names or {}).items()
    }
    np.savez(aside, images=np.array(str(images)), **arrays)
    os.replace(aside, path)


def moved(path: Path, images: Path) -> None:
    """Let an index say that its images are in another file."""
    with np.load(path, allow_pickle=False) as index:
        arrays = dict(index) | {"images": np.array(str(images))}
    aside = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(aside, **arrays)
    os.replace(aside, path)


def images_of(path: Path) -> str:
    """The file that an index says its images are in."""
    with np.load(path, allow_pickle=False) as index:
        return str(index["images"])


def names_in(path: Path, split: str) -> list[str]:
    """What the images of a split are called, in its order; empty where the index does not say."""
    with np.load(path, allow_pickle=False) as index:
        key = f"{split}_names"
        return bytes(index[key]).decode("utf-8", "surrogateescape").split("\0") if key in index and index[key].size else []


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
    test. Images of one group (copies of each other) stay together, and a group larger than what a split lacks is trained on.
    Raises FixInput naming classes too small for that.
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
    sizes = np.bincount(labels[pool], minlength=len(classes))
    dealt = [quotas(int(n), len(pool), split, cut) for n in sizes]
    refuse_small([(classes[i], int(sizes[i]), quota) for i, quota in enumerate(dealt) if sum(quota.values()) > sizes[i]])
    for label, quota in enumerate(dealt):
        members = rng.permutation(pool[labels[pool] == label])
        copies: dict[int, list[int]] = {}  # group -> its images, in the order drawn
        for member in members.tolist():
            copies.setdefault(int(groups[member]), []).append(member)
        for group, images in copies.items():
            part = taken.get(group) or next((name for name, n in quota.items() if n >= len(images)), None)
            if part is not None:  # else: beyond what train_per_class and the shares ask for
                taken[group] = part
                quota[part] = quota.get(part, 0) - len(images)
                parts[part] += images
    return {name: np.array(sorted(part), dtype=np.int64) for name, part in parts.items()}


def quotas(members: int, pool: int, split: Mapping[str, Any], cut: Sequence[str]) -> dict[str, int]:
    """How many images of one class go where, in the order in which they are dealt; more in all than there are: too few.

    Beside `train_per_class`, a split without a number takes the rest; without it, training does.
    """

    def wanted(part: str) -> int:
        value = float(split[part])
        share = value if value < 1 else value / pool
        return max(1, round(share * members))

    per_class = split["train_per_class"]
    asked = {"train": per_class or 1, **{part: wanted(part) for part in cut if split[part] is not None}}
    rest = "train" if not per_class else "test" if "test" in cut and split["test"] is None else None
    if rest is not None:
        asked[rest] = max(1, members - sum(n for part, n in asked.items() if part != rest))
    order = ("train", "val", "test") if per_class else ("val", "test", "train")
    return {part: asked[part] for part in order if part in asked}


def refuse_small(classes: Sequence[tuple[str, int, Mapping[str, int]]]) -> None:
    """Raise FixInput for classes (name, images, what each split asks for) that have fewer images than are asked for."""
    if not classes:
        return
    name, members, quota = classes[0]
    told = ", ".join(f"{n} {SPLIT_WORDS[part]}" for part, n in quota.items())
    more = f" (and {len(classes) - 1} more classes: {', '.join(c for c, *_ in classes[1:6])})" if len(classes) > 1 else ""
    raise FixInput(
        f"class {name} has {members} images: too few for {told} images{more}; "
        "add images, remove the class, or lower split.val, split.test or split.train_per_class"
    )


SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}


# ---------------------------------------------------------------- folds


def fold(data: Data, i: int, n: int, seed: int) -> Data:
    """The same images with fold i (from 0) of n for validation and the other folds for training; the test split stays as it is."""
    rows, labels = (torch.cat([getattr(data.train, key), getattr(data.val, key)]) for key in ("rows", "labels"))
    held = torch.from_numpy(dealt_folds(labels.numpy(), data.classes, n, seed, None if data.groups is None else data.groups.numpy()) == i)
    train, val = (Split(data.train.images, rows[chosen], labels[chosen]) for chosen in (~held, held))
    digest = hashlib.blake2b(f"{data.digest} fold {i} of {n}".encode(), digest_size=8).hexdigest()
    return Data(data.classes, train, val, data.test, digest)


def dealt_folds(labels: np.ndarray, classes: Sequence[str], n: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """(N,) the fold of each image: at random by `seed`, every class spread evenly, images of one group together.

    A group goes where its class is rarest so far, the largest ones first, class by class; among equals, to the smallest fold.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    check_folds(labels, classes, n, groups)
    members: dict[int, list[int]] = {}
    for image in np.random.default_rng(seed_for(seed, 0, "folds")).permutation(len(labels)).tolist():
        members.setdefault(int(groups[image]), []).append(image)
    folds, counts = np.empty(len(labels), dtype=np.int64), np.zeros((len(classes), n), dtype=np.int64)
    for images in sorted(members.values(), key=lambda images: (-len(images), labels[images[0]])):
        here = min(range(n), key=lambda j: (counts[labels[images[0]], j], counts[:, j].sum()))
        folds[images] = here
        counts[:, here] += np.bincount(labels[images], minlength=len(classes))
    return folds


def check_folds(labels: np.ndarray, classes: Sequence[str], n: int, groups: np.ndarray) -> None:
    """FixInput when a class has fewer images, copies counted once, than there are to be folds."""
    sizes = {int(label): len(np.unique(groups[labels == label])) for label in np.unique(labels)}
    label = min(sizes, key=lambda label: sizes[label])
    if sizes[label] < n:
        raise FixInput(
            f"{n} folds need {n} different training and validation images of each class, and class {classes[label]} has {sizes[label]}: "
            "ask for fewer folds, add images, or confirm on fresh seeds with --confirm"
        )


# ---------------------------------------------------------------- digests and the embedded digits


def data_digest(pixels: str, labels: np.ndarray, parts: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """BLAKE2b over a digest of the pixels, labels, classes and splits, in hexadecimal (16 characters)."""
    h = hashlib.blake2b("\n".join((pixels, *classes)).encode("utf-8", "surrogateescape"), digest_size=8)
    for array in (labels, *(parts[name] for name in SPLITS)):
        h.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return h.hexdigest()


def assemble(images: Tensor, labels: np.ndarray, classes: Sequence[str], parts: Mapping[str, np.ndarray], pixels: str) -> Data:
    """Splits over one store of images; `pixels` is a digest of its content."""
    splits = {name: Split(images, torch.from_numpy(parts[name]), torch.from_numpy(labels[parts[name]])) for name in SPLITS}
    return Data(tuple(classes), splits["train"], splits["val"], splits["test"], data_digest(pixels, labels, parts, classes))


def embedded_images(pre: Preprocessing) -> tuple[Tensor, np.ndarray, str]:
    """The embedded digits at the size and number of channels that a model wants, labels, and a digest of the pixels."""
    images, labels = digits(pre.size)
    content = hashlib.blake2b(images.numpy().tobytes(), digest_size=8).hexdigest()
    return images.expand(-1, pre.channels, -1, -1), labels, content


def embedded(pre: Preprocessing, split: Mapping[str, Any], seed: int) -> Data:
    """The embedded digits, divided; there are no copies among them."""
    images, labels, content = embedded_images(pre)
    parts = divide(labels, DIGITS, split, seed)
    return assemble(images, labels, DIGITS, parts, content)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, C, H, W) to float32 with the mean and standard deviation that the pretrained weights expect, per channel."""
    shape = (1, len(mean), 1, 1)
    return (
        images.float()
        .div_(255)
        .sub_(images.new_tensor(mean, dtype=torch.float32).view(shape))
        .div_(images.new_tensor(std, dtype=torch.float32).view(shape))
    )
