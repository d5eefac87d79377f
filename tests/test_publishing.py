"""`hpsearch sync` and `export --register`: a study in MLflow afterwards, and its model in a process that knows nothing of hpsearch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from hpsearch.tracking import MlflowTracker
from hpsearch.types import StudyEnded
from tests.events import study_events
from tests.mlflow_store import by_name, dump
from tests.support.commands import HPSEARCH, run_command

RUN = ("run", "--trials", "4", "--confirm", "1x2", "--set", "space.epochs=2", "--name", "small")


def hpsearch(folder, *arguments, fails=False, **environment):
    done = run_command([HPSEARCH, *arguments], cwd=folder, env=os.environ | environment)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def study(tmp_path_factory, new_store):
    """A folder in git with a study of four trials and two confirmations, mirrored while it ran, exported and registered twice."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "train.txt").write_text("one")
    author = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    for command in (("init", "-q"), ("add", "train.txt"), (*author, "commit", "-qm", "one")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "train.txt").write_text("two")
    new_store(folder)
    hpsearch(folder, *RUN)
    for _ in range(2):
        hpsearch(folder, "export", "-o", "model", "--force", "--register", "digit-reader")
    return folder


def uri(folder, name="mlflow.db"):
    return f"sqlite:///{folder}/{name}"


def test_the_parent_says_where_the_study_comes_from_and_what_it_came_to(study):
    parent = by_name(uri(study))["small"]
    tags = parent["tags"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=study, capture_output=True, text=True, check=True).stdout.strip()
    assert (tags["mlflow.source.git.commit"], tags["hpsearch.git.dirty"]) == (head, "true")
    assert tags["hpsearch.sampler"] == "tpe"
    assert tags["hpsearch.pruner"] == "median"
    assert tags["hpsearch.model"] == "glyphnet"
    assert {f"hpsearch.version.{name}" for name in ("python", "torch", "optuna", "mlflow")} <= set(tags)
    note = tags["mlflow.note.content"]
    assert f"/runs/{tags['hpsearch.winner_run_id']})" in note
    assert "| learning_rate |" in note
    assert "`report.html`" in note
    names = [name for name, _ in parent["files"]]
    assert [n for n in names if not n.endswith(".safetensors")] == ["data-check.json", "proof.json", "report.html", "spec.json"]
    assert len(names) == 5


def test_the_datasets_are_inputs_with_digest_and_counts(study):
    inputs = by_name(uri(study))["small"]["inputs"]
    assert [name for name, _, _ in inputs] == ["digits: test", "digits: train", "digits: val"]
    assert [json.loads(profile)["images"] for _, _, profile in inputs] == [1346, 50, 401]
    assert len({digest for _, digest, _ in inputs}) == 3


def test_the_machine_is_watched_on_request(tmp_path, new_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    first, *_ = study_events("watched")
    store, give_up = new_store(tmp_path), time.monotonic() + 120
    tracker = MlflowTracker(store, tmp_path)
    tracker.record(first)
    while not any(key.startswith("system/cpu") for key in by_name(store).get("watched", {"metrics": ()})["metrics"]):
        assert time.monotonic() < give_up
        time.sleep(0.5)
    tracker.record(StudyEnded("budget", None, None))
    tracker.close()
    assert tracker.problem == ""


def test_children_have_the_score_under_the_name_that_the_parent_and_the_experiment_give_it(study):
    runs = by_name(uri(study))
    score = runs["small"]["tags"]["hpsearch.score"]
    assert score == "best_val_loss"
    assert all(score in runs[f"trial-{n:04d}"]["metrics"] for n in range(4))
    assert dump(uri(study))["small"]["mlflow.experiment.primaryMetric.name"] == score
    assert {"learning_rate", "epochs", "dropout"} <= set(runs["trial-0000"]["params"])


def test_syncing_what_is_complete_changes_nothing(study):
    before = dump(uri(study))
    for _ in range(2):
        assert "4 trials and 2 beside" in hpsearch(study, "sync", "small").stdout
        assert dump(uri(study)) == before


def test_a_mirror_is_rebuilt_from_the_storage_and_completed_from_a_half(study, tmp_path, new_store):
    elsewhere = new_store(tmp_path)
    hpsearch(study, "sync", "--tracking-uri", elsewhere)
    rebuilt, lived = dump(elsewhere), by_name(uri(study))
    hpsearch(study, "sync", "--tracking-uri", elsewhere)
    assert dump(elsewhere) == rebuilt
    again = by_name(elsewhere)
    assert again.keys() == lived.keys()
    for name, run in lived.items():
        assert again[name]["params"] == run["params"]
        own = {
            "mlflow.parentRunId",
            "hpsearch.best_run_id",
            "hpsearch.winner_run_id",
            "mlflow.note.content",
        }  # they name runs of their own store
        assert {k: v for k, v in again[name]["tags"].items() if k not in own} == {k: v for k, v in run["tags"].items() if k not in own}
        assert again[name]["info"][1] == run["info"][1]
        metrics = {k: [(step, value) for step, _, value in points] for k, points in run["metrics"].items() if not k.startswith("system/")}
        assert {k: [(step, value) for step, _, value in points] for k, points in again[name]["metrics"].items()} == metrics
        assert [path for path, _ in again[name]["files"]] == [path for path, _ in run["files"]]
    name, status, stage, start, end = lived["trial-0002"]["info"]
    assert again["trial-0002"]["info"] == (name, status, stage, again["trial-0002"]["info"][3], end)
    assert abs(again["trial-0002"]["info"][3] - start) < 1000  # ms; a run that was made while it trained began when it was sent

    client = MlflowClient(elsewhere)
    ids = {run["info"][0]: key for key, run in rebuilt.items() if "info" in run}
    client.delete_run(ids["trial-0001"])
    client.set_tag(ids["trial-0003"], "hpsearch.state", "RUNNING")  # cut off before its end came
    hpsearch(study, "sync", "--tracking-uri", elsewhere)
    mended = by_name(elsewhere)
    assert mended.keys() == again.keys()
    for name in ("trial-0001", "trial-0003"):
        assert mended[name]["metrics"] == again[name]["metrics"]


def test_a_study_that_is_not_ours_or_not_there_is_told(study, tmp_path):
    assert "no study 'smal': did you mean 'small'?" in hpsearch(study, "sync", "smal", fails=True).stderr
    done = hpsearch(study, "sync", "--tracking-uri", "http://someone:hunter2@127.0.0.1:9", fails=True)
    assert "MLflow could not be written" in done.stderr
    log = (study / "hpsearch-runs" / "small" / "tracking.log").read_text()
    assert "Traceback" in log
    assert "hunter2" not in log + done.stderr + done.stdout


LOADED = """
import json, sys
import mlflow, numpy as np, pandas as pd, torch
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digit-reader@champion")
file, array = sys.argv[2], np.asarray(Image.open(sys.argv[2]))
data = open(file, "rb").read()
told = [model.predict(given) for given in ([file], file, [data], pd.DataFrame({"image": [data]}), pd.DataFrame({"image": [array]}))]
every = model.predict([file, file], params={"all": True})
import mlflow.pytorch
shares = mlflow.pytorch.load_model("models:/digit-reader@champion")(torch.from_numpy(array.copy())[None, None].repeat(3, 1, 1, 1))
found = {
    "hpsearch": "hpsearch" in sys.modules,
    "told": [table.to_dict("records") for table in told],
    "every": [list(every.columns), len(every), float(every.iloc[0, 2:].sum())],
    "net": type(model.unwrap_python_model().net).__name__,
    "example": model.predict(model.input_example).shape,
    "shares": shares[2].tolist(),
}
print(json.dumps(found))
"""


def test_the_registered_model_loads_in_a_fresh_process_elsewhere_with_its_preprocessing(study, tmp_path):
    file = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(file)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-IB", "-c", LOADED, uri(study), str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (expected,) = json.loads(hpsearch(study, "predict", "model", str(file), "--json").stdout)
    assert not found["hpsearch"]
    for table in found["told"]:
        assert [row["class"] for row in table] == [expected["top"][0]["class"]]
        assert table[0]["probability"] == pytest.approx(expected["top"][0]["probability"], abs=1e-5)
    columns, rows, total = found["every"]
    assert (columns[:3], rows, len(columns)) == (["class", "probability", "probability of 0"], 2, 12)
    assert total == pytest.approx(1)
    assert max(found["shares"]) == pytest.approx(expected["top"][0]["probability"], abs=1e-4)
    assert (found["net"], found["example"]) == ("GlyphNet", [1, 2])


def test_a_version_is_linked_to_the_winners_run_and_the_newest_is_the_champion(study):
    client = MlflowClient(uri(study))
    version = client.get_model_version_by_alias("digit-reader", "champion")
    assert str(version.version) == "2"
    winner = by_name(uri(study))["small"]["tags"]["hpsearch.winner_run_id"]
    assert version.run_id == winner
    run = client.get_run(winner)
    assert float(version.tags["val_loss"]) == pytest.approx(run.data.metrics["best_val_loss"], rel=1e-5)
    assert 0 < float(version.tags["test_accuracy"]) <= 1  # the study opened its test images
    linked = [o.model_id for o in run.outputs.model_outputs if o.model_id in version.source]  # the SQL registry keeps no model_id
    assert len(linked) == 1
    model = client.get_logged_model(linked[0])
    assert model.source_run_id == winner
    files = {path.name for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()}
    assert {"MLmodel", "served.py", "model.safetensors", "predict.py", "model.pt2", "input_example.json"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pth", ".pyc"))]


def test_registering_a_study_without_mirror_makes_one(study, tmp_path, new_store):
    elsewhere = new_store(tmp_path)
    done = hpsearch(study, "export", "-o", str(tmp_path / "model"), "--register", "reader", "--tracking-uri", elsewhere, "--json")
    kept = json.loads(done.stdout)["registered"]
    assert (kept["name"], kept["version"]) == ("reader", "1")
    assert MlflowClient(elsewhere).get_run(kept["run"]).data.tags["mlflow.runName"] == f"trial-{json.loads(done.stdout)['trial']:04d}"


def test_a_comparison_is_synced_under_its_name_into_its_experiment(tmp_path, new_store):
    new_store(tmp_path)
    asked = ("--samplers", "tpe,random", "--trials", "2", "--repeats", "1", "--initial", "1", "--set", "space.epochs=1", "--name", "pair")
    hpsearch(tmp_path, "compare", *asked)
    before = dump(uri(tmp_path))
    assert "pair: MLflow has 4 trials" in hpsearch(tmp_path, "sync", "pair").stdout
    assert dump(uri(tmp_path)) == before
    (tmp_path / "empty").mkdir()
    hpsearch(tmp_path, "sync", "pair", "--tracking-uri", new_store(tmp_path / "empty"))
    again = dump(uri(tmp_path / "empty"))
    assert {name for name in again if name in before} == {"Default", "pair"}
    alone = [run["tags"]["hpsearch.kind"] for run in again.values() if "tags" in run and "mlflow.parentRunId" not in run["tags"]]
    assert sorted(alone) == ["comparison", "study", "study"]
