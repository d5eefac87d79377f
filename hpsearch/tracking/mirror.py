"""One study in MLflow: a parent run in an experiment, a child run per trial. Writing it again changes nothing.

Metrics carry the times at which their numbers were found, so that MLflow knows a point that comes twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.diagnosis import diagnose
from hpsearch.faults import crash_point
from hpsearch.tracking import labels
from hpsearch.types import (
    OBJECTIVES,
    ComparisonEnded,
    EpochDone,
    Event,
    Status,
    StudyEnded,
    StudyStarted,
    Trial,
    TrialAgain,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialStarted,
    WorkerReady,
    best_record,
    score_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

BATCH = 900  # metrics in one request; MLflow takes 1000
NUMBER = re.compile(r"-?\d+")  # of a trial; those of runs beside the search are negative
STATUS = {Status.COMPLETE: "FINISHED", Status.PRUNED: "KILLED", Status.FAILED: "FAILED"}  # as MLflow's own Optuna storage has it


class Mirror:
    """Writes one study through explicit run ids: no global active run. `beat` is called at each answer of MLflow.

    `times` are those of the epochs of ended trials, where they are known; else what a record says of them is taken.
    """

    def __init__(self, uri: str, beat: Callable[[], None] = lambda: None, times: Mapping[int, Sequence[float]] = {}) -> None:
        from hpsearch.tracking.escaping import EscapingClient

        self.uri, self.beat, self.times = uri, beat, times
        self.client: MlflowClient = EscapingClient(uri)
        self.study = self.uid = ""
        self.experiment = ""
        self.parent = ""
        self.tags: Mapping[str, str] = {}  # of the parent, as found
        self.data = ""
        self.live = True  # trials are being trained; else the mirror is brought up to date from the storage
        self.runs: dict[int, str] = {}  # trial -> run id
        self.sent: dict[int, int] = {}  # trial -> epochs sent
        self.trials: dict[int, tuple[Trial, float]] = {}  # running: trial and start
        self.curves: dict[int, list[tuple[Mapping[str, float], float]]] = {}  # running: epoch row and time
        self.ended: dict[int, TrialRecord] = {}  # without their curves
        self.best: TrialRecord | None = None
        self.latest = 0.0  # when the last trial ended
        self.classes: Sequence[str] = ()
        self.monitor: Any = None  # of the machine, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it

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
            case TrialAgain(trial):
                self.retract(trial.number)
            case TrialPaused():
                self.flush()
            case EpochDone(progress, _, at):
                self.curves[progress.trial].append((progress.row(), at))
            case TrialEnded(record):
                self.finish(record)
                self.log(self.parent, self.note_end(record))
            case StudyEnded():
                self.end(event)
            case ComparisonEnded():
                self.compare(event)
        self.beat()

    def retract(self, number: int) -> None:
        """Take back what is known of a trial that was lost with its worker: its epochs come again."""
        if number in self.runs:
            self.client.delete_run(self.runs.pop(number))
        for kept in (self.trials, self.curves, self.sent):
            kept.pop(number, None)

    def waiting(self) -> int:
        """How many epochs MLflow has not been sent."""
        return sum(len(curve) - self.sent.get(number, 0) for number, curve in self.curves.items())

    # ------------------------------------------------------------ the study

    def begin(self, event: StudyStarted) -> None:
        """Find or make experiment and parent run, and bring runs of earlier sessions up to date."""
        from mlflow.entities import Param, RunTag

        self.study, self.uid, self.data, self.live = event.study, event.uid, str(event.spec["data"]), event.workers > 0
        records = sorted((r for r in event.records if r.status.ended), key=lambda r: (r.ended or 0.0, r.number))
        begun = min((r.started for r in event.records if r.started is not None), default=None)
        self.find(event, begun)
        tags = labels.study_tags(event) | (labels.source_tags() if self.live else {})
        spec, known = event.spec, self.client.get_run(self.parent).data.params
        params = {key: str(spec[key]) for key in ("data", "model", "weights", "objective", "sampler", "seed")}
        params |= {"pruner": str(spec["pruner"]["name"])}
        self.client.log_batch(
            self.parent,
            params=[Param(key, value) for key, value in params.items() if key not in known],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self.describe(event.facts)
        self.adopt(event, {record.number: record for record in (*records, *event.beside) if record.status.ended})
        self.log(self.parent, [metric for record in records for metric in self.note_end(record)])
        self.latest = max([self.latest, *(record.ended or 0.0 for record in event.beside)])
        if self.live:
            self.watch_machine()

    def find(self, event: StudyStarted, begun: float | None) -> None:
        """Experiment and parent run: those that are there, else new ones."""
        name = event.experiment or event.study
        mine = f"tags.`hpsearch.uid` = '{event.uid}' AND tags.`hpsearch.kind` = 'study'"
        found = self.client.get_experiment_by_name(name) if self.live else self.home_of(mine) or self.client.get_experiment_by_name(name)
        if found is None:
            tags = {"mlflow.experimentKind": "custom_model_development", "hpsearch.kind": "studies"}
            objective = str(event.spec["objective"])
            tags["mlflow.experiment.primaryMetric.name"] = f"best_{objective}"
            tags["mlflow.experiment.primaryMetric.greaterIsBetter"] = str(OBJECTIVES[objective] < 0)
            self.experiment = self.client.create_experiment(name, tags=tags)
        else:
            self.experiment = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(self.experiment)
        parents = self.search(mine)
        if not parents and (parents := self.search(mine, deleted=True)[:1]):  # by a person; its trials would be there twice
            self.client.restore_run(parents[0].info.run_id)
        if parents:
            self.parent, self.tags = parents[0].info.run_id, parents[0].data.tags
            self.client.update_run(self.parent, status="RUNNING")
        else:
            tags = {"hpsearch.study": event.study, "hpsearch.uid": event.uid, "hpsearch.kind": "study", **labels.source_tags()}
            created = self.client.create_run(self.experiment, start_time=stamp(begun), tags=tags, run_name=event.study)
            self.parent = created.info.run_id
            crash_point("after-parent")

    def home_of(self, mine: str) -> Experiment | None:
        """The experiment that holds the study's parent run: that of a comparison has a name of its own."""
        every = {e.experiment_id: e for e in self.client.search_experiments(max_results=1000)}
        found = self.client.search_runs(list(every), mine, max_results=1)
        return every[found[0].info.experiment_id] if found else None

    def adopt(self, event: StudyStarted, ended: Mapping[int, TrialRecord]) -> None:
        """Make the child runs those of the trials that have ended, and of those that wait at a rung."""
        cut: set[int] = set()
        for run in self.children(self.parent):
            number, state = int(run.data.tags["hpsearch.trial"]), run.data.tags.get("hpsearch.state")
            if (
                number in ended
                and number not in self.runs
                and (state, run.info.status) == (ended[number].status, STATUS[ended[number].status])
            ):
                self.runs[number] = run.info.run_id
            elif not self.live and number not in ended and number not in cut and state == "INTERRUPTED":
                cut.add(number)  # nothing new will come of it here
            else:  # cut off, or ahead of the storage: its epochs come again, whole
                self.client.delete_run(run.info.run_id)
        for record in ended.values():
            if record.number not in self.runs:
                self.finish(record)
        for record in event.records:
            if record.status is Status.PAUSED and record.number not in cut:  # its run is made again, with what it has come to
                begun = record.started or time.time()
                self.trials[record.number] = (Trial(record.number, record.params, record.attempt, record.origin), begun)
                self.curves[record.number] = [(row, begun + row.get("seconds", 0.0)) for row in record.curve]

    def children(self, parent: str) -> list[Run]:
        """Returns the runs of trials below a parent run; a person may have added runs of their own, which are left alone."""
        runs = self.search(f"tags.`mlflow.parentRunId` = '{parent}'")
        return [run for run in runs if NUMBER.fullmatch(run.data.tags.get("hpsearch.trial", "")) and "hpsearch.kind" in run.data.tags]

    def search(self, query: str, deleted: bool = False) -> list[Run]:
        """All runs of the experiment that match; of those that were deleted, if so asked."""
        from mlflow.entities import ViewType

        runs: list[Run] = []
        token: str | None = None
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while True:
            page = self.client.search_runs([self.experiment], query, run_view_type=view, max_results=1000, page_token=token)
            self.beat()
            runs += page
            token = page.token
            if not token:
                return runs

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Put what a worker found on the parent run, the data sets among its inputs."""
        from mlflow.entities import RunTag

        self.classes = facts.get("classes", self.classes)
        tags = [RunTag(key, value) for key, value in labels.facts_tags(facts).items()]
        self.client.log_batch(self.parent, tags=tags)
        if inputs := labels.datasets(self.data, facts):
            self.client.log_inputs(self.parent, datasets=inputs)

    def note_end(self, record: TrialRecord) -> list[Metric]:
        """The parent's metrics after one more trial has ended: steps count trials of the search in the order in which they ended."""
        self.latest = max(self.latest, record.ended or 0.0)
        if record.setup is not None or record.number in self.ended:
            return []
        self.ended[record.number] = replace(record, curve=())
        before, self.best = self.best, best_record([*([self.best] if self.best else []), record])
        return [] if self.best is None or self.best is before else best_metrics(record, len(self.ended))

    def end(self, event: StudyEnded) -> None:
        """Close the parent run with the best trial's results and, last, the study's files."""
        from mlflow.entities import Metric

        self.flush()
        tags: dict[str, str] = {}
        metrics: list[Metric] = []
        at = stamp(self.latest or None)
        if event.best is not None:
            tags |= {"hpsearch.best_trial": str(event.best.number), "hpsearch.best_run_id": self.runs.get(event.best.number, "")}
            usual = event.default
            scores = {key: score_of(key, usual.val_loss, usual.metrics) for key in (event.best.objective, "val_loss")} if usual else {}
            found = {f"default_{key}": score for key, score in scores.items() if score is not None}
            metrics = [Metric(key, finite(value), stamp(usual.ended) if usual else at, 0) for key, value in found.items()]
        if event.winner is not None:
            tags |= {"hpsearch.winner": str(event.winner), "hpsearch.winner_run_id": self.runs.get(event.winner, "")}
        metrics += [Metric(key, finite(value), at, 0) for key, value in event.scores.items()]
        winner = self.ended.get(event.winner, event.best) if event.winner is not None else event.best
        link = labels.run_link(self.experiment, self.runs.get(winner.number, ""), winner.name) if winner else ""
        report = any(Path(path).name == "report.html" for path in event.artifacts)
        tags["mlflow.note.content"] = labels.note(self.study, winner, link, event.default, self.ended.values(), event.scores, report)
        self.log(self.parent, metrics, tags)
        for number in self.trials:
            if number in self.runs:
                self.client.set_tag(self.runs[number], "hpsearch.state", "INTERRUPTED")
                self.client.set_terminated(self.runs[number], "KILLED", at)
        self.trials, self.curves = {}, {}
        if not self.uri.startswith("sqlite"):
            self.sweep()
        self.stop_watching()
        reason = event.reason or self.tags.get("hpsearch.ended", "budget")
        self.client.set_tag(self.parent, "hpsearch.ended", reason)
        self.client.set_terminated(self.parent, "KILLED" if reason == "interrupted" else "FINISHED", at)
        self.upload(self.parent, self.tags, event.artifacts)

    def sweep(self) -> None:
        """Delete runs of this study that are nobody's: a server may carry out, later, what was given up and asked for again."""
        parents = [run.info.run_id for run in self.search(f"tags.`hpsearch.uid` = '{self.uid}' AND tags.`hpsearch.kind` = 'study'")]
        for run in [run for parent in parents for run in self.children(parent)]:
            if run.info.run_id not in self.runs.values() and run.data.tags.get("hpsearch.state") != "INTERRUPTED":
                self.client.delete_run(run.info.run_id)
        for parent in parents:
            if parent != self.parent:
                self.client.delete_run(parent)

    def compare(self, event: ComparisonEnded) -> None:
        """A run of its own for what the experiment's studies came to, beside their parent runs."""
        from mlflow.entities import Metric

        found = self.search(f"tags.`hpsearch.kind` = 'comparison' AND tags.`hpsearch.comparison` = '{event.name}'")
        at = stamp(event.at)
        if found:
            run, tags = found[0].info.run_id, found[0].data.tags
        else:
            tags = {"hpsearch.kind": "comparison", "hpsearch.comparison": event.name, **labels.source_tags()}
            run = self.client.create_run(self.experiment, start_time=at, tags=tags, run_name=f"{event.name}: comparison").info.run_id
        note = "\n\n".join([f"**{event.name}**: samplers compared.", *event.verdict, "The page is `comparison.html` among the artifacts."])
        self.log(run, [Metric(key, finite(value), at, 0) for key, value in event.scores.items()], {"mlflow.note.content": note})
        self.client.set_terminated(run, "FINISHED", at)
        self.upload(run, tags, event.artifacts)

    def upload(self, run: str, tags: Mapping[str, str], paths: Sequence[str]) -> None:
        """Files as a run's artifacts, unless MLflow has them as they are."""
        before: dict[str, str] = json.loads(tags.get("hpsearch.files", "{}"))
        after = {}
        for path in map(Path, paths):
            with suppress(FileNotFoundError):
                with path.open("rb") as file:
                    after[path.name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                if before.get(path.name) != after[path.name]:
                    self.client.log_artifact(run, str(path))
                    self.beat()
        self.client.set_tag(run, "hpsearch.files", json.dumps(after))

    def watch_machine(self) -> None:
        """Have MLflow log what the machine does, if its environment variable says so."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() not in ("true", "1"):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.monitor = SystemMetricsMonitor(self.parent, resume_logging=True, tracking_uri=self.uri)  # type: ignore[no-untyped-call]
        self.monitor.start()

    def stop_watching(self) -> None:
        """End what `watch_machine` began."""
        if self.monitor is not None:
            self.monitor.finish()
            self.monitor = None

    # ------------------------------------------------------------ trials

    def flush(self) -> None:
        """Send the epochs of running trials that have not been sent."""
        for number, curve in self.curves.items():
            sent = self.sent.get(number, 0)
            if len(curve) > sent:
                trial, begun = self.trials[number]
                params = {} if number in self.runs else trial.params
                self.log(self.run_of(trial, begun), [m for row, at in curve[sent:] for m in points(row, at)], params=params)
                self.sent[number] = len(curve)

    def run_of(self, trial: Trial | TrialRecord, at: float | None) -> str:
        """A trial's run, made if need be; one beside the search has a negative number, and a name of its own."""
        if trial.number in self.runs:
            return self.runs[trial.number]
        kind = "trial" if trial.setup is None else trial.origin
        tags = {"mlflow.parentRunId": self.parent, "hpsearch.trial": str(trial.number), **labels.source_tags()}
        tags |= {"hpsearch.kind": kind, "hpsearch.origin": trial.origin, "hpsearch.study": self.study}
        created = self.client.create_run(self.experiment, start_time=stamp(at), tags=tags, run_name=trial.name)
        self.runs[trial.number] = created.info.run_id
        crash_point("after-run")
        return self.runs[trial.number]

    def finish(self, record: TrialRecord) -> None:
        """Complete a trial's run: epochs not yet sent, summary, state; the status comes last."""
        from mlflow.entities import Metric

        number = record.number
        times: Sequence[float] = [at for _, at in self.curves.pop(number, [])] or self.times.get(number, ())
        self.trials.pop(number, None)
        params = {} if number in self.runs else record.params
        run = self.run_of(record, record.started)
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
        tags["hpsearch.diagnosis"] = diagnose(record)[: labels.LIMIT]
        tags |= {f"hpsearch.effective.{key}": str(value) for key, value in record.effective.items()}
        tags |= {"hpsearch.error": record.error[: labels.LIMIT]} if record.error else {}
        tags |= {"hpsearch.reused": record.reused} if record.reused else {}
        self.log(run, metrics, tags, params)
        if record.per_class:
            names = self.classes or [str(i) for i in range(len(record.per_class["recall"]))]
            each = zip(*record.per_class.values(), strict=True)
            found = {name: dict(zip(record.per_class, values, strict=True)) for name, values in zip(names, each, strict=True)}
            with suppress(OSError):  # artifacts may lie where this process cannot write; the numbers matter more
                self.client.log_dict(run, found, "per_class.json")
        crash_point("before-run-end")
        self.client.set_terminated(run, STATUS[record.status], stamp(ended))
        crash_point("after-run-end")
        self.beat()

    def log(self, run: str, metrics: list[Metric], tags: Mapping[str, str] = {}, params: Mapping[str, Any] = {}) -> None:
        """Log in as few requests as MLflow's limits allow; none when there is nothing."""
        from mlflow.entities import Param, RunTag

        named, fixed = [RunTag(key, value) for key, value in tags.items()], [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, max(1 if named or fixed else 0, len(metrics)), BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + BATCH], tags=named, params=fixed)
            named, fixed = [], []
            self.beat()


def points(row: Mapping[str, float], at: float) -> list[Metric]:
    """An epoch's metrics."""
    from mlflow.entities import Metric

    return [Metric(key, finite(value), stamp(at), int(row["epoch"])) for key, value in row.items() if key != "epoch"]


def best_metrics(record: TrialRecord, step: int) -> list[Metric]:
    """What the parent run says of the best trial so far."""
    from mlflow.entities import Metric

    values = {"val_loss": record.val_loss, **record.metrics}
    return [Metric(f"best_{key}", finite(value), stamp(record.ended), step) for key, value in values.items()]


def finite(value: float | int | None) -> float:
    """NaN for what is no finite number: MLflow would store infinity as 1.8e308 and ruin every chart's axis."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def stamp(seconds: float | None) -> int:
    """Milliseconds since the epoch; now when the time is not known."""
    return int(1000 * (time.time() if seconds is None else seconds))
