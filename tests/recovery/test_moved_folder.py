"""A working folder that was copied or moved is whole where it is now, and what it came from is left alone."""

import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from hpsearch.journal import read_events
from tests.support.commands import HPSEARCH, Command, run_hpsearch

pytestmark = pytest.mark.process

STUDY = {"name": "s", "workers": 1, "sampler": "random", "pruner": {"name": "halving", "warmup": 0.25, "reduction_factor": 2}}
STUDY |= {"space": {"epochs": 4, "frozen_layers": 6, "batch_size": 64}}


@pytest.fixture(scope="module")
def original(tmp_path_factory, empty_mlflow):
    """A folder in which a study with MLflow was stopped while trials wait at rungs."""
    folder = tmp_path_factory.mktemp("original") / "A"
    folder.mkdir()
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    point_at(folder / "mlflow.db", folder)
    (folder / "study.yaml").write_text(json.dumps(STUDY))
    process = Command([HPSEARCH, "run", "study.yaml", "--trials", "8"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(row["event"] == "paused" for _, row in read_events(folder / "hpsearch-runs" / "s")[0]) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert waiting(folder)
    return folder


def point_at(store, folder):
    """Lets an empty store be one that was made in the folder."""
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ? || '/mlruns/' || experiment_id", (str(folder),))


def trials(folder):
    return json.loads(run_hpsearch(folder, "show", "s", "--json").stdout)["trials"]


def waiting(folder):
    return {trial["number"] for trial in trials(folder) if trial["status"] == "PAUSED"}


def sums(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def make_absolute(folder, old):
    """Has the storage name files as versions before this one did: by the whole path."""
    with closing(sqlite3.connect(folder / "hpsearch.db")) as database, database:
        rows = database.execute("SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = 'hpsearch'").fetchall()
        for number, text in rows:
            values = json.loads(text)
            for key in ("checkpoint", "state"):
                values[key] = values.get(key) and f"{old}/hpsearch-runs/s/{values[key]}"
            text = json.dumps(values)
            database.execute("UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?", (text, number))


@pytest.mark.parametrize("absolute", [False, True])
def test_going_on_in_a_copy_leaves_the_original_as_it_is(original, tmp_path, absolute):
    before, copy = sums(original), tmp_path / "B"
    shutil.copytree(original, copy)
    if absolute:
        make_absolute(copy, original)
    out = run_hpsearch(copy, "run", "study.yaml", "--trials", 12).stdout
    assert sums(original) == before
    assert str(original) not in out
    best = json.loads(run_hpsearch(copy, "best", "s", "--json").stdout)
    assert Path(best["weights"]).parent == copy / "hpsearch-runs" / "s"
    assert len(list((copy / "hpsearch-runs" / "s").glob("*.safetensors"))) == 1, "the best one's alone"
    with closing(sqlite3.connect(copy / "mlflow.db")) as database:
        places = database.execute("SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs").fetchall()
    assert all(place.startswith(f"{copy}/mlruns/") for (place,) in places)


def test_a_moved_folder_works_whole_and_doctor_says_that_it_was_moved(original, tmp_path):
    first, moved = tmp_path / "first", tmp_path / "second"
    shutil.copytree(original, first)
    make_absolute(first, first)
    first.rename(moved)
    moves = [f for f in json.loads(run_hpsearch(moved, "doctor", "--json", code=3).stdout) if "moved or copied" in f["text"]]
    assert [(f["name"], str(original) in f["text"], str(moved) in f["text"]) for f in moves] == [("mlflow", True, True)]
    paused = waiting(moved)
    assert run_hpsearch(moved, "best", "s").stdout.splitlines()[-1].startswith(f"weights: {moved}/")
    run_hpsearch(moved, "export", "s", "-o", "out")
    assert (moved / "out" / "model.safetensors").is_file()
    run_hpsearch(moved, "replay", "s", str(min(paused)))
    assert "Weights:" in run_hpsearch(moved, "run", "study.yaml", "--trials", 10).stdout
    after = {t["number"]: t for t in trials(moved)}
    assert all(after[number]["attempt"] == 1 for number in paused), "they go on from where they wait"
    assert not first.exists(), "nothing is made where the folder was"
    assert not [f for f in json.loads(run_hpsearch(moved, "doctor", "--json").stdout) if "moved or copied" in f["text"]]


def test_a_strangers_result_deletes_nothing(original, tmp_path):
    victim, work = tmp_path / "thesis.safetensors", tmp_path / "work"
    victim.write_text("my thesis")
    work.mkdir()
    shutil.copytree(original / "hpsearch-runs", work / "hpsearch-runs")
    shutil.copy(original / "study.yaml", work)
    for path in (work / "hpsearch-runs" / "s" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        result |= {"checkpoint": str(victim), "state": str(victim), "val_loss": 9.0}
        result["curve"] = [row | {"val_loss": 9.0} for row in result["curve"]]
        path.write_text(json.dumps(result))
    run_hpsearch(work, "rebuild")
    run_hpsearch(work, "run", "study.yaml", "--trials", 8, "--no-tracking")
    assert victim.read_text() == "my thesis"
