"""A tracking server that dies, hangs or fails in the middle of a study, and comes back: at the end nothing is missing in MLflow."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from hpsearch.search.catalog import read_study
from hpsearch.search.store import opened
from hpsearch.tracking import MlflowTracker
from hpsearch.types import Status, StudyStarted, TrackingBehind
from tests.events import study_events
from tests.mlflow_server import Front, Server, front
from tests.mlflow_store import by_name, disagreements, dump
from tests.support.commands import Command
from tests.waiting import Memory, until

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_store):
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, new_store(folder)).start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A second for an answer, no second try."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def begin(place, uri, **values):
    """A real session of a study of 30 trials that is mirrored to `uri`."""
    values = {"trials": 30, "epochs": 4, "sleep": 0.5, "mlflow": uri} | values
    (place / "session.json").write_text(json.dumps(values))
    command, environment = [sys.executable, "-m", "tests.session", str(place)], os.environ | {"PYTHONPATH": str(ROOT)}
    return Command(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What a session printed; it has to end well."""
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    return out


def epochs(place):
    """When every epoch was reached, as the orchestrator heard it."""
    file = place / "epochs"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(trial, epoch): at for trial, epoch, at in rows}


def mirrored(uri):
    """How many trials have a run."""
    client = MlflowClient(uri)
    return len(client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.`hpsearch.kind` = 'trial'"))


def agree(place, uri, trials=30):
    """MLflow and the storage say the same of every trial, and all of them are there."""
    with opened(f"sqlite:///{place}/hpsearch.db") as storage:
        records = read_study(storage, "s").records
    assert {r.status for r in records} == {Status.COMPLETE}
    assert len(records) == trials
    assert disagreements(uri, records, epochs(place)) == []


def test_a_server_that_is_killed_and_started_again_lacks_nothing_at_the_end(tmp_path, new_store):
    server = Server(tmp_path, new_store(tmp_path)).start()
    try:
        session = begin(tmp_path, server.uri)
        until(lambda: mirrored(server.uri) >= 3)
        server.kill()
        before = len(epochs(tmp_path))
        until(lambda: len(epochs(tmp_path)) >= before + 30)  # training goes on
        server.start()
        out = finish(session)
        assert "tracking behind by" in out
        assert "tracking behind by 0" in out.splitlines()
        agree(tmp_path, server.uri)
        assert by_name(server.uri)["s"]["info"][1] == "FINISHED"
    finally:
        server.kill()


def test_a_server_that_is_stopped_and_goes_on_lacks_nothing_at_the_end(tmp_path, new_store):
    server = Server(tmp_path, new_store(tmp_path)).start()
    try:
        session = begin(tmp_path, server.uri)
        until(lambda: mirrored(server.uri) >= 3)
        server.signal(signal.SIGSTOP)
        before = len(epochs(tmp_path))
        until(lambda: len(epochs(tmp_path)) >= before + 30)
        server.signal(signal.SIGCONT)
        finish(session)
        agree(tmp_path, server.uri)
    finally:
        server.kill()


def test_a_server_that_fails_for_a_while_lacks_nothing_at_the_end(tmp_path, new_store):
    server = Server(tmp_path, new_store(tmp_path)).start()
    broken, handler, uri = front(server.uri, broken=0)
    try:
        session = begin(tmp_path, uri, trials=40)
        until(lambda: mirrored(server.uri) >= 3)
        handler.broken = 500
        before = len(epochs(tmp_path))
        until(lambda: len(epochs(tmp_path)) >= before + 30)
        handler.broken, had = 0, mirrored(server.uri)
        until(lambda: mirrored(server.uri) > had + 2)
        assert len(epochs(tmp_path)) < 4 * 40, "the mirror came back by itself, not only at the end"
        finish(session)
        agree(tmp_path, server.uri, 40)
    finally:
        broken.shutdown()
        broken.server_close()
        server.kill()


@pytest.mark.process
def test_credentials_that_are_refused_are_not_tried_again_at_the_end(tmp_path):
    refusing, _, uri = front(broken=401)
    listener = Memory()
    try:
        tracker = MlflowTracker(uri, tmp_path, [listener])
        events = list(study_events())
        for event in events:
            tracker.record(event)
        until(lambda: tracker.failures.value)
        tracker.close()
    finally:
        refusing.shutdown()
        refusing.server_close()
    points = sum(type(event).__name__ in ("EpochDone", "TrialEnded") for event in events)
    assert tracker.behind == points
    assert "401" in tracker.problem
    assert listener.events[-1:] in ([], [TrackingBehind(points)])


def test_a_study_that_begins_while_the_server_is_away_and_the_one_before_it_are_both_there(tmp_path, server):
    """A comparison: several studies, one process."""
    away, handler, uri = front(server.uri, broken=503)
    try:
        tracker = MlflowTracker(uri, tmp_path)
        for name in ("first", "second"):
            for event in study_events(name):
                tracker.record(event)
            until(lambda: tracker.failures.value)
        handler.broken = 0
        until(lambda: not tracker.behind)
        tracker.close()
    finally:
        away.shutdown()
        away.server_close()
    assert tracker.problem == ""
    runs = by_name(server.uri)
    assert runs["first"]["info"][1] == runs["second"]["info"][1] == "FINISHED"
    client = MlflowClient(server.uri)
    for name in ("first", "second"):
        experiment = client.get_experiment_by_name(name)
        assert len(client.search_runs([experiment.experiment_id])) == 5


class Late(Front):
    """The first request to make a run of each name is carried out only once the run has been asked for again, and is answered to nobody."""

    def answer(self):
        if self.path.endswith("/runs/create"):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.rfile = io.BytesIO(body)
            name = json.loads(body)["run_name"]
            again = self.asked.setdefault(name, threading.Event())
            if name not in self.first:
                self.first.add(name)
                again.wait(60)
            else:
                super().answer()
                again.set()
                return
        super().answer()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815


def test_runs_that_a_server_makes_after_they_were_asked_for_again_are_gone_at_the_end(tmp_path, server):
    slow, handler, uri = front(server.uri, 0, Late)
    handler.first, handler.asked = set(), {}
    try:
        tracker = MlflowTracker(uri, tmp_path)
        *events, last = (replace(e, uid="late") if isinstance(e, StudyStarted) else e for e in study_events("late"))
        for event in events:
            tracker.record(event)
        until(lambda: not tracker.behind)
        tracker.record(last)
        tracker.close()
    finally:
        slow.shutdown()
        slow.server_close()
    assert tracker.problem == ""
    assert len(handler.first) == 5
    found = [
        run["info"]
        for run in dump(server.uri, ViewType.ACTIVE_ONLY).values()
        if "info" in run and run["tags"].get("hpsearch.study") == "late"
    ]
    assert sorted((name, status) for name, status, *_ in found) == [
        ("late", "FINISHED"),
        ("trial-0000", "FINISHED"),
        ("trial-0001", "KILLED"),
        ("trial-0002", "FAILED"),
        ("trial-0003", "FINISHED"),
    ]
