"""What an export that was killed leaves beside its folder: a half-written one, and the earlier export that it was to take the place of."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from hpsearch.dbfile import alive

ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(?P<old>\.old)?")
EXPORTED = ("model.safetensors", "config.json", "README.md", "predict.py")  # files of an exported model


def aside_paths(out: Path, pid: int) -> tuple[Path, Path]:
    """Returns where a process writes an export before it takes the place of `out`, and where it keeps what was there meanwhile."""
    return out.with_name(f".{out.name}.{pid}"), out.with_name(f".{out.name}.{pid}.old")


def left_by_exports(place: Path, name: str | None = None) -> list[Path]:
    """Returns the folders in `place` that exports left whose processes are gone; of exports called `name`, or of all.

    A folder that holds anything but files of an exported model is somebody's own.
    """
    found = []
    for path in sorted(place.glob(".*")):
        match = ASIDE.fullmatch(path.name)
        if match is None or (name is not None and match["name"] != name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError):
            gone = int(match["pid"]) == os.getpid() or not alive(int(match["pid"]))  # in containers the same numbers come again
            if gone and all(inner.is_file() and inner.name in EXPORTED for inner in path.iterdir()):
                found.append(path)
    return found


def clear_export(path: Path) -> None:
    """Deletes what an export left; an earlier export whose place is empty goes back there."""
    match = ASIDE.fullmatch(path.name)
    assert match is not None
    out = path.with_name(match["name"])
    if match["old"] and not out.exists():
        with suppress(OSError):
            path.rename(out)
        return
    shutil.rmtree(path, ignore_errors=True)
