"""What results depend on beside the study: versions of libraries, the commit of the working folder, how a session was laid out."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hpsearch import __version__

PACKAGES = ("torch", "torchvision", "optuna", "mlflow")
LAYOUT = (
    "versions",
    "commit",
    "device",
    "instructions",
    "precision",
    "threads",
    "workers",
)  # facts that may change from session to session


def versions() -> dict[str, str]:
    """Of what the results depend on; read from what is installed, nothing is imported."""
    found = {"hpsearch": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit() -> dict[str, Any]:
    """The git commit of the working folder, and whether tracked files differ from it; nothing outside a repository."""
    with suppress(OSError, subprocess.SubprocessError):
        head, changed = (
            subprocess.run(["git", *command], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
        return {"id": head, "changed": bool(changed)}
    return {}


def remembered(known: Mapping[str, Any], facts: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The facts of a session that begins now, with those of earlier sessions that were laid out otherwise."""
    earlier: list[Mapping[str, Any]] = list(known.get("sessions", ()))
    layout = {key: facts[key] for key in LAYOUT if key in facts}
    if not earlier or {key: value for key, value in earlier[-1].items() if key != "since"} != layout:
        earlier.append({"since": now, **layout})
    return {**facts, "sessions": earlier}


def session_at(facts: Mapping[str, Any], at: float | None) -> Mapping[str, Any]:
    """How the session was laid out in which a trial began; the facts themselves where sessions were not noted."""
    sessions: Sequence[Mapping[str, Any]] = facts.get("sessions", ())
    begun = [session for session in sessions if at is None or session["since"] <= at]
    return begun[-1] if begun else facts
