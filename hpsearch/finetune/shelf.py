"""The files of the pixel cache: entries that are complete or not there, whatever dies while they are written. See finetune/pixels.py."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from hpsearch.errors import FixSetup
from hpsearch.finetune.images import SPECIAL, THUMBNAIL, Pixels
from hpsearch.finetune.sources import cache_folder

LAYOUT = 1  # of an entry; entries of another are left alone
DIGEST = 16  # characters
FILES = ("images.u8", "thumbnails.u8", "digests.s16", "statistics.f4", "special.u1", "entry.json")  # of an entry
SPARE = 16 * 2**20  # bytes to leave free on the disk
BATCH = 4096  # thumbnails


class Entry(NamedTuple):
    """One set of decoded images in the cache."""

    key: str
    data: str  # what it was called when it was decoded
    images: int
    bytes: int
    last_used: float  # seconds since the epoch (UTC)


def entries(cache: Path | None = None) -> list[Entry]:
    """What is in the cache, the last used first."""
    found = [
        Entry(folder.name, meta["data"], meta["images"], size_of(folder), (folder / "entry.json").stat().st_mtime)
        for folder in all_places(cache or cache_folder())
        if (meta := sound(folder))
    ]
    return sorted(found, key=lambda entry: -entry.last_used)


def clear(cache: Path | None = None, key: str | None = None) -> int:
    """Remove one entry, or all of them, and say how many bytes that freed; what is being written stays.

    Raises FixSetup when it may not be written to.
    """
    root = cache or cache_folder()
    try:
        freed = sweep(root)
        for folder in all_places(root):
            if key in (None, folder.name):
                freed += remove(root, folder)
                for index in (root / "index").glob(f"*-{folder.name}.npz"):
                    freed += index.stat().st_size
                    index.unlink(missing_ok=True)
    except OSError as error:
        raise FixSetup(f"the cache {root} cannot be emptied ({error}): make it writable (chmod), or let its owner do it") from None
    return freed


# ---------------------------------------------------------------- the cache as a whole


@contextmanager
def opened(root: Path) -> Iterator[None]:
    """Make its folders; a file system that fails inside is FixSetup."""
    try:
        for name in ("images", "index", "locks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FixSetup(f"the disk of the cache {root} is full: free some of it, or let HPSEARCH_CACHE name another folder") from None
        raise FixSetup(f"the cache {root} cannot be used ({error}): let HPSEARCH_CACHE name a folder where you may write") from None


@contextmanager
def held(root: Path, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be the one process that works on `key`, after waiting for the one that does; the lock of a dead process is free."""
    lock = FileLock(root / "locks" / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sweep(root: Path) -> int:
    """Remove what dead processes have left half written; bytes freed."""
    freed = 0
    for folder in (root / "images").glob("*.tmp"):
        lock = FileLock(root / "locks" / f"{folder.stem}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            try:
                freed += size_of(folder)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                lock.release()
    return freed


def all_places(root: Path) -> list[Path]:
    """The folders of all entries."""
    return [folder for folder in sorted((root / "images").glob("*")) if folder.suffix != ".tmp"]


def place(root: Path, content: str) -> Path:
    """The folder of an entry, whether it is there or not."""
    return root / "images" / content


def may_hold(root: Path, geometry: list[Any], items: int, size: int) -> bool:
    """Whether an entry came from as many items and bytes: only then may it be the same data."""
    metas = map(sound, all_places(root))
    return any(meta and (meta["geometry"], meta["items"], meta["bytes"]) == (geometry, items, size) for meta in metas)


def remove(root: Path, folder: Path) -> int:
    """Remove an entry, at once for everybody who looks; who has mapped its files keeps them. Bytes freed."""
    size = size_of(folder)
    aside = root / "images" / f"{uuid.uuid4().hex}.tmp"
    with suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    return size


def size_of(folder: Path) -> int:
    """Bytes of the files right inside."""
    size = 0
    with suppress(FileNotFoundError):  # removed meanwhile
        size = sum(file.stat().st_size for file in folder.iterdir())
    return size


# ---------------------------------------------------------------- one entry


def layout(geometry: list[Any]) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """File -> type and shape of one row."""
    channels, side = geometry[:2]
    return {
        "images.u8": (np.uint8, (channels, side, side)),
        "thumbnails.u8": (np.uint8, (THUMBNAIL, THUMBNAIL, 3)),
        "digests.s16": (f"S{DIGEST}", ()),
        "statistics.f4": (np.float32, (5,)),
        "special.u1": (np.uint8, ()),  # one bit a word of images.SPECIAL
    }


def row_bytes(geometry: list[Any]) -> dict[str, int]:
    """File -> bytes of one row."""
    return {name: int(np.dtype(kind).itemsize * np.prod(shape, dtype=int)) for name, (kind, shape) in layout(geometry).items()}


def read_meta(folder: Path) -> dict[str, Any]:
    """entry.json; empty when it is missing or damaged."""
    try:
        meta = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get("layout") == LAYOUT else {}


def sound(folder: Path) -> dict[str, Any]:
    """entry.json, if all files have the sizes that it implies; else empty."""
    meta = read_meta(folder)
    try:
        whole = bool(meta) and all((folder / f).stat().st_size == n * meta["images"] for f, n in row_bytes(meta["geometry"]).items())
    except OSError:
        return {}
    return meta if whole else {}


def arrays(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a sound entry, memory-mapped and read-only."""
    meta = read_meta(folder)
    found: dict[str, npt.NDArray[Any]] = {}
    for name, (kind, shape) in layout(meta["geometry"]).items():
        shape = (meta["images"], *shape)
        found[name] = np.memmap(folder / name, kind, "r", shape=shape) if meta["images"] else np.zeros(shape, kind)  # no mapping is empty
    return found


def use(folder: Path) -> None:
    """Note that the entry was used now."""
    with suppress(OSError):
        os.utime(folder / "entry.json")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that takes the place of `path` when all of it is written."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


class Writer:
    """Writes an entry row by row into a folder aside; `finish` puts it in place. The caller holds the lock of `key`."""

    def __init__(self, root: Path, key: str, geometry: list[Any], data: str, items: int, size: int) -> None:
        """Raises FixSetup when `items` rows do not fit on the disk."""
        self.root, self.folder = root, root / "images" / f"{key}.tmp"
        self.meta: dict[str, Any] = {"layout": LAYOUT, "geometry": geometry, "data": data, "items": items, "bytes": size}
        self.bad: dict[str, str] = {}  # digest -> why it cannot be used
        self.sizes = array("f")  # width, height, width, height, ...
        self.need = items * sum(row_bytes(geometry).values()) + SPARE
        shutil.rmtree(self.folder, ignore_errors=True)
        if shutil.disk_usage(root).free < self.need:
            raise self.no_room()

    def no_room(self) -> FixSetup:
        """The error when the disk is too small."""
        free = shutil.disk_usage(self.root).free
        return FixSetup(
            f"decoding {self.meta['items']} images of {self.meta['data']} needs {self.need / 1e9:.2f} GB in {self.root}, and "
            f"{free / 1e9:.2f} GB are free: free some, or let HPSEARCH_CACHE name a folder on a larger disk"
        )

    def __enter__(self) -> Writer:
        self.folder.mkdir()
        self.files = {name: (self.folder / name).open("wb") for name in layout(self.meta["geometry"])}
        return self

    def add(self, digest: bytes, pixels: Pixels | str) -> None:
        """One row, or the reason why there is none."""
        if isinstance(pixels, str):
            self.bad[digest.decode()] = pixels
            return
        self.files["images.u8"].write(pixels.image.tobytes())
        self.files["thumbnails.u8"].write(pixels.thumbnail.tobytes())
        self.files["digests.s16"].write(digest)
        self.files["special.u1"].write(bytes([sum(1 << SPECIAL.index(word) for word in pixels.special)]))
        self.sizes.extend((pixels.width, pixels.height))

    def finish(self, content: str) -> None:
        """Put the entry in place, unless an equal one is there."""
        self.files["thumbnails.u8"].flush()
        sides = np.array(self.sizes, dtype=np.float32).reshape(-1, 2)
        for start in range(0, len(sides), BATCH):
            sizes = sides[start : start + BATCH]
            one = row_bytes(self.meta["geometry"])["thumbnails.u8"]
            small = np.fromfile(self.folder / "thumbnails.u8", np.uint8, len(sizes) * one, offset=start * one)
            self.files["statistics.f4"].write(np.hstack([sizes, looks(small.reshape(len(sizes), -1, 3))]).tobytes())
        self.files["entry.json"] = (self.folder / "entry.json").open("wb")
        self.files["entry.json"].write(json.dumps({**self.meta, "images": len(sides), "bad": self.bad}).encode())
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        target = place(self.root, content)
        if sound(target):
            return
        if target.exists():
            remove(self.root, target)
        self.folder.rename(target)
        handle = os.open(target.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self.files.values():
            with suppress(OSError):  # what is still buffered does not fit on a full disk either
                file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise self.no_room() from None


def looks(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Mean brightness, its standard deviation, and mean saturation, in [0, 1]; of (n, pixels, 3) to (n, 3)."""
    values = pixels.astype(np.float32) / 255
    luminance = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    high, low = values.max(2), values.min(2)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1e-6), 0)
    return np.stack([luminance.mean(1), luminance.std(1), saturation.mean(1)], 1).astype(np.float32)
