"""The verbs: what every door (command line, HTTP) calls."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch import tracking
from hpsearch.control import Control
from hpsearch.diagnosis import warnings_of
from hpsearch.errors import FixSetup, Interrupted, NotFound
from hpsearch.journal import Journal
from hpsearch.machine import SAFE_PATH, listenable, stop_signals
from hpsearch.places import Place, comparison_of, read, show, ui_command, winning
from hpsearch.proof import Proof, proven, winner_of
from hpsearch.protocols import Tracker
from hpsearch.reporting import read_data_report, write_report
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.startup import (
    DATA_REPORT,
    await_workers,
    begin_workers,
    check_models,
    facts_of,
    hold,
    kernel_of,
    prepare,
    same_inputs,
)
from hpsearch.types import DataReport, Say, Status, StoredStudy, StudyEnded, StudyStarted, TrialRecord, best_record, say_nothing

if TYPE_CHECKING:
    from hpsearch.spec import StudySpec


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
    weights: str | None  # file of the winner's weights
    winner: TrialRecord | None  # the trial that stood up best when trained again; the best one without that
    proof: Proof | None  # what was found beside the search
    tracking_problem: str | None
    ui_command: str | None
    warnings: tuple[str, ...] = ()  # layers that did not learn, settings that change nothing
    smallest_difference: float | None = None  # in accuracy, a share, that the validation images can show, as the data check has it

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        values = asdict(self)
        for key in ("best", "default", "winner"):
            if values[key] is not None:
                values[key].pop("curve")
        return values


# ---------------------------------------------------------------- run


def run(spec: StudySpec, where: Place, listeners: Sequence[Tracker] = (), say: Say = say_nothing) -> Summary:
    """Run a study, or go on with it, to its budget of trials; writes storage, MLflow mirror, report and best weights.

    `say` hears what long steps are doing. Raises FixInput or FixSetup before the first trial, WaitOrStop when another
    process runs this study, Interrupted after a signal, once everything that was told is stored.
    """
    begun = time.monotonic()
    name, folder = spec.study_name(), where.runs(spec.study_name())
    check_models(spec)
    if spec.artifacts:
        from hpsearch.artifacts import place

        place(spec.artifacts, name)
    source = None
    if spec.warm_start:  # found before anything is created
        from hpsearch.search.headstart import find_source

        source = find_source(where.storage, spec)
    executor = begin_workers(spec, name, say)  # torch loads while Optuna does
    from hpsearch.search.store import open_existing, open_storage

    with hold(folder, where.storage, name) as lease, stop_signals() as signalled:
        control, journal = Control(folder), Journal(folder)
        control.begin()
        stopped_by = control.or_pause(signalled)
        heard = [journal, *listeners]
        mlflow = tracking.MlflowTracker(where.tracking, folder, heard) if where.tracking else None
        trackers: list[Tracker] = [*([mlflow] if mlflow else []), control, *heard]
        try:
            from hpsearch.orchestrator import Orchestrator
            from hpsearch.proving import Prover, due
            from hpsearch.search.catalog import read_study
            from hpsearch.search.headstart import begin
            from hpsearch.search.rebuild import take_over_results
            from hpsearch.search.samplers import ask_ahead, describe_limits
            from hpsearch.search.searcher import OptunaSearcher

            with ExitStack() as stack:
                stack.enter_context(closing(executor))
                storage = open_existing(where.storage)
                known = facts_of(storage, spec) if storage else {}
                prepared = None if "blocks" in known else prepare(executor, spec, folder, say, stopped_by)
                storage = storage or open_storage(where.storage, create=True)  # not for a study whose data is refused
                stack.callback(storage.engine.dispose)
                lease.guard(storage)
                blocks = prepared.blocks if prepared else known["blocks"]
                spec = spec.bound(blocks)
                await_workers(folder, say)
                if limits := describe_limits(spec.sampler, spec.parameters()):
                    say(f"Sampler: {limits}", 0, 0)
                take_over_results(storage, spec, folder, say)
                with closing(OptunaSearcher(spec, storage, begin(storage, spec, source, blocks, say), folder=folder)) as searcher:
                    stored = read_study(storage, name)
                    if not stored.records:
                        control.fresh()
                    proving = spec.references or spec.repeats is not None  # what an earlier session asked for is not repeated unasked
                    if prepared is None and (searcher.remaining(spec.trials) or (proving and due(stored))):
                        prepared = prepare(executor, spec, folder, say, stopped_by)
                    if prepared is not None:
                        same_inputs(name, known, prepared)
                        executor.ref = kernel_of(spec, prepared, folder, executor.crew)

                    def stop() -> str | None:
                        lease.check()
                        return "interrupted" if stopped_by() else None

                    loop = Orchestrator(
                        searcher,
                        executor,
                        trackers,
                        TrialFiles(folder),
                        budget=spec.trials,
                        timeout=spec.timeout,
                        ahead=ask_ahead(spec.sampler, executor.workers),
                        stop=stop,
                        asked=control.asked,
                    )
                    reason = loop.run(name, spec.resolved(), stored.runs)
                if proving and executor.ref is not None and reason != "interrupted" and due(read_study(storage, name)):
                    prover = Prover(storage, name, executor, trackers, loop.facts, stopped_by, say, folder)
                    reason = prover.prove(executor.ref.config) or reason
            summary = finish(spec, where, reason, trackers, say, begun)
        except BaseException:
            if mlflow is not None:
                mlflow.abandon()
            raise
    if summary.reason == "interrupted":
        raise Interrupted("stopped; nothing that was told is lost. The same command goes on with the study", stopped_by() or signal.SIGINT)
    return summary


def finish(spec: StudySpec, where: Place, reason: str, trackers: Sequence[Tracker], say: Say, begun: float) -> Summary:
    """Write the resolved spec and the report, complete the mirror, and sum up."""
    from hpsearch.artifacts import deliver
    from hpsearch.proving import write_proof
    from hpsearch.search.records import keep_study
    from hpsearch.search.samplers import describe_random
    from hpsearch.search.store import opened

    say("Writing the report", 0, 0)
    with opened(where.storage) as storage:
        stored = read(storage, spec.study_name())
        keep_study(storage, stored.name, where.runs(stored.name))
        report = write_report(storage, stored, where)
    proof = proven(stored)
    if proof is not None:
        write_proof(proof, where.runs(stored.name))
    resolved = where.runs(stored.name) / "spec.json"
    resolved.write_text(json.dumps(dict(stored.spec), indent=2) + "\n")
    winner = winner_of(stored)
    weights = TrialFiles(where.runs(stored.name)).find(winner.checkpoint) if winner else None
    ended = ending(stored, where, reason)
    lost = deliver(ended.artifacts, spec.artifacts, stored.name) if spec.artifacts else ""
    for tracker in trackers:
        tracker.record(ended)
    mlflow = next((tracker for tracker in trackers if isinstance(tracker, tracking.MlflowTracker)), None)
    if mlflow is not None:
        say("Completing the MLflow mirror", 0, 0)
    for tracker in trackers:
        tracker.close()
    problem = behind(mlflow, stored.name) if mlflow and mlflow.problem else None
    if problem is not None:
        with opened(where.storage) as storage:
            report = write_report(storage, stored, where, (f"# {problem}", f"hpsearch sync {shlex.quote(stored.name)}"))
    counts = {status.value: sum(r.status is status for r in stored.records) for status in Status}
    drawn = describe_random(spec.sampler, counts)
    checked = read_data_report(where.runs(stored.name) / DATA_REPORT)
    found = checked.facts.get("smallest_difference") if checked else None
    return Summary(
        study=stored.name,
        reason=reason,
        best=ended.best,
        default=ended.default,
        counts={k: v for k, v in counts.items() if v},
        seconds=time.monotonic() - begun,
        report=str(report),
        weights=str(weights) if weights else None,
        winner=winner,
        proof=proof,
        tracking_problem=problem,
        ui_command=ui_command(where) if mlflow else None,
        warnings=(*([lost] if lost else []), *([drawn] if drawn else []), *warnings_of((*stored.records, *stored.runs))),
        smallest_difference=float(found) if isinstance(found, (int, float)) else None,
    )


def ending(stored: StoredStudy, where: Place, reason: str) -> StudyEnded:
    """How a study ended, with the files that it left in its folder."""
    from hpsearch.proving import PROOF, flat

    folder, winner = where.runs(stored.name), winner_of(stored)
    files = [folder / name for name in ("report.html", "spec.json", DATA_REPORT)]
    weights = TrialFiles(folder).find(winner.checkpoint) if winner else None
    files += [weights] if weights else []
    proof = proven(stored)
    files += [folder / PROOF] if proof else []
    scores, confirmed = (flat(proof), proof.winner) if proof else ({}, None)
    there = [str(file) for file in files if file.exists()]
    return StudyEnded(reason, best_record(stored.records), stored.default, there, scores, confirmed)


def mirror_stored(mirror: tracking.MlflowTracker, stored: StoredStudy, where: Place) -> None:
    """Tells a mirror of a study as the storage has it; what MLflow has of it already stays as it is."""
    known = (stored.name, stored.uid, stored.spec, stored.records, 0, 0, stored.facts, stored.runs)
    mirror.record(StudyStarted(*known, experiment=comparison_of(stored)))
    mirror.record(ending(stored, where, reason_of(stored)))


def reason_of(stored: StoredStudy) -> str:
    """Why a stored study ended, as far as its trials show it; "" where they do not."""
    if any(not r.status.ended for r in stored.records):
        return "interrupted"
    return "budget" if len(stored.records) >= int(stored.spec.get("trials", 0)) else ""


def behind(mlflow: tracking.MlflowTracker, study: str) -> str:
    """What MLflow lacks, why, and what to do."""
    points = f" by {mlflow.behind:,} points" if mlflow.behind else ""
    return f"tracking behind{points}: `hpsearch sync {shlex.quote(study)}` completes it ({mlflow.problem})"


# ---------------------------------------------------------------- looking


def list_studies(where: Place) -> list[StoredStudy]:
    """Every study in the storage."""
    from hpsearch.search.catalog import read_study, study_names
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        return [read_study(storage, name) for name in study_names(storage)]


def best(where: Place, name: str | None) -> tuple[StoredStudy, TrialRecord]:
    """A study and its winner; NotFound when no trial is complete."""
    stored = show(where, name)
    return stored, winning(stored)


# ---------------------------------------------------------------- looking before running


def check(spec: StudySpec, with_model: bool, say: Say = say_nothing, page: Path | None = None) -> DataReport:
    """What is wrong with a study's data; `with_model` also looks at labels, with the features of its model. Writes `page` if asked."""
    from hpsearch.finetune.names import check_names
    from hpsearch.finetune.prepare import prepare as prepare_here

    for model in spec.models if with_model else ():
        check_names(model, spec.weights)
    config = spec.resolved() | {"model": spec.model if with_model else None, "space": {}}  # one model's view is enough
    report = prepare_here(config, say, need_weights=False).report
    if page is not None:
        from hpsearch.report.page import write_data_page

        write_data_page(report, page)
    return report


def model_blocks(name: str, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks of a model, in order, as rows: number, name, parameters, output shape, what freezing up to there leaves trainable."""
    from hpsearch.finetune.models import describe
    from hpsearch.finetune.names import check_names

    check_names(name, "DEFAULT")
    return [asdict(row) for row in describe(name, overrides=overrides)]


def model_names() -> list[str]:
    """Every model that goes by a name."""
    from hpsearch.finetune.names import MODELS

    return sorted(MODELS)


def example(folder: Path) -> Path:
    """Write a folder of images with weights and a study file; the study file."""
    from hpsearch.finetune.example import write_example

    return write_example(folder)


def cache(clear: bool) -> dict[str, Any]:
    """What the cache of decoded images holds; `clear` deletes it."""
    from hpsearch.finetune import pixels

    folder = pixels.cache_folder()
    listed = [entry._asdict() for entry in pixels.entries(folder)]
    used = pixels.clear(folder) if clear else sum(entry["bytes"] for entry in listed)
    for file in (folder / "checks").glob("*.json"):  # reports on data that was looked at before
        used += file.stat().st_size
        if clear:
            file.unlink(missing_ok=True)
    return {"folder": str(folder), "bytes": used, "entries": listed}


# ---------------------------------------------------------------- MLflow's own page


def ui(where: Place, host: str, port: int) -> tuple[list[str], int]:
    """The lean command behind `hpsearch ui`, and its port; also sets this process's environment for it.

    MLflow's default is 15 processes and 3 GB; one worker without its job runner is 2 processes and 0.5 GB.
    """
    if where.tracking is None or where.tracking.startswith(("http", "databricks")):
        raise FixSetup(f"the runs are on {ui_command(where)}: open that address in a browser")
    file = tracking.store_file(where.tracking)
    if file is not None and not file.exists():
        raise NotFound(f"there is no MLflow store {file} yet: run a study first, or name one with --tracking-uri")
    tracking.quiet_environment()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ[SAFE_PATH] = "1"  # for the web server that MLflow starts
    port = listenable(host, port)
    command = [
        sys.executable,
        "-P",
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
    return command, port


# ---------------------------------------------------------------- JSON


def overview(study: StoredStudy) -> dict[str, Any]:
    """A study as one row."""
    record = winner_of(study)
    return {
        "study": study.name,
        "trials": len(study.records),
        "complete": sum(r.status is Status.COMPLETE for r in study.records),
        "best_trial": record.number if record else None,
        "objective": study.spec.get("objective"),
        "best_score": record.score if record else None,
        "best_val_loss": record.val_loss if record else None,
        "sampler": study.spec.get("sampler"),
    }
