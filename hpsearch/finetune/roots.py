"""Folders that the data of a served study may lie in: what leads out of them is as if it were not there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

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
