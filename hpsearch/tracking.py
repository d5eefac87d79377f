"""The MLflow mirror of a study: one experiment, a parent run, a child run per trial. The only room that knows MLflow.

MLflow costs 4 to 30 ms a call and seconds to import, and its server may be slow or dead. So it lives in a process of
its own, fed by a queue that never blocks. Optuna's storage is the truth; this is a mirror of it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch import __version__
from hpsearch.diagnosis import diagnose
from hpsearch.errors import FixInput
from hpsearch.machine import ignore_signals, shielded
from hpsearch.types import (
    EpochDone,
    Event,
    Status,
    StudyEnded,
    StudyStarted,
    Trial,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialStarted,
    WorkerReady,
    score_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

FLUSH_SECONDS = 2.0  # how old an epoch of a running trial may get before it is sent
EXIT_SECONDS = 3.0  # how long a mirror that has answered may take to end
DRAIN_SECONDS = 120.0  # how long the end of a study waits for what is still queued
BATCH = 900  # metrics in one request; MLflow takes 1000
STATUS = {Status.COMPLETE: "FINISHED", Status.PRUNED: "KILLED", Status.FAILED: "FAILED"}  # as MLflow's own Optuna storage has it
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


class NoTracker:
    """Listens to nothing."""

    def record(self, event: Event) -> None:
        """Ignore the event."""

    def close(self) -> None:
        """Nothing to finish."""


def tracking_uri(given: str | None, folder: Path) -> str:
    """Where MLflow's store is: `given`, else MLFLOW_TRACKING_URI, else MLflow's own default, mlflow.db in `folder`.

    FixInput for a kind of store that MLflow cannot write.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if "://" not in uri or scheme not in SCHEMES:
        raise FixInput(f"--tracking-uri '{uri}': MLflow no longer writes to plain folders; use sqlite:///mlflow.db or http://host:port")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{(folder / uri.removeprefix('sqlite:///')).resolve()}"
    return uri


class MlflowTracker:
    """Sends events to the mirror's process; `record` returns at once whatever MLflow does."""

    def __init__(self, uri: str, folder: Path) -> None:
        quiet_environment()
        context = multiprocessing.get_context("spawn")
        self.events: multiprocessing.Queue[Event | None] = context.Queue()
        self.answers: multiprocessing.Queue[str] = context.Queue()
        self.process = context.Process(
            target=serve, args=(self.events, self.answers, uri, str(folder)), name="hpsearch-mlflow", daemon=True
        )
        with shielded():
            self.process.start()
        self.problem: str | None = None

    def record(self, event: Event) -> None:
        """Queue the event."""
        self.events.put(event)

    def close(self) -> None:
        """Wait until the mirror is complete, at most DRAIN_SECONDS; `problem` then says what is missing, if anything."""
        self.events.put(None)
        give_up = time.monotonic() + DRAIN_SECONDS
        while self.problem is None:
            try:
                self.problem = self.answers.get(timeout=0.5)
            except queue.Empty:
                if not self.process.is_alive():
                    self.problem = "its process died"
                elif time.monotonic() > give_up:
                    self.problem = f"MLflow did not take everything within {DRAIN_SECONDS:.0f} s"
        self.process.join(EXIT_SECONDS)  # killed while it gives its semaphores back, it would leave a warning on the terminal
        self.abandon()

    def abandon(self) -> None:
        """End the mirror's process at once."""
        self.process.kill()
        self.process.join()
        self.events.cancel_join_thread()
        self.events.close()


def quiet_environment() -> None:
    """Telemetry off unless the user turned it on, short patience with a dead server; inherited by MLflow's processes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


# ---------------------------------------------------------------- the mirror's process


def serve(events: multiprocessing.Queue[Event | None], answers: multiprocessing.Queue[str], uri: str, folder: str) -> None:
    """Mirror events until None comes, then answer with what went wrong ("" when nothing did)."""
    ignore_signals()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it announces every table it makes
    problem = ""
    mirror: Mirror | None = None
    try:
        create_store(uri)
        mirror = Mirror(uri)
        for event in flowing(events):
            if isinstance(event, StudyStarted):  # one process mirrors several studies, one after the other
                mirror.flush()
                mirror = Mirror(uri)
            mirror.flush() if event is None else mirror.take(event)
        mirror.flush()
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        with suppress(OSError):
            (Path(folder) / "tracking.log").write_text(traceback.format_exc())
        for _ in flowing(events):  # keep the queue empty
            pass
    answers.put(problem)


def flowing(events: multiprocessing.Queue[Event | None]) -> Iterator[Event | None]:
    """Events as they come, with a None in between whenever FLUSH_SECONDS have passed; ends at the final None.

    It also ends when the orchestrator was killed: the queue stays open then, this process holding its other end too.
    """
    due = time.monotonic() + FLUSH_SECONDS
    while True:
        with suppress(queue.Empty):
            event = events.get(timeout=max(0.01, due - time.monotonic()))
            if event is None:
                return
            yield event
        if not orchestrator_lives():
            return
        if time.monotonic() >= due:
            yield None
            due = time.monotonic() + FLUSH_SECONDS


def orchestrator_lives() -> bool:
    """Whether the process that feeds this one is there."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def create_store(uri: str) -> None:
    """Make a new SQLite store aside and link it into place: a kill half-way would leave a file that never opens again."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.new-{os.getpid()}")
    from mlflow import MlflowClient

    try:
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # somebody else was first
            os.link(aside, path)
    finally:
        for leftover in path.parent.glob(f"{aside.name}*"):
            leftover.unlink()


class Mirror:
    """Writes one study into MLflow through explicit run ids: no global active run."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(uri)
        self.experiment = ""
        self.parent = ""
        self.runs: dict[int, str] = {}  # trial -> run id
        self.sent: dict[int, int] = {}  # trial -> epochs sent
        self.trials: dict[int, tuple[Trial, float]] = {}  # running: trial and start
        self.curves: dict[int, list[tuple[Mapping[str, float], float]]] = {}  # running: epoch row and time
        self.classes: Sequence[str] = ()

    def take(self, event: Event) -> None:
        """Take note; only ends are written at once."""
        match event:
            case StudyStarted():
                self.begin(event)
            case WorkerReady(_, facts):
                self.describe(facts)
            case TrialStarted(trial, at):
                self.trials.setdefault(trial.number, (trial, at))
                self.curves.setdefault(trial.number, [])  # one that goes on from a rung has its curve
            case TrialPaused():
                self.flush()
            case EpochDone(progress, _, at):
                self.curves[progress.trial].append((progress.row(), at))
            case TrialEnded(record, best):
                self.finish(record)
                if best == record.number:
                    for key in dict.fromkeys((record.objective, "val_loss")):
                        score = score_of(key, record.val_loss, record.metrics)
                        self.client.log_metric(self.parent, f"best_{key}", finite(score), step=record.number)
            case StudyEnded():
                self.end(event)

    # ------------------------------------------------------------ the study

    def begin(self, event: StudyStarted) -> None:
        """Find or make experiment and parent run, and bring runs of earlier sessions up to date."""
        from mlflow.entities import Param

        self.classes = event.facts.get("classes", ())
        name = event.experiment or event.study
        found = self.client.get_experiment_by_name(name)
        if found is None:
            self.experiment = self.client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
        else:
            self.experiment = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(self.experiment)
        parents = self.search(f"tags.`hpsearch.uid` = '{event.uid}' AND tags.`hpsearch.kind` = 'study'")
        if parents:
            self.parent = parents[0].info.run_id
            self.client.update_run(self.parent, status="RUNNING")
        else:
            tags = {"hpsearch.study": event.study, "hpsearch.uid": event.uid, "hpsearch.kind": "study", "hpsearch.version": __version__}
            self.parent = self.client.create_run(self.experiment, tags=tags, run_name=event.study).info.run_id
        spec = event.spec
        params = [Param(f"{key}", str(spec[key])) for key in ("data", "model", "weights", "objective", "sampler", "seed")]
        self.client.log_batch(self.parent, params=[*params, Param("pruner", str(spec["pruner"]["name"]))])
        self.client.set_tag(self.parent, "hpsearch.workers", str(event.workers))
        ended = {record.number: record for record in (*event.records, *event.beside) if record.status.ended}
        for run in self.search(f"tags.`mlflow.parentRunId` = '{self.parent}'"):
            number = int(run.data.tags["hpsearch.trial"])
            if number in ended and run.data.tags.get("hpsearch.state") == ended[number].status:
                self.runs[number] = run.info.run_id
            else:  # cut off, or ahead of the storage: its epochs come again, whole
                self.client.delete_run(run.info.run_id)
        for record in ended.values():
            if record.number not in self.runs:
                self.finish(record)
        for record in event.records:
            if record.status is Status.PAUSED:  # its run is made again, with what it has come to
                begun = record.started or time.time()
                self.trials[record.number] = (Trial(record.number, record.params, record.attempt, record.origin), begun)
                self.curves[record.number] = [(row, begun + row.get("seconds", 0.0)) for row in record.curve]

    def search(self, query: str) -> list[Run]:
        """All runs of the experiment that match."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Put what the worker found on the parent run."""
        from mlflow.entities import RunTag

        self.classes = facts.get("classes", ())
        self.client.log_batch(self.parent, tags=[RunTag(f"hpsearch.{key}", str(value)[:4000]) for key, value in facts.items()])

    def end(self, event: StudyEnded) -> None:
        """Close the parent run with the best trial's results and, last, the study's files."""
        if event.best is not None:
            best = event.best
            self.client.set_tag(self.parent, "hpsearch.best_trial", str(best.number))
            self.client.set_tag(self.parent, "hpsearch.best_run_id", self.runs.get(best.number, ""))
            for key, value in {"val_loss": best.val_loss, **best.metrics}.items():
                self.client.log_metric(self.parent, f"best_{key}", finite(value), step=best.number)
            usual = event.default
            scores = {key: score_of(key, usual.val_loss, usual.metrics) for key in (best.objective, "val_loss")} if usual else {}
            for key, score in scores.items():
                if score is not None:
                    self.client.log_metric(self.parent, f"default_{key}", finite(score))
        self.prove(event)
        self.flush()
        for number in self.trials:
            if number in self.runs:
                self.client.set_tag(self.runs[number], "hpsearch.state", "INTERRUPTED")
                self.client.set_terminated(self.runs[number], "KILLED")
        self.trials, self.curves = {}, {}
        self.client.set_tag(self.parent, "hpsearch.ended", event.reason)
        self.client.set_terminated(self.parent, "KILLED" if event.reason == "interrupted" else "FINISHED")
        for path in event.artifacts:
            with suppress(FileNotFoundError):
                self.client.log_artifact(self.parent, path)

    def prove(self, event: StudyEnded) -> None:
        """Log what was found beside the search."""
        from mlflow.entities import Metric

        if event.winner is not None:
            self.client.set_tag(self.parent, "hpsearch.winner", str(event.winner))
        metrics = [Metric(key, finite(value), stamp(None), 0) for key, value in event.scores.items()]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.parent, metrics=metrics[start : start + BATCH])

    # ------------------------------------------------------------ trials

    def flush(self) -> None:
        """Send the epochs of running trials that have not been sent."""
        for number, curve in self.curves.items():
            sent = self.sent.get(number, 0)
            if len(curve) > sent:
                trial, at = self.trials[number]
                run = self.runs.get(number) or self.open(trial, at)
                self.log(run, [m for row, at in curve[sent:] for m in points(row, at)])
                self.sent[number] = len(curve)

    def open(self, trial: Trial | TrialRecord, at: float | None) -> str:
        """Make a trial's run with its hyperparameters; one beside the search has a negative number, and a name of its own."""
        from mlflow.entities import Param

        kind, name = ("trial", f"trial-{trial.number:04d}") if trial.setup is None else (trial.origin, trial.setup.name)
        tags = {"mlflow.parentRunId": self.parent, "hpsearch.trial": str(trial.number)}
        tags |= {"hpsearch.kind": kind, "hpsearch.origin": trial.origin}
        created = self.client.create_run(self.experiment, start_time=stamp(at), tags=tags, run_name=name)
        run: str = created.info.run_id
        self.runs[trial.number] = run
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in trial.params.items()])
        return run

    def finish(self, record: TrialRecord) -> None:
        """Complete a trial's run: epochs not yet sent, summary, state; the status comes last."""
        from mlflow.entities import Metric, RunTag

        number = record.number
        times = [at for _, at in self.curves.pop(number, [])]
        self.trials.pop(number, None)
        run = self.runs.get(number) or self.open(record, record.started)
        sent = self.sent.pop(number, 0)
        rows = list(record.curve)
        ended = record.ended or time.time()
        if len(times) != len(rows):
            times = [(record.started or ended) + row.get("seconds", 0.0) for row in rows]
        metrics = [m for row, at in list(zip(rows, times, strict=True))[sent:] for m in points(row, at)]
        summary = {"best_val_loss": record.val_loss, "best_epoch": record.best_epoch, "trial_seconds": record.seconds}
        summary |= {f"best_{key}": value for key, value in record.metrics.items()}
        metrics += [Metric(key, finite(value), stamp(ended), 0) for key, value in summary.items() if value is not None]
        tags = {"hpsearch.state": record.status.value, "hpsearch.attempt": str(record.attempt)}
        tags["hpsearch.diagnosis"] = diagnose(record)[:4000]
        tags |= {f"hpsearch.effective.{key}": str(value) for key, value in record.effective.items()}
        tags |= {"hpsearch.error": record.error[:4000]} if record.error else {}
        self.log(run, metrics, [RunTag(key, value) for key, value in tags.items()])
        if record.per_class:
            names = self.classes or [str(i) for i in range(len(record.per_class["recall"]))]
            each = zip(*record.per_class.values(), strict=True)
            table = {name: dict(zip(record.per_class, values, strict=True)) for name, values in zip(names, each, strict=True)}
            with suppress(OSError):  # artifacts may lie where this process cannot write; the numbers matter more
                self.client.log_dict(run, table, "per_class.json")
        self.client.set_terminated(run, STATUS[record.status], stamp(ended))

    def log(self, run: str, metrics: list[Metric], tags: Any = ()) -> None:
        """Log in as few requests as MLflow's limits allow."""
        for start in range(0, max(1, len(metrics)), BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + BATCH], tags=tags if start == 0 else ())


def points(row: Mapping[str, float], at: float) -> list[Metric]:
    """An epoch's metrics."""
    from mlflow.entities import Metric

    return [Metric(key, finite(value), stamp(at), int(row["epoch"])) for key, value in row.items() if key != "epoch"]


def finite(value: float | int | None) -> float:
    """NaN for what is no finite number: MLflow would store infinity as 1.8e308 and ruin every chart's axis."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def stamp(seconds: float | None) -> int:
    """Milliseconds since the epoch; now when the time is not known."""
    return int(1000 * (time.time() if seconds is None else seconds))
