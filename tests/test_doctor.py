"""`hpsearch doctor`: what is wrong is found, what killed sessions left behind is repaired, and nothing else is touched."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from hpsearch import doctor, leftovers
from hpsearch.machine import study_lock, survivors
from hpsearch.places import place
from hpsearch.types import Status, StoredStudy
from tests.events import record
from tests.support.commands import HPSEARCH, Command, run_command

SLOW = ("--set", "space.epochs=[12, 20]", "--set", "space.frozen_layers=0", "--workers", "1", "--name", "s")


def hpsearch(folder, *arguments, code=0):
    done = run_command([HPSEARCH, *arguments], cwd=folder, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def examined(folder, *arguments, code):
    return json.loads(hpsearch(folder, "doctor", "--json", *arguments, code=code).stdout)


def told(findings, name, level="warning"):
    return [f["text"] for f in findings if f["name"] == name and f["level"] == level]


def dead():
    """The number of a process that has been."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def running(folder):
    try:
        with closing(sqlite3.connect(f"file:{folder}/hpsearch.db?mode=ro", uri=True)) as db:
            return [number for (number,) in db.execute("SELECT number FROM trials WHERE state = 'RUNNING'")]
    except sqlite3.Error:
        return []


@pytest.fixture(scope="module")
def killed(tmp_path_factory, empty_mlflow):
    """A folder with a study that was killed in the middle of a trial, others waiting at a rung, and all kinds of leftovers."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    runs = folder / "hpsearch-runs" / "s"
    command = [HPSEARCH, "run", "--pruner", "halving", "--trials", "8", *SLOW]
    process = Command(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(number > 2 for number in running(folder)):  # earlier ones have ended, or wait at a rung
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert running(folder)
    while leftovers.locked(runs) or survivors(runs):
        time.sleep(0.1)
    (runs / "trial-0000-epoch-004.state").touch()  # the default recipe is never paused
    (runs / "trial-0077.safetensors").touch()
    (runs / "trial-0002.safetensors.tmp").touch()
    (runs / f".report.html.{dead()}.tmp").touch()
    (runs / f".report.html.{os.getpid()}.tmp").touch()  # somebody writes it just now
    (runs / "mine.safetensors").touch()
    (runs / "notes.state").touch()
    (folder / f"mlflow.db.new-{dead()}").touch()
    (folder / f"mlflow.db.new-{os.getpid()}").touch()
    return folder


def contents(folder):
    """Every file of a folder with its content, but for locks and what SQLite keeps; who reads a database tidies up after who was killed."""
    own = ("-wal", "-shm", "lock")
    return {p: p.suffix == ".db" or p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.endswith(own)}


def test_leftovers_are_named_and_left_alone_until_they_are_to_be_fixed(killed):
    before = contents(killed)
    found = examined(killed, code=3)
    assert contents(killed) == before
    texts = " | ".join(f["text"] for f in found if f["level"] != "ok")
    for text in (
        "'s' was cut off: trial",
        "'s' was left by ",
        "states that no trial goes on from: trial-0000-epoch-004.state",
        "weights that no trial refers to: trial-0077.safetensors",
        "half written: .report.html.",
        "trial-0002.safetensors.tmp",
        "half made: mlflow.db.new-",
        "runs of 's' seem to be running",
    ):
        assert text in texts, text
    assert "mine.safetensors" not in texts
    assert "notes.state" not in texts
    assert f".{os.getpid()}.tmp" not in texts
    assert not [f for f in found if f["level"] == "problem" or f["fixed"]]
    lines = hpsearch(killed, "doctor", code=3).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(killed) not in line)


def test_what_is_fixed_is_gone_everything_else_is_there_and_the_study_goes_on(killed):
    runs, before = killed / "hpsearch-runs" / "s", contents(killed)
    waiting = running(killed)
    found = examined(killed, "--fix", code=3)  # MLflow is for `hpsearch sync` to mend
    assert [f["name"] for f in found if f["level"] != "ok" and not f["fixed"]] == ["mlflow"]
    gone = {path.name for path in before} - {path.name for path in contents(killed)}
    assert {name for name in gone if name.startswith("trial-")} == {
        "trial-0000-epoch-004.state",
        "trial-0077.safetensors",
        "trial-0002.safetensors.tmp",
    }
    assert "holder" in gone
    assert {"mine.safetensors", "notes.state", f".report.html.{os.getpid()}.tmp"} <= {path.name for path in runs.iterdir()}
    assert (killed / f"mlflow.db.new-{os.getpid()}").exists()
    assert running(killed) == []
    trials = json.loads(hpsearch(killed, "show", "s", "--json").stdout)["trials"]
    assert {trials[number]["status"] for number in waiting} == {"WAITING"}
    for trial in trials:
        if trial["status"] == "PAUSED":
            assert (runs / trial["state"]).exists()
    hpsearch(killed, "sync", "s")
    assert all(f["level"] == "ok" for f in examined(killed, code=0))
    hpsearch(killed, "run", "--pruner", "halving", "--trials", "8", *SLOW)
    assert all(f["level"] == "ok" for f in examined(killed, code=0))
    after = json.loads(hpsearch(killed, "show", "s", "--json").stdout)["trials"]
    assert len(after) == 8
    assert {t["status"] for t in after} <= {"COMPLETE", "PRUNED"}


@pytest.mark.process
def test_a_study_that_is_being_run_is_left_alone(tmp_path):
    runs = tmp_path / "hpsearch-runs" / "s"
    process = Command([HPSEARCH, "run", "--trials", "3", "--no-tracking", *SLOW], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not running(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    (runs / "trial-0077.safetensors").touch()
    process.send_signal(signal.SIGSTOP)
    try:
        found = examined(tmp_path, "--fix", code=0)
    finally:
        process.send_signal(signal.SIGCONT)
    assert "'s' is being run" in told(found, "studies", "ok")
    assert (runs / "trial-0077.safetensors").exists()
    assert (runs / "holder").exists()
    assert process.wait(200) == 0
    assert not (runs / "holder").exists()


@pytest.mark.process
def test_an_empty_folder_is_well(tmp_path):
    found = examined(tmp_path, code=0)
    assert {f["level"] for f in found} == {"ok"}
    assert {"device", "cores", "libraries", "folder", "cache", "storage", "mlflow"} <= {f["name"] for f in found}
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- without the command


def at(folder, tracking=None):
    return place(folder, tracking_uri=tracking)


def test_a_damaged_storage_is_a_problem_and_hides_nothing_else(tmp_path):
    from hpsearch.search.store import open_storage

    where = at(tmp_path)
    open_storage(where.storage, create=True).engine.dispose()
    content = bytearray((tmp_path / "hpsearch.db").read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 200] = os.urandom(200)
    (tmp_path / "hpsearch.db").write_bytes(content)
    found = doctor.examine(where)
    (storage,) = [f for f in found if f.name == "storage"]
    assert storage.level == "problem"
    assert not doctor.healthy(found)
    assert found[-1].name == "mlflow"


def test_a_server_that_is_away_and_one_that_never_answers_are_problems(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        (hangs,) = doctor.mlflow(doctor.Clinic(at(tmp_path, f"http://user:secret@127.0.0.1:{port}"), False))
    (away,) = doctor.mlflow(doctor.Clinic(at(tmp_path, f"http://127.0.0.1:{port}"), False))
    for finding in (hangs, away):
        assert finding.level == "problem"
        assert "hpsearch sync" in finding.remedy
    assert "secret" not in hangs.text
    (other,) = doctor.mlflow(doctor.Clinic(at(tmp_path, "postgresql://user@127.0.0.1:9/runs"), False))
    assert other.level == "problem"


def test_a_library_out_of_range_is_a_problem(tmp_path, monkeypatch):
    assert [f.level for f in doctor.libraries(doctor.Clinic(at(tmp_path), False))] == ["ok"]
    monkeypatch.setattr(doctor, "requires", lambda name: ["optuna<5", "nothing-of-this-name>=1", "pytest<1; extra == 'test'"])
    first, second, _ = doctor.libraries(doctor.Clinic(at(tmp_path), False))
    assert "is not supported: <5" in first.text
    assert "nothing-of-this-name is not installed" in second.text


def test_more_threads_than_cores_are_worth_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (finding,) = doctor.cores(doctor.Clinic(at(tmp_path), False))
    assert finding.level == "warning"


def test_a_full_disk_and_a_network_file_system_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "mounted", lambda folder: "nfs4")
    assert "SQLite is not safe" in doctor.place_finding("folder", tmp_path, "").remedy
    monkeypatch.setattr(doctor, "LOW_SPACE", 1e18)
    assert doctor.place_finding("folder", tmp_path, "").level == "problem"


@pytest.mark.process
def test_a_worker_that_outlived_its_orchestrator_is_found_and_ended(tmp_path):
    folder = tmp_path / "hpsearch-runs" / "s"
    folder.mkdir(parents=True)
    code = (
        "import fcntl, os, sys, time\nos.setpgid(0, 0)\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(str(os.getpid()))\nfile.flush()\nprint('held', flush=True)\ntime.sleep(600)"
    )
    worker = Command([sys.executable, "-c", code, str(folder / "worker-0.lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout.readline() == "held\n"
        clinic = doctor.Clinic(at(tmp_path), False, {"s": StoredStudy("s", {}, {}, ())})
        (finding,) = doctor.workers(clinic)
        assert str(worker.pid) in finding.text
        assert worker.poll() is None
        clinic.fix = True
        (finding,) = doctor.workers(clinic)
        assert finding.fixed
        assert worker.wait(30) == -signal.SIGKILL
        assert list(doctor.workers(clinic)) == []
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


@pytest.mark.parametrize(
    ("name", "stale"),
    [
        ("trial-0000-epoch-003.state", True),
        ("trial-0000.state", True),
        ("trial-0001-epoch-003.state", True),  # it waits at epoch 4
        ("trial-0001-epoch-004.state", False),
        ("trial-0002.state", False),  # to be trained again, from there
        ("trial-0003.state", False),  # not known: its trial may not be stored yet
        ("confirm-0000-seed-1.state", True),
        ("confirm-0000-seed-2.state", False),
        ("notes.state", False),
    ],
)
def test_states_are_stale_when_their_trial_is_over_or_goes_on_from_another(tmp_path, name, stale):
    from dataclasses import replace

    from hpsearch.types import Setup

    over = record(0, Status.COMPLETE, [1.0, 0.9])
    paused = replace(record(1, Status.PAUSED, [1.0, 0.9]), state="/elsewhere/trial-0001-epoch-004.state")
    run = replace(over, number=-1, setup=Setup("confirm-0000-seed-1", 0))
    stored = StoredStudy("s", {}, {}, (over, paused, record(2, Status.WAITING, [])), (run,))
    (tmp_path / name).touch()
    assert leftovers.stale_states(tmp_path, stored) == ([tmp_path / name] if stale else [])


def test_weights_are_stray_when_nothing_refers_to_them(tmp_path):
    from dataclasses import replace

    best = replace(record(0, Status.COMPLETE, [1.0]), checkpoint="/elsewhere/trial-0000.safetensors")
    stored = StoredStudy("s", {}, {}, (best, record(1, Status.COMPLETE, [1.0]), record(2, Status.WAITING, [])))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "trial-0009.json").write_text(json.dumps({"checkpoint": "/elsewhere/trial-0009.safetensors"}))
    for name in ("trial-0000", "trial-0001", "trial-0002", "trial-0009", "confirm-0000-seed-1", "mine", "trial-1"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [p.stem for p in leftovers.stray_weights(tmp_path, stored)] == ["confirm-0000-seed-1", "trial-0001"]


def test_a_check_that_breaks_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(clinic):
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.cores))
    first, second = doctor.examine(at(tmp_path))
    assert (first.name, first.level, first.text) == ("broken", "problem", "no such device")
    assert second.name == "cores"


def test_the_studies_of_a_comparison_that_is_being_run_are_left_alone(tmp_path):
    stored = StoredStudy("pair-tpe-r1", {"sampler": "tpe", "repeat": 1}, {}, ())
    clinic = doctor.Clinic(at(tmp_path), True, {stored.name: stored})
    pair = tmp_path / "hpsearch-runs" / "pair"
    with study_lock([pair], "pair"):
        assert clinic.running(stored)
        assert list(doctor.locks(clinic)) == []
    assert not clinic.running(stored)
    (pair / "holder").write_text("somewhere, process 1")
    (finding,) = doctor.locks(clinic)
    assert finding.fixed
    assert not (pair / "holder").exists()


def test_what_killed_exports_left_is_told_and_cleared_on_request(tmp_path):
    left, own = tmp_path / f".model.{dead()}", tmp_path / f".model.{os.getppid()}"
    for path in (left, own):
        path.mkdir()
        (path / "model.safetensors").touch()
    where = place(tmp_path, None, None, False)
    found = [f for f in doctor.exports(doctor.Clinic(where, False)) if left.name in f.text]
    assert [(f.level, left.exists()) for f in found] == [("warning", True)]
    assert [f.fixed for f in doctor.exports(doctor.Clinic(where, True))] == [True]
    assert (left.exists(), own.exists()) == (False, True)


def test_results_that_cannot_be_used_are_told_with_their_reasons(tmp_path):
    results = tmp_path / "hpsearch-runs" / "s" / "results"
    results.mkdir(parents=True)
    (results / "trial-0000.json").write_text("[1]")
    clinic = doctor.Clinic(place(tmp_path, None, None, False), False, {"s": StoredStudy("s", {}, {}, ())})
    (found,) = doctor.files(clinic)
    assert found.text == "'s', results that cannot be used: trial-0000.json: it is a list, not a mapping"
