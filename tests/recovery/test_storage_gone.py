"""A storage that is deleted, or restored from an older copy: results on the disk are taken over or refused, never trained over."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from tests.support.commands import run_hpsearch

pytestmark = pytest.mark.process

SMALL = ["--name", "s", "--workers", "1", "--sampler", "random", "--no-tracking"]
SMALL += ["--set", "space.epochs=2", "--set", "space.frozen_layers=6", "--set", "space.batch_size=64"]


def trials(folder, storage=None):
    return json.loads(run_hpsearch(folder, "show", "s", "--json", storage=storage).stdout)["trials"]


def results(folder):
    return {path.name: path.read_bytes() for path in (folder / "hpsearch-runs" / "s" / "results").iterdir()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a study of five trials, and a copy of its storage from when it had three."""
    folder = tmp_path_factory.mktemp("original")
    run_hpsearch(folder, "run", *SMALL, "--trials", 3)
    shutil.copy(folder / "hpsearch.db", folder / "older.db")
    run_hpsearch(folder, "run", *SMALL, "--trials", 5)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "here")


def delete_storage(folder):
    for path in folder.glob("hpsearch.db*"):
        path.unlink()


def test_the_same_command_takes_results_over_when_the_storage_is_gone(folder):
    before, files = trials(folder), results(folder)
    delete_storage(folder)
    done = run_hpsearch(folder, "run", *SMALL, "--trials", 6)
    assert "5 results in" in done.stdout
    assert "were not known to the storage, and are taken over" in done.stdout
    after = trials(folder)
    assert [(t["params"], t["val_loss"], t["status"]) for t in after[:5]] == [(t["params"], t["val_loss"], t["status"]) for t in before]
    assert len(after) == 6
    assert files.items() <= results(folder).items()


@pytest.mark.parametrize("change", [("--set", "seed=7"), ("--sampler", "tpe"), ("--set", "space.epochs=3")])
def test_results_of_another_study_of_that_name_are_refused_and_left_as_they_are(folder, change):
    delete_storage(folder)
    files = results(folder)
    done = run_hpsearch(folder, "run", *SMALL, "--trials", 2, *change, code=2)
    assert "holds 5 results of another study called 's', which the storage does not know" in done.stderr
    assert "choose another --name, or move" in done.stderr
    assert results(folder) == files
    run_hpsearch(folder, "rebuild")
    assert len(trials(folder)) == 5


def test_a_study_of_that_name_in_another_storage_is_refused(folder, tmp_path):
    """Under another uid: it would write its results over those that are there."""
    other = tmp_path / "other"
    other.mkdir()
    run_hpsearch(other, "run", *SMALL, "--trials", 1)
    files = results(folder)
    done = run_hpsearch(folder, "run", *SMALL, "--trials", 6, code=2, storage=f"sqlite:///{other}/hpsearch.db")
    assert "the storage has a study of this name with trials of its own" in done.stderr
    assert results(folder) == files


def test_a_storage_that_went_back_in_time_catches_up(folder):
    before, files = trials(folder), results(folder)
    delete_storage(folder)
    (folder / "older.db").rename(folder / "hpsearch.db")
    run_hpsearch(folder, "run", *SMALL, "--trials", 6)
    after = trials(folder)
    assert [(t["params"], t["val_loss"]) for t in after[:5]] == [(t["params"], t["val_loss"]) for t in before]
    assert files.items() <= results(folder).items()


def test_results_without_the_file_that_says_whose_they_are_are_refused(folder):
    delete_storage(folder)
    (folder / "hpsearch-runs" / "s" / "study.json").unlink()
    files = results(folder)
    assert "study.json" in run_hpsearch(folder, "run", *SMALL, "--trials", 6, code=2).stderr
    assert results(folder) == files


def test_confirmations_and_looks_at_the_test_images_come_back_with_an_older_storage(folder, tmp_path):
    proven = ["--trials", 5, "--confirm", "2x2"]
    run_hpsearch(folder, "run", *SMALL, *proven)
    late = json.loads(run_hpsearch(folder, "best", "s", "--json").stdout)
    delete_storage(folder)
    (folder / "older.db").rename(folder / "hpsearch.db")
    run_hpsearch(folder, "run", *SMALL, *proven)
    back = json.loads(run_hpsearch(folder, "best", "s", "--json").stdout)
    assert back["proof"]["test"] == late["proof"]["test"]
    with closing(sqlite3.connect(folder / "hpsearch.db")) as database:
        (looks,) = database.execute("SELECT value_json FROM study_user_attributes WHERE key = 'hpsearch.openings'").fetchone()
    assert len(json.loads(looks)) == 1


def test_a_postgresql_that_lost_the_study_takes_it_over(tmp_path, postgres):
    url = postgres.database()
    run_hpsearch(tmp_path, "run", *SMALL, "--trials", 2, storage=url)
    before, files = trials(tmp_path, url), results(tmp_path)
    run_hpsearch(tmp_path, "run", *SMALL, "--trials", 3, storage=postgres.database())
    assert files.items() <= results(tmp_path).items()
    run_hpsearch(tmp_path, "run", *SMALL, "--trials", 3, storage=url)
    assert [t["val_loss"] for t in trials(tmp_path, url)[:2]] == [t["val_loss"] for t in before]


def test_a_comparison_takes_its_studies_over(tmp_path):
    words = ["compare", "--name", "c", "--samplers", "random,tpe", "--trials", "2", "--repeats", "1", "--initial", "1", "--no-tracking"]
    words += [*SMALL[2:4], *SMALL[7:]]
    run_hpsearch(tmp_path, *words)
    files = {path: path.read_bytes() for path in (tmp_path / "hpsearch-runs").glob("*/results/*.json")}
    assert len(files) >= 2  # what one sampler has trained is not trained for the other
    delete_storage(tmp_path)
    run_hpsearch(tmp_path, *words)
    assert {path: path.read_bytes() for path in (tmp_path / "hpsearch-runs").glob("*/results/*.json")} == files
