"""The verbs that tell of a study: its page, and the same as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.diagnosis import diagnoses, warnings_of
from hpsearch.errors import FixInput, nearest
from hpsearch.places import Place, read, ui_command
from hpsearch.proof import proven
from hpsearch.resources import folder
from hpsearch.startup import DATA_REPORT
from hpsearch.types import DataReport, StoredStudy, TrialRecord, finite_json

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from hpsearch.report.tables import StudyView

FORMATS = ("html", "json", "csv", "png")
OF_FILES = ("csv", "png")  # these make a folder


def report(
    where: Place,
    name: str | None,
    out: Path | None = None,
    fmt: str = "html",
    page: str | None = None,
    trial: int | None = None,
) -> tuple[Path, ...]:
    """Tell of a study, or of one of its trials, in one of FORMATS; the files that were written, of CSV and PNG all in one folder.

    `page` is a page spec by name or file. Raises NotFound for an unknown study or trial, FixInput for a page that cannot be shown,
    FixSetup when `out` cannot be written or there is no browser to draw images with.
    """
    from hpsearch.search.store import opened

    if fmt not in FORMATS:
        raise FixInput(f"unknown format '{fmt}': {nearest(fmt, FORMATS)}")
    if fmt == "json" and page is not None:
        raise FixInput("--page chooses what is shown, and JSON holds everything: leave it out")
    if out is not None:
        refuse_wrong_kind(out, fmt)
    with opened(where.storage) as storage:
        stored = read(storage, name)
        if not stored.uid:
            raise FixInput(
                f"'{stored.name}' was not made by hpsearch, and a report tells of trainings: `hpsearch show` lists its trials, and "
                "optuna-dashboard draws them"
            )
        view = view_of(storage, stored, where)
    if trial is not None:
        from hpsearch.report.trial import trial_of

        view = replace(view, trial=trial)
        trial_of(view)
    about = "report" if trial is None else f"trial-{trial}"
    path = out or where.runs(stored.name) / (f"{about}-{fmt}" if fmt in OF_FILES else f"{about}.{fmt}")
    shown = page_named(page) if page else "study" if trial is None else "trial"
    if fmt == "json":
        from hpsearch.report.page import write

        return (write(json.dumps(report_json(stored, view), indent=2, allow_nan=False) + "\n", path),)
    if fmt == "html":
        from hpsearch.report.page import write_page

        return (write_page(view, path, shown),)
    from hpsearch.report.formats import write_images, write_tables

    written = (write_tables if fmt == "csv" else write_images)(view, path, shown)
    for old in path.glob(f"*.{fmt}") if out is None else ():
        if old not in written:  # of a page that showed more
            old.unlink()
    return tuple(written)


def page_named(page: str) -> str | Path:
    """A page that ships with hpsearch, by name, or the user's own file."""
    shipped = [file.stem for file in folder("dashboards").glob("*.yaml")]
    own = page.endswith((".yaml", ".yml")) or Path(page).name != page or Path(page).is_file()
    return Path(page) if own and page not in shipped else page


def refuse_wrong_kind(path: Path, fmt: str) -> None:
    """FixInput for a folder where a file is to be written, or a file in place of a folder."""
    if fmt not in OF_FILES and path.is_dir():
        raise FixInput(f"{path} is a directory: name a file for {fmt.upper()}")
    if fmt in OF_FILES and path.exists() and not path.is_dir():
        raise FixInput(f"{path} is a file: {fmt.upper()} has one for each {'table' if fmt == 'csv' else 'figure'}, so name a folder")


def write_report(storage: RDBStorage, stored: StoredStudy, where: Place, notes: Sequence[str] = ()) -> Path:
    """Write the page of a stored study into its folder; `notes` stand beside the commands on it."""
    from hpsearch.report.page import write_page

    view = view_of(storage, stored, where)
    return write_page(replace(view, notes=(*view.notes, *notes)), where.runs(stored.name) / "report.html")


def view_of(storage: RDBStorage, stored: StoredStudy, where: Place) -> StudyView:
    """Everything that pages say about a stored study."""
    from hpsearch.report.tables import StudyView
    from hpsearch.search.catalog import importance
    from hpsearch.search.samplers import POLICY

    ranks, method = importance(storage, stored.name)
    return StudyView(
        name=stored.name,
        spec=stored.spec,
        facts=stored.facts,
        records=stored.records,
        importance=ranks,
        importance_method=method,
        policy=POLICY.get(str(stored.spec.get("sampler")), ""),
        notes=tuple([ui_command(where)] if where.tracking else []),
        generated=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        data=read_data_report(where.runs(stored.name) / DATA_REPORT),
        headstart=stored.headstart,
        proof=proven(stored),
        runs=stored.runs,
    )


def read_data_report(path: Path) -> DataReport | None:
    """What checking the study's data came to; None when it was run elsewhere or its folder is gone."""
    try:
        return DataReport.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_json(record: TrialRecord) -> dict[str, Any]:
    """A trial with its curve, JSON-able."""
    return asdict(record) | {"score": record.score}


def study_json(study: StoredStudy) -> dict[str, Any]:
    """A study with its trials, JSON-able."""
    return {"study": study.name, "spec": dict(study.spec), "facts": dict(study.facts), "trials": [record_json(r) for r in study.records]}


def report_json(study: StoredStudy, view: StudyView) -> dict[str, Any]:
    """Everything that the page shows, as data; what is no number (a loss that became NaN) is null."""
    from hpsearch.report import tables
    from hpsearch.report.trial_words import trial_json
    from hpsearch.report.words import verdict

    numbers = tables.summary(view)
    summary = {
        "verdict": verdict(view),
        "best_trial": numbers.best.number if numbers.best else None,
        "default_trial": numbers.default.number if numbers.default else None,
        "gain": numbers.gain,
        "accuracy_gain": numbers.accuracy_gain,
        "trials": {str(status): n for status, n in numbers.counts.items()},
        "seconds": numbers.seconds,
        "seconds_saved": numbers.saved,
        "validation_images": numbers.val_images,
    }
    shown: dict[str, Any] = {
        **study_json(study),
        "generated": view.generated,
        "summary": summary,
        "importance": {"method": view.importance_method, "shares": dict(view.importance)},
        "warnings": warnings_of((*study.records, *study.runs)),
        "diagnoses": {str(number): text for number, text in diagnoses(study.records).items()},
        "proof": asdict(view.proof) if view.proof else None,
        "runs": [record_json(r) for r in study.runs],
        "data": asdict(view.data) if view.data else None,
        "headstart": list(view.headstart),
        "policy": view.policy,
    }
    about = {"trial": trial_json(view)} if view.trial is not None else {}
    plain: dict[str, Any] = finite_json(shown | about)
    return plain
