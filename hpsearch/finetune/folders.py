"""A folder of images: which of its sub-folders are classes, and which are splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch.errors import FixInput
from hpsearch.finetune.images import FOREIGN, SUFFIXES
from hpsearch.finetune.printable import first, printable, several

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ORDER = ("train", "val", "test")


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
    empty: list[str] = field(default_factory=list)  # classes without images


class Walk:
    """Goes through folders; a link to a folder above, or to one that is gone through anyway, is left out and kept in `skipped`."""

    def __init__(self, folder: Path, parts: Sequence[Path]) -> None:
        self.folder, self.parts = folder, parts
        self.skipped: list[Path] = []
        self.others: list[Path] = []  # files that are no images
        self.taken: set[tuple[int, int]] | None = None  # device and inode

    def enter(self, path: Path) -> bool:
        """Whether to go into a folder that was reached by a link."""
        if self.taken is None:
            self.taken = {identity(p) for p in (self.folder.resolve(), *self.folder.resolve().parents)}
            for part in self.parts:
                self.taken |= {identity(Path(place)) for place, *_ in os.walk(part) if not hidden(Path(place).relative_to(part))}
        fresh = identity(path) not in self.taken
        self.taken.add(identity(path))
        if not fresh:
            self.skipped.append(path)
        return fresh

    def inside(self, folder: Path, linked: bool = False) -> tuple[list[tuple[Path, bool]], list[Path]]:
        """Sub-folders, each with whether a link led to it, and images."""
        folders, images, others = children(folder)
        self.others += others
        ways = [(child, linked or child.is_symlink()) for child in folders]
        return [(child, link) for child, link in ways if not link or self.enter(child)], images

    def below(self, folder: Path, linked: bool = False) -> list[Path]:
        """All images in a folder and below it."""
        folders, images = self.inside(folder, linked)
        for child, link in folders:
            images += self.below(child, link)
        return images


def read_folder(folder: Path) -> Contents:
    """One sub-folder a class; or train and val and test in it, or in each class. Raises FixInput when it is arranged in no such way."""
    folders, images, others = children(folder)
    words = {child: SPLITS[child.name.lower()] for child in folders if child.name.lower() in SPLITS}
    split = "train" in words.values() and len(set(words.values())) > 1
    parts = sorted(words, key=lambda child: (ORDER.index(words[child]), child.name)) if split else [folder]
    check_parts(folder, parts if split else [])
    walk, found, classes, stray = Walk(folder, parts), Contents(), set(), []
    walk.others = others if split else []
    merged: dict[str, list[str]] = {}
    for part in parts:
        ways, loose = walk.inside(part)
        below = {child: below_class(walk, child, link) for child, link in ways}
        if loose and not any(any(b.values()) for b in below.values()):
            raise FixInput(loose_images(folder, part, len(loose), split))
        stray += loose
        given = None if split else splits_of_classes(folder, below)
        if given:
            found.notes.append(f"the folders {', '.join(given)} in every class were taken for splits")
        for child, images_of in below.items():
            name = printable(child.name)
            classes.add(name)
            more = [sub for sub, files in images_of.items() if sub and files]
            if more and not given:
                merged.setdefault(name, []).extend(sub for sub in more if sub not in merged.get(name, ()))
            for sub, files in images_of.items():
                of = given.get(sub) if given and sub else words.get(part)  # a folder without images has no split
                found.pictures += [Picture(file, name, of) for file in files]
    filled = {picture.name for picture in found.pictures}
    if len(filled) < 2:
        raise FixInput(too_few(folder, filled, walk))
    found.pictures.sort(key=lambda picture: ORDER.index(picture.split) if picture.split else 0)
    found.empty = sorted(classes - filled)
    ignored = [child for child in folders if child not in words] if split else []
    found.notes += notes(folder, parts, stray + (images if split else []), ignored, merged, walk)
    return found


def check_parts(folder: Path, parts: Sequence[Path]) -> None:
    """Raise FixInput when a split is a link to another one, or to the folder that it is in."""
    seen = {identity(place): place for place in (folder.resolve(), *folder.resolve().parents)}
    for part in sorted(parts, key=Path.is_symlink):
        other = seen.setdefault(identity(part), part)
        if other is not part:
            raise FixInput(f"{part} is a link to {other}, so its images would be learned and measured at once: remove the link")


def below_class(walk: Walk, folder: Path, linked: bool) -> dict[str, list[Path]]:
    """Images of a class by the sub-folder that they are in or below; "" for those right inside."""
    ways, images = walk.inside(folder, linked)
    return {"": images, **{child.name: walk.below(child, link) for child, link in ways}}


def splits_of_classes(folder: Path, below: dict[Path, dict[str, list[Path]]]) -> dict[str, str]:
    """Sub-folder -> split, when every class has such and nothing else; FixInput when some classes do."""
    filled = {child: [sub for sub, files in found.items() if files] for child, found in below.items() if any(found.values())}
    divided = {child: subs for child, subs in filled.items() if all(sub.lower() in SPLITS for sub in subs)}
    found = {sub: SPLITS[sub.lower()] for subs in divided.values() for sub in subs}
    if "train" not in found.values():
        return {}
    if len(divided) == len(filled):
        return found
    one, other = next(iter(divided)), next(child for child in filled if child not in divided)
    raise FixInput(
        f"{one} holds splits ({', '.join(divided[one])}) and {other} does not: arrange every class alike, "
        f"as {folder}/{one.name}/train/1.jpg or as {folder}/train/{one.name}/1.jpg; or rename the folders if they are no splits"
    )


def notes(
    folder: Path, parts: Sequence[Path], stray: Sequence[Path], ignored: Sequence[Path], merged: dict[str, list[str]], walk: Walk
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
        told.append(f"folders beside {', '.join(p.name for p in parts)} were ignored: {listing(folder, ignored)}")
    for what, which, paths in (
        ("image", " outside any class folder", stray),
        ("link", " to folders that are looked at anyway", walk.skipped),
        ("file", " that are no images", walk.others),
    ):
        if paths:
            which = which.replace("are no images", "is no image") if len(paths) == 1 else which
            told.append(f"{several(len(paths), what)}{which} {'was' if len(paths) == 1 else 'were'} ignored: {listing(folder, paths)}")
    return told


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
    links = f" (links that lead back were left out: {listing(folder, walk.skipped)})" if walk.skipped else ""
    return f"{folder} has {found}, and telling classes apart needs two{links}{hint or ': ' + arrangement(folder)}"


def wrapped(folder: Path, depth: int = 5) -> Path | None:
    """The folder further down, the only one with images in each, that holds two or more folders with images."""
    filled = [child for child in children(folder)[0] if not child.is_symlink() and has_images(child)]
    if len(filled) != 1 or depth == 0:
        return None
    inner = [child for child in children(filled[0])[0] if not child.is_symlink() and has_images(child)]
    if inner and all(child.name.lower() in SPLITS and children(child)[1] for child in inner):
        return None  # one class, divided
    return filled[0] if len(inner) > 1 else wrapped(filled[0], depth - 1)


def arrangement(folder: Path) -> str:
    """How to arrange images."""
    return f"put the images of each class into a folder of its own, such as {folder}/cat/1.jpg and {folder}/dog/2.jpg"


# ---------------------------------------------------------------- files


def children(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Sub-folders, images and other files right inside, hidden ones left out, sorted. Raises FixInput when it cannot be read."""
    found: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    try:
        with os.scandir(folder) as scan:
            for entry in sorted(scan, key=lambda entry: entry.name):
                if hidden(entry.name):
                    continue
                path = Path(entry.path)
                is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
                found[0 if is_folder else 1 if path.suffix.lower() in (*SUFFIXES, *FOREIGN) else 2].append(path)
    except OSError as error:
        raise FixInput(f"the folder {folder} cannot be read ({error.strerror}): allow it (chmod), or move it out of the data") from None
    return found


def hidden(path: str | Path) -> bool:
    """Whether a name, or a part of a relative path, is not to be looked at."""
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in Path(path).parts)


def identity(path: Path) -> tuple[int, int]:
    """What a folder is, however it was reached."""
    status = path.stat()
    return status.st_dev, status.st_ino


def has_images(folder: Path) -> bool:
    """Whether there is an image in the folder or below; links are not followed."""
    folders, images, _ = children(folder)
    return bool(images) or any(has_images(child) for child in folders if not child.is_symlink())


def listing(folder: Path, paths: Sequence[Path]) -> str:
    """The first few by name."""
    return first([path.relative_to(folder).as_posix() for path in paths])
