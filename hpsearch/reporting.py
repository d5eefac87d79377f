"""The verbs that tell of a study: its page, and the same as data."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.places import Place, read, ui_command
from hpsearch.proof import proof_of, wanted
from hpsearch.startup import DATA_REPORT
from hpsearch.types import DataReport, StoredStudy, TrialRecord

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


def report(where: Place, name: str | None, out: Path | None = None) -> Path:
    """Write a study's page; returns its path."""
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        return write_report(storage, read(storage, name), where, out)


def write_report(storage: RDBStorage, stored: StoredStudy, where: Place, out: Path | None = None) -> Path:
    """Write the page of a stored study."""
    from hpsearch.report.page import write_page
    from hpsearch.report.tables import StudyView
    from hpsearch.search.catalog import importance
    from hpsearch.search.samplers import POLICY

    ranks, method = importance(storage, stored.name)
    view = StudyView(
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
        proof=proof_of(stored) if wanted(stored) or stored.openings else None,
        runs=stored.runs,
    )
    path = out or where.runs(stored.name) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(view, path)


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
