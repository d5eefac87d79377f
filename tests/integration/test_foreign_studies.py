"""A storage that other programs use, too: their studies are listed and shown as what they are, and what cannot be done is said."""

import json

import optuna
import pytest

from tests.service.serving import Server
from tests.support.commands import HPSEARCH, run_command, run_hpsearch

pytestmark = pytest.mark.process

EVIL = "../../evil/naïve name, =1+1"
NAMES = ["plain", "pareto", "empty multi", EVIL, "choices", "largest"]


def mixed(trial):
    trial.suggest_categorical("c", [None, True, 1.5, "a,b"])
    trial.set_user_attr("hpsearch", "mine")
    if trial.number == 3:
        raise optuna.TrialPruned
    return float("inf") if trial.number == 1 else 1.0


def number(trial):
    return trial.suggest_float("x", -1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    url = f"sqlite:///{folder}/hpsearch.db"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="plain", storage=url).optimize(number, n_trials=3)
    two = optuna.create_study(study_name="pareto", storage=url, directions=["minimize", "maximize"])
    two.optimize(lambda trial: (number(trial), number(trial)), n_trials=3)
    optuna.create_study(study_name="empty multi", storage=url, directions=["minimize", "minimize"])
    optuna.create_study(study_name=EVIL, storage=url).optimize(number, n_trials=1)
    optuna.create_study(study_name="choices", storage=url, direction="maximize").optimize(mixed, n_trials=5)
    optuna.create_study(study_name="largest", storage=url, direction="maximize").optimize(number, n_trials=5)
    return folder


def best_of(folder, name):
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/hpsearch.db")
    return study.best_trial.number, study.best_value


def test_all_are_listed_with_the_best_that_their_own_direction_says(folder):
    rows = {row["study"]: row for row in json.loads(run_hpsearch(folder, "list", "--json").stdout)}
    assert sorted(rows) == sorted(NAMES)
    for name in ("plain", "largest"):
        assert (rows[name]["best_trial"], rows[name]["best_score"]) == best_of(folder, name)
    assert rows["pareto"]["best_trial"] is None
    assert run_hpsearch(folder, "best", "largest").stdout.startswith(f"largest: trial {best_of(folder, 'largest')[0]}  value (maximized) ")


@pytest.mark.parametrize("name", NAMES)
def test_each_is_shown(folder, name):
    out = run_hpsearch(folder, "show", name).stdout
    assert "It was not made by hpsearch" in out
    json.loads(run_hpsearch(folder, "show", name, "--json").stdout)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [("best",), ("report",), ("export", "-o", "out"), ("test",), ("sync",), ("replay", "", "0")])
def test_what_cannot_be_done_is_said_in_a_sentence(folder, name, words):
    words = [words[0], name, *(word for word in words[1:] if word)]
    done = run_command([HPSEARCH, *words], cwd=folder)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.startswith("hpsearch: ")
    else:
        assert words[0] == "best"


def test_they_are_neither_continued_nor_compared(folder):
    assert (
        "was not made by hpsearch: choose another --name" in run_hpsearch(folder, "run", "--name", "plain", "--trials", "1", code=2).stderr
    )
    assert "was not made by hpsearch" in run_hpsearch(folder, "compare", "plain", "largest", code=2).stderr
    assert not [f for f in json.loads(run_hpsearch(folder, "doctor", "--json").stdout) if f["level"] == "problem"]


def test_the_service_shows_them_too(folder):
    server = Server(folder)
    try:
        status, listed = server.ask("GET", "/api/studies")
        assert status == 200
        assert {row["study"] for row in listed["studies"]} >= {"plain", "pareto", "largest"}
        for name in ("plain", "pareto", "choices", "largest"):
            study = server.study(name)
            assert server.ask("GET", f"/api/studies/{name}/trials")[0] == 200
            assert server.ask("GET", f"/studies/{name}")[0] == 200
            assert server.ask("GET", f"/studies/{name}/trials/0")[0] == 200
            assert server.ask("GET", f"/api/studies/{name}/report")[0] < 500
            if name == "largest":
                assert study["best"]["number"] == best_of(folder, name)[0]
        assert server.ask("GET", "/")[0] == 200
    finally:
        server.end_all()
