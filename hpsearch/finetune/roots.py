"""Folders that the data of a served study may lie in: what leads out of them is as if it were not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

VARIABLE = "HPSEARCH_DATA_ROOTS"  # set for studies of others only; a person at the command line reads what the person may read


def roots_in_words(roots: Iterable[Path]) -> str:
    """Folders as VARIABLE holds them."""
    return os.pathsep.join(os.path.realpath(root) for root in roots)


def leads_out(path: str | Path) -> bool:
    """Whether a path leads, by whatever links, out of the folders that data may lie in; says nothing of what is there."""
    roots = os.environ.get(VARIABLE)
    if roots is None:
        return False
    real = os.path.realpath(path)
    return not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots.split(os.pathsep) if root)


def open_inside(path: Path, mode: str, **how: Any) -> IO[Any]:
    """Opens a file; one that lies, whatever has become of its path since it was looked at, where data may not lie is not found.

    Does not wait for the writer of a named pipe. Raises OSError.
    """
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK), **how)  # noqa: SIM115  the caller's to close
    if leads_out(f"/proc/self/fd/{file.fileno()}"):
        file.close()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return file
