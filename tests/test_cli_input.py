"""Bad input: a clear error, its exit code, and nothing left behind."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing

import pytest
from click.testing import CliRunner

from hpsearch.cli import main
from hpsearch.search.records import open_study
from hpsearch.search.store import open_storage, storage_url
from hpsearch.spec import parse_spec
from tests.support.commands import HPSEARCH, run_command

pytestmark = pytest.mark.process


def hpsearch(*arguments):
    """Exit code and everything printed, in a real process."""
    done = run_command([HPSEARCH, *arguments], env=dict(os.environ))
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    return tmp_path


def left(working_folder):
    return sorted(path.name for path in working_folder.iterdir())


NAME = "cannot be used: take 1 to 64 of a-z 0-9 . _ -"
BAD_ARGUMENTS = [
    (["run", "--sampler", "tpee"], "unknown sampler 'tpee': did you mean 'tpe'?"),
    (["run", "--sampler", "baies"], "did you mean 'bayes'?"),
    (["run", "--pruner", "medain"], "unknown pruner 'medain': did you mean 'median'?"),
    (["run", "--trials", "0"], "trials: input should be greater than or equal to 1"),
    (["run", "--trials", "-5"], "trials: input should be greater than or equal to 1"),
    (["run", "--trials", "many"], "'many' is not a valid integer"),
    (["run", "--n-trials", "0"], "trials: input should be greater than or equal to 1"),
    (["run", "--timeout", "0"], "timeout: input should be greater than 0"),
    (["run", "--timeout", "nan"], "timeout: "),
    (["run", "--seed", "-1"], "seed: input should be greater than or equal to 0"),
    (["run", "--workers", "0"], "workers must be 'auto' or 1 to 1024, got 0"),
    (["run", "--workers", "two"], "workers: input should be 'auto'"),
    (["run", "--workers", "²"], "workers: "),
    (["run", "--workers", "9" * 5000], "workers: "),
    (["run", "--workers", "1000"], "use --workers "),
    (["run", "--name", "My Study"], NAME),
    (["run", "--name", "../up"], NAME),
    (["run", "--name", ""], NAME),
    (["run", "--set", "space.dropout"], "--set takes KEY=VALUE such as space.dropout=0.1"),
    (["run", "--set", "smapler=tpe"], "unknown key 'smapler': did you mean 'sampler'?"),
    (["run", "--set", "space.droput=0.1"], "unknown hyperparameter 'space.droput': did you mean 'dropout'?"),
    (["run", "--set", "space.dropout.hgih=1"], "unknown key 'space.dropout.hgih': did you mean 'high'?"),
    (["run", "--set", "space.dropout={low: 0.5, high: 0.1}"], "low 0.5 is greater than high 0.1; swap them"),
    (
        ["run", "--set", "space.weight_decay={low: 0, high: 1, log: true}"],
        "a log scale needs low > 0, got 0.0; raise low or set log: false",
    ),
    (["run", "--sampler", "grid", "--set", "space.dropout={low: 0, high: 0.5}"], "needs points for 'dropout': add `grid: [...]`"),
    (["run", "--set", "trials=!!python/name:os.system x"], "python/name:os.system' is not allowed; use plain values"),
    (["run", "--set", "trials=yes"], "trials: must be a number, got true"),
    (["run", "nothing.yaml"], "no study file 'nothing.yaml'; `hpsearch run` without a file runs the embedded default"),
    (["run", "digitz"], "no study file 'digitz'"),
    (["run", "."], "is a folder, not a study file"),
    (["run", "--storage", ":memory:"], "in memory would be lost at the end; name a file"),
    (["run", "--storage", "sqlite://"], "in memory would be lost at the end; name a file"),
    (["run", "--storage", "://"], "--storage is not a storage URL; use a file name"),
    (["list", "--storage", "postgresql://u:secret@h:port/d"], "--storage is not a storage URL"),
    (["run", "--tracking-uri", "ftp://x"], "use sqlite:///mlflow.db or http://host:port"),
    (["run", "--smapler", "tpe"], "Did you mean '--sampler'?"),
    (["rnu"], "no command 'rnu': did you mean 'run'?"),
    (["ui"], "there is no MLflow store"),
    (["report", "-o", "."], "is a directory"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[" ".join(a)[:50] for a, _ in BAD_ARGUMENTS])
def test_a_bad_argument_ends_with_2_and_its_remedy_and_creates_nothing(working_folder, arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output
    assert left(working_folder) == []


BAD_FILES = {
    "unknown key": ("smapler: tpe", "unknown key 'smapler': did you mean 'sampler'?"),
    "unknown sampler": ("sampler: tppe", "did you mean 'tpe'?"),
    "unknown pruner": ("pruner: {name: medain}", "did you mean 'median'?"),
    "pruner off": ("pruner: no", "must be the name of a pruner, got False; known: none, median"),
    "low above high": ("space: {dropout: {low: 0.5, high: 0.1}}", "swap them"),
    "log of zero": ("space: {weight_decay: {low: 0, high: 1, log: true}}", "a log scale needs low > 0"),
    "grid without points": ("sampler: grid\nspace: {dropout: {low: 0, high: 0.5}}", "add `grid: [...]` or `grid: 5` to space.dropout"),
    "0 trials": ("trials: 0", "trials: input should be greater than or equal to 1"),
    "not YAML": ("a: [1", "my.yaml is not YAML: line 1"),
    "a list": ("[a, b]", "must hold keys such as `sampler: tpe`, not a list"),
    "a python tag": ("a: !!python/object/apply:os.system [touch hacked]", "use plain values"),
    "a duplicate key": ("trials: 1\ntrials: 2", "the key 'trials' stands twice"),
    "an alias": ("name: &a x\ndata: *a", "aliases (*name) are not supported"),
    "a tab": ("space:\n\tdropout: 1", "line 2, column 1"),
    "several things": ("smapler: tpe\ntrials: 0", "did you mean 'sampler'?\n  trials"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_study_file_ends_with_2_and_its_remedy_and_creates_nothing(working_folder, content, message):
    (working_folder / "my.yaml").write_text(content)
    result = CliRunner().invoke(main, ["run", "my.yaml"])
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert isinstance(result.exception, SystemExit)
    assert sorted(message.split("\n")[0] in line for line in result.output.splitlines())[-1]
    assert message in result.output or "\n" in message
    assert "my.yaml" in result.output
    assert left(working_folder) == ["my.yaml"]


@pytest.mark.parametrize("command", ["list", "show", "best", "report"])
def test_looking_before_any_run_says_so_and_creates_nothing(working_folder, command):
    result = CliRunner().invoke(main, [command])
    assert result.exit_code == 1
    assert "there is no storage" in result.output
    assert "run a study first, or name another with --storage" in result.output
    assert left(working_folder) == []


# ---------------------------------------------------------------- what shows only once things are opened


def test_one_file_for_optuna_and_mlflow_is_refused(working_folder):
    code, text = hpsearch("run", "--storage", "a.db", "--tracking-uri", "sqlite:///a.db")
    assert (code, "refuse to share one" in text, "Traceback" in text) == (1, True, False)
    assert left(working_folder) == []


def mlflows(folder):
    with closing(sqlite3.connect(folder / "s.db")) as db:
        db.executescript("CREATE TABLE experiments (id INTEGER); CREATE TABLE runs (id INTEGER)")


def below_a_file(folder):
    (folder / "file").touch()


@pytest.mark.parametrize(
    ("prepare", "storage", "message"),
    [
        (mlflows, "s.db", "is MLflow's file"),
        (below_a_file, "file/s.db", "cannot be written"),
    ],
    ids=["MLflow's", "unwritable"],  # the other ways are in tests/search/test_store.py
)
def test_an_unusable_storage_ends_with_1_and_its_remedy_and_creates_nothing(working_folder, prepare, storage, message):
    prepare(working_folder)
    before = left(working_folder)
    code, text = hpsearch("run", "--storage", storage)
    assert (code, "Traceback" in text, "secret" in text) == (1, False, False)
    assert message in text
    assert left(working_folder) == before


def test_an_unwritable_working_folder_ends_with_1(working_folder):
    (working_folder / "hpsearch-runs").write_text("in the way")
    code, text = hpsearch("run")
    assert (code, "Traceback" in text) == (1, False)
    assert "cannot be written" in text
    assert "run hpsearch where you may write" in text
    assert left(working_folder) == ["hpsearch-runs"]


def test_an_unknown_model_ends_with_2_and_the_nearest_name(working_folder):
    code, text = hpsearch("run", "--no-tracking", "--workers", "1", "--model", "glyfnet")
    assert (code, "Traceback" in text) == (2, False)
    assert "unknown model 'glyfnet': did you mean 'glyphnet'?" in text


def open_as_a_session_does(folder, values):
    """What a session does before its first trial."""
    storage = open_storage(storage_url(None, folder), create=True)
    open_study(storage, parse_spec(values))
    storage.engine.dispose()


def test_the_same_name_with_another_space_ends_with_2_and_says_what_differs(working_folder):
    open_as_a_session_does(working_folder, {"name": "mine", "space": {"dropout": {"low": 0, "high": 0.5}}})
    with closing(sqlite3.connect(working_folder / "hpsearch.db")) as db:
        db.execute("INSERT INTO trials (study_id, number, state) VALUES (1, 0, 'FAIL')")
        db.commit()
        before = list(db.iterdump())
    code, text = hpsearch("run", "--name", "mine", "--no-tracking", "--set", "space.dropout=0.2")
    assert (code, "Traceback" in text) == (2, False)
    assert "the study 'mine' exists and differs in what makes its trials comparable" in text
    assert "space.dropout.high: 0.5 -> None" in text
    assert "choose another --name" in text
    with closing(sqlite3.connect(working_folder / "hpsearch.db")) as db:
        assert list(db.iterdump()) == before


def test_a_study_without_trials_does_not_keep_its_name_from_a_corrected_command(working_folder):
    open_as_a_session_does(working_folder, {"model": "glyfnet"})  # what `run --model glyfnet` leaves behind
    open_as_a_session_does(working_folder, {"model": "glyphnet"})
