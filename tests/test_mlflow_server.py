"""A real `mlflow server`, and servers that are dead, slow or broken: what the mirror makes of them, and what a study notices."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hpsearch.tracking import MlflowTracker, masked
from hpsearch.types import StudyStarted
from tests.events import study_events
from tests.mlflow_server import Server, front
from tests.mlflow_store import by_name
from tests.support.commands import HPSEARCH, run_command
from tests.test_docs import ROOT, blocks, commands

QUICK = ("--trials", "3", "--set", "space.epochs=2")


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_store):
    """A server of one worker that keeps artifacts itself: (URI, process, folder)."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, new_store(folder)).start()
    yield server.uri, server.process, folder
    server.kill()


@pytest.fixture
def impatient(monkeypatch):
    """A second for an answer, no second try."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def hpsearch(folder, *arguments, code=0, **environment):
    done = run_command([HPSEARCH, *arguments], cwd=folder, env=os.environ | environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def told(uri, folder, events):
    """A tracker that was told all events, and how long telling and closing took."""
    tracker = MlflowTracker(uri, folder)
    begun = time.monotonic()
    for event in events:
        tracker.record(event)
    recorded = time.monotonic()
    tracker.close()
    return tracker, recorded - begun, time.monotonic() - recorded


def test_a_study_is_mirrored_and_registered_on_a_server_with_its_artifacts(server, tmp_path):
    uri, _, kept = server
    done = hpsearch(tmp_path, "run", *QUICK, "--name", "afar", MLFLOW_TRACKING_URI=uri)
    assert f"MLflow:  {uri}" in done.stdout
    assert "behind" not in done.stderr
    runs = by_name(uri)
    assert {name for name in runs if name.startswith("trial")} == {f"trial-{n:04d}" for n in range(3)}
    assert runs["afar"]["info"][1] == "FINISHED"
    names = [name for name, _ in runs["afar"]["files"]]
    assert {"report.html", "spec.json", "data-check.json"} <= set(names)
    assert not (tmp_path / "mlflow.db").exists()
    assert list((kept / "kept").rglob("report.html"))
    hpsearch(tmp_path, "sync", "afar", "--tracking-uri", uri)
    assert by_name(uri) == runs
    done = hpsearch(tmp_path, "export", "-o", "model", "--register", "afar-reader", "--tracking-uri", uri)
    assert "Registry: afar-reader, version 1" in done.stdout
    code = f"""
import mlflow
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/afar-reader@champion")
print(model.predict(model.input_example).shape)
"""
    loaded = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "(1, 2)" in loaded.stdout


def test_the_page_on_mlflow_runs_as_it_stands(server, tmp_path):
    uri, _, _ = server
    page = ROOT / "docs" / "mlflow.md"
    lines = commands(page)
    assert len(lines) == 3
    for line in lines:
        hpsearch(tmp_path, *shlex.split(line.replace("http://127.0.0.1:5000", uri))[1:])
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "digit.png")
    (code,) = blocks(page, "python")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [sys.executable, "-I", "-c", f"{code}\nprint(graph)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "probability of 9" in done.stdout


def test_a_server_that_hangs_costs_no_trial_and_a_bounded_wait_and_sync_completes(server, tmp_path):
    uri, process, _ = server
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        done = hpsearch(tmp_path, "run", *QUICK, "--name", "hung", "--tracking-uri", uri)
        took = time.monotonic() - begun
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    behind = re.search(r"tracking behind by (\d+) points: `hpsearch sync hung`", done.stderr)
    assert behind is not None, done.stderr
    assert int(behind[1]) >= 9  # 3 trials: 2 epochs and an end each
    assert took < 90
    assert "Best:" in done.stdout
    hpsearch(tmp_path, "sync", "hung", "--tracking-uri", uri)
    runs = by_name(uri)
    assert runs["hung"]["info"][1] == "FINISHED"
    assert any(name == "report.html" for name, _ in runs["hung"]["files"])


def test_a_server_that_hangs_in_the_middle_blocks_nothing(server, tmp_path, impatient):
    uri, process, _ = server
    events = [replace(e, uid="middle") if isinstance(e, StudyStarted) else e for e in study_events("middle")]
    tracker = MlflowTracker(uri, tmp_path)
    for event in events[:12]:
        tracker.record(event)
    give_up = time.monotonic() + 60
    while tracker.behind:  # until the server has what came so far
        assert time.monotonic() < give_up
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        for event in events[12:]:
            tracker.record(event)
        assert time.monotonic() - begun < 0.5
        tracker.close()
        assert time.monotonic() - begun < 45
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    assert tracker.problem
    assert 0 < tracker.behind <= len(events) - 12


@pytest.mark.process
def test_a_broken_server_is_told_with_what_is_missing_and_without_credentials(tmp_path, impatient):
    broken, _, _ = front()
    try:
        uri = f"http://someone:hunt%40er2@127.0.0.1:{broken.server_port}"
        tracker, recorded, closed = told(uri, tmp_path, study_events())
    finally:
        broken.shutdown()
        broken.server_close()
    assert recorded < 0.5
    assert closed < 45
    assert tracker.behind == sum(type(event).__name__ in ("EpochDone", "TrialEnded") for event in study_events())
    log = (tmp_path / "tracking.log").read_text()
    assert "500" in log
    assert not re.search("hunt|someone", log + tracker.problem)


def test_credentials_are_masked_whatever_the_uri_looks_like():
    assert masked("at http://u:pass@h:1/x for pass", "http://u:pass@h:1") == "at http://***@h:1/x for ***"
    assert masked("at http://u:p@h:1/x", "http://u:p@h:1") == "at http://***@h:1/x"
    assert masked("a%40b and a@b", "postgresql://me:a%40b@h/db") == "*** and ***"
    assert masked("nothing here", "sqlite:////tmp/x.db") == "nothing here"
    assert masked("http://[bad is bad", "http://[bad") == "*** is bad"
