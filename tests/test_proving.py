"""References, confirmation and test, as a person runs them: the installed command with everything real behind it."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from hpsearch.errors import FixSetup, Interrupted
from hpsearch.proof import outstanding, proof_of
from hpsearch.proving import Prover
from hpsearch.search.catalog import read_study
from hpsearch.search.records import OPENINGS
from hpsearch.search.store import opened
from tests.test_docs import ROOT, blocks
from tests.test_main_job import hpsearch, interrupted

pytestmark = pytest.mark.process


QUICK = ["--trials", "6", "--workers", "1", "--set", "space.epochs=3", "--set", "space.frozen_layers.low=4", "--seed", "2"]
PAGE = [line.split(" #")[0].split() for line in "\n".join(blocks(ROOT / "docs" / "proof.md", "sh")).splitlines() if line]
NAME = "proven"  # what the page calls it
ASKED = [*PAGE[0][1:], *QUICK, "--confirm", "2x2"]  # the page's command, smaller


def stored(folder):
    with opened(f"sqlite:///{folder}/hpsearch.db") as storage:
        return read_study(storage, NAME)


def weights(folder):
    return sorted(file.name for file in (folder / "hpsearch-runs" / NAME).glob("*.safetensors"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which a study has been searched, confirmed and tested, and what was printed."""
    folder = tmp_path_factory.mktemp("proven")
    result = hpsearch(folder, *ASKED)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_end_tells_what_was_confirmed_what_each_step_bought_and_what_the_test_says(done):
    folder, text = done
    proof = proof_of(stored(folder))
    assert proof.confirmed
    assert re.search(rf"^Best: trial {proof.winner}  val_loss", text, re.M)
    assert "Confirmed on 2 fresh seeds: mean val_loss with its 95 % interval" in text
    for label in ("majority class", "from scratch", "linear probe", "default recipe", "best of the search"):
        assert re.search(rf"^  {label} +\d\.\d{{4}} +\d+\.\d % +(\d+\.\d %|-) +\d", text, re.M), label
    for what in ("pretraining", "unfreezing", "the search"):
        assert re.search(rf"^  {what} +[+-]\d\.\d{{3}} \[.*\] +[+-]\d+\.\d \[.*\] +(\d+\.\d|never) of \d+\.\d s", text, re.M), what
    assert f"Test: trial {proof.winner} on 1,346 images, looked at once:" in text
    summary = text[text.index(f"\nStudy {NAME} is complete") :]
    assert all(len(line) <= 80 for line in summary.splitlines() if str(folder) not in line), summary


def test_the_storage_holds_every_run_and_one_opening(done):
    study = stored(done[0])
    assert outstanding(study) == ("", ())
    assert len(study.records) == 6
    assert all(run.setup is not None and run.number < 0 and run.curve for run in study.runs)
    assert {run.origin for run in study.runs} <= {"confirm", "reference", "winner"}
    (opening,) = study.openings
    assert opening["trial"] == proof_of(study).winner
    assert len(opening["judged"]) > 5
    names = {row.name: row.test for row in proof_of(study).rows}
    assert set(names["best"]) >= {"val_loss", "accuracy"}
    assert names["scratch"]["accuracy"].n == 2


def test_only_the_weights_of_the_winner_and_the_best_are_kept(done):
    study = stored(done[0])
    best = min((r for r in study.records if r.status == "COMPLETE"), key=lambda r: r.cost)
    assert weights(done[0]) == sorted({f"trial-{n:04d}.safetensors" for n in (best.number, proof_of(study).winner)})


def test_mlflow_has_the_runs_by_name_and_the_proofs_numbers(done):
    folder, _ = done
    study = stored(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    names = {run.info.run_name: run for run in runs}
    assert len(runs) == len(names) == 1 + len(study.records) + len(study.runs)
    for run in study.runs:
        mirrored = names[run.setup.name]
        assert mirrored.info.status == "FINISHED"
        assert mirrored.data.tags["hpsearch.kind"] == run.origin
        assert mirrored.data.metrics["best_val_loss"] == pytest.approx(run.val_loss)
    parent, proof = names[NAME], proof_of(study)
    assert parent.data.tags["hpsearch.winner"] == str(proof.winner)
    assert parent.data.metrics["test/accuracy"] == pytest.approx(proof.test.metrics["accuracy"])
    for gain in proof.gains:
        assert parent.data.metrics[f"gain/{gain.what.split()[-1]}/accuracy"] == pytest.approx(gain.points["accuracy"].mean)
    assert "proof.json" in [file.path for file in client.list_artifacts(parent.info.run_id)]


def test_forgetting_is_measured_where_the_source_task_is_known(done):
    lost = proof_of(stored(done[0])).test.forgetting
    assert lost is not None
    assert 0.5 < lost.before <= 1
    assert "its accuracy went from" in done[1]


def test_the_same_command_again_does_nothing(done):
    folder, _ = done
    before = stored(folder)
    result = hpsearch(folder, *ASKED)
    assert result.returncode == 0, result.stderr
    assert "Confirming" not in result.stdout
    after = stored(folder)
    assert (after.runs, after.openings) == (before.runs, before.openings)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    assert len(runs) == 1 + len(after.records) + len(after.runs)


def test_a_session_that_asks_for_nothing_undoes_nothing_and_proves_nothing_new(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    before = stored(folder)
    result = hpsearch(folder, "run", *QUICK, "--trials", "8", "--name", NAME, "--no-tracking")
    assert result.returncode == 0, result.stderr
    after = stored(folder)
    assert len(after.records) == 8
    assert (after.runs, after.openings, after.spec["confirm"]) == (before.runs, before.openings, before.spec["confirm"])


def test_a_second_look_at_the_test_images_is_refused_then_recorded_and_shown(done, tmp_path):
    folder, _ = done
    proof = proof_of(stored(folder))
    same = hpsearch(folder, "test", "--json")
    assert json.loads(same.stdout)["new"] is False
    assert json.loads(same.stdout)["judged"]["metrics"] == dict(proof.test.metrics)
    other = next(r.number for r in stored(folder).records if r.number != proof.winner and r.status == "COMPLETE")
    refused = hpsearch(folder, "test", "--trial", str(other))
    assert refused.returncode == 2
    assert f"trial {proof.winner}" in refused.stderr
    assert "--again" in refused.stderr
    assert len(stored(folder).openings) == 1


@pytest.mark.parametrize(("error", "reason"), [(Interrupted("stop", 2), "interrupted"), (FixSetup("no memory"), "")])
def test_a_look_that_was_cut_short_is_no_look(done, tmp_path, error, reason):
    shutil.copy(done[0] / "hpsearch.db", tmp_path)
    said = []

    def aside(*_):
        raise error

    with opened(f"sqlite:///{tmp_path}/hpsearch.db") as storage:
        storage.set_study_user_attr(storage.get_study_id_from_name(NAME), OPENINGS, [])
        prover = Prover(
            storage,
            NAME,
            SimpleNamespace(aside=aside),
            [],
            None,
            lambda: None,
            lambda *words: said.append(words[0]),
            done[0] / "hpsearch-runs" / NAME,
        )
        assert prover.prove({}) == reason
        assert read_study(storage, NAME).openings == ()
    assert ["no memory" in text for text in said] == ([] if reason else [True])


def test_best_export_and_predict_take_the_winner(done, tmp_path):
    folder, _ = done
    proof = proof_of(stored(folder))
    best = hpsearch(folder, "best")
    assert best.stdout.startswith(f"{NAME}: trial {proof.winner} ")
    assert "Confirmed on 2 fresh seeds" in best.stdout
    model = tmp_path / "model"
    exported = hpsearch(folder, "export", "-o", str(model), "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["trial"] == proof.winner
    card = (model / "README.md").read_text()
    assert f"{100 * proof.test.metrics['accuracy']:.1f} %" in card
    assert "test" in card.lower()


def test_a_study_that_was_not_confirmed_is_tested_when_asked_and_a_second_time_is_told(tmp_path):
    first = hpsearch(tmp_path, "run", *QUICK, "--name", NAME, "--no-tracking")
    assert "Test:" not in first.stdout
    study = stored(tmp_path)
    assert study.openings == ()
    look = hpsearch(tmp_path, "test")
    assert look.returncode == 0, look.stderr
    assert "1,346 test images" in look.stdout
    more = hpsearch(tmp_path, "run", *QUICK, "--name", NAME, "--no-tracking", "--trials", "14")
    winner = proof_of(stored(tmp_path)).winner
    if winner != stored(tmp_path).openings[0]["trial"]:
        again = hpsearch(tmp_path, "test", "--again")
        assert "looked at 2 times" in again.stdout
        assert len(stored(tmp_path).openings) == 2
    assert more.returncode == 0


def test_an_interrupted_proof_goes_on_and_is_what_the_uninterrupted_one_is(done, tmp_path):
    interrupted(tmp_path, "[2/4] confirm-", *ASKED, "--no-tracking")
    half = stored(tmp_path)
    assert 2 <= len(half.runs) < 4
    assert half.openings == ()
    assert not proof_of(half).confirmed
    rest = hpsearch(tmp_path, *ASKED, "--no-tracking")
    assert rest.returncode == 0, rest.stderr
    ours, theirs = stored(tmp_path), stored(done[0])
    assert {r.setup.name: r.val_loss for r in ours.runs} == {r.setup.name: r.val_loss for r in theirs.runs}
    assert len({r.number for r in ours.runs}) == len(ours.runs)
    assert [j["loss"] for j in ours.openings[0]["judged"]] == [j["loss"] for j in theirs.openings[0]["judged"]]
    assert not [name for name in weights(tmp_path) if not name.startswith("trial-")]


def test_folds_confirm_too_and_the_report_is_written(tmp_path):
    result = hpsearch(tmp_path, "run", *QUICK, "--name", NAME, "--no-tracking", "--cv", "2x3")
    assert result.returncode == 0, result.stderr
    assert "Confirmed on 3 folds" in result.stdout
    study = stored(tmp_path)
    assert sorted(run.setup.fold for run in study.runs if run.origin == "confirm") == [0, 0, 1, 1, 2, 2]
    losses = {run.setup.fold: run.val_loss for run in study.runs if run.setup.trial == proof_of(study).winner and run.origin == "confirm"}
    assert len(set(losses.values())) == 3
    assert Path(tmp_path / "hpsearch-runs" / NAME / "report.html").exists()


def test_the_commands_of_the_page_run_in_their_order(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    for line in PAGE[1:]:
        assert line[0] == "hpsearch"
        more = [*QUICK, "--no-tracking", "--confirm", "2x3"] if line[1] == "run" else []
        result = hpsearch(folder, *line[1:], *more)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    study = stored(folder)
    again = {run.setup.name for run in study.runs} - {run.setup.name for run in stored(done[0]).runs}
    assert proof_of(study).how == "3 fresh seeds"
    assert again, "only what was missing was trained"
    assert all(run.val_loss == next(r.val_loss for r in study.runs if r.setup == run.setup) for run in stored(done[0]).runs)
