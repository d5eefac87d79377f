"""Decoded images, kept: a data set is decoded once, however often its folder is moved, copied, touched or relabelled.

    CACHE/images/CONTENT/         an entry (finetune/shelf.py): raw arrays and entry.json, complete or not there at all
    CACHE/images/KEY.tmp/         one being written; whoever writes it holds locks/KEY.lock, so that a dead writer is known
    CACHE/index/KEY-CONTENT.npz   the rows that a listing of files (names, sizes, times) came to when it was last seen

KEY digests a listing, CONTENT what is in the files. Labels and splits are part of neither.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from hpsearch.finetune import shelf
from hpsearch.finetune.images import DECODER, NO_MEMORY, SPECIAL, Pixels, Preprocessing, Unusable, decode, quiet, read_file
from hpsearch.finetune.shelf import Entry, clear, entries
from hpsearch.finetune.sources import Item, Source, cache_folder
from hpsearch.machine import usable_cores
from hpsearch.types import Say, say_nothing

__all__ = ["Decoded", "Entry", "cache_folder", "clear", "decode_all", "entries"]

TICK = 0.1  # seconds between two reports of progress
AHEAD = 8  # images in flight, a thread
LASTING = ("not found", "not a file", "empty file", "larger")  # reasons that follow from the listing; others may pass

Stamp = tuple[int, int, int]  # size in bytes, mtime and ctime in ns; -1 where there is no file
Picture = bytes | Image.Image | npt.NDArray[Any]
Job = tuple[Item, Stamp, Picture | Unusable | None]  # the picture of an item without a file, or why there is none
Result = TypeVar("Result")
Seen = bytes | str  # digest of an image's content, or why it could not be read


@dataclass(frozen=True, eq=False)
class Decoded:
    """All usable images of a source, N of them, one row each."""

    images: npt.NDArray[np.uint8]  # (N, C, size, size), memory-mapped, read-only
    thumbnails: npt.NDArray[np.uint8]  # (N, 32, 32, 3), likewise: the whole image squeezed to a square
    rows: npt.NDArray[np.int64]  # (items,) the row of each item, -1 for one that could not be used; no two share one
    digests: npt.NDArray[np.bytes_]  # (N,) S16, of each original: equal for exact copies
    statistics: npt.NDArray[np.float32]  # (N, 5) width, height [pixels]; brightness, contrast (std), saturation in [0, 1], of the thumbnail
    bad: tuple[tuple[str, str], ...]  # (name of an item, why it cannot be used)
    special: Mapping[str, tuple[str, ...]]  # word of images.SPECIAL -> names of items
    content: str  # hexadecimal key of content and preprocessing
    folder: Path  # of the entry; images.u8 in it is `images`, from the first byte
    fresh: bool  # decoded just now


def decode_all(
    source: Source, pre: Preprocessing, cache: Path | None = None, progress: Say = say_nothing, threads: int | None = None
) -> Decoded:
    """Every image of the source as `pre` wants it, from the cache where it has been decoded before.

    Raises FixSetup when the cache cannot be written or its disk is too small.
    """
    root, count = cache or cache_folder(), len(source.items)
    with shelf.opened(root), quiet(), crew(threads or usable_cores()) as (pool, ahead):
        shelf.sweep(root)
        stamps = stamp_all(pool, source)
        key = listing_key(source, stamps, pre)
        lasting = source.read is None or source.fingerprint is not None  # whether the key stands for the content
        if lasting and (known := recall(root, key, source)):
            return known
        with shelf.held(root, key, lambda: progress("Waiting for another process that decodes these images", 0, count)):
            if lasting and (known := recall(root, key, source)):
                return known
            if shelf.may_hold(root, geometry(pre), count, sum(size for size, *_ in stamps)):
                seen = list(in_order(pool, ahead, digest_job, jobs(source, stamps), ticking(progress, "Reading images", count)))
                content = content_key(seen, pre)
                if shelf.sound(shelf.place(root, content)):
                    return settle(root, key, source, content, seen, fresh=False)
            tick = ticking(progress, "Decoding images", count)
            results = in_order(pool, ahead, lambda job: decode_job(job, pre), jobs(source, stamps), tick)
            writer = shelf.Writer(root, key, geometry(pre), source.data, count, sum(size for size, *_ in stamps))
            seen = []
            with writer:
                for digest, pixels in results:
                    seen.append(digest)
                    if isinstance(digest, bytes):
                        writer.add(digest, pixels)
                content = content_key(seen, pre)
                writer.finish(content)
            return settle(root, key, source, content, seen, fresh=True)


# ---------------------------------------------------------------- keys


def geometry(pre: Preprocessing) -> list[Any]:
    """What shapes uint8 pixels, as JSON keeps it: mean and standard deviation do not, the version of the decoder does."""
    return [pre.channels, pre.size, pre.resize, pre.interpolation, PIL.__version__, DECODER]


def stamp_all(pool: ThreadPoolExecutor, source: Source) -> list[Stamp]:
    """Size and time of every file; asked by all threads, for folders on a network."""
    if source.read is not None:
        return [(0, 0, 0)] * len(source.items)
    chunks = [source.items[i : i + 256] for i in range(0, len(source.items), 256)]
    return [stamp for chunk in pool.map(lambda chunk: [stamp_of(item) for item in chunk], chunks) for stamp in chunk]


def stamp_of(item: Item) -> Stamp:
    """What a listing says of an item's file."""
    try:
        status = os.stat(item.path or "")
    except OSError:
        return (-1, -1, -1)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns  # copies with times kept differ in the last


def listing_key(source: Source, stamps: Sequence[Stamp], pre: Preprocessing) -> str:
    """Digest of names, sizes and times; for a set without files, of its name and fingerprint."""
    sets = None if source.read is None else (source.data, source.fingerprint)
    h = hashlib.blake2b(repr((shelf.LAYOUT, geometry(pre), sets)).encode(), digest_size=16)
    for item, stamp in zip(source.items, stamps, strict=True):
        h.update(repr((item.name, stamp)).encode())
    return h.hexdigest()


def content_key(seen: Iterable[Seen], pre: Preprocessing) -> str:
    """Digest of all that was read, in no order: a file that moves to another class folder changes nothing."""
    h = hashlib.blake2b(repr((shelf.LAYOUT, geometry(pre))).encode(), digest_size=16)
    for digest in sorted(digest for digest in seen if isinstance(digest, bytes)):
        h.update(digest)
    return h.hexdigest()


def digest_of(data: Picture) -> bytes:
    """Of a file's bytes, or of an image's pixels; shelf.DIGEST hexadecimal characters. Raises Unusable."""
    h = hashlib.blake2b(digest_size=shelf.DIGEST // 2)
    if isinstance(data, bytes):
        h.update(data)
        return h.hexdigest().encode()
    try:
        array = np.ascontiguousarray(data)
    except Exception as error:  # a file behind it that is damaged
        if isinstance(data, Image.Image):
            data.close()
        raise Unusable(f"damaged ({' '.join(str(error).split())[:80]})") from None
    kind = (data.mode, data.getpalette()) if isinstance(data, Image.Image) else None
    h.update(repr((array.shape, array.dtype.str, kind)).encode())
    h.update(array.tobytes())
    return h.hexdigest().encode()


# ---------------------------------------------------------------- work, shared out


def jobs(source: Source, stamps: Sequence[Stamp]) -> Iterator[Job]:
    """One for each item; the images of a set without files are fetched here, by one thread."""
    for item, stamp in zip(source.items, stamps, strict=True):
        try:
            yield item, stamp, None if source.read is None else source.read(item)
        except Unusable as error:
            yield item, stamp, error


def fetch(job: Job) -> Picture:
    """What there is to decode."""
    item, stamp, picture = job
    if isinstance(picture, Unusable):
        raise picture
    return read_file(item.path or Path(), stamp[:2]) if picture is None else picture


def digest_job(job: Job) -> Seen:
    """Read an image."""
    try:
        return digest_of(fetch(job))
    except Unusable as error:
        return str(error)


def decode_job(job: Job, pre: Preprocessing) -> tuple[Seen, Pixels | str]:
    """Read and decode an image; a reason takes the place of what could not be had."""
    try:
        data = fetch(job)
        digest = digest_of(data)
    except Unusable as error:
        return str(error), ""
    try:
        return digest, decode(data, pre)
    except Unusable as error:
        return (str(error), "") if str(error) == NO_MEMORY else (digest, str(error))


def in_order(
    pool: ThreadPoolExecutor, ahead: int, work: Callable[[Job], Result], tasks: Iterable[Job], tick: Callable[[int], None]
) -> Iterator[Result]:
    """The results in the order of the tasks, of which `ahead` are in flight at any time."""
    flying: deque[Future[Result]] = deque()
    done = 0
    for task in tasks:
        flying.append(pool.submit(work, task))
        if len(flying) >= ahead:
            yield flying.popleft().result()
            tick(done := done + 1)
    while flying:
        yield flying.popleft().result()
        tick(done := done + 1)


@contextmanager
def crew(threads: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads, and how many images to have in flight. They drop what they have not begun when an error or Ctrl-C ends the work."""
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        yield pool, AHEAD * threads
    finally:
        pool.shutdown(cancel_futures=True)


def ticking(progress: Say, what: str, total: int) -> Callable[[int], None]:
    """Tells progress how many are done, ten times a second at most, and when all are."""
    last = 0.0

    def tick(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= TICK:
            last = now
            progress(what, done, total)

    return tick


# ---------------------------------------------------------------- rows


def settle(root: Path, key: str, source: Source, content: str, seen: Sequence[Seen], fresh: bool) -> Decoded:
    """Find each item's row in an entry by its digest, and remember that for the next time this listing is seen."""
    entry = shelf.place(root, content)
    reasons: dict[str, str] = shelf.read_meta(entry)["bad"]
    places: defaultdict[bytes, deque[int]] = defaultdict(deque)
    for row, digest in enumerate(shelf.arrays(entry)["digests.s16"].tolist()):
        places[digest].append(row)
    rows, bad = np.full(len(seen), -1, dtype=np.int64), {}
    for i, digest in enumerate(seen):
        if isinstance(digest, str):
            bad[i] = digest
        elif digest.decode() in reasons:
            bad[i] = reasons[digest.decode()]
        else:
            rows[i] = places[digest].popleft()
    if all(isinstance(digest, bytes) or (source.read is None and digest.startswith(LASTING)) for digest in seen):
        with shelf.replacing(root / "index" / f"{key}-{content}.npz") as file:
            np.savez_compressed(file, rows=rows, bad=np.array([*bad], dtype=np.int64), reasons=np.array([*bad.values()], dtype=np.str_))
    return view(entry, source, rows, bad, fresh)


def recall(root: Path, key: str, source: Source) -> Decoded | None:
    """What this listing came to before, if that is still there."""
    for index in (root / "index").glob(f"{key}-*.npz"):
        entry = shelf.place(root, index.stem.split("-")[1])
        if not shelf.sound(entry):
            continue
        try:
            with index.open("rb") as file, np.load(file) as kept:
                bad = dict(zip(kept["bad"].tolist(), kept["reasons"].tolist(), strict=True))
                return view(entry, source, kept["rows"], bad, fresh=False)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # torn by a power cut
            continue
    return None


def view(entry: Path, source: Source, rows: npt.NDArray[np.int64], bad: Mapping[int, str], fresh: bool) -> Decoded:
    """An entry as the rows of a source."""
    shelf.use(entry)
    arrays = shelf.arrays(entry)
    usable = np.flatnonzero(rows >= 0)
    marks = arrays["special.u1"][rows[usable]]
    special = {word: tuple(source.items[i].name for i in usable[(marks >> bit) & 1 == 1]) for bit, word in enumerate(SPECIAL)}
    return Decoded(
        images=arrays["images.u8"],
        thumbnails=arrays["thumbnails.u8"],
        rows=rows,
        digests=arrays["digests.s16"],
        statistics=arrays["statistics.f4"],
        bad=tuple((source.items[i].name, reason) for i, reason in bad.items()),
        special={word: found for word, found in special.items() if found},
        content=entry.name,
        folder=entry,
        fresh=fresh,
    )
