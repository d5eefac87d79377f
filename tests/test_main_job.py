"""The doors, tried as a person does: the installed command in an empty folder, with everything real behind it."""

import json
import os
import pty
import re
import select
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from tests.support.commands import HPSEARCH, Command, run_command

pytestmark = pytest.mark.process


QUICK = ["--set", "space.epochs=2", "--set", "space.frozen_layers.low=5"]


def hpsearch(folder, *arguments, **options):
    """Run the command; its result."""
    return run_command([HPSEARCH, *arguments], cwd=folder, timeout=300, **options)


def interrupted(folder, start, *arguments):
    """Run the command until it prints a line that begins with `start`, and interrupt it then: it stops neatly."""
    process = Command([HPSEARCH, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(start):
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    assert process.wait(60) == 130, process.stderr.read()
    process.stdout.close(), process.stderr.close()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which a small study of the embedded default has run, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    command = [HPSEARCH, "run", "--sampler", "tpe", "--trials", "12", *QUICK]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # from a cold start, as a person's
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_prints_what_the_user_came_for(done):
    folder, result = done
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert sum(bool(re.match(r"\[\d+/12\] trial \d+ (complete|pruned|failed) ", line)) for line in lines) == 12
    text = result.stdout
    assert re.search(r"^Best: trial \d+  val_loss \d\.\d{4}  accuracy \d+\.\d %", text, re.M)
    assert "Gain" in text
    assert f"Report:  {folder}/hpsearch-runs/digits-tpe/report.html" in text
    assert f"MLflow:  mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db" in text
    summary = text[text.index("\nStudy digits-tpe is complete") :]
    assert all(len(line) <= 80 for line in summary.splitlines() if str(folder) not in line), summary


def test_the_files_are_where_standard_tools_look(done):
    folder, _ = done
    study = optuna.load_study(study_name="digits-tpe", storage=f"sqlite:///{folder}/hpsearch.db")
    assert len(study.trials) == 12
    weights = list((folder / "hpsearch-runs" / "digits-tpe").glob("*.safetensors"))
    assert [w.name for w in weights] == [f"trial-{study.best_trial.number:04d}.safetensors"]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits-tpe")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    assert len(runs) == 13
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {
        "report.html",
        "spec.json",
        "data-check.json",
        weights[0].name,
    }
    assert parent.info.status == "FINISHED"


def test_optunas_dashboard_opens_the_storage(done):
    from optuna_dashboard import wsgi
    from werkzeug.test import Client

    folder, _ = done
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/hpsearch.db")
    client = Client(wsgi(storage))
    (study,) = client.get("/api/studies").json["study_summaries"]
    assert study["study_name"] == "digits-tpe"
    shown = client.get(f"/api/studies/{study['study_id']}?after=0").json["trials"]
    assert [t["state"] for t in shown] == [t.state.name.capitalize() for t in storage.get_all_trials(1)]
    storage.engine.dispose()


def test_optuna_and_mlflow_agree_trial_for_trial(done):
    folder, _ = done
    study = optuna.load_study(study_name="digits-tpe", storage=f"sqlite:///{folder}/hpsearch.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits-tpe")
    runs = {
        int(r.data.tags["hpsearch.trial"]): r for r in client.search_runs([experiment.experiment_id]) if "hpsearch.trial" in r.data.tags
    }
    for trial in study.trials:
        run, kept = runs[trial.number], trial.user_attrs["hpsearch"]
        assert run.data.tags["hpsearch.state"] == kept["status"]
        assert run.data.metrics["best_val_loss"] == trial.value
        for name, value in trial.params.items():
            assert float(run.data.params[name]) == value
            assert kept["effective"][name] == pytest.approx(value) or name == "batch_size"  # 50 images: 25 of at most 32
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert [m.value for m in history] == [row["accuracy"] for row in kept["curve"]]


def test_the_same_command_again_does_nothing_and_more_trials_continue(done):
    folder, _ = done
    again = hpsearch(folder, "run", "--trials", "12", *QUICK)
    assert again.returncode == 0, again.stderr
    assert "[13/" not in again.stdout
    assert "12 trials" in again.stdout
    more = hpsearch(folder, "run", "--trials", "13", "--json", *QUICK)
    assert more.returncode == 0, more.stderr
    summary = json.loads(more.stdout)
    assert sum(summary["counts"].values()) == 13
    assert Path(summary["report"]).exists()
    assert "trial 12 " in more.stderr


def test_looking_commands_agree_with_the_storage(done):
    folder, _ = done
    (row,) = json.loads(hpsearch(folder, "list", "--json").stdout)
    study = json.loads(hpsearch(folder, "show", "--json").stdout)
    best = json.loads(hpsearch(folder, "best", "digits-tpe", "--json").stdout)
    assert row["study"] == study["study"] == "digits-tpe"
    assert row["trials"] == len(study["trials"])
    complete = [t for t in study["trials"] if t["status"] == "COMPLETE"]
    assert best["number"] == min(complete, key=lambda t: t["val_loss"])["number"] == row["best_trial"]
    for command in (["list"], ["show"], ["best"]):
        plain = hpsearch(folder, *command)
        assert plain.returncode == 0
        assert all(len(line) <= 80 or str(folder) in line for line in plain.stdout.splitlines()), plain.stdout


def test_report_writes_a_page_where_it_is_told(done, tmp_path):
    folder, _ = done
    result = hpsearch(folder, "report", "-o", str(tmp_path / "page.html"))
    assert result.returncode == 0, result.stderr
    assert "digits-tpe" in (tmp_path / "page.html").read_text()


def test_a_folder_called_like_the_default_study_is_no_obstacle(tmp_path):
    (tmp_path / "digits").mkdir()
    result = hpsearch(tmp_path, "run", "--trials", "1", "--no-tracking", *QUICK)
    assert result.returncode == 0, result.stderr


def test_a_storage_in_use_from_another_folder_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    command = ["run", "--storage", str(tmp_path / "shared.db"), "--no-tracking", "--trials", "200", "--set", "space.epochs=20"]
    process = Command([HPSEARCH, *command], cwd=tmp_path / "a", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "hpsearch-runs/digits-tpe/holder").exists():
            time.sleep(0.05)
        second = hpsearch(tmp_path / "b", *command)
        assert second.returncode == 1
        assert f"process {process.pid}" in second.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_two_studies_with_one_worker_and_one_seed_are_the_same_to_the_last_bit(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result = hpsearch(tmp_path / name, "run", "--workers", "1", "--trials", "14", "--seed", "3", "--no-tracking", *QUICK)
        assert result.returncode == 0, result.stderr
        trials = json.loads(hpsearch(tmp_path / name, "show", "--json").stdout)["trials"]
        for trial in trials:
            for clock in ("started", "ended", "seconds", "checkpoint"):
                del trial[clock]
            for row in trial["curve"]:
                del row["seconds"], row["images_per_second"]
        found.append(trials)
    assert found[0] == found[1]
    assert any(t["status"] == "COMPLETE" for t in found[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_neatly_and_the_same_command_goes_on(tmp_path, number):
    command = [HPSEARCH, "run", "--trials", "200", "--no-tracking", "--pruner", "none", "--set", "space.epochs=3"]
    process = Command(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("[3/"):
            break
    os.killpg(process.pid, number)  # to the whole group, as a terminal, a batch system and `timeout` do
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "The same command goes on with the study" in err
    assert "Traceback" not in out + err
    stored = json.loads(hpsearch(tmp_path, "show", "--json").stdout)["trials"]
    ended = [t for t in stored if t["status"] == "COMPLETE"]
    assert len(ended) >= 3
    assert {t["status"] for t in stored} <= {"COMPLETE", "WAITING"}
    process = hpsearch(tmp_path, "run", "--trials", str(len(stored) + 1), "--no-tracking", "--pruner", "none", "--set", "space.epochs=3")
    assert process.returncode == 0, process.stderr
    after = json.loads(hpsearch(tmp_path, "show", "--json").stdout)["trials"]
    assert {t["status"] for t in after} == {"COMPLETE"}
    assert len(after) == len(stored) + 1
    assert [t for t in after if t["number"] in {e["number"] for e in ended}] == ended


def test_a_second_signal_stops_at_once_and_leaves_no_process(tmp_path):
    command = [HPSEARCH, "run", "--trials", "200", "--pruner", "none", "--set", "space.epochs=20"]
    process = Command(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("[1/"):
            break
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    give_up = time.monotonic() + 10
    while living(process.pid) and time.monotonic() < give_up:
        time.sleep(0.2)
    assert living(process.pid) == []
    with sqlite3.connect(tmp_path / "hpsearch.db") as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
        (complete,) = db.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    db.close()
    assert complete >= 1


def test_a_signal_while_torch_is_being_imported_stops_neatly(tmp_path):
    command = [HPSEARCH, "run", "--no-tracking"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "hpsearch-runs/digits-tpe/holder").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err


def living(session):
    """Processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_study_that_is_being_run_is_refused_with_its_holder(tmp_path):
    command = [HPSEARCH, "run", "--trials", "200", "--no-tracking", "--set", "space.epochs=20"]
    process = Command(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        while not (tmp_path / "hpsearch-runs/digits-tpe/holder").exists():
            time.sleep(0.1)
        second = hpsearch(tmp_path, "run", "--no-tracking")
        assert second.returncode == 1
        assert f"process {process.pid}" in second.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize("sampler", ["grid", "random", "gp", "bayes", "qmc", "cmaes"])
def test_every_sampler_runs_by_name(tmp_path, sampler):
    result = hpsearch(tmp_path, "run", "--sampler", sampler, "--trials", "4", "--no-tracking", "--json", *QUICK)
    assert result.returncode == 0, result.stderr
    assert sum(json.loads(result.stdout)["counts"].values()) == 4


def test_a_port_in_use_is_said_with_its_holder(done):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refused = hpsearch(done[0], "ui", "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port} is in use by process {os.getpid()}" in refused.stderr
    nowhere = hpsearch(done[0], "ui", "--host", "203.0.113.7")
    assert nowhere.returncode == 2
    assert "cannot be listened on" in nowhere.stderr


def test_mlflows_page_opens_on_the_runs_with_two_processes(done):
    folder, _ = done
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = Command([HPSEARCH, "ui", "--port", str(port)], cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        give_up = time.monotonic() + 120
        while True:
            try:
                query = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits-tpe")
                with urllib.request.urlopen(query, timeout=5) as answer:
                    found = json.load(answer)["experiment"]["name"]
                break
            except OSError:
                assert time.monotonic() < give_up, "the page did not come up"
                time.sleep(0.5)
        assert found == "digits-tpe"
        assert len(living(process.pid)) <= 3  # `mlflow server`, its one worker, and multiprocessing's resource tracker
    finally:
        process.terminate()
        process.wait(timeout=30)
    give_up = time.monotonic() + 10
    while living(process.pid):
        assert time.monotonic() < give_up, "MLflow outlives the command"
        time.sleep(0.2)


def test_in_a_terminal_a_table_updates_in_place(tmp_path):
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "40", "TERM": "xterm"}
    command = [HPSEARCH, "run", "--trials", "4", "--no-tracking", *QUICK]
    process = Command(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    text = b""
    while True:
        ready, _, _ = select.select([master], [], [], 1.0)
        if ready:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            text += piece
        elif process.poll() is not None:
            break
    assert process.wait() == 0
    screen = text.decode()
    assert "\x1b[" in screen
    assert "val_loss" in screen
    assert "…" not in screen.split("Study digits-tpe is complete")[0].split("train/val/test")[-1]
    assert "Best: trial" in screen
