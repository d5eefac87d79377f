"""A folder of images: which of its sub-folders are classes, and which are splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch.errors import FixInput
from hpsearch.finetune.images import FOREIGN, FORMATS, SUFFIXES, cannot, kind_of_file
from hpsearch.finetune.printable import first, printable, several
from hpsearch.finetune.roots import leads_out, open_inside
from hpsearch.types import Finding

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ORDER = ("train", "val", "test")
ENDINGS = ("sets", "set", "data", "images", "imgs")  # of a word, as in "testset"
SYSTEM = frozenset(  # made by programs, not by whoever put the images there; in small letters
    """
    @eadir __macosx .ds_store .appledouble .localized .fseventsd .spotlight-v100 .temporaryitems .apdisk thumbs.db ehthumbs.db desktop.ini
    $recycle.bin recycler #recycle @recycle #snapshot .snapshot .snapshots lost+found .directory .nomedia .picasaoriginals picasa.ini
    .thumbnails .thumbs .thumb .ipynb_checkpoints .git .svn .hg .dvc .cache .venv .idea .vscode
    """.split()  # noqa: SIM905
) | {"system volume information"}
SYSTEM_STARTS = ("._", ".trash", ".nfs", ".fuse_hidden", ".~")
IMAGES = frozenset((*SUFFIXES, *FOREIGN))  # endings of images, also of those that are not read
SNIFFED = 64  # files of one ending that are opened to see what they are
LISTED = 5_000_000  # characters of a text beside the images that are looked at for labels


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a folder."""

    file: Path
    name: str  # its class
    split: str | None  # "train", "val", "test"


@dataclass(slots=True)
class Contents:
    """What a folder of images holds."""

    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # classes without images


@dataclass(frozen=True, slots=True)
class Listing:
    """What is right inside a folder, sorted; what the system keeps there for itself is left out."""

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)  # files that are no images by their names
    dotted: list[Path] = field(default_factory=list)  # images, and folders of images, whose names begin with a dot
    outside: list[Path] = field(default_factory=list)  # links that lead out of where data may lie


class Walk:
    """Goes through folders; a link to a folder above, or to one that is gone through anyway, is left out and kept in `skipped`."""

    def __init__(self, folder: Path, parts: Sequence[Path]) -> None:
        self.folder, self.parts = folder, parts
        self.skipped: list[Path] = []
        self.others: list[Path] = []  # files that are no images
        self.dotted: list[Path] = []
        self.outside: list[Path] = []
        self.taken: set[tuple[int, int]] | None = None  # device and inode
        self.listings: dict[Path, Listing] = {}

    def look(self, folder: Path) -> Listing:
        """What is right inside a folder, each listed once."""
        if folder not in self.listings:
            self.listings[folder] = children(folder)
        return self.listings[folder]

    def filled(self, folder: Path) -> bool:
        """Whether there is an image in the folder or below; links are taken to lead to some."""
        listing = self.look(folder)
        return bool(listing.images) or any(child.is_symlink() or self.filled(child) for child in listing.folders)

    def classes(self, folder: Path) -> set[str]:
        """Names of the folders with images in a folder."""
        return {child.name for child in self.look(folder).folders if child.is_symlink() or self.filled(child)}

    def enter(self, path: Path) -> bool:
        """Whether to go into a folder that was reached by a link."""
        if self.taken is None:
            self.taken = {identity(p) for p in (self.folder.resolve(), *self.folder.resolve().parents)}
            for part in self.parts:
                for place, folders, _ in os.walk(part):
                    folders[:] = [name for name in folders if not name.startswith(".") and not of_system(name)]
                    self.taken.add(identity(Path(place)))
        fresh = identity(path) not in self.taken
        self.taken.add(identity(path))
        if not fresh:
            self.skipped.append(path)
        return fresh

    def inside(self, folder: Path, linked: bool = False) -> tuple[list[tuple[Path, bool]], list[Path]]:
        """Sub-folders, each with whether a link led to it, and images."""
        listing = self.look(folder)
        self.keep(listing)
        ways = [(child, linked or child.is_symlink()) for child in listing.folders]
        return [(child, link) for child, link in ways if not link or self.enter(child)], list(listing.images)

    def keep(self, listing: Listing) -> None:
        """Remembers what is left out, to be told."""
        self.others += listing.others
        self.dotted += listing.dotted
        self.outside += listing.outside

    def below(self, folder: Path, linked: bool = False) -> list[Path]:
        """All images in a folder and below it."""
        folders, images = self.inside(folder, linked)
        for child, link in folders:
            images += self.below(child, link)
        return images


def read_folder(folder: Path) -> Contents:
    """One sub-folder a class; or train and val and test in it, or in each class. Raises FixInput when it is arranged in no such way."""
    walk, found, classes, stray = Walk(folder, [folder]), Contents(), set(), []
    top = walk.look(folder)
    splits = find_splits(walk, top.folders)
    parts = sorted(splits, key=lambda child: (ORDER.index(splits[child]), child.name)) or [folder]
    check_parts(folder, parts if splits else [])
    walk.parts = parts
    places = see_through_all(walk, splits) if splits else {folder: folder}
    learned = {name for part in parts if splits.get(part) == "train" for name in walk.classes(places[part])}
    if splits:
        walk.keep(top)
        found.notes += layout_notes(folder, splits, places)
    merged: dict[str, list[str]] = {}
    for part in parts:
        ways, loose = walk.inside(places[part])
        if places[part] != part:
            walk.keep(walk.look(part))
        below = {child: below_class(walk, child, link) for child, link in ways}
        filled = {child.name for child, images_of in below.items() if any(images_of.values())}
        known = {name.casefold() for name in filled} & {name.casefold() for name in learned}
        if splits.get(part) in ("val", "test") and learned and not known and len(filled) + bool(loose) == 1:
            images = loose + [file for images_of in below.values() for files in images_of.values() for file in files]
            found.pictures += labelled_beside(walk, found, part, splits[part], images, learned)
            continue
        if loose and not filled:
            raise FixInput(loose_images(folder, part, len(loose), bool(splits)))
        stray += loose
        given = None if splits else splits_of_classes(folder, below)
        if given:
            found.notes.append(f"the folders {', '.join(given)} in every class were taken for splits")
        elif not splits:
            check_ambiguous(folder, below)
        for child, images_of in below.items():
            name = printable(child.name)
            classes.add(name)
            more = [sub for sub, files in images_of.items() if sub and files]
            if more and not given:
                merged.setdefault(name, []).extend(sub for sub in more if sub not in merged.get(name, ()))
            for sub, files in images_of.items():
                of = given.get(sub) if given and sub else splits.get(part)  # a folder without images has no split
                found.pictures += [Picture(file, name, of) for file in files]
    filled_classes = {picture.name for picture in found.pictures}
    if len(filled_classes) < 2:
        raise FixInput(too_few(folder, filled_classes, walk))
    found.pictures.sort(key=lambda picture: ORDER.index(picture.split) if picture.split else 0)
    found.empty = sorted(classes - filled_classes)
    ignored = [child for child in top.folders if child not in splits] if splits else []
    found.notes += notes(folder, parts, stray + (top.images if splits else []), ignored, merged, walk)
    found.remarks += left_out(folder, walk)
    return found


def below_class(walk: Walk, folder: Path, linked: bool) -> dict[str, list[Path]]:
    """Images of a class by the sub-folder that they are in or below; "" for those right inside."""
    ways, images = walk.inside(folder, linked)
    return {"": images, **{child.name: walk.below(child, link) for child, link in ways}}


# ---------------------------------------------------------------- splits


def split_named(name: str) -> str | None:
    """The split that a name speaks of, such as "training_set", "testImages" or "val2017"; None when it speaks of none, or of two."""
    words = [word.lower() for letters in re.findall(r"[^\W\d_]+", name) for word in re.sub(r"(?<=[a-z])(?=[A-Z])", " ", letters).split()]
    stems = [next((stem for ending in ENDINGS if (stem := word.removesuffix(ending)) in SPLITS), word) for word in words]
    found = {SPLITS[stem] for stem in stems if stem in SPLITS}
    return found.pop() if len(found) == 1 else None


def find_splits(walk: Walk, folders: Sequence[Path]) -> dict[Path, str]:
    """The folders that are splits: called train and val or test; or called something like it, with the same classes inside.

    Raises FixInput when none of them is for training.
    """
    named = {child: split for child in folders if (split := split_named(child.name)) is not None}
    if len({*named.values()}) < 2:
        return {}
    exact = {child for child in named if child.name.lower() in SPLITS}
    classes = {child: walk.classes(see_through(walk, child, named[child])) for child in named}
    learned = {name for child, split in named.items() if split == "train" for name in classes[child]}
    if "train" in named.values():
        sure = {named[child] for child in exact} > {"train"}
        test = {child for child in named if named[child] == "test" and not classes[child] and walk.filled(child)}
        kept = {
            child: split
            for child, split in named.items()
            if (sure and child in exact) or classes[child] & learned or (learned and child in test)
        }
        return kept if {*kept.values()} > {"train"} else {}
    shared = set.intersection(*classes.values())
    if all(child in named for child in folders if walk.filled(child)) and (shared or exact == {*named}):
        names = " and ".join(f"'{printable(child.name)}'" for child in named)
        raise FixInput(
            f"{walk.folder} has the splits {names}, and none is for training: call the folder to learn from 'train', or give one of them "
            f"as data, such as {next(iter(named))}, which is then divided. If {names} are classes, rename their folders "
            "(such names mean splits)"
        )
    return {}


def see_through(walk: Walk, part: Path, split: str, anyway: bool = False) -> Path:
    """The folder in a split that holds its classes: itself, or the only one in it where that is called like the split."""
    while (child := only_folder(walk, part)) is not None and (anyway or split_named(child.name) == split):
        part = child
    return part


def see_through_all(walk: Walk, splits: Mapping[Path, str]) -> dict[Path, Path]:
    """The folder of each split that holds its classes; a single folder of any name, when all splits have one."""
    places = {part: see_through(walk, part, split) for part, split in splits.items()}
    only = {part: only_folder(walk, place) for part, place in places.items()}
    names = [walk.classes(child) if child else set() for child in only.values()]
    if set.intersection(*names):
        return {part: child or part for part, child in only.items()}
    return places


def only_folder(walk: Walk, folder: Path) -> Path | None:
    """The only folder with images in a folder, if it holds folders with images and there are no images but in these."""
    listing = walk.look(folder)
    filled = [child for child in listing.folders if not child.is_symlink() and walk.filled(child)]
    if listing.images or len(filled) != 1 or len(walk.classes(folder)) != 1:
        return None
    return filled[0] if walk.classes(filled[0]) and not walk.look(filled[0]).images else None


def layout_notes(folder: Path, splits: Mapping[Path, str], places: Mapping[Path, Path]) -> list[str]:
    """What was taken for splits although it is called something else, and where their classes were found."""
    told = [f"{printable(part.name)} ({split})" for part, split in splits.items() if part.name.lower() not in SPLITS]
    notes = [f"folders were taken for splits, since they hold the same classes: {', '.join(told)}"] if told else []
    deeper = [place for part, place in places.items() if place != part]
    return notes + ([f"the class folders were found in {listing_of(folder, deeper)}"] if deeper else [])


def check_parts(folder: Path, parts: Sequence[Path]) -> None:
    """Raise FixInput when a split is a link to another one, or to the folder that it is in."""
    seen = {identity(place): place for place in (folder.resolve(), *folder.resolve().parents)}
    for part in sorted(parts, key=Path.is_symlink):
        other = seen.setdefault(identity(part), part)
        if other is not part:
            raise FixInput(f"{part} is a link to {other}, so its images would be learned and measured at once: remove the link")


def splits_of_classes(folder: Path, below: Mapping[Path, Mapping[str, Sequence[Path]]]) -> dict[str, str]:
    """Sub-folder -> split, when every class has such and nothing else; FixInput when some classes do."""
    filled = {child: [sub for sub, files in found.items() if files] for child, found in below.items() if any(found.values())}
    divided = {child: subs for child, subs in filled.items() if all(sub.lower() in SPLITS for sub in subs)}
    found = {sub: SPLITS[sub.lower()] for subs in divided.values() for sub in subs}
    if not divided and (names := {*map(tuple, filled.values())}) and len(names) == 1 and len(filled) > 1:  # train_set, test_set in each
        named = {sub: split for sub in names.pop() if (split := split_named(sub)) is not None}
        if len(named) == len(next(iter(filled.values()))) and {*named.values()} > {"train"}:
            return named
    if "train" not in found.values():
        return {}
    if len(divided) == len(filled):
        return found
    one, other = next(iter(divided)), next(child for child in filled if child not in divided)
    raise FixInput(
        f"{one} holds splits ({', '.join(divided[one])}) and {other} does not: arrange every class alike, "
        f"as {folder}/{one.name}/train/1.jpg or as {folder}/train/{one.name}/1.jpg; or rename the folders if they are no splits"
    )


def check_ambiguous(folder: Path, below: Mapping[Path, Mapping[str, Sequence[Path]]]) -> None:
    """Raise FixInput when every folder holds folders of the same names: either could be the classes."""
    filled = {child: frozenset(sub for sub, files in found.items() if files) for child, found in below.items() if any(found.values())}
    names = {*filled.values()}
    if len(filled) < 2 or len(names) > 1 or len(inner := sorted(names.pop())) < 2 or "" in inner:
        return
    outer = first([child.name for child in filled])
    raise FixInput(
        f"every folder in {folder} ({outer}) holds folders of the same names ({first(inner)}), so it cannot be told which of them "
        f"are the classes. If those inside are, call the outer ones train, val and test, or put all images of a class into "
        f"{folder}/{inner[0]}; if the outer ones are, take the images out of the folders inside them; or write a table of paths and labels"
    )


def labelled_beside(walk: Walk, found: Contents, part: Path, split: str, images: Sequence[Path], learned: set[str]) -> list[Picture]:
    """Images of a split without class folders, labelled by a text beside them, as Tiny ImageNet has it.

    Without such a text test images are left out with a note. Raises FixInput for those of validation.
    """
    where = part.relative_to(walk.folder)
    for text in [file for file in walk.look(part).others if file.suffix.lower() in (".txt", ".csv", ".tsv")]:
        labels = labels_in(text, learned)
        pictures = [Picture(file, printable(labels[file.name]), split) for file in images if file.name in labels]
        if pictures:
            missing = len(images) - len(pictures)
            rest = f"; {several(missing, 'image')} without a line in it left out" if missing else ""
            found.notes.append(f"the classes of the images in {where} were read from {text.relative_to(walk.folder)}{rest}")
            walk.others.remove(text)
            return pictures
    if split == "test":
        found.notes.append(
            f"{several(len(images), 'image')} in {where} without a label, for want of folders named as the classes in training, left out: "
            f"once a model is exported, `hpsearch predict MODEL {part}` says what they are"
        )
        return []
    raise FixInput(
        f"{part} has {several(len(images), 'image')} and no folders named as the classes in training ({first(sorted(learned))}): put "
        f"each into the folder of its class, such as {part}/{printable(min(learned))}/1.jpg; or remove the folder, and validation images "
        "are cut from those for training"
    )


def labels_in(text: Path, learned: set[str]) -> dict[str, str]:
    """File name -> class, when every line of a text begins with a name and a class that is learned."""
    try:
        with open_inside(text, "r", encoding="utf-8", errors="replace") as file:
            content = file.read(LISTED + 1)
    except OSError:
        return {}
    lines = content.splitlines() if len(content) <= LISTED else []
    cells = [re.split(r"[\t,; ]+", line.strip()) for line in lines if line.strip()]
    rows = cells[1:] if cells and (len(cells[0]) < 2 or cells[0][1] not in learned) else cells  # a header
    if not all(len(row) > 1 and row[1] in learned for row in rows):
        return {}
    return {row[0].rpartition("/")[2]: row[1] for row in rows}


# ---------------------------------------------------------------- what is told


def notes(
    folder: Path, parts: Sequence[Path], stray: Sequence[Path], ignored: Sequence[Path], merged: Mapping[str, Sequence[str]], walk: Walk
) -> list[str]:
    """What was taken together and what was left out, for a person."""
    told = []
    if len(merged) == 1:
        ((name, subs),) = merged.items()
        told.append(f"images of {several(len(subs), 'sub-folder')} of '{name}' were taken together: {first(subs)}")
    elif merged:
        each = [f"'{name}' ({first(subs)})" for name, subs in merged.items()]
        told.append(f"images of sub-folders were taken together in {len(merged)} classes: {first(each, escape=False)}")
    if ignored:
        told.append(f"folders beside {', '.join(p.name for p in parts)} were ignored: {listing_of(folder, ignored)}")
    for what, which, paths in (
        ("image", " outside any class folder", stray),
        ("link", " to folders that are looked at anyway", walk.skipped),
        ("file", " that are no images", sorts(walk.others).get("", [])),
    ):
        if paths:
            which = which.replace("are no images", "is no image") if len(paths) == 1 else which
            told.append(f"{several(len(paths), what)}{which} {'was' if len(paths) == 1 else 'were'} ignored: {listing_of(folder, paths)}")
    return told


def left_out(folder: Path, walk: Walk) -> Iterator[Finding]:
    """Images that are not looked at: files whose names do not say that they are images, names with a dot in front, links that lead out."""
    for kind, paths in sorts(walk.others).items():
        if kind:
            yield Finding("left-out", "warning", f"{kept_out(folder, kind, paths)}.", len(paths))
    if walk.dotted:
        each = [f"{path.relative_to(folder).as_posix()}{how_many(path)}" for path in walk.dotted]
        them, have = ("it", "has a name that begins") if len(each) == 1 else ("them", "have names that begin")
        text = f"{first(each)} {have} with a dot and {'was' if len(each) == 1 else 'were'} left out. "
        belongs = "it belongs" if len(each) == 1 else "they belong"
        yield Finding("left-out", "warning", f"{text}Rename {them} if {belongs} to the data.", len(each))
    if walk.outside:
        yield outside(folder, walk.outside)


def outside(folder: Path, paths: Sequence[Path]) -> Finding:
    """What is said of paths that lead out of the folders that a server reads data from; the same whatever is there."""
    names = first([os.path.relpath(path, folder) for path in paths])
    one = len(paths) == 1
    text = f"{several(len(paths), 'path')} {'leads' if one else 'lead'} out of the folders that this server reads data from, and "
    return Finding(
        "left-out", "warning", f"{text}{'is' if one else 'are'} not followed: {names}. Copy the files into the data.", len(paths)
    )


def kept_out(folder: Path, kind: str, paths: Sequence[Path]) -> str:
    """How many files of a kind were left out for their names, and what to do."""
    names = listing_of(folder, paths)
    were = "was" if len(paths) == 1 else "were"
    if kind not in FORMATS:
        return f"{several(len(paths), 'file')} {were} left out ({names}): {cannot(kind)}"
    ending = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif"}.get(kind, f".{kind.lower()}")
    return f"{several(len(paths), f'{kind} image')} without an ending that says so {were} left out ({names}): give them the ending {ending}"


def how_many(folder: Path) -> str:
    """The number of images right inside a folder, in brackets; nothing for a file."""
    return f" ({several(images_in(folder), 'image')})" if folder.is_dir() else ""


def sorts(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the kind of picture that they hold; "" for none. Of each ending some are opened; the others are taken to be alike."""
    endings: dict[str, list[Path]] = {}
    for path in paths:
        endings.setdefault(path.suffix.lower(), []).append(path)
    found: dict[str, list[Path]] = {}
    for some in endings.values():
        kinds = [kind_of_file(path) for path in some[:SNIFFED]]
        rest = kinds[0] if len({*kinds}) == 1 else ""
        for path, kind in zip(some, kinds + [rest] * (len(some) - len(kinds)), strict=True):
            found.setdefault(kind, []).append(path)
    return found


# ---------------------------------------------------------------- why not


def loose_images(folder: Path, part: Path, n: int, split: bool) -> str:
    """Why images without class folders will not do."""
    text = f"{part} has {several(n, 'image')} and no class folders: {arrangement(folder)}"
    if split:
        text += f". If '{part.name}' is a class and no split, rename its folder (names such as train and test mean splits), or use a table"
    return text


def too_few(folder: Path, filled: set[str], walk: Walk) -> str:
    """Why one class, or none, will not do, and what may have been meant."""
    found = f"one class with images ('{next(iter(filled))}')" if filled else f"no images ({', '.join(s[1:] for s in SUFFIXES)})"
    meant = wrapped(folder)
    hint = f". Did you mean {meant}?" if meant else ""
    links = f" (links that lead back were left out: {listing_of(folder, walk.skipped)})" if walk.skipped else ""
    instead = [text for finding in left_out(folder, walk) if (text := finding.text.rstrip("."))]
    if instead and not hint:
        return f"{folder} has {found}, and telling classes apart needs two{links}. {'. '.join(instead)}"
    return f"{folder} has {found}, and telling classes apart needs two{links}{hint or ': ' + arrangement(folder)}"


def wrapped(folder: Path, depth: int = 5) -> Path | None:
    """The folder further down, the only one with images in each, that holds two or more folders with images."""
    filled = [child for child in children(folder).folders if not child.is_symlink() and has_images(child)]
    if len(filled) != 1 or depth == 0:
        return None
    inner = [child for child in children(filled[0]).folders if not child.is_symlink() and has_images(child)]
    if inner and all(child.name.lower() in SPLITS and children(child).images for child in inner):
        return None  # one class, divided
    return filled[0] if len(inner) > 1 else wrapped(filled[0], depth - 1)


def arrangement(folder: Path) -> str:
    """How to arrange images."""
    return f"put the images of each class into a folder of its own, such as {folder}/cat/1.jpg and {folder}/dog/2.jpg"


# ---------------------------------------------------------------- files


def children(folder: Path) -> Listing:
    """What is right inside a folder. Raises FixInput when it cannot be read."""
    found = Listing()
    try:
        with os.scandir(folder) as scan:
            for entry in sorted(scan, key=lambda entry: entry.name):
                path = Path(entry.path)
                if of_system(entry.name):
                    continue
                if entry.is_symlink() and leads_out(path):
                    found.outside.append(path)
                    continue
                is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
                if entry.name.startswith("."):
                    if images_in(path) if is_folder else is_image(path):
                        found.dotted.append(path)
                elif is_folder:
                    found.folders.append(path)
                else:
                    (found.images if is_image(path) else found.others).append(path)
    except OSError as error:
        raise FixInput(f"the folder {folder} cannot be read ({error.strerror}): allow it (chmod), or move it out of the data") from None
    return found


def is_image(path: Path) -> bool:
    """Whether a file is an image by the ending of its name."""
    return path.suffix.lower() in IMAGES


def images_in(folder: Path) -> int:
    """How many images are right inside a folder; none in one that cannot be read."""
    try:
        return sum(is_image(Path(name)) and not of_system(name) for name in os.listdir(folder))
    except OSError:
        return 0


def of_system(name: str) -> bool:
    """Whether a name is one of those under which systems and programs keep something for themselves, such as thumbnails."""
    return name.lower() in SYSTEM or name.lower().startswith(SYSTEM_STARTS)


def identity(path: Path) -> tuple[int, int]:
    """What a folder is, however it was reached."""
    status = path.stat()
    return status.st_dev, status.st_ino


def has_images(folder: Path) -> bool:
    """Whether there is an image in the folder or below; links are not followed."""
    listing = children(folder)
    return bool(listing.images) or any(has_images(child) for child in listing.folders if not child.is_symlink())


def listing_of(folder: Path, paths: Sequence[Path]) -> str:
    """The first few by name."""
    return first([path.relative_to(folder).as_posix() for path in paths])
