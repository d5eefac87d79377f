"""Named places where a test ends the process as if by kill -9: the moments between two steps that must both be survived."""

from __future__ import annotations

import os
import signal
from pathlib import Path

WANTED, _, COUNTED = os.environ.get("HPSEARCH_CRASH_AT", "").partition("@")
"""NAME, or NAME@FILE: then only the process that can make FILE ends, so that it happens once however often the place is passed."""


def crash_point(name: str) -> None:
    """End this process here if a test asks for it."""
    if name != WANTED:
        return
    if COUNTED:
        try:
            Path(COUNTED).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
