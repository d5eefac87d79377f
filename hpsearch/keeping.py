"""What a trial leaves in its study's folder: the state it goes on from, and its result, so that neither hangs on a database.

A result is written by who trained the trial, before anybody is told of it; whoever is killed after that has lost nothing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hpsearch.faults import crash_point
from hpsearch.machine import pulse
from hpsearch.types import Outcome, Setup, Status, Trial, TrialRecord, point_key

RESULTS = "results"  # folder of one file a trial, in the study's
STUDY = "study.json"  # what the trials belong to, there too
FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = 3600.0  # seconds that what a training came to waits for room on a full disk


def state_path(folder: Path | str, name: str) -> Path:
    """Where the state of a trial of that name is kept."""
    return Path(folder) / f"{name}.state"


def result_path(folder: Path | str, name: str) -> Path:
    """Where the result of a trial of that name is kept."""
    return Path(folder) / RESULTS / f"{name}.json"


def patiently(write: Callable[[], None], folder: Path | str) -> None:
    """Call what writes a file into `folder`, again and again while the disk is full."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL or time.monotonic() > give_up:
                raise
        free = shutil.disk_usage(folder).free / 2**20
        pulse(f"The disk of {folder} is full ({free:.1f} MB left): training waits; free some space and it goes on")
        time.sleep(1.0)


def write_durably(path: Path, text: str) -> None:
    """Write a file whole or not at all, and so that it outlives a loss of power once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        crash_point("result-aside")
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    place = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def write_result(folder: Path | str, record: TrialRecord, study: str) -> None:
    """Keep the result of a trial of the study with that uid."""
    text = json.dumps({"study": study, **asdict(record)})
    patiently(lambda: write_durably(result_path(folder, record.name), text), folder)
    crash_point("result-written")


def read_results(folder: Path | str, study: str) -> dict[str, TrialRecord]:
    """The results in a folder that belong to the study with that uid, by name."""
    names = sorted(path.stem for path in (Path(folder) / RESULTS).glob("*.json"))
    return {name: record for name in names if (record := read_result(folder, name, study)) is not None}


def later_results(folder: Path | str | None, study: str, number: int) -> dict[int, TrialRecord]:
    """The results of the study's trials from that number on, by number; the files of earlier ones are not opened."""
    files = (Path(folder) / RESULTS).glob("trial-*.json") if folder is not None else ()
    names = [path.stem for path in files if (digits := path.stem.removeprefix("trial-")).isdigit() and int(digits) >= number]
    return {record.number: record for name in names if (record := read_result(folder, name, study)) is not None}


def read_result(folder: Path | str | None, name: str, study: str) -> TrialRecord | None:
    """The result of a trial of that name, if it is there and of the study with that uid; None without a folder."""
    if folder is None:
        return None
    path = result_path(folder, name)
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record_from(values) if values["study"] == study else None
    except (OSError, ValueError, KeyError, TypeError):  # not one of ours, or of another version
        return None


def record_from(values: Mapping[str, Any]) -> TrialRecord:
    """A record out of JSON."""
    known = {field.name for field in fields(TrialRecord)}
    kept = {key: value for key, value in values.items() if key in known}
    setup = Setup(**kept["setup"]) if kept.get("setup") else None
    return TrialRecord(**{**kept, "status": Status(kept["status"]), "setup": setup})


def outcome_of(record: TrialRecord) -> Outcome:
    """The outcome that a result was made of."""
    return Outcome(
        trial=record.number,
        status=Status.PRUNED if record.status is Status.PAUSED else record.status,
        val_loss=record.val_loss,
        epoch=record.best_epoch,
        seconds=record.seconds,
        metrics=record.metrics,
        effective=record.effective,
        checkpoint=record.checkpoint,
        error=record.error,
        per_class=record.per_class,
        state=record.state,
        reused=record.reused,
        remark=record.remark,
    )


def left_by(trial: Trial, folder: Path | str | None) -> Outcome | None:
    """What a trial came to whose worker died before it could tell."""
    result = read_result(trial.folder or folder, trial.name, trial.study)
    same = result is not None and (result.number, point_key(result.params)) == (trial.number, point_key(trial.params))
    return outcome_of(result) if result is not None and same else None


def resumed(trial: Trial, folder: Path | str | None) -> str | None:
    """The state that an interrupted trial left, if it left one."""
    if folder is None:
        return None
    path = state_path(trial.folder or folder, trial.name)
    return str(path) if path.exists() else None
