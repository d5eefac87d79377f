"""The MLflow mirror, read back with MLflow's own client."""

import hashlib
import math
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hpsearch.errors import FixInput, FixSetup
from hpsearch.tracking import MlflowTracker, create_store, tracking_uri
from hpsearch.types import StudyEnded, StudyStarted, Trial, TrialStarted
from tests.events import RECORDS, study_events, trial_events
from tests.support.commands import Command, run_command
from tests.waiting import until


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory, new_store):
    """A store that holds one mirrored study, and a file among its artifacts."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "report.html").write_text("<p>report</p>")
    tracker = MlflowTracker(new_store(folder), folder)
    for event in study_events(artifacts=[str(folder / "report.html"), str(folder / "gone.txt")]):
        tracker.record(event)
    tracker.close()
    assert tracker.problem == ""
    return folder


def runs_of(folder):
    """Client, parent run and children by trial number."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits-tpe")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = {int(r.data.tags["hpsearch.trial"]): r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    return client, parent, children


def test_a_parent_run_holds_the_study_and_a_child_run_each_trial(mirrored):
    _, parent, children = runs_of(mirrored)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["sampler"] == "tpe"
    assert parent.data.tags["hpsearch.data_digest"] == "ab12"
    assert sorted(children) == [0, 1, 2, 3]
    assert [children[n].info.run_name for n in range(4)] == ["trial-0000", "trial-0001", "trial-0002", "trial-0003"]


def test_fates_tell_apart_by_status_and_tag(mirrored):
    _, _, children = runs_of(mirrored)
    found = {n: (r.info.status, r.data.tags["hpsearch.state"]) for n, r in children.items()}
    assert found == {0: ("FINISHED", "COMPLETE"), 1: ("KILLED", "PRUNED"), 2: ("FAILED", "FAILED"), 3: ("FINISHED", "COMPLETE")}
    assert children[2].data.tags["hpsearch.error"] == "diverged: validation loss is inf"
    assert children[2].data.tags["hpsearch.diagnosis"] == "diverged: validation loss is inf"


def test_every_epoch_of_every_trial_is_there_once_with_its_time(mirrored):
    client, _, children = runs_of(mirrored)
    for record in RECORDS:
        history = client.get_metric_history(children[record.number].info.run_id, "val_loss")
        assert [(m.step, m.timestamp) for m in history] == [(r["epoch"], int(1000 * (record.started + r["seconds"]))) for r in record.curve]
        for metric, row in zip(history, record.curve, strict=True):
            assert metric.value == row["val_loss"] or (math.isnan(metric.value) and math.isinf(row["val_loss"]))
    keys = children[0].data.metrics.keys()
    assert {"val_loss", "train_loss", "accuracy", "f1", "learning_rate", "seconds", "best_val_loss", "best_epoch"} <= keys


def test_hyperparameters_are_parameters_and_what_the_trainer_used_are_tags(mirrored):
    _, _, children = runs_of(mirrored)
    assert float(children[3].data.params["dropout"]) == pytest.approx(0.3)
    assert float(children[3].data.tags["hpsearch.effective.dropout"]) == pytest.approx(0.3)
    assert children[0].data.tags["hpsearch.origin"] == "default"


def test_infinity_is_not_stored_as_a_number(mirrored):
    with sqlite3.connect(mirrored / "mlflow.db") as db:
        (count,) = db.execute("SELECT count(*) FROM metrics WHERE abs(value) > 1e300").fetchone()
    db.close()
    assert count == 0


def test_the_parent_names_the_best_trial_and_carries_the_studys_files(mirrored):
    client, parent, children = runs_of(mirrored)
    assert parent.data.tags["hpsearch.best_trial"] == "3"
    assert parent.data.tags["hpsearch.best_run_id"] == children[3].info.run_id
    assert parent.data.metrics["best_val_loss"] == 0.6
    assert parent.data.metrics["default_val_loss"] == 1.0
    assert [f.path for f in client.list_artifacts(parent.info.run_id)] == ["report.html"]


def has_runs(folder, count):
    """Whether MLflow has so many runs of trials, with the epochs that were recorded."""
    try:
        children = runs_of(folder)[2]
    except (AttributeError, ValueError):  # no experiment, or no parent
        return False
    return len(children) == count and all("val_loss" in run.data.metrics for run in children.values())


def test_a_second_session_goes_on_under_the_same_parent_and_completes_what_was_cut_off(tmp_path, new_store):
    uri = new_store(tmp_path)
    first, *_ = study_events()
    tracker = MlflowTracker(uri, tmp_path)
    tracker.record(first)
    for record in RECORDS[:2]:
        for event in trial_events(record):
            tracker.record(event)
    until(lambda: has_runs(tmp_path, 2), 60)  # which running trials have after FLUSH_SECONDS
    tracker.record(StudyEnded("interrupted", None, None))
    tracker.close()
    _, parent, children = runs_of(tmp_path)
    assert parent.info.status == "KILLED"
    assert {r.data.tags["hpsearch.state"] for r in children.values()} == {"INTERRUPTED"}

    # Meanwhile trial 0 ended without MLflow hearing of it; trial 1 is trained again.
    tracker = MlflowTracker(uri, tmp_path)
    tracker.record(StudyStarted(first.study, first.uid, first.spec, (RECORDS[0],), 4, 2))
    again = replace(RECORDS[1], attempt=2)
    for event in trial_events(again):
        tracker.record(event)
    tracker.record(StudyEnded("budget", RECORDS[0], RECORDS[0]))
    tracker.close()
    client, parent_again, children = runs_of(tmp_path)
    assert parent_again.info.run_id == parent.info.run_id
    assert children[0].info.status == "FINISHED"
    history = client.get_metric_history(children[0].info.run_id, "val_loss")
    assert [m.step for m in history] == [1, 2, 3, 4]
    history = client.get_metric_history(children[1].info.run_id, "val_loss")
    assert [m.step for m in history] == [1, 2]


def told(uri, folder, events):
    tracker = MlflowTracker(uri, folder)
    for event in events:
        tracker.record(event)
    tracker.close()
    assert tracker.problem == ""


def test_runs_of_a_persons_own_below_a_study_are_left_alone(tmp_path, new_store):
    uri = new_store(tmp_path)
    told(uri, tmp_path, study_events())
    client, parent, _ = runs_of(tmp_path)
    tags = {"mlflow.parentRunId": parent.info.run_id}
    mine = [
        client.create_run(parent.info.experiment_id, tags=tags | more) for more in ({}, {"hpsearch.trial": "7"}, {"hpsearch.trial": "x"})
    ]
    client.log_metric(mine[0].info.run_id, "holdout", 0.93)
    told(uri, tmp_path, study_events())
    for run in mine:
        assert client.get_run(run.info.run_id).info.lifecycle_stage == "active"
    assert client.get_run(mine[0].info.run_id).data.metrics == {"holdout": 0.93}


def test_a_parent_run_that_was_deleted_by_hand_comes_back_and_its_trials_are_there_once(tmp_path, new_store):
    uri = new_store(tmp_path)
    told(uri, tmp_path, study_events())
    client, parent, children = runs_of(tmp_path)
    client.delete_run(parent.info.run_id)
    told(uri, tmp_path, study_events())
    _, again, now = runs_of(tmp_path)
    assert again.info.run_id == parent.info.run_id
    assert now.keys() == children.keys()
    assert len(client.search_runs([parent.info.experiment_id], max_results=100)) == 1 + len(children)


def test_another_study_of_the_same_name_gets_a_parent_of_its_own(tmp_path, new_store):
    uri = new_store(tmp_path)
    for uid in ("aaaa", "bbbb"):
        tracker = MlflowTracker(uri, tmp_path)
        for event in study_events():
            tracker.record(replace(event, uid=uid) if isinstance(event, StudyStarted) else event)
        tracker.close()
        assert tracker.problem == ""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("digits-tpe").experiment_id], max_results=100)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert {r.data.tags["hpsearch.uid"] for r in parents} == {"aaaa", "bbbb"}
    assert len(runs) == 10


def test_one_mirror_takes_several_studies_into_one_experiment(tmp_path, new_store):
    uri = new_store(tmp_path)
    tracker = MlflowTracker(uri, tmp_path)
    for name in ("digits-tpe", "digits-random"):
        for event in study_events(name):
            tracker.record(replace(event, uid=f"uid-{name}", experiment="samplers") if isinstance(event, StudyStarted) else event)
    tracker.close()
    assert tracker.problem == ""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("samplers").experiment_id], max_results=100)
    parents = {r.info.run_name: r for r in runs if "mlflow.parentRunId" not in r.data.tags}
    assert set(parents) == {"digits-tpe", "digits-random"}
    for parent in parents.values():
        children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(int(r.data.tags["hpsearch.trial"]) for r in children) == [0, 1, 2, 3]
        assert (parent.info.status, parent.data.metrics["best_val_loss"]) == ("FINISHED", 0.6)


def test_the_mirror_ends_when_the_orchestrator_is_killed(tmp_path, new_store):
    code = f"""
import sys, time
from pathlib import Path
from hpsearch.tracking import MlflowTracker
if __name__ == "__main__":
    tracker = MlflowTracker({new_store(tmp_path)!r}, Path({str(tmp_path)!r}))
    print(tracker.process.pid, flush=True)
    time.sleep(600)
"""
    (tmp_path / "parent.py").write_text(code)
    parent = Command([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    mirror = Path(f"/proc/{int(parent.stdout.readline())}")
    until(lambda: any("mlflow.db" in os.readlink(file) for file in mirror.glob("fd/*") if file.is_symlink()))
    parent.kill()
    parent.communicate()
    give_up = time.monotonic() + 60
    while mirror.exists() and mirror.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < give_up
        time.sleep(0.2)


@pytest.mark.process
def test_a_dead_server_neither_blocks_nor_breaks_and_is_reported(tmp_path):
    tracker = MlflowTracker("http://127.0.0.1:9", tmp_path)
    for event in study_events():
        tracker.record(event)
    tracker.close()
    assert tracker.problem
    assert "Traceback" in (tmp_path / "tracking.log").read_text()


@pytest.mark.process
def test_a_killed_mirror_is_reported(tmp_path):
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    tracker.process.kill()
    tracker.record(TrialStarted(Trial(0, {}), 0.0))
    tracker.close()
    assert tracker.problem == "its process died"


MAKE = """
import os, random, signal, sys, time
from pathlib import Path
from mlflow import MlflowClient
import mlflow.store.tracking.sqlalchemy_store
from hpsearch.tracking import create_store

def fork(work, *arguments):
    pid = os.fork()
    if not pid:
        try:
            work(*arguments)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def use(uri):
    create_store(uri)
    assert MlflowClient(uri).get_experiment("0").name == "Default"

place, what, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if what == "kill":
    begun = time.monotonic()
    assert ended(fork(create_store, f"sqlite:///{place}/whole.db")) == 0
    took, draws = time.monotonic() - begun, random.Random(0)
    for i in range(number):
        (place / str(i)).mkdir()
        uri = f"sqlite:///{place}/{i}/mlflow.db"
        making = fork(create_store, uri)
        time.sleep(draws.uniform(0, took))
        os.kill(making, signal.SIGKILL)
        ended(making)
        assert ended(fork(use, uri)) == 0, f"after kill {i}"
        assert os.listdir(place / str(i)) == ["mlflow.db"], os.listdir(place / str(i))
else:
    uri = f"sqlite:///{place}/mlflow.db"
    assert [ended(pid) for pid in [fork(use, uri) for _ in range(number)]] == [0] * number
    assert os.listdir(place) == ["mlflow.db"], os.listdir(place)
print("well")
"""


@pytest.mark.process
@pytest.mark.parametrize(("what", "number"), [("kill", os.environ.get("HPSEARCH_TEST_KILLS", "5")), ("at once", "4")])
def test_stores_are_made_as_a_whole_or_not_at_all(tmp_path, what, number):
    done = run_command([sys.executable, "-c", MAKE, str(tmp_path), what, number])
    assert done.stdout == "well\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE alembic_version SET version_num = 'ffff00000000'", r"newer MLflow \(ffff00000000, .*: update mlflow and hpsearch"),
        (
            "UPDATE alembic_version SET version_num = '0a8213491aaa'",
            r"older MLflow \(0a8213491aaa, .*: copy it, then run `mlflow db upgrade",
        ),
        ("DROP TABLE runs", "is no MLflow store: name another with --tracking-uri"),
    ],
)
def test_a_store_of_another_mlflow_is_refused_and_left_alone(tmp_path, new_store, change, message):
    uri = new_store(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute(change)
    db.close()
    before = hashlib.sha256((tmp_path / "mlflow.db").read_bytes()).hexdigest()
    for refused in (lambda: create_store(uri), lambda: MlflowTracker(uri, tmp_path)):
        with pytest.raises(FixSetup, match=message):
            refused()
    assert hashlib.sha256((tmp_path / "mlflow.db").read_bytes()).hexdigest() == before


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/x", "ftp://host/x"])
def test_a_store_that_mlflow_cannot_write_is_refused_with_the_remedy(tmp_path, uri):
    with pytest.raises(FixInput, match="use sqlite:///mlflow"):
        tracking_uri(uri, tmp_path)


@pytest.mark.process
def test_the_default_store_is_mlflows_own(tmp_path, monkeypatch):
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri("sqlite:///other.db", tmp_path) == f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert tracking_uri(None, tmp_path) == "http://localhost:5000"
