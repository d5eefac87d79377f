"""The data of a study as resident tensors: decoded once, split once, shared by every trial."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.errors import FixInput, FixSetup


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """Three stratified splits of one labelled set."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str  # of pixels, labels and splits


def load(name: str, size: int, train_per_class: int, val_images: int, seed: int) -> Data:
    """The data set called `name` at `size` x `size` pixels, stratified with `seed`.

    Raises FixInput when the classes are too small for the split asked for.
    """
    assert name == "digits", "names.check_names comes first"
    images, labels = digits(size)
    indices = stratify(labels, train_per_class, val_images, seed)
    train, val, test = (Split(images[torch.from_numpy(i)], torch.from_numpy(labels[i])) for i in indices)
    return Data(tuple("0123456789"), train, val, test, digest(train, val, test))


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


def stratify(labels: np.ndarray, train_per_class: int, val_images: int, seed: int) -> tuple[np.ndarray, ...]:
    """Indices of train, validation and test: `train_per_class` of each class, `val_images` in proportion, the rest.

    Every class keeps at least one image in each split; FixInput names the first class too small for that.
    """
    rng = np.random.default_rng(seed)
    train, val, test = [], [], []
    share = val_images / len(labels)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        n_val = max(1, round(share * len(members)))
        if len(members) < train_per_class + n_val + 1:
            raise FixInput(
                f"class {label} has {len(members)} images: too few for {train_per_class} training, {n_val} validation "
                "and 1 test image; lower data.train_per_class or data.val_images"
            )
        train.append(members[:train_per_class])
        val.append(members[train_per_class : train_per_class + n_val])
        test.append(members[train_per_class + n_val :])
    return tuple(np.sort(np.concatenate(part)) for part in (train, val, test))


def digest(*splits: Split) -> str:
    """BLAKE2b over pixels and labels of the splits, in hexadecimal (16 characters)."""
    h = hashlib.blake2b(digest_size=8)
    for split in splits:
        h.update(split.images.numpy().tobytes())
        h.update(split.labels.numpy().tobytes())
    return h.hexdigest()


def normalise(images: Tensor, mean: float, std: float) -> Tensor:
    """uint8 (N, C, H, W) to float32 with the mean and standard deviation the pretrained weights expect."""
    return images.float().div_(255).sub_(mean).div_(std)
