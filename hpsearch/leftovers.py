"""What sessions that were killed leave behind: half-written files, states, weights, locks. Finds; deletes nothing by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hpsearch.dbfile import alive
from hpsearch.keeping import RESULTS
from hpsearch.machine import lock
from hpsearch.runtime.trial_files import RESUMABLE, WEIGHTS
from hpsearch.types import Status, StoredStudy, TrialRecord

NUMBERED = re.compile(r".+\.(?:new-|probe-)?(\d+)(?:\.tmp|\.npz)?(?:-wal|-shm|-journal)?")  # files that say which process writes them
HALF = ("*.tmp", "*.npz")  # names of files that are being written, in a study's folder


def locked(folder: Path) -> bool:
    """Whether a process runs the study of this folder, or writes into it."""
    return taken(folder / "lock")


def taken(path: Path) -> bool:
    """Whether somebody holds the lock of a file; it is not made."""
    with suppress(OSError), path.open("r+") as file:
        return not lock(file.fileno(), 0.0)
    return False


def writer_of(path: Path) -> int | None:
    """The process that a half-written file names."""
    found = NUMBERED.fullmatch(path.name)
    return int(found[1]) if found else None


def half_written(folder: Path) -> list[Path]:
    """Files in a study's folder that whoever began them will not finish; nobody runs the study."""
    found = []
    for path in sorted(p for pattern in HALF for place in (folder, folder / RESULTS) for p in place.glob(pattern)):
        pid = writer_of(path)
        if path.is_file() and (path.suffix == ".tmp" or pid is not None) and not (pid is not None and alive(pid)):
            found.append(path)
    return found


def half_made(stores: Iterable[Path]) -> list[Path]:
    """What was begun beside storage and MLflow's store by processes that are gone."""
    asides = (
        path for store in stores for pattern in (f"{store.name}.new-*", f".{store.name}.probe-*") for path in store.parent.glob(pattern)
    )
    return sorted(path for path in asides if (pid := writer_of(path)) is not None and not alive(pid))


def stale_states(folder: Path, stored: StoredStudy) -> list[Path]:
    """States that no trial goes on from: of trials that have ended, and earlier ones of trials that wait."""
    records = named(stored)
    found = []
    for path in sorted(folder.glob("*.state")):
        match = RESUMABLE.fullmatch(path.name)
        record = records.get(match[1]) if match else None
        if record is not None and (record.status.ended or superseded(record, path)):
            found.append(path)
    return found


def superseded(record: TrialRecord, path: Path) -> bool:
    """Whether a trial that waits at a rung goes on from another file."""
    return record.status is Status.PAUSED and record.state is not None and record.state != path.name


def stray_weights(folder: Path, stored: StoredStudy) -> list[Path]:
    """Weights in a study's folder that no trial or run of it refers to; files of other names are somebody's own.

    A trial that is still to end may have written them, or its result may lie in the folder and not be stored yet.
    """
    kept = {r.checkpoint for r in (*stored.records, *stored.runs) if r.checkpoint is not None} | told(folder)
    kept |= {f"{r.name}.safetensors" for r in stored.records if not r.status.ended}
    return [path for path in sorted(folder.glob("*.safetensors")) if WEIGHTS.fullmatch(path.name) and path.name not in kept]


def told(folder: Path) -> set[str]:
    """Names of the weights that results in a study's folder refer to."""
    found = set()
    for path in (folder / RESULTS).glob("*.json"):
        with suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):  # a file that was written by hand
            checkpoint = json.loads(path.read_text()).get("checkpoint")
            found |= {Path(checkpoint).name} if checkpoint else set()
    return found


def named(stored: StoredStudy) -> dict[str, TrialRecord]:
    """Trials and runs by the names that their files have."""
    return {r.name: r for r in (*stored.records, *stored.runs)}
