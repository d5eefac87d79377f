"""The verbs: what every door (command line, HTTP) calls."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch import tracking
from hpsearch.errors import FixSetup, Interrupted, NotFound
from hpsearch.machine import crew, stop_signals, study_lock
from hpsearch.types import Status, StudyEnded, Tracker, TrialRecord, best_record

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from hpsearch.search.catalog import StoredStudy
    from hpsearch.spec import StudySpec

KERNEL = "hpsearch.finetune.kernel:make"
PRELOAD = ("hpsearch.executors.preload", "torch", "safetensors.torch", "hpsearch.finetune.kernel")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study's things are."""

    folder: Path  # working folder
    storage: str  # URL of Optuna's storage
    tracking: str | None  # URI of MLflow's store; None when tracking is off

    def runs(self, study: str) -> Path:
        """The study's own folder: report, resolved spec, best weights, lock."""
        return self.folder / "hpsearch-runs" / study


@dataclass(frozen=True, slots=True)
class Summary:
    """What a session of a study came to."""

    study: str
    reason: str  # budget, timeout, exhausted, interrupted
    best: TrialRecord | None
    default: TrialRecord | None  # trial 0
    counts: dict[str, int]  # trials per status
    seconds: float  # of this session
    report: str | None
    weights: str | None  # file of the best trial's weights
    tracking_problem: str | None
    ui_command: str | None

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        from dataclasses import asdict

        values = asdict(self)
        for key in ("best", "default"):
            if values[key] is not None:
                values[key].pop("curve")
        return values


def place(folder: Path, storage: str | None = None, tracking_uri: str | None = None, track: bool = True) -> Place:
    """Resolve where things are; raises FixInput or FixSetup."""
    from hpsearch.search.store import sqlite_path, storage_url

    url = storage_url(storage or os.environ.get("OPTUNA_STORAGE"), folder)
    uri = tracking.tracking_uri(tracking_uri, folder) if track else None
    if uri is not None and (file := sqlite_path(url)) is not None and uri == f"sqlite:///{file.resolve()}":
        raise FixSetup(f"storage and tracking name the same file {file}; Optuna and MLflow refuse to share one")
    return Place(folder, url, uri)


# ---------------------------------------------------------------- run


def run(spec: StudySpec, where: Place, listeners: Sequence[Tracker] = (), say: Callable[[str], None] = lambda _: None) -> Summary:
    """Run a study, or go on with it, to its budget of trials; writes storage, MLflow mirror, report and best weights.

    `say` hears what long steps are doing. Raises FixInput or FixSetup before the first trial, WaitOrStop when another
    process runs this study, Interrupted after a signal, once everything that was told is stored.
    """
    from hpsearch.executors.process import ProcessExecutor
    from hpsearch.executors.worker import KernelRef
    from hpsearch.finetune.names import check_names

    begun = time.monotonic()
    name, folder = spec.study_name(), where.runs(spec.study_name())
    check_names(spec.model, spec.data, spec.weights, spec.parameters())
    workers = crew(spec.workers, spec.threads)
    say(f"Starting {workers} worker{'s' * (workers > 1)} ({spec.threads} thread{'s' * (spec.threads > 1)} each) and opening {name}")
    config = spec.resolved() | {"folder": str(folder)}
    executor = ProcessExecutor(KernelRef(KERNEL, config), workers, spec.threads, PRELOAD)  # torch loads while Optuna does
    from hpsearch.search.store import check_storage, open_storage

    file = check_storage(where.storage, create=True)
    beside = [file.parent / "hpsearch-runs" / name] if file else []
    with study_lock([folder, *beside], name), stop_signals() as stopped_by:
        mlflow = tracking.MlflowTracker(where.tracking, folder) if where.tracking else None
        trackers: list[Tracker] = [*([mlflow] if mlflow else []), *listeners]
        try:
            from hpsearch.orchestrator import Orchestrator
            from hpsearch.search.samplers import ASK_AHEAD
            from hpsearch.search.searcher import OptunaSearcher

            with closing(OptunaSearcher(spec, open_storage(where.storage, create=True))) as searcher, closing(executor):
                loop = Orchestrator(
                    searcher,
                    executor,
                    trackers,
                    budget=spec.trials,
                    timeout=spec.timeout,
                    ahead=ASK_AHEAD.get(spec.sampler, 0),
                    stop=lambda: "interrupted" if stopped_by() else None,
                )
                reason = loop.run(name, spec.resolved())
            summary = finish(spec, where, reason, trackers, say, begun)
        except BaseException:
            if mlflow is not None:
                mlflow.abandon()
            raise
    if summary.reason == "interrupted":
        raise Interrupted("stopped; nothing that was told is lost. The same command goes on with the study", stopped_by() or signal.SIGINT)
    return summary


def finish(spec: StudySpec, where: Place, reason: str, trackers: Sequence[Tracker], say: Callable[[str], None], begun: float) -> Summary:
    """Write the resolved spec and the report, complete the mirror, and sum up."""
    from hpsearch.search.store import opened

    say("Writing the report")
    with opened(where.storage) as storage:
        stored = read(storage, spec.study_name())
        report = write_report(storage, stored, where)
    resolved = where.runs(stored.name) / "spec.json"
    resolved.write_text(json.dumps(dict(stored.spec), indent=2) + "\n")
    best = best_record(stored.records)
    default = next((r for r in stored.records if r.number == 0), None)
    weights = best.checkpoint if best and best.checkpoint and Path(best.checkpoint).exists() else None
    ended = StudyEnded(reason, best, default, [str(report), str(resolved), *([weights] if weights else [])])
    for tracker in trackers:
        tracker.record(ended)
    mlflow = next((tracker for tracker in trackers if isinstance(tracker, tracking.MlflowTracker)), None)
    if mlflow is not None:
        say("Completing the MLflow mirror")
    for tracker in trackers:
        tracker.close()
    counts = {status.value: sum(r.status is status for r in stored.records) for status in Status}
    return Summary(
        study=stored.name,
        reason=reason,
        best=best,
        default=default,
        counts={k: v for k, v in counts.items() if v},
        seconds=time.monotonic() - begun,
        report=str(report),
        weights=weights,
        tracking_problem=mlflow.problem if mlflow and mlflow.problem else None,
        ui_command=ui_command(where) if mlflow else None,
    )


# ---------------------------------------------------------------- looking


def read(storage: RDBStorage, name: str | None) -> StoredStudy:
    """A stored study; without a name, the only one there is."""
    from hpsearch.search.catalog import read_study, study_names

    if name is None:
        names = study_names(storage)
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise NotFound(f"say which study; there {'is' if len(names) < 2 else 'are'}: {listed}")
        name = names[0]
    return read_study(storage, name)


def list_studies(where: Place) -> list[StoredStudy]:
    """Every study in the storage."""
    from hpsearch.search.catalog import read_study, study_names
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        return [read_study(storage, name) for name in study_names(storage)]


def show(where: Place, name: str | None) -> StoredStudy:
    """One study with its trials."""
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        return read(storage, name)


def best(where: Place, name: str | None) -> tuple[StoredStudy, TrialRecord]:
    """A study and its best trial; NotFound when none is complete."""
    stored = show(where, name)
    record = best_record(stored.records)
    if record is None:
        raise NotFound(f"no trial of '{stored.name}' is complete yet: run it on, or look at `hpsearch show {stored.name}`")
    return stored, record


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
    )
    path = out or where.runs(stored.name) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(view, path)


# ---------------------------------------------------------------- MLflow's own page


def ui_command(where: Place) -> str:
    """The plain command that opens MLflow's page on this store."""
    return f"mlflow ui --backend-store-uri {shlex.quote(where.tracking or '')}"


def ui(where: Place, host: str, port: int) -> list[str]:
    """The lean command behind `hpsearch ui`; also sets this process's environment for it.

    MLflow's default is 15 processes and 3 GB; one worker without its job runner is 2 processes and 0.5 GB.
    """
    if where.tracking is None or where.tracking.startswith(("http", "databricks")):
        raise FixSetup(f"the runs are on {where.tracking}: open that address in a browser")
    file = Path(where.tracking.removeprefix("sqlite:///"))
    if where.tracking.startswith("sqlite") and not file.exists():
        raise NotFound(f"there is no MLflow store {file} yet: run a study first, or name one with --tracking-uri")
    tracking.quiet_environment()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        where.tracking,
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
    ]


# ---------------------------------------------------------------- JSON


def overview(study: StoredStudy) -> dict[str, Any]:
    """A study as one row."""
    record = best_record(study.records)
    return {
        "study": study.name,
        "trials": len(study.records),
        "complete": sum(r.status is Status.COMPLETE for r in study.records),
        "best_trial": record.number if record else None,
        "best_val_loss": record.val_loss if record else None,
        "sampler": study.spec.get("sampler"),
    }


def record_json(record: TrialRecord) -> dict[str, Any]:
    """A trial with its curve, JSON-able."""
    from dataclasses import asdict

    return asdict(record)


def study_json(study: StoredStudy) -> dict[str, Any]:
    """A study with its trials, JSON-able."""
    return {"study": study.name, "spec": dict(study.spec), "facts": dict(study.facts), "trials": [record_json(r) for r in study.records]}
