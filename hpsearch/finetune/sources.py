"""Finding labelled images: a folder, a table of paths, a data set of torchvision, or a function. Opens no image of a folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpsearch.errors import FixInput, nearest
from hpsearch.finetune import torchvision_sets
from hpsearch.finetune.functions import brief, load_function
from hpsearch.finetune.images import SUFFIXES, Unusable, as_picture
from hpsearch.finetune.manifests import SPLITS, TABLES, is_number, read_table
from hpsearch.finetune.torchvision_sets import DATA_SETS
from hpsearch.types import Say, say_nothing

Read = Callable[["Item"], Image.Image | npt.NDArray[Any]]
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
ORDER = ("train", "val", "test")
KINDS = (
    f"a folder with one sub-folder of images a class; a table (CSV, TSV, Parquet) of paths and labels; 'package.module:function'; "
    f"or a data set of torchvision: {', '.join(DATA_SETS)}"
)


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image, not yet opened."""

    name: str  # what a person calls it: path relative to the folder, or "train/17"
    label: int  # index into Source.classes
    split: str | None  # "train", "val", "test", or None: to be split
    path: Path | None = None  # the file, where there is one
    index: int = 0  # position in its data set, where there is no file


@dataclass(frozen=True, slots=True)
class Source:
    """Labelled images."""

    data: str  # as asked for
    classes: tuple[str, ...]  # sorted; those of a data set in its own order
    items: tuple[Item, ...]  # in an order that depends on nothing but names
    read: Read | None  # the image of an item; by one thread at a time; raises Unusable. None: items are files
    notes: tuple[str, ...] = ()  # for a person
    empty_classes: tuple[str, ...] = ()  # class folders without images
    fingerprint: str | None = None  # of a set without files: changes when its content does. None: every image has to be looked at


@dataclass(frozen=True, slots=True)
class Found:
    """An item whose class has no number yet."""

    item: Item
    name: str  # of its class


def open_source(data: str, root: Path | None = None, progress: Say = say_nothing) -> Source:
    """The labelled images called `data`; torchvision's sets are looked for, and downloaded to, `root`.

    Raises FixInput when there are no such images or they are not arranged as needed, FixSetup when they cannot be fetched.
    """
    try:
        path = Path(data).expanduser()
        if data and path.is_dir():
            return open_folder(data, path)
        if data and path.exists():
            return open_table(data, path)
    except (OSError, ValueError, RuntimeError) as error:  # no permission, too long a name, a null byte, an unknown user's home
        raise FixInput(f"'{data[:200]}' cannot be used as data ({error}). It may be {KINDS}") from None
    name = next((known for known in DATA_SETS if known.lower() == data.lower()), None)
    if name is not None:
        return open_set(data, name, (root or cache_folder() / "datasets").expanduser(), progress)
    if re.fullmatch(r"[\w.]+:\w+", data):
        return open_function(data, progress)
    raise FixInput(f"there is no data '{data}': {suggestion(data, path)}. It may be {KINDS}")


def cache_folder() -> Path:
    """Where what can be had again is kept: decoded images, downloaded data sets."""
    given = os.environ.get("HPSEARCH_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpsearch"


def suggestion(data: str, path: Path) -> str:
    """What may have been meant by data that does not exist."""
    hint = nearest(data, (name.lower() for name in DATA_SETS))
    if hint.startswith("did") and os.sep not in data:
        return hint
    parent = next(p for p in path.absolute().parents if p.is_dir())
    wanted = path.absolute().relative_to(parent).parts[0]
    names = sorted(p.name for p in parent.iterdir()) if os.access(parent, os.R_OK) else []
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    return f"did you mean '{parent / close[0]}'?" if close else f"no '{wanted}' in {parent}"


# ---------------------------------------------------------------- folders


def open_folder(data: str, folder: Path) -> Source:
    """One sub-folder a class; or train and val or test, each with one sub-folder a class."""
    folders, images, others = children(folder)
    words = {child: SPLITS[child.name.lower()] for child in folders if child.name.lower() in SPLITS}
    split = "train" in words.values() and len(set(words.values())) > 1
    notes, found, filled, seen = [], [], set(), set()
    parts = sorted(words, key=lambda child: (ORDER.index(words[child]), child.name)) if split else [folder]
    for part in parts:
        inside, stray, more = children(part) if split else (folders, images, others)
        others = [*others, *more] if split else others
        if stray and not any(map(has_images, inside)):
            raise FixInput(f"{part} has {len(stray)} images and no class folders: {arrangement(folder)}")
        if stray:
            notes.append(f"{len(stray)} images outside any class folder were ignored: {listing(folder, stray)}")
        for child in inside:
            pictures, rest = images_below(child)
            others = [*others, *rest]
            seen.add(printable(child.name))
            if pictures:
                filled.add(printable(child.name))
            for file in pictures:
                item = Item(printable(file.relative_to(folder).as_posix()), 0, words.get(part) if split else None, file)
                found.append(Found(item, printable(child.name)))
    if split and (ignored := [child for child in folders if child not in words]):
        notes.append(f"folders beside {', '.join(p.name for p in parts)} were ignored: {listing(folder, ignored)}")
    if split and images:
        notes.append(f"{len(images)} images outside any class folder were ignored: {listing(folder, images)}")
    if others:
        notes.append(f"{len(others)} files that are no images were ignored: {listing(folder, others)}")
    if len(filled) < 2:
        only = next((child for child in folders if child.name.lower() in SPLITS), None) if not split else None
        hint = f"; did you mean the folder {only}?" if only and sum(map(has_images, children(only)[0])) > 1 else ""
        classes = f"one class with images ('{next(iter(filled))}')" if filled else f"no images ({', '.join(s[1:] for s in SUFFIXES)})"
        raise FixInput(f"{folder} has {classes}, and telling classes apart needs two{hint}: {arrangement(folder)}")
    return finish(Source(data, (), (), None, tuple(notes), tuple(sorted(seen - filled))), found)


def arrangement(folder: Path) -> str:
    """How to arrange images."""
    return f"put the images of each class into a folder of its own, such as {folder}/cat/1.jpg and {folder}/dog/2.jpg"


def children(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Sub-folders, images and other files right inside, hidden ones left out, sorted. Raises FixInput when it cannot be read."""
    found: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    try:
        with os.scandir(folder) as scan:
            for entry in sorted(scan, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                path = Path(entry.path)
                is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
                found[0 if is_folder else 1 if path.suffix.lower() in SUFFIXES else 2].append(path)
    except OSError as error:
        raise FixInput(f"the folder {folder} cannot be read ({error.strerror}): allow it (chmod), or move it out of the data") from None
    return found


def images_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> tuple[list[Path], list[Path]]:
    """Images and other files in a folder and all below it; a link to a folder that it is in itself is not followed."""
    status = folder.stat()
    here = above | {(status.st_dev, status.st_ino)}
    if here == above:
        return [], []
    folders, images, others = children(folder)
    for child in folders:
        more, rest = images_below(child, here)
        images.extend(more)
        others.extend(rest)
    return images, others


def has_images(folder: Path) -> bool:
    """Whether there is an image in the folder or below."""
    return bool(images_below(folder)[0])


def listing(folder: Path, paths: Sequence[Path]) -> str:
    """The first few by name."""
    names = [printable(path.relative_to(folder).as_posix()) for path in paths[:3]]
    return ", ".join(names) + (", ..." if len(paths) > 3 else "")


def printable(name: str) -> str:
    r"""The name with bytes that are no UTF-8 written as \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------- tables


def open_table(data: str, path: Path) -> Source:
    """A table of paths, relative to its own folder, and labels."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        raise FixInput(f"{path} is one image: give the folder that has one sub-folder of images a class")
    if suffix in ARCHIVES:
        raise FixInput(f"{path} is an archive: unpack it, and give the folder")
    if suffix not in TABLES or not path.is_file():
        raise FixInput(f"{path} is neither a folder nor a table ({', '.join(TABLES)}). Data may be {KINDS}")
    lines, notes = read_table(path)
    found = [Found(Item(printable(line.path), 0, line.split, path.parent / line.path), line.label) for line in lines]
    return finish(Source(data, (), (), None, notes), found)


# ---------------------------------------------------------------- data sets: torchvision's and one's own


def open_set(data: str, name: str, root: Path, progress: Say) -> Source:
    """A data set of torchvision."""
    sets = torchvision_sets.load(name, root, progress)
    files = {split: torchvision_sets.files_of(images) for split, images in sets.items()}
    source, found = from_sets(data, sets, progress)
    if all(paths is not None for paths in files.values()):
        moved = []
        for f in found:
            path = (files[f.item.split] or [])[f.item.index]
            moved.append(replace(f, item=Item(printable(os.path.relpath(path, root)), 0, f.item.split, path)))
        order = {split: i for i, split in enumerate(sets)}
        found = sorted(moved, key=lambda f: (order[f.item.split], f.item.name))  # SUN397 lists files in no order
        return finish(replace(source, read=None), found)
    return finish(replace(source, fingerprint=torchvision_sets.fingerprint(name, sets)), found)


def open_function(data: str, progress: Say) -> Source:
    """What a function of the user's returns: a map-style data set of (image, label), or a mapping of split -> such."""
    function = load_function(data, "the data")
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise FixInput(f"{data}: the function failed when called without arguments ({brief(error)})") from error
    sets: dict[str | None, Any] = {}
    for key, images in made.items() if isinstance(made, Mapping) else [(None, made)]:
        if key is not None and SPLITS.get(str(key).lower()) in (None, *sets):
            raise FixInput(f"{data}: '{key}' is no split, or one of two for the same: name them {', '.join(ORDER)}")
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise FixInput(
                f"{data}: expected a data set of (image, label) with a length, or a mapping of splits to such, not {type(images)}"
            )
        sets[None if key is None else SPLITS[str(key).lower()]] = images
    source, found = from_sets(data, {key: sets[key] for key in (*ORDER, None) if key in sets}, progress)
    mark = getattr(made, "fingerprint", None)
    return finish(replace(source, fingerprint=None if mark is None else str(mark)), found)


def from_sets(data: str, sets: Mapping[str | None, Any], progress: Say) -> tuple[Source, list[Found]]:
    """A source that reads from map-style data sets, without its items; and those. Raises FixInput when they yield something else."""
    first = next(iter(sets.values()), ())
    labels = {split: check_set(data, split, images, progress) for split, images in sets.items()}
    names = torchvision_sets.classes_of(first)
    if names is None:
        by_label = {label: str(label) for label in sorted({label for some in labels.values() for label in some if label >= 0})}
    elif len(set(names)) < len(names):
        raise FixInput(f"{data}: two of its classes have one name: {names}")
    else:
        by_label = dict(enumerate(names))
    found = []
    for split, some in labels.items():
        for i, label in enumerate(some):
            if label not in by_label:
                raise FixInput(f"{data}: image {i} has the label {label}: labels count the {len(by_label)} classes from 0")
            found.append(Found(Item(f"{split}/{i}" if split else str(i), 0, split, None, i), by_label[label]))

    def read(item: Item) -> Image.Image | npt.NDArray[np.uint8]:
        try:
            return as_picture(sets[item.split][item.index][0])
        except Unusable:
            raise
        except Exception as error:  # the data set's own code
            raise Unusable(brief(error)) from None

    used = {f.name for f in found}
    classes, empty = (tuple(name for name in by_label.values() if (name in used) is there) for there in (True, False))
    return Source(data, classes, (), read, (), empty), found


def check_set(data: str, split: str | None, images: Any, progress: Say) -> list[int]:
    """The labels of one split, after a look at its first image. Raises FixInput."""
    expected = "expected (image, label): an image of PIL, uint8 or float in [0, 1], and an integer"
    where = f"{data}: split '{split}'" if split else data
    if not len(images):
        return []
    try:
        picture, _ = images[0]
        as_picture(picture)
        return torchvision_sets.labels_of(images, lambda done: progress("Reading labels", done, len(images)))
    except Unusable as error:
        raise FixInput(f"{where} yields {error}; {expected}") from None
    except Exception as error:
        raise FixInput(f"{where} cannot be read ({brief(error)}); {expected}") from error


# ---------------------------------------------------------------- all


def finish(source: Source, found: Sequence[Found]) -> Source:
    """The source with its items, classes numbered. Raises FixInput when they do not make a classification task."""
    used = {f.name for f in found}
    numeric = all(map(is_number, used))
    classes = source.classes or tuple(sorted(used, key=lambda name: (int(name) if numeric else 0, name)))
    if len(classes) < 2:
        raise FixInput(f"{source.data} has {len(classes)} classes with images: telling classes apart needs two")
    if any(f.item.split for f in found):
        trained = {f.name for f in found if f.item.split == "train"}
        if missing := [name for name in classes if name not in trained]:
            raise FixInput(
                f"{source.data} has no training images of {', '.join(repr(name) for name in missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}: add some, or remove the class from val and test"
            )
    number = {name: i for i, name in enumerate(classes)}
    return replace(source, classes=classes, items=tuple(replace(f.item, label=number[f.name]) for f in found))
