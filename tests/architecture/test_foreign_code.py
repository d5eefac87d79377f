"""Nothing that a stranger wrote is run: no pickle of a storage or a file is loaded, no module of the working folder imported unasked."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from hpsearch.resources import PACKAGE
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
from hpsearch.types import Outcome, Status
from tests.service.serving import SHORT, Server
from tests.support.commands import HPSEARCH

SPACE = {"learning_rate": {"low": 1e-3, "high": 3e-2, "log": True}, "dropout": {"low": 0.0, "high": 0.4}, "epochs": 2}
SPACE |= {"batch_size": 16, "weight_decay": 0.01, "frozen_layers": 6}
MODULES = ("random", "torch", "numpy", "mlflow", "rich", "optuna", "tempfile", "struct", "logging", "hpsearch", "uvicorn", "click", "yaml")


class Canary:
    """Leaves a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_canary_sings_when_it_is_loaded(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "sang"))).close()
    assert (tmp_path / "sang").exists()


def train(searcher, count):
    """Ends that many trials with losses that depend on their parameters; what they were."""
    asked = []
    for _ in range(count):
        (trial,) = searcher.ask()
        searcher.tell(Outcome(trial.number, Status.COMPLETE, val_loss=trial.params["dropout"], epoch=1))
        asked.append(trial.params)
    return asked


def test_pickles_among_the_attributes_of_trials_are_not_loaded_and_the_optimizer_is_rebuilt(url, tmp_path):
    spec = parse_spec({"name": "s", "sampler": "cmaes", "pruner": "none", "trials": 40, "space": SPACE})
    whole = OptunaSearcher(spec, open_storage(f"sqlite:///{tmp_path}/whole.db", create=True))
    expected = train(whole, 30)
    whole.close()
    first = OptunaSearcher(spec, open_storage(url, create=True))
    begun = train(first, 20)
    first.close()
    storage = open_storage(url)
    hexed = pickle.dumps(Canary(tmp_path / "sang")).hex()
    for trial in storage.get_all_trials(storage.get_study_id_from_name("s")):
        assert not [key for key in trial.system_attrs if "optimizer" in key], "none is stored"
    with storage.engine.begin() as db:  # of trials that have ended, as only a stranger can write them
        rows = [row[0] for row in db.exec_driver_sql("SELECT trial_id FROM trials").all()]
        for number in rows:
            for prefix in ("cma", "sepcma", "cmawm"):
                values = f"({number}, '{prefix}:optimizer:0', '{json.dumps(hexed)}')"
                db.exec_driver_sql(f"INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES {values}")
    storage.engine.dispose()
    again = OptunaSearcher(spec, open_storage(url))
    assert begun + train(again, 10) == expected
    again.close()
    assert not (tmp_path / "sang").exists()


def test_an_index_of_the_cache_that_holds_objects_is_no_index(tmp_path):
    from hpsearch.finetune.data import from_index

    np.savez(tmp_path / "index.npz", images=np.array([Canary(tmp_path / "sang")], dtype=object))
    with pytest.raises(Exception, match=r"allow_pickle|not a file|is not"):
        from_index(tmp_path / "index.npz")
    assert not (tmp_path / "sang").exists()


def calls_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_loads_a_pickle(path):
    tree = ast.parse(path.read_text())
    for name, words in calls_of(tree):
        assert not re.fullmatch(r"(c?pickle|dill|cloudpickle|joblib|marshal|shelve)\.(loads?|Unpickler|open)", name), name
        assert not name.endswith(("read_pickle", "jit.load", "hub.load")), name
        if name == "torch.load":
            assert words.get("weights_only") == "True"
        if name.endswith("np.load"):
            assert words.get("allow_pickle", "False") == "False"


def canaries(folder, *names):
    """Modules that leave a file when they are imported, called like those that every process needs."""
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'sang')!r}, 'a').write({name!r} + ' ')\nraise ImportError('not yours')\n")


@pytest.mark.process
@pytest.mark.parametrize("words", [("run", "--trials", "1", "--workers", "1", "--set", "space.epochs=1"), ("list",), ("sync",)])
def test_modules_of_the_working_folder_are_not_imported(tmp_path, words):
    """From a cold start, since the import path of a new interpreter is what is tried."""
    canaries(tmp_path, *MODULES)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run([HPSEARCH, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert not (tmp_path / "sang").exists(), (tmp_path / "sang").read_text()
    if words[0] == "run":
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "mlflow.db").exists()


@pytest.mark.process
def test_nor_are_they_by_a_study_of_the_service(tmp_path):
    canaries(tmp_path, *MODULES)
    server = Server(tmp_path, cold=True)
    try:
        server.submit("s", {**SHORT, "trials": 1})
        server.until("s", "done", "failed")
        assert server.ask("GET", "/api/studies/s/report")[0] == 200
    finally:
        server.end_all()
    assert not (tmp_path / "sang").exists(), (tmp_path / "sang").read_text()


def test_the_working_folder_is_on_the_import_path_only_while_the_users_code_is_imported_or_called(tmp_path, monkeypatch):
    from hpsearch.finetune.functions import load_function

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code.py").write_text("import sys, own_helper\ndef make():\n    import own_late\n    return list(sys.path)\n")
    (tmp_path / "own_helper.py").touch()
    (tmp_path / "own_late.py").touch()
    before = list(sys.path)
    function = load_function("own_code:make", "the data")
    assert sys.path == before
    assert function()[0] == str(tmp_path)
    assert sys.path == before
    for name in ("own_code", "own_helper", "own_late"):
        del sys.modules[name]
