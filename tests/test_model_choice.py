"""The model as a searched hyperparameter: in the study file, through every sampler, and as a person does it, to the exported model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from PIL import Image

from hpsearch.errors import FixInput
from hpsearch.finetune import card, export, prepare
from hpsearch.finetune.family import Family
from hpsearch.finetune.predict import open_model, predict
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import SAMPLERS, load_spec, parse_spec
from hpsearch.types import Job, Outcome, Status, Trial, TrialRecord, say_nothing
from tests.kernels import PARAMS, loss_at
from tests.test_main_job import hpsearch

SMALL, OWN = "shufflenet_v2_x0_5", "tiny_models:tiny"
TINY = """import torch
def tiny(num_classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, num_classes)
    )
"""
STUDY = f"""
data: pictures
weights: none
preprocess: {{size: 32}}
precision: fp32
sampler: grid
workers: 1
pruner: none
space:
  model: [{SMALL}, "{OWN}"]
  learning_rate: {{low: 1e-3, high: 1e-1, log: true, default: 1e-2, grid: [1e-3, 1e-2]}}
  dropout: {{low: 0.0, high: 0.5, default: 0.1, grid: [0.0, 0.3], when: {{model: ["{OWN}"]}}}}
  frozen_layers: {{choices: [0, all], default: 0, grid: [0]}}
  epochs: 2
  batch_size: 16
  weight_decay: 0.01
"""


def write_pictures(folder, each=24):
    """Dark and light noise, so that a network can learn something in an instant."""
    rng = np.random.default_rng(0)
    for label, base in (("dark", 20), ("light", 130)):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(base, base + 100, (40, 40, 3), dtype=np.uint8)).save(folder / label / f"{i}.png")


# ---------------------------------------------------------------- in the study file


def refusal(values):
    with pytest.raises(FixInput) as caught:
        parse_spec(values)
    return str(caught.value)


def test_the_first_choice_is_the_default_recipes_model_unless_another_is_named():
    for values, expected in (
        ({"space": {"model": ["resnet18", "alexnet"]}}, "resnet18"),
        ({"space": {"model": {"choices": ["resnet18", "alexnet"], "default": "alexnet"}}}, "alexnet"),
        ({"model": "alexnet", "space": {"model": ["resnet18", "alexnet"]}}, "alexnet"),
    ):
        spec = parse_spec(values)
        assert spec.model == spec.models[0] == expected
        assert set(spec.models) == {"resnet18", "alexnet"}
        assert spec.resolved()["space"]["model"] == {"choices": ["resnet18", "alexnet"], "default": expected}
        again = parse_spec(spec.resolved())
        assert (again.resolved(), again.digest()) == (spec.resolved(), spec.digest())
        assert spec.resolved()["space"]["learning_rate"]["high"] == 3e-3  # ranges of the default model
        assert spec.study_name() == "digits-2-models-tpe"


@pytest.mark.parametrize("entry", ["resnet18", ["resnet18"], {"choices": ["resnet18"]}, {"value": "resnet18"}])
def test_one_choice_is_no_search(entry):
    assert parse_spec({"space": {"model": entry}}).resolved() == parse_spec({"model": "resnet18"}).resolved()


def test_models_may_be_named_on_the_command_line():
    spec = load_spec(None, ["space.learning_rate.high=0.01", "space.model=[resnet18, alexnet]", "space.model.default=alexnet"])
    assert spec.models == ("alexnet", "resnet18")
    assert spec.resolved()["space"]["learning_rate"]["low"] == 1e-5
    assert load_spec(None, ["space.model=[resnet18, alexnet]"], {"model": "alexnet"}).model == "alexnet"


def test_conditions_go_by_the_model():
    dropout = {"low": 0.0, "high": 0.5, "when": {"model": ["alexnet"]}}
    spec = parse_spec({"space": {"model": ["resnet18", "alexnet"], "dropout": dropout}})
    assert next(p for p in spec.parameters() if p.name == "dropout").when == (("model", ("alexnet",)),)
    always = parse_spec({"model": "alexnet", "space": {"dropout": dropout}})
    assert next(p for p in always.parameters() if p.name == "dropout").when == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "vgg11", "space": {"model": ["resnet18", "alexnet"]}}, "'vgg11' is not among space.model"),
        ({"model": "alexnet", "space": {"model": {"choices": ["resnet18", "alexnet"], "default": "resnet18"}}}, "remove one"),
        ({"recipe": {"model": "resnet18"}}, "write `model:` at the top of the study"),
        ({"weights": "IMAGENET1K_V1", "space": {"model": ["resnet18", "alexnet"]}}, "take DEFAULT or none, or one model"),
        ({"weights": "a.safetensors", "space": {"model": ["resnet18", "alexnet"]}}, "are of one model, and space.model has several"),
        ({"space": {"model": {"low": 0, "high": 1}}}, "give choices instead of low and high"),
        ({"space": {"model": [18, 34]}}, "must be the name of a model, such as resnet18, got 18"),
        ({"space": {"model": ["resnet18", "resnet18"]}}, "holds a value twice"),
        ({"space": {"model": []}}, "at least one value"),
        ({"space": {"model": {"choices": ["resnet18", "alexnet"], "default": "vgg11"}}}, "is not among the choices"),
        ({"space": {"model": {"choices": ["resnet18", "alexnet"], "when": {"optimizer": ["sgd"]}}}}, "space.model takes no `when`"),
        ({"space": {"model": ["resnet18", "alexnet"], "flip": {"value": 0.5, "when": {"model": ["vgg11"]}}}}, "never takes: ['vgg11']"),
        ({"model": "resnet18", "space": {"flip": {"value": 0.5, "when": {"model": ["vgg11"]}}}}, "only beside model vgg11"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(values, words):
    assert words in refusal(values)


def test_all_frozen_layers_are_those_of_the_deepest_model():
    spec = parse_spec({"space": {"model": ["resnet18", "alexnet"], "frozen_layers": [0, "all"]}}).bound(14)
    assert spec.resolved()["space"]["frozen_layers"]["choices"] == [0, 14]
    with pytest.raises(FixInput, match="up to 15, but the deepest of its models has 14 blocks"):
        parse_spec({"space": {"model": ["resnet18", "alexnet"], "frozen_layers": [0, 15]}}).bound(14)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_models_and_what_belongs_to_them(sampler, tmp_path):
    space = {
        "model": ["resnet18", "alexnet"],
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-4, "grid": 4},
        "dropout": {"low": 0.0, "high": 0.5, "grid": 2, "when": {"model": ["alexnet"]}},
        "epochs": 2,
        "batch_size": 8,
        "weight_decay": 0.01,
        "frozen_layers": 0,
    }
    spec = parse_spec({"name": "s", "sampler": sampler, "space": space, "trials": 12})
    searcher = OptunaSearcher(spec, open_storage(f"sqlite:///{tmp_path}/hpsearch.db", create=True))
    seen = []
    for _ in range(12):
        (trial,) = searcher.ask(1)
        assert ("dropout" in trial.params) == (trial.params["model"] == "alexnet")
        loss = loss_at({"dropout": 0.1, **trial.params}, 2)
        searcher.tell(Outcome(trial.number, Status.COMPLETE, loss, 2, 0.1, {"accuracy": 0.5}, trial.params))
        seen.append(trial.params["model"])
    assert seen[0] == "resnet18"
    assert set(seen) == {"resnet18", "alexnet"}
    assert not searcher.ask(1) or sampler != "grid"  # four points of one model, eight of the other
    searcher.close()


# ---------------------------------------------------------------- as a person does it


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which a grid over two models was run in two sessions; and what both printed."""
    folder = tmp_path_factory.mktemp("models")
    write_pictures(folder / "pictures")
    (folder / "tiny_models.py").write_text(TINY)
    (folder / "study.yaml").write_text(STUDY)
    results = [hpsearch(folder, "run", "study.yaml", "--trials", n) for n in ("2", "9")]
    for result in results:
        assert result.returncode == 0, result.stderr
    return folder, results


@pytest.mark.process
def test_a_grid_over_models_is_complete_after_a_resume(done):
    folder, (first, second) = done
    assert f"{SMALL} (343,842 parameters), {OWN} (122 parameters) on pictures: " in first.stdout
    assert f"{OWN}: weights: " in first.stdout
    assert "has tried every point of its grid: 6 trials (6 complete)" in second.stdout
    study = optuna.load_study(study_name="study-grid", storage=f"sqlite:///{folder}/hpsearch.db")
    points = {(t.params["model"], t.params["learning_rate"], t.params.get("dropout")) for t in study.trials}
    assert points == {(SMALL, rate, None) for rate in (1e-3, 1e-2)} | {(OWN, rate, drop) for rate in (1e-3, 1e-2) for drop in (0.0, 0.3)}
    shown = json.loads(hpsearch(folder, "show", "study-grid", "--json").stdout)
    assert {t["effective"]["model"] for t in shown["trials"]} == {SMALL, OWN}
    facts = shown["facts"]["models"]
    assert facts[OWN]["parameters"] == 122
    assert shown["facts"]["blocks"] == facts[SMALL]["blocks"] > facts[OWN]["blocks"]


def test_every_page_and_store_names_the_models(done):
    folder, _ = done
    page = (folder / "hpsearch-runs" / "study-grid" / "report.html").read_text()
    assert f"{SMALL}, {OWN}" in page
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("study-grid").experiment_id], "tags.`hpsearch.kind` = 'trial'")
    assert {run.data.params["model"] for run in runs} == {SMALL, OWN}


@pytest.mark.process
def test_the_best_is_exported_and_predicts(done, tmp_path):
    folder, _ = done
    best = json.loads(hpsearch(folder, "best", "study-grid", "--json").stdout)
    result = hpsearch(folder, "export", "study-grid", "-o", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model"] == best["params"]["model"]
    assert f"| `model` | {card.plain(config['model'])} |" in (tmp_path / "out" / "README.md").read_text()
    command = [sys.executable, str(tmp_path / "out" / "predict.py"), "pictures/light/0.png"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})
    assert said.returncode == 0, said.stderr
    assert "light" in said.stdout


@pytest.mark.process
def test_other_models_are_another_study(done):
    folder, _ = done
    other = hpsearch(
        folder, "run", "study.yaml", "--trials", "9", "--set", f"space.model=[{SMALL}, mnasnet0_5]", "--set", "space.dropout=0.1"
    )
    assert other.returncode != 0
    assert "model" in other.stderr
    assert "--name" in other.stderr


@pytest.mark.process
def test_a_misspelt_model_is_found_before_anything_is_made(tmp_path):
    write_pictures(tmp_path / "pictures", 2)
    result = hpsearch(tmp_path, "run", "--data", "pictures", "--set", "space.model=[resnet18, resnet19]")
    assert result.returncode != 0
    assert "unknown model 'resnet19': did you mean" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


# ---------------------------------------------------------------- a trial of each model, exported


def test_a_trial_of_each_model_is_exported_with_its_own_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setenv("HPSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tiny_models.py").write_text(TINY)
    write_pictures(tmp_path / "pictures")
    folder = tmp_path / "study"
    folder.mkdir()
    values = {
        "data": str(tmp_path / "pictures"),
        "weights": "none",
        "preprocess": {"size": 16},
        "space": {"model": ["glyphnet", OWN, SMALL]},
    }
    spec = parse_spec(values).resolved()
    prepared = prepare.prepare(spec | {"folder": str(folder)})
    found = {"indexes": prepared.indexes, "models": prepared.models, "data_digest": prepared.digest}
    family = Family(spec | found | {"folder": str(folder), "device": "cpu", "precision": "fp32"})
    facts = dict(family.facts().values)
    for number, model in enumerate(prepared.indexes):
        params = {**PARAMS, "epochs": 1, "batch_size": 16, "model": model}
        items = [item for step in family.session(Job(0, (Trial(number, params),))) for item in step]
        outcome = next(item for item in items if isinstance(item, Outcome))
        assert outcome.status is Status.COMPLETE, outcome.error
        record = TrialRecord(
            number=number,
            status=outcome.status,
            params=params,
            origin="sampled",
            attempt=1,
            val_loss=outcome.val_loss,
            best_epoch=1,
            seconds=1.0,
            started=None,
            ended=None,
            metrics=outcome.metrics,
            effective=outcome.effective,
            curve=(),
            checkpoint=outcome.checkpoint,
            error=None,
            per_class=outcome.per_class,
        )
        own = facts | facts["models"][model]
        winner = card.Winner("s", spec, own, record, None, {"COMPLETE": 3}, Path(str(outcome.checkpoint)), folder)
        for out in (tmp_path / f"out-{number}", tmp_path / f"again-{number}"):
            done = export.export(winner, out, False, True, say_nothing)
            assert done.recomputed == pytest.approx(outcome.val_loss, abs=card.FP32)
            Path(prepared.indexes[model]).unlink(missing_ok=True)  # prepared anew the second time
        config = json.loads((out / "config.json").read_text())
        assert (config["model"], config["preprocessing"]["channels"]) == (model, 1 if model == "glyphnet" else 3)
        (said,) = predict(open_model(out, "cpu", config["model"]), [tmp_path / "pictures" / "dark" / "0.png"], 2, say_nothing)
        assert {name for name, _ in said.top} == {"dark", "light"}
    sys.modules.pop("tiny_models", None)
