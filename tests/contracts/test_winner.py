"""Every door names the same winner, also where the confirmation chose another trial than the search liked best."""

import json
import re
import sqlite3
from contextlib import closing

import pytest
from mlflow import MlflowClient

from tests.service.serving import Server
from tests.support.commands import run_hpsearch

pytestmark = pytest.mark.process

WORDS = [
    "run",
    "--name",
    "s",
    "--workers",
    "1",
    "--trials",
    "4",
    "--confirm",
    "2x2",
    "--set",
    "space.epochs=2",
    "--set",
    "space.batch_size=64",
]
WORDS += ["--set", "space.batch_size=64", "--set", "space.frozen_layers=6", "--pruner", "none", "--set", "split={val: 200, test: 200}"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a study whose second best trial was better when both were trained again, and the numbers of the two."""
    folder = tmp_path_factory.mktemp("winner")
    run_hpsearch(folder, *WORDS, "--no-tracking")
    trials = json.loads(run_hpsearch(folder, "show", "s", "--json").stdout)["trials"]
    first, second = (t["number"] for t in sorted(trials, key=lambda t: t["val_loss"])[:2])
    with closing(sqlite3.connect(folder / "hpsearch.db")) as database, database:
        rows = database.execute("SELECT study_user_attribute_id, key, value_json FROM study_user_attributes").fetchall()
        for number, key, text in rows:
            if key == "hpsearch.openings":
                database.execute("DELETE FROM study_user_attributes WHERE study_user_attribute_id = ?", (number,))
            if key.startswith(f"hpsearch.run.confirm-{first:04d}"):
                values = json.loads(text)
                values["val_loss"] += 1.0
                text = json.dumps(values)
                database.execute("UPDATE study_user_attributes SET value_json = ? WHERE study_user_attribute_id = ?", (text, number))
    out = run_hpsearch(folder, *WORDS).stdout
    return folder, second, first, out


def test_the_terminal(study):
    folder, winner, _, out = study
    assert re.search(rf"^Best: trial {winner}  ", out, re.M)
    assert json.loads(run_hpsearch(folder, "best", "s", "--json").stdout)["number"] == winner
    assert json.loads(run_hpsearch(folder, "list", "--json").stdout)[0]["best_trial"] == winner
    assert run_hpsearch(folder, "best", "s").stdout.startswith(f"s: trial {winner} ")


def test_the_report(study):
    folder, winner, _, _ = study
    run_hpsearch(folder, "report", "s", "--format", "json", "-o", folder / "report.json")
    assert json.loads((folder / "report.json").read_text())["summary"]["best_trial"] == winner


def test_export_and_registry(study):
    folder, winner, _, _ = study
    done = json.loads(run_hpsearch(folder, "export", "s", "-o", folder / "out", "--register", "champion", "--json").stdout)
    assert done["trial"] == winner
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    version = client.get_model_version_by_alias("champion", "champion")
    run = client.get_run(version.run_id)
    assert run.data.tags["hpsearch.trial"] == str(winner)


def test_mlflow(study):
    folder, winner, _, _ = study
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("s").experiment_id], "tags.`hpsearch.kind` = 'study'")
    assert [run.data.tags["hpsearch.winner"] for run in found] == [str(winner)]
    assert f"trial-{winner:04d}" in found[0].data.tags["mlflow.note.content"]


def test_the_service(study):
    folder, winner, first, _ = study
    server = Server(folder)
    try:
        found = server.study("s")
        assert found["best"]["number"] == winner
        assert found["best"]["chosen_by"] == "mean val_loss over 2 fresh seeds"
        assert found["best_score"] == found["best"]["score"]
        (row,) = [row for row in server.ask("GET", "/api/studies")[1]["studies"] if row["study"] == "s"]
        assert row["best_score"] == found["best_score"]
        status, _, weights = server.raw("GET", "/api/studies/s/model")
        assert status == 200
        assert weights == (folder / "hpsearch-runs" / "s" / f"trial-{winner:04d}.safetensors").read_bytes()
        page = server.ask("GET", "/studies/s")[1]
        assert f"trials is trial {winner}:" in page
        assert "chosen by its mean val_loss over 2 fresh seeds" in page
        assert f"trials is trial {first}:" not in page
        beside = server.ask("GET", f"/api/studies/s/trials/{winner}")
        assert beside[0] == 200
    finally:
        server.end_all()
