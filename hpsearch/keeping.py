"""What a trial leaves in its study's folder: the state it goes on from, and its result, so that neither hangs on a database.

A result is written by who trained the trial, before anybody is told of it; whoever is killed after that has lost nothing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from hpsearch.core.text import harmless
from hpsearch.core.trial_values import LARGEST, check_scores, trial_values
from hpsearch.faults import crash_point
from hpsearch.machine import pulse
from hpsearch.types import Outcome, Status, Trial, TrialRecord, point_key, trial_name

RESULTS = "results"  # folder of one file a trial, in the study's
STUDY = "study.json"  # what the trials belong to, there too
GAP = 1000  # trials that may have been under way when a session was killed
LARGEST_FILE = 64 * 2**20  # bytes of a result
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


def unusable_results(folder: Path | str, study: str) -> list[str]:
    """The results in a folder that are left out whatever is done with the others, each with the reason."""
    found = []
    for path in sorted((Path(folder) / RESULTS).glob("*.json")):
        try:
            load_result(path, study)
        except (OSError, ValueError) as error:
            found.append(f"{path.name}: {harmless(str(error))}")
    numbers = [record.number for record in read_results(folder, study).values() if record.setup is None]
    far = sorted({*numbers} - {*without_gaps(numbers)})
    return found + [f"{trial_name(number)}.json: there is nothing of more than {GAP:,} trials before it" for number in far]


def later_results(folder: Path | str | None, study: str, number: int) -> dict[int, TrialRecord]:
    """The results of the study's trials from that number on, by number; the files of earlier ones are not opened."""
    files = (Path(folder) / RESULTS).glob("trial-*.json") if folder is not None else ()
    names = [path.stem for path in files if (digits := path.stem.removeprefix("trial-")).isdecimal() and number <= int(digits) <= LARGEST]
    found = {record.number: record for name in names if (record := read_result(folder, name, study)) is not None}
    return {number: found[number] for number in without_gaps(found, number)}


def without_gaps(numbers: Iterable[int], first: int = 0) -> list[int]:
    """The numbers, sorted, up to a gap that no session leaves: trials without a result are those that were under way."""
    found = sorted(numbers)
    missing = (number - first - index for index, number in enumerate(found))
    return [number for number, gap in zip(found, missing, strict=True) if gap <= GAP]


def read_result(folder: Path | str | None, name: str, study: str) -> TrialRecord | None:
    """The result of a trial of that name, if it is there, can be used, and is of the study with that uid; None without a folder."""
    if folder is None:
        return None
    try:
        return load_result(result_path(folder, name), study)
    except (OSError, ValueError):  # not one of ours, or of another version
        return None


def load_result(path: Path, study: str) -> TrialRecord | None:
    """The result in a file; None where it is of another study than that with this uid.

    Raises OSError, or ValueError with what is wrong with it.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a named pipe would wait for ever
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST_FILE:
            raise ValueError(f"it is no file of {LARGEST_FILE // 2**20} MiB at most")
        text = file.read(LARGEST_FILE)
    try:
        values: Any = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__}, not a mapping")
    if values.get("study") != study:
        return None
    record = record_from(values)
    if record.name != path.stem:
        raise ValueError(f"it is that of {record.name}")
    if record.number < 0 and record.setup is None:
        raise ValueError(f"its number is {record.number}, and it is of no run beside the search")
    if not (record.status.ended or record.status is Status.PAUSED):
        raise ValueError(f"its status is {record.status.value}, which is no result")
    return record


def record_from(values: Mapping[str, Any]) -> TrialRecord:
    """A record out of JSON; ValueError with what is wrong with it."""
    kept = trial_values(values)
    missing = [
        field.name
        for field in fields(TrialRecord)
        if field.name not in kept and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    return check_scores(TrialRecord(**kept))


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
