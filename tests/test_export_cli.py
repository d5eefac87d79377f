"""From a study to a model, as a person does it: export, then predict with and without hpsearch; the logged score comes out again."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn import functional as F

from hpsearch.cli import main
from hpsearch.delivery import checkpoint, chosen
from hpsearch.errors import FixSetup, NotFound
from hpsearch.finetune import data as datasets
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.prepare import load_images
from hpsearch.places import Place
from hpsearch.types import StoredStudy, say_nothing
from tests.events import RECORDS
from tests.squares import SQUARES
from tests.support.commands import HPSEARCH
from tests.test_main_job import hpsearch

pytestmark = pytest.mark.process


ROOT = Path(__file__).parent.parent
FP32 = 1e-4  # of the loss [nats]: other batches, other order of sums
QUICK = ["--no-tracking", "--set", "precision=fp32", "--set", "space.epochs=2"]
# Loads DIR/predict.py where hpsearch cannot be imported; logits of the images named in a file, one batch at a time, into another.
ALONE = """
import importlib.util, json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hpsearch":
            raise ImportError("hpsearch is not here")
sys.meta_path.insert(0, Blocked())
folder, names, out = sys.argv[1:]
spec = importlib.util.spec_from_file_location("predict", f"{folder}/predict.py")
predict = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)
import pathlib, numpy, torch
torch.set_num_threads(1)
net, config = predict.load(pathlib.Path(folder))
images = torch.stack([predict.pixels(pathlib.Path(name), config) for name in json.load(open(names))])
scores = torch.cat([predict.logits(net, part, config) for part in images.split(50)])
numpy.savez(out, logits=scores.numpy(), probabilities=predict.probabilities(scores, config).numpy())
assert "hpsearch" not in sys.modules
"""


def alone(model, images, folder):
    """Logits and probabilities of image files by the exported script, in a process without hpsearch."""
    (folder / "names.json").write_text(json.dumps([str(image) for image in images]))
    command = [sys.executable, "-I", "-c", ALONE, str(model), str(folder / "names.json"), str(folder / "out.npz")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "out.npz")
    return torch.from_numpy(found["logits"]), torch.from_numpy(found["probabilities"])


def agrees(model, best, logits, probabilities, labels):
    """That these are the logged scores: the loss within FP32, the accuracy to the last image."""
    assert F.cross_entropy(logits.double(), labels).item() == pytest.approx(best["val_loss"], abs=FP32)
    assert (logits.argmax(1) == labels).double().mean().item() == pytest.approx(best["metrics"]["accuracy"], abs=1e-9)
    config = json.loads((model / "config.json").read_text())
    assert (config["trial"], config["scores"]["val_loss"]) == (best["number"], best["val_loss"])
    assert torch.equal(probabilities.argmax(1), logits.argmax(1))
    calibrated = F.nll_loss(probabilities.log(), labels).item()
    assert calibrated == pytest.approx(config["calibration"]["nll_after"], abs=FP32)
    assert config["temperature"] != 1


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder in which a small study of the embedded default has run, and its winner was exported to `model`; what that printed."""
    folder = tmp_path_factory.mktemp("digits")
    ran = hpsearch(folder, "run", "--trials", "4", *QUICK)
    assert ran.returncode == 0, ran.stderr
    result = hpsearch(folder, "export", "-o", "model")
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example folder, in which its study has run."""
    folder = tmp_path_factory.mktemp("example") / "digits"
    assert hpsearch(folder.parent, "example", folder.name).returncode == 0
    ran = hpsearch(folder, "run", "folder.yaml", "--trials", "2", *QUICK)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_exported_embedded_model_gives_the_logged_score_without_hpsearch(digits, tmp_path):
    folder, _ = digits
    spec = json.loads((folder / "hpsearch-runs" / "digits-tpe" / "spec.json").read_text())
    pre = json.loads((folder / "model" / "config.json").read_text())["preprocessing"]
    val = datasets.embedded(Preprocessing(pre["size"], pre["resize"], (0.0,), (1.0,)), spec["split"], spec["seed"]).val
    images = [tmp_path / f"{i}.png" for i in range(len(val))]
    for path, pixels in zip(images, val.pixels()[:, 0].numpy(), strict=True):
        Image.fromarray(pixels).save(path)
    best = json.loads(hpsearch(folder, "best", "--json").stdout)
    agrees(folder / "model", best, *alone(folder / "model", images, tmp_path), val.labels)


def test_the_exported_model_of_a_folder_gives_the_logged_score_without_hpsearch(example, tmp_path):
    result = hpsearch(example, "export", "folder-tpe", "-o", str(tmp_path / "model"))
    assert result.returncode == 0, result.stderr
    study = example / "hpsearch-runs" / "folder-tpe"
    spec = json.loads((study / "spec.json").read_text())
    pre = json.loads((tmp_path / "model" / "config.json").read_text())["preprocessing"]
    expects = Preprocessing(**{key: tuple(v) if isinstance(v, list) else v for key, v in pre.items() if key != "channels"})
    val = datasets.from_index(study / "split.npz").val
    loaded = load_images({**spec, "data": str(example / "images")}, expects, say_nothing)
    names = dict(zip(loaded.images.rows.tolist(), loaded.names, strict=True))
    images = [example / "images" / names[row] for row in val.rows.tolist()]
    assert len(images) == 401
    assert all(int(image.parent.name) == label for image, label in zip(images, val.labels.tolist(), strict=True))
    best = json.loads(hpsearch(example, "best", "folder-tpe", "--json").stdout)
    agrees(tmp_path / "model", best, *alone(tmp_path / "model", images, tmp_path), val.labels)


def test_export_says_what_it_did_in_80_columns(digits):
    folder, result = digits
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"digits-tpe, trial \d+: validation loss \d\.\d{4}, \d\.\d{4} with the exported files", lines[0])
    assert "temperature" in lines[1]
    assert lines[-1] == "Try:      hpsearch predict model IMAGE ..."
    assert all(len(line) <= 80 for line in lines), result.stdout
    assert result.stderr == ""
    again = hpsearch(folder, "export", "-o", "model", "--force", "--json")
    assert again.returncode == 0, again.stderr
    done = json.loads(again.stdout)
    assert done["calibration"]["temperature"] == json.loads((folder / "model" / "config.json").read_text())["temperature"]
    assert done["recomputed"] == pytest.approx(done["val_loss"], abs=FP32)


def test_a_cleared_cache_is_filled_again(example, tmp_path):
    environment = os.environ | {"HPSEARCH_CACHE": str(tmp_path / "cache")}
    shutil.copytree(example, tmp_path / "study")
    index = tmp_path / "study" / "hpsearch-runs" / "folder-tpe" / "split.npz"
    index.unlink()
    result = hpsearch(tmp_path / "study", "export", "folder-tpe", "-o", "model", env=environment)
    assert result.returncode == 0, result.stderr
    assert not index.exists()  # the study's own files are left as they are
    (tmp_path / "study" / "images" / "3" / "0003.png").unlink()
    changed = hpsearch(tmp_path / "study", "export", "folder-tpe", "-o", "other", env=environment)
    assert changed.returncode == 2
    assert "have changed since the study was run: bring it back, or export with --uncalibrated" in changed.stderr


def test_a_study_that_was_moved_is_exported_and_one_without_its_weights_says_where_they_were(digits, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(digits[0], moved)
    (weights,) = (moved / "hpsearch-runs" / "digits-tpe").glob("*.safetensors")
    assert hpsearch(moved, "export", "-o", "out").returncode == 0
    weights.unlink()
    gone = hpsearch(moved, "export", "-o", "more")  # though the original has them still
    assert gone.returncode == 1
    assert f"are not at {weights}: if the study was run on another machine, export there or bring the file here" in gone.stderr


def test_what_cannot_be_exported_says_what_to_do(digits, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(folder)
    trials = json.loads(hpsearch(folder, "show", "--json").stdout)["trials"]
    best = json.loads(hpsearch(folder, "best", "--json").stdout)["number"]
    loser = next(t["number"] for t in trials if t["status"] == "COMPLETE" and t["number"] != best)
    for arguments, code, message in (
        (["-o", "model"], 2, "model is not empty: name another folder, or replace the model in it with --force"),
        (["-o", "hpsearch-runs", "--force"], 2, "hpsearch-runs holds more than an exported model (digits-tpe)"),
        (["-o", "new", "--trial", str(loser)], 1, f"Leave out --trial to export trial {best}"),
        (["-o", "new", "--trial", "99"], 2, "has no trial 99: its trials are 0 to 3"),
        (["digitz-tpe", "-o", "new"], 2, "did you mean 'digits-tpe'?"),
        ([], 2, "Missing option '-o'"),
    ):
        result = CliRunner().invoke(main, ["export", *arguments])
        assert result.exit_code == code, result.output
        assert message in result.output
    assert not (folder / "new").exists()


def test_only_complete_trials_are_exported(tmp_path):
    complete, pruned, failed, best = RECORDS
    with pytest.raises(NotFound, match="no trial of 's' is complete yet: run it on"):
        chosen(StoredStudy("s", {}, {}, (pruned, failed)), None)
    study = StoredStudy("s", {}, {}, RECORDS)
    assert chosen(study, None) is best
    assert chosen(study, 0) is complete
    with pytest.raises(NotFound, match="trial 1 of 's' is pruned, and only complete trials keep their weights"):
        chosen(study, 1)
    with pytest.raises(FixSetup, match="trial 3 of 's' kept no weights"):
        checkpoint(Place(tmp_path, "", None), study, best)


def test_predict_tells_each_image_and_fails_only_when_none_can_be_read(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = digits[0] / "model"
    pixels, labels = datasets.digits(40)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(pixels[i, 0].numpy()).save(tmp_path / "photos" / ("more" if i % 2 else ".") / f"{i}.png")
    (tmp_path / "photos" / "a-name-that-is-rather-long-for-a-column-of-a-table-on-a-terminal.jpg").write_bytes(b"no image")
    environment = os.environ | {"COLUMNS": "80"}
    result = hpsearch(tmp_path, "predict", str(model), "photos", "gone.png", env=environment)
    assert result.returncode == 0
    assert "2 of 8 images could not be read" in result.stderr
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines), result.stdout
    assert sum(bool(re.match(r"photos/(more/)?\d\.png +\d+\.\d % \d ", line)) for line in lines) == 6
    assert any(re.match(r"gone.png +cannot be read: not found", line) for line in lines)
    told = json.loads(hpsearch(tmp_path, "predict", str(model), "photos", "--json", "--top", "10").stdout)
    (unread,) = [t for t in told if "error" in t]
    read = [t for t in told if "top" in t]
    assert (unread["error"], len(read)) == ("not an image", 6)
    assert all(sum(entry["probability"] for entry in t["top"]) == pytest.approx(1) for t in read)
    right = sum(t["top"][0]["class"] == str(labels[int(Path(t["image"]).stem)]) for t in read)
    assert right >= 3
    none = hpsearch(tmp_path, "predict", str(model), "gone.png")
    assert none.returncode == 1
    assert "1 of 1 images could not be read" in none.stderr
    for arguments, message in (
        ([str(tmp_path), "photos"], "holds no exported model"),
        ([str(model), "photos", "--top", "0"], "--top is a number of classes from 1"),
    ):
        bad = CliRunner().invoke(main, ["predict", *arguments])
        assert bad.exit_code == 2
        assert message in bad.output


def test_a_model_of_ones_own_needs_its_module_and_nothing_else(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net(num_classes):\n"
        "    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)\n"
        "    return nn.Sequential(*layers)\n\n" + SQUARES
    )
    own = ["--data", "mine:squares", "--model", "mine:net", "--name", "own", "--set", "preprocess.size=16", "--set", "space.batch_size=8"]
    assert hpsearch(tmp_path, "run", "--trials", "1", *own, *QUICK).returncode == 0
    done = hpsearch(tmp_path, "export", "own", "-o", "model")
    assert done.returncode == 0, done.stderr
    Image.new("RGB", (20, 20), (240, 240, 240)).save(tmp_path / "light.png")
    refused = hpsearch(tmp_path, "predict", "model", "light.png")
    assert refused.returncode == 2
    assert "allow it by --code mine:net" in refused.stderr
    (told,) = json.loads(hpsearch(tmp_path, "predict", "model", "light.png", "--json", "--code", "mine:net").stdout)
    assert {entry["class"] for entry in told["top"]} == {"dark", "light"}
    script = [sys.executable, "model/predict.py", "light.png"]
    without = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode != 0
    assert "No module named 'mine'" in without.stderr
    assert "have `mine` beside `predict.py`" in (tmp_path / "model" / "README.md").read_text()
    shutil.copy(tmp_path / "mine.py", tmp_path / "model")
    beside = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert beside.returncode == 0, beside.stderr
    shares = dict(re.findall(r"([\d.]+) %  (\w+)", beside.stdout))
    assert float(next(iter(shares))) == pytest.approx(100 * told["top"][0]["probability"], abs=0.01)


def test_the_commands_of_the_page_run_in_their_order(example, tmp_path):
    shutil.copytree(example, tmp_path / "work")
    block = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)[1]
    environment = os.environ | {"PATH": f"{Path(HPSEARCH).parent}:{os.environ['PATH']}"}
    for line in block.splitlines():
        done = subprocess.run(shlex.split(line, comments=True), cwd=tmp_path / "work", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert re.search(r"\d+\.\d\d %  3", done.stdout)
