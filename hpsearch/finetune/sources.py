"""Finding labelled images: a folder, a table of paths, a data set of torchvision, or a function. Opens no image of a folder."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpsearch.errors import FixInput
from hpsearch.finetune import torchvision_sets
from hpsearch.finetune.folders import ORDER, SPLITS, Walk, children, outside, read_folder, split_named
from hpsearch.finetune.functions import brief, load_function
from hpsearch.finetune.images import FOREIGN, SUFFIXES, Unusable, as_picture
from hpsearch.finetune.labels import unusual_labels
from hpsearch.finetune.manifests import TABLES, is_number, labels_beside, read_table, whereabouts
from hpsearch.finetune.printable import escaped, first, printable, several
from hpsearch.finetune.roots import leads_out
from hpsearch.finetune.torchvision_sets import DATA_SETS
from hpsearch.types import Finding, Say, say_nothing

Read = Callable[["Item"], Image.Image | npt.NDArray[Any]]
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside images, as Hugging Face has it
FUNCTION = r"[\w.]+:\w+"
CLOSE = 0.7  # likeness from which a name is suggested
KINDS = (
    f"a folder with one sub-folder of images a class; a table (CSV, TSV, JSON lines, Parquet) of paths and labels; "
    f"'package.module:function'; or a data set of torchvision: {', '.join(DATA_SETS)}"
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
    remarks: tuple[Finding, ...] = ()  # for the check
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
        return named_source(data, root, progress)
    except FixInput as error:  # names in it may hold anything
        raise FixInput(escaped(str(error))) from error.__cause__


def named_source(data: str, root: Path | None, progress: Say) -> Source:
    """The images called `data`, of whichever kind."""
    try:
        path = Path(data).expanduser()
        if leads_out(path) and (os.path.lexists(path) or not (data.isalnum() or re.fullmatch(FUNCTION, data))):
            raise FixInput(f"{data[:200]} is not in a folder that this server reads data from")
        if data and path.is_dir():
            return open_folder(data, path)
        if data and path.exists():
            return open_table(data, path)
    except (OSError, ValueError, RuntimeError) as error:  # no permission, too long a name, a null byte, an unknown user's home
        raise FixInput(f"'{data[:200]}' cannot be used as data ({getattr(error, 'strerror', None) or error}). It may be {KINDS}") from None
    name = next((known for known in DATA_SETS if known.lower() == data.lower()), None)
    if name is not None:
        return open_set(data, name, (root or cache_folder() / "datasets").expanduser(), progress)
    if re.fullmatch(FUNCTION, data):
        return open_function(data, progress)
    raise FixInput(f"there is no data '{data}': {suggestion(data, path)} It may be {KINDS}")


def cache_folder() -> Path:
    """Where what can be had again is kept: decoded images, downloaded data sets."""
    given = os.environ.get("HPSEARCH_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpsearch"


def suggestion(data: str, path: Path) -> str:
    """What may have been meant by data that does not exist, as a sentence."""
    sets = [] if os.sep in data else difflib.get_close_matches(data.lower(), map(str.lower, DATA_SETS), n=1, cutoff=CLOSE)
    if sets:
        return f"did you mean '{sets[0]}'?"
    parent = next(p for p in path.absolute().parents if p.is_dir())
    wanted = path.absolute().relative_to(parent).parts[0]
    names = sorted(p.name for p in parent.iterdir()) if os.access(parent, os.R_OK) else []
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=CLOSE)
    return f"did you mean '{parent / close[0]}'?" if close else f"no '{wanted}' in {parent}."


# ---------------------------------------------------------------- folders


def open_folder(data: str, folder: Path) -> Source:
    """One sub-folder a class; or train and val or test, each with one sub-folder a class, or in each class; or tables beside images."""
    tables = {place: table for place in (folder, *split_folders(folder)) if (table := metadata(place)) is not None}
    if tables:
        return open_metadata(data, folder, tables)
    contents = read_folder(folder)
    found = [
        Found(Item(printable(picture.file.relative_to(folder).as_posix()), 0, picture.split, picture.file), picture.name)
        for picture in contents.pictures
    ]
    remarks = tuple(replace(remark, text=escaped(remark.text)) for remark in contents.remarks)
    return finish(Source(data, (), (), None, tuple(map(escaped, contents.notes)), tuple(contents.empty), remarks), found)


# ---------------------------------------------------------------- tables


def split_folders(folder: Path) -> list[Path]:
    """The folders inside that are called like splits."""
    return [child for child in children(folder).folders if split_named(child.name) is not None]


def metadata(folder: Path) -> Path | None:
    """The table that labels the images of a folder, as Hugging Face has it; None where there is none, or one without labels."""
    found = [folder / name for name in METADATA if not leads_out(folder / name) and (folder / name).is_file()]
    return next((table for table in found if labels_beside(table)), None)


def open_metadata(data: str, folder: Path, tables: Mapping[Path, Path]) -> Source:
    """Images that are labelled by a table beside them, or by one in the folder of each split."""
    by_file: dict[str, Found] = {}
    notes: list[str] = []
    plural = False
    for place, path in tables.items():
        table, where = read_table(path), path.relative_to(folder).as_posix()
        split = None if place == folder else split_named(place.name)
        for line in table.lines:
            file = place / line.path
            one = Found(Item(printable(os.path.relpath(file, folder)), 0, line.split or split, file), printable(line.label))
            if by_file.setdefault(os.path.normpath(file), one) != one:
                raise FixInput(f"{path}, {line.where}: another table says something else of {line.path}: remove one of the two")
        notes += [f"the labels were read from {where}", *table.notes]
        plural = plural or table.plural
    found, remarks = kept_inside(folder, sorted(by_file.values(), key=lambda f: ORDER.index(f.item.split) if f.item.split else 0))
    check_there(next(iter(tables.values())), found)
    listed = {os.path.normpath(f.item.path) for f in found if f.item.path is not None}
    extra = [file for file in Walk(folder, [folder]).below(folder) if os.path.normpath(file) not in listed]
    if extra:
        names = first([file.relative_to(folder).as_posix() for file in extra])
        notes.append(
            f"{several(len(extra), 'image')} that no table labels left out ({names}): once a model is exported, `hpsearch predict MODEL "
            f"{extra[0].parent}` says what they are"
        )
    return finish(Source(data, (), (), None, tuple(map(escaped, notes)), (), remarks), found, plural)


def open_table(data: str, path: Path) -> Source:
    """A table of paths, relative to its own folder, and labels."""
    suffix = path.suffix.lower()
    if suffix in (*SUFFIXES, *FOREIGN):
        raise FixInput(f"{path} is one image: give the folder that has one sub-folder of images a class")
    if suffix in ARCHIVES:
        raise FixInput(f"{path} is an archive: unpack it, and give the folder")
    if suffix not in TABLES or not path.is_file():
        raise FixInput(f"{path} is neither a folder nor a table ({', '.join(TABLES)}). Data may be {KINDS}")
    table = read_table(path)
    found = [Found(Item(printable(line.path), 0, line.split, path.parent / line.path), printable(line.label)) for line in table.lines]
    found, remarks = kept_inside(path.parent, found)
    check_there(path, found)
    return finish(Source(data, (), (), None, tuple(map(escaped, table.notes)), (), remarks), found, table.plural)


def check_there(table: Path, found: Sequence[Found]) -> None:
    """Raise FixInput when not one file of a table is there."""
    if any(f.item.path and os.path.exists(f.item.path) for f in found):
        return
    names = [f.item.name for f in found]
    hint = whereabouts(table, names)
    such = f", such as {names[0][:200]}" if names else ""
    raise FixInput(
        f"none of the {len(names):,} files in {table} is there{such}: relative paths start at the table's own folder, "
        f"{table.parent.absolute()}{'. ' if hint else ''}{hint}"
    )


def kept_inside(folder: Path, found: Sequence[Found]) -> tuple[list[Found], tuple[Finding, ...]]:
    """Those whose files lie where a server may read data, and what is said of the others."""
    kept: list[Found] = []
    away: list[Found] = []
    for f in found:
        (away if f.item.path is not None and leads_out(f.item.path) else kept).append(f)
    remark = outside(folder, [f.item.path for f in away if f.item.path is not None])
    return kept, (replace(remark, text=escaped(remark.text)),) if away else ()


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
        found, remarks = (found, ()) if leads_out(root) else kept_inside(root, found)  # the server's own cache lies elsewhere
        return finish(replace(source, read=None, remarks=remarks), found)
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
    labels = {split: check_set(data, split, images, progress) for split, images in sets.items()}
    named = {split: classes_named(data, split, images) for split, images in sets.items()}
    around = {inner: split for split, images in sets.items() if (inner := torchvision_sets.classes_inside(images)) is not None}
    if not any(named.values()) and len(around) > 1:
        (one, split), (other, another) = list(around.items())[:2]
        raise FixInput(
            f"{data}: the splits '{split}' and '{another}' were made around data sets whose classes differ ({first(one, 5)} and "
            f"{first(other, 5)}), so that one label means two: give each split a list `classes` of the names in the order of its labels"
        )
    names = names_by_label(data, named, labels)
    found = []
    for split, some in labels.items():
        for i, label in enumerate(some):
            if label not in names[split]:
                raise FixInput(f"{data}: image {i} has the label {label}: labels count the {len(names[split])} classes from 0")
            found.append(Found(Item(f"{split}/{i}" if split else str(i), 0, split, None, i), names[split][label]))

    def read(item: Item) -> Image.Image | npt.NDArray[np.uint8]:
        try:
            return as_picture(sets[item.split][item.index][0])
        except Unusable:
            raise
        except Exception as error:  # the data set's own code
            raise Unusable(brief(error)) from None

    used, every = {f.name for f in found}, dict.fromkeys(name for some in names.values() for name in some.values())
    classes, empty = (tuple(name for name in every if (name in used) is there) for there in (True, False))
    return Source(data, classes, (), read, (), empty), found


def classes_named(data: str, split: str | None, images: Any) -> tuple[str, ...] | None:
    """The names of a split's classes in the order of its labels, None where it has none. Raises FixInput when two have one name."""
    where = f"{data}: split '{split}'" if split else data
    try:
        names = torchvision_sets.classes_of(images)
    except FixInput as error:
        raise FixInput(f"{where}: {error}") from None
    if names is not None and (twice := [name for i, name in enumerate(names) if name in names[:i]]):
        raise FixInput(f"{where}: two of its classes have one name: {first(twice, 5)}. Give each its own")
    return None if names is None else tuple(map(printable, names))


def names_by_label(
    data: str, named: Mapping[str | None, tuple[str, ...] | None], labels: Mapping[str | None, Sequence[int]]
) -> dict[str | None, dict[int, str]]:
    """What each split's labels mean: sets count their own classes from 0, so that one label may be two classes.

    Where no set names its classes, equal labels are one class. Raises FixInput when only some do and it cannot be told.
    """
    known = next((names for names in named.values() if names is not None), None)
    if known is None:
        numbers = {label: str(label) for label in sorted({label for some in labels.values() for label in some if label >= 0})}
        return dict.fromkeys(labels, numbers)
    found = {}
    for split, names in named.items():
        if names is None and labels[split] and {*labels[split]} != {*range(len(known))}:
            raise FixInput(
                f"{data}: split '{split}' does not name its classes and another split does ({first(known, 5, escape=False)}), "
                "so what its labels mean is a guess: give it a list `classes` of the names in the order of its labels"
            )
        found[split] = dict(enumerate(known if names is None else names))
    return found


def check_set(data: str, split: str | None, images: Any, progress: Say) -> list[int]:
    """The labels of one split, after a look at its first image. Raises FixInput."""
    expected = "expected (image, label): an image of PIL, uint8 or float in [0, 1], and an integer"
    where = f"{data}: split '{split}'" if split else data
    if not len(images):
        return []
    try:
        sample = images[0]
        if isinstance(sample, Mapping):
            raise Unusable(f"a dictionary ({first([str(key) for key in sample], 5)}) instead of a pair")
        picture, _ = sample
        as_picture(picture)
        return torchvision_sets.labels_of(images, lambda done: progress("Reading labels", done, len(images)))
    except Unusable as error:
        raise FixInput(f"{where} yields {error}; {expected}") from None
    except Exception as error:
        raise FixInput(f"{where} cannot be read ({brief(error)}); {expected}") from error


# ---------------------------------------------------------------- all


def finish(source: Source, found: Sequence[Found], plural: bool = False) -> Source:
    """The source with its items, classes numbered. Raises FixInput when they do not make a classification task."""
    used = {f.name for f in found}
    numeric = all(map(is_number, used))
    classes = source.classes or tuple(sorted(used, key=lambda name: (int(name) if numeric else 0, name)))
    if len(classes) < 2:
        known = f"one class with images ('{classes[0]}')" if classes else "no class with images"
        raise FixInput(f"{source.data} has {known}: telling classes apart needs two")
    alike = look_alikes(classes)
    if any(f.item.split for f in found):
        trained = {f.name for f in found if f.item.split == "train"}
        if missing := [name for name in classes if name not in trained]:
            twins = [(name, twin) for name in missing for group in alike if name in group for twin in group if twin in trained]
            hint = f". Is {twins[0][0]!r} the same class as {twins[0][1]!r}? Then give both one name" if twins else ""
            raise FixInput(
                f"{source.data} has no training images of {first([repr(name) for name in missing], 5, escape=False)}: "
                f"add some, or remove the class from val and test{hint}"
            )
    notes = list(source.notes)
    if alike:
        groups = [" and ".join(f"'{name}'" for name in group) for group in alike]
        notes.append(
            "classes whose names differ only in case, blanks or how a number is written: "
            f"{first(groups, escape=False)}. Are they one? Give them one name"
        )
    number = {name: i for i, name in enumerate(classes)}
    items = tuple(replace(f.item, label=number[f.name]) for f in found)
    remarks = (*source.remarks, *unusual_labels(Counter(f.name for f in found), plural))
    return replace(source, classes=classes, items=items, notes=tuple(notes), remarks=remarks)


def look_alikes(classes: Sequence[str]) -> list[list[str]]:
    """Classes that a person would take for one: their names differ in case, in blanks, or in how accents or a number are written."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        plain = "".join(unicodedata.normalize("NFC", name).casefold().split())
        whole = re.fullmatch(r"0*(\d+)(\.0*)?", plain, re.ASCII)  # "1.0" is what pandas makes of 1 in a column with gaps
        groups.setdefault(whole[1] if whole else plain, []).append(name)
    return [group for group in groups.values() if len(group) > 1]
