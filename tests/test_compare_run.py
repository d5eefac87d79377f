"""`hpsearch compare` as a person runs it: the installed command with everything real behind it."""

import json
import re

import pytest
from mlflow import MlflowClient

from hpsearch.search.catalog import read_study, study_names
from hpsearch.search.store import opened
from hpsearch.types import point_key
from tests.test_docs import ROOT, blocks
from tests.test_main_job import hpsearch, interrupted

pytestmark = pytest.mark.process


SMALL = ["--trials", "6", "--repeats", "2", "--initial", "3", "--set", "space.epochs=2", "--set", "space.frozen_layers.low=5"]
ASKED = ["compare", "--samplers", "random,tpe", *SMALL, "--workers", "1", "--name", "duel"]
STUDIES = ["duel-random-r1", "duel-random-r2", "duel-tpe-r1", "duel-tpe-r2"]


def stored(folder):
    """Every study in a folder's storage, by name."""
    with opened(f"sqlite:///{folder}/hpsearch.db") as storage:
        return {name: read_study(storage, name) for name in study_names(storage)}


def point(record):
    return point_key(record.params)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which two samplers have been compared, and what was printed."""
    folder = tmp_path_factory.mktemp("compared")
    result = hpsearch(folder, *ASKED)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_each_sampler_and_repeat_is_an_ordinary_study(done):
    folder, _ = done
    assert sorted(stored(folder)) == STUDIES
    shown = hpsearch(folder, "show", "duel-tpe-r2")
    assert shown.returncode == 0
    assert "duel-tpe-r2: 6 trials, sampler tpe" in shown.stdout


def test_what_samplers_share_is_trained_once_and_counted(done):
    folder, text = done
    studies = stored(folder)
    for repeat in (1, 2):
        first, second = studies[f"duel-random-r{repeat}"].records, studies[f"duel-tpe-r{repeat}"].records
        assert [point(r) for r in first[:3]] == [point(r) for r in second[:3]]
        assert [r.origin for r in first[:3]] == ["default", "initial", "initial"]
        assert not any(r.reused for r in first)
        known = {point(r): r for r in first if r.status == "COMPLETE"}
        for record in second:
            if point(record) in known:
                assert record.reused, record.number
                epochs = len(record.curve)
                losses = [row["val_loss"] for row in known[point(record)].curve]
                assert [row["val_loss"] for row in record.curve] == losses[:epochs]
    assert point(studies["duel-random-r1"].records[1]) != point(studies["duel-random-r2"].records[1])
    default = {name: study.records[0].val_loss for name, study in studies.items()}
    assert default["duel-random-r1"] == default["duel-tpe-r1"] != default["duel-random-r2"], "a repeat has a head and an order of its own"
    reused = sum(bool(r.reused) for name in STUDIES for r in studies[name].records)
    assert re.search(rf"^  tpe .* {reused} ", text, re.M)


def test_two_repeats_name_no_winner_and_fit_a_terminal(done):
    folder, text = done
    end = text[text.index("\nComparison duel: 4 studies") :]
    assert "cannot reach p < 0.05" in end
    assert "no winner" in end
    assert all(len(line) <= 80 for line in end.splitlines() if str(folder) not in line), end
    page = (folder / "hpsearch-runs" / "duel" / "comparison.html").read_text()
    assert "cannot reach p &lt; 0.05" in page


def test_mlflow_has_one_experiment_with_a_parent_for_each_study(done):
    client = MlflowClient(f"sqlite:///{done[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("duel")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if run.data.tags["hpsearch.kind"] == "study"]
    (whole,) = [run for run in runs if run.data.tags["hpsearch.kind"] == "comparison"]
    assert {file.path for file in client.list_artifacts(whole.info.run_id)} == {"comparison.html", "comparison.json"}
    assert "cannot reach p < 0.05" in whole.data.tags["mlflow.note.content"]
    values = json.loads((done[0] / "hpsearch-runs" / "duel" / "comparison.json").read_text())
    for row in values["samplers"]:
        assert whole.data.metrics[f"final_val_loss.{row['sampler']}"] == pytest.approx(row["final"]["mean"])
        assert whole.data.metrics[f"mean_rank.{row['sampler']}"] == row["mean_rank"]
    assert sorted(run.info.run_name for run in parents) == STUDIES
    for parent in parents:
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(children) == 6


def test_the_same_command_again_trains_nothing_and_names_compare_what_is_there(done):
    folder, _ = done
    before = stored(folder)
    again = hpsearch(folder, *ASKED, "--json")
    assert again.returncode == 0, again.stderr
    assert stored(folder) == before
    by_name = hpsearch(folder, "compare", "duel", "--json")
    assert by_name.returncode == 0, by_name.stderr
    one, other = json.loads(again.stdout), json.loads(by_name.stdout)
    assert one["verdict"] == other["verdict"]
    two = hpsearch(folder, "compare", "duel-random-r1", "duel-tpe-r1")
    assert two.returncode == 0, two.stderr
    assert "1 repeat" in two.stdout


def test_an_interrupted_comparison_goes_on_and_is_what_the_uninterrupted_one_is(done, tmp_path):
    interrupted(tmp_path, "[8/24]", *ASKED, "--no-tracking")
    assert sum(len(study.records) for study in stored(tmp_path).values()) < 24
    rest = hpsearch(tmp_path, *ASKED, "--no-tracking")
    assert rest.returncode == 0, rest.stderr
    ours, theirs = stored(tmp_path), stored(done[0])
    for name in STUDIES:
        assert [(point(r), r.val_loss, r.status) for r in ours[name].records] == [
            (point(r), r.val_loss, r.status) for r in theirs[name].records
        ]


def test_another_objective_is_not_mixed_in_unless_one_says_so(done):
    folder, _ = done
    plain = ["run", *SMALL[:2], *SMALL[6:], "--no-tracking", "--workers", "1"]
    assert hpsearch(folder, *plain, "--sampler", "random", "--objective", "accuracy", "--name", "odd").returncode == 0
    assert hpsearch(folder, *plain, "--sampler", "tpe", "--name", "even").returncode == 0
    refused = hpsearch(folder, "compare", "odd", "even")
    assert refused.returncode == 2
    assert "objective" in refused.stderr
    anyway = hpsearch(folder, "compare", "odd", "even", "--anyway", "--json")
    assert anyway.returncode == 0, anyway.stderr
    found = json.loads(anyway.stdout)
    assert "no comparison of samplers alone: objective: accuracy -> val_loss" in " ".join(found["notes"])
    assert "no comparison of samplers alone" in (folder / "hpsearch-runs" / found["comparison"] / "comparison.html").read_text()


def test_a_budget_of_seconds_ends_studies(tmp_path):
    asked = [*ASKED[:3], "--seconds", "1", *SMALL[2:], "--workers", "1", "--name", "short", "--no-tracking", "--json"]
    result = hpsearch(tmp_path, *asked)
    assert result.returncode == 0, result.stderr
    for study in stored(tmp_path).values():
        spent = [r.seconds for r in study.records]
        assert sum(spent[:-1]) < 1 + max(spent), "no trial begins once the seconds are spent"
        assert sum(spent) >= 1


def test_the_commands_of_the_page_run_in_their_order(tmp_path):
    lines = [line.split(" #")[0].split() for line in "\n".join(blocks(ROOT / "docs" / "compare.md", "sh")).splitlines() if line]
    assert len(lines) >= 2
    for line in lines:
        assert line[0] == "hpsearch"
        more = [*SMALL[4:], "--no-tracking"] if "--samplers" in line else []
        result = hpsearch(tmp_path, *line[1:], *more)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
