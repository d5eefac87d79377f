"""The labelled data sets of torchvision: which of their splits is which, and finding or fetching them. torchvision loads on use only."""

from __future__ import annotations

import hashlib
import io
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune.functions import brief
from hpsearch.finetune.images import as_picture

Arguments = Mapping[str, Any]
SPOT_CHECKS = 64  # images that stand for a set's content

TRAIN_FLAG: Mapping[str | None, Arguments] = {"train": {"train": True}, "test": {"train": False}}
TWO: Mapping[str | None, Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
THREE: Mapping[str | None, Arguments] = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
TRAINVAL: Mapping[str | None, Arguments] = {"train": {"split": "trainval"}, "test": {"split": "test"}}
WHOLE: Mapping[str | None, Arguments] = {None: {}}

# Name -> split ("train", "val", "test"; None: to be split) -> arguments of the constructor.
# Missing: sets without one class an image (CelebA, COCO, VOC, SBD, Cityscapes, WIDERFace, Kitti, the captions, flow, stereo
# and video sets, Omniglot's and LFW's pairs), without a way to fetch them (StanfordCars, FER2013, ImageNet, LSUN, CLEVR) and
# those too large to keep decoded (Places365, INaturalist); SEMEION, 1,593 digits, adds nothing to USPS.
SETS: Mapping[str, Mapping[str | None, Arguments]] = {
    "CIFAR10": TRAIN_FLAG,
    "CIFAR100": TRAIN_FLAG,
    "Caltech101": WHOLE,
    "Caltech256": WHOLE,
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "DTD": THREE,
    "EMNIST": {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}},
    "EuroSAT": WHOLE,
    "FGVCAircraft": THREE,
    "FashionMNIST": TRAIN_FLAG,
    "Flowers102": THREE,
    "Food101": TWO,
    "GTSRB": TWO,
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "KMNIST": TRAIN_FLAG,
    "MNIST": TRAIN_FLAG,
    "OxfordIIITPet": TRAINVAL,
    "PCAM": THREE,
    "QMNIST": TRAIN_FLAG,
    "RenderedSST2": THREE,
    "STL10": TWO,
    "SUN397": WHOLE,
    "SVHN": TWO,
    "USPS": TRAIN_FLAG,
}
DATA_SETS: tuple[str, ...] = tuple(SETS)


def load(name: str, root: Path, progress: Callable[[str, int, int], None]) -> dict[str | None, Any]:
    """The splits of a set as torchvision's objects, from files under `root`, or downloaded to there.

    Raises FixSetup when the files are not there and cannot be fetched.
    """
    try:
        return construct(name, root, download=False)
    except Exception as error:  # each set complains in its own way about files that are missing or damaged
        absent = error
    progress(f"Downloading {name} to {root}", 0, 1)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with redirect_stderr(io.StringIO()):  # tqdm's bars
            sets = construct(name, root, download=True)
    except Exception as error:  # no network, a full disk, a package it needs, a checksum
        calls = "; ".join(
            f"{name}({', '.join([repr(str(root)), *(f'{k}={v!r}' for k, v in arguments.items()), 'download=True'])})"
            for arguments in SETS[name].values()
        )
        raise FixSetup(
            f"the data set {name} was not found in {root} ({brief(absent)}) and could not be downloaded ({brief(error)}). Where there is "
            f'a network, run: python -c "from torchvision.datasets import {name}; {calls}" and copy that folder here; or let '
            "data_root name the folder in which you have it"
        ) from None
    progress(f"Downloading {name} to {root}", 1, 1)
    return sets


def construct(name: str, root: Path, download: bool) -> dict[str | None, Any]:
    """torchvision's objects, one a split."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    return {split: kind(str(root), **arguments, download=download) for split, arguments in SETS[name].items()}


def labels_of(images: Any, progress: Callable[[int], None]) -> list[int]:
    """The label of every image: from the list that the set keeps, if that agrees with what it yields, else from the images.

    Raises TypeError when a label is not an integer, and whatever the set raises.
    """
    kept = next((getattr(images, name) for name in ("targets", "labels", "_labels", "y") if hasattr(images, name)), None)
    if kept is None:
        pairs = getattr(images, "_samples", getattr(images, "samples", None))
        kept = [pair[1] for pair in pairs] if isinstance(pairs, list) else None
    if kept is not None:
        array = np.asarray(kept)
        same = array.shape == (len(images),) and array.dtype.kind in "iu"
        if same and all(array[i] == operator.index(images[i][1]) for i in spread(len(images), 8)):
            return [int(label) for label in array]
    labels = []
    for i in range(len(images)):
        label = images[i][1]
        labels.append(operator.index(label.item() if isinstance(label, np.bool_) else label))
        progress(i + 1)
    return labels


def classes_of(images: Any) -> tuple[str, ...] | None:
    """The names of the classes in the order of their labels, if the set has any; a part of a set, or several joined, have the set's.

    Raises FixInput when sets are joined whose labels mean different classes.
    """
    names = getattr(images, "classes", getattr(images, "categories", None))
    if names is not None:
        return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)  # a tuple: synonyms
    joined = getattr(images, "datasets", None)  # torch's ConcatDataset
    parts = joined if isinstance(joined, Sequence) else [getattr(images, "dataset", None)]  # torch's Subset
    found = list(dict.fromkeys(classes_of(part) for part in parts if part is not None))
    if len(found) > 1:
        told = " and ".join("none" if names is None else ", ".join(names[:5]) for names in found[:2])
        raise FixInput(
            f"it joins data sets whose classes differ ({told}), so that one label means two: join sets that count the same classes"
        )
    return found[0] if found else None


def classes_inside(images: Any) -> tuple[str, ...] | None:
    """The names of the classes of a set that one without names was made around."""
    inner = [value for value in getattr(images, "__dict__", {}).values() if hasattr(value, "__getitem__") and hasattr(value, "classes")]
    return classes_of(inner[0]) if len(inner) == 1 else None


def files_of(images: Any) -> list[Path] | None:
    """The file of every image, if the set consists of files: they are read faster, and by several threads, without it."""
    for name in ("_image_files", "_images", "_samples", "samples"):
        entries = getattr(images, name, None)
        if isinstance(entries, list) and len(entries) == len(images):
            return [Path(entry[0] if isinstance(entry, tuple) else entry) for entry in entries]
    return None


def fingerprint(name: str, sets: Mapping[str | None, Any]) -> str:
    """Stands for the content of a set without files: its name, its sizes, and 64 evenly spaced images with their labels."""
    h = hashlib.blake2b(digest_size=16)
    h.update(repr((name, [(split, len(images)) for split, images in sets.items()])).encode())
    for images in sets.values():
        for i in spread(len(images), -(-SPOT_CHECKS // len(sets))):
            picture, label = images[i]
            array = np.asarray(as_picture(picture))
            h.update(repr((array.shape, operator.index(label))).encode())
            h.update(array.tobytes())
    return h.hexdigest()


def spread(n: int, count: int) -> Sequence[int]:
    """Up to `count` evenly spaced positions among `n`."""
    return sorted({i * n // count for i in range(count)}) if n else ()
