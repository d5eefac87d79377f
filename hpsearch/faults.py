"""Named places where a test ends the process as if by kill -9: the moments between two steps that must both be survived."""

from __future__ import annotations

import os
import signal
from pathlib import Path

CRASH_AT = "HPSEARCH_CRASH_AT"
"""Environment variable: NAME, or NAME@FILE; then only the process that can make FILE ends, however often the place is passed."""


def crash_point(name: str) -> None:
    """Ends this process here if a test asks for it."""
    wanted, _, once = os.environ.get(CRASH_AT, "").partition("@")
    if name != wanted:
        return
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
