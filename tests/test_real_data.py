"""The main job on a folder of images with a torchvision model, tried as a person does."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.finetune.photographs import tiles
from tests.squares import SQUARES
from tests.support.commands import HPSEARCH, Command
from tests.test_main_job import hpsearch

pytestmark = pytest.mark.process


QUICK = ["--set", "space.epochs=2", "--set", "space.frozen_layers={low: 15, high: all}"]
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The example folder, in which its study has run for four trials, and what was printed."""
    folder = tmp_path_factory.mktemp("example") / "digits here"
    written = hpsearch(folder.parent, "example", folder.name)
    assert written.returncode == 0, written.stderr
    assert "cd 'digits here'" in written.stdout
    result = hpsearch(folder, "run", "folder.yaml", "--trials", "4", "--objective", "balanced_accuracy", *QUICK)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_folder_of_images_is_searched_end_to_end(done):
    folder, result = done
    assert "Weights: 280 of 280 tensors from shufflenet_v2_x0_5-glyphs.safetensors, the head is new" in result.stdout
    assert "shufflenet_v2_x0_5 (352,042 parameters) on images: 50/401/1346 train/val/test images, cpu in " in result.stdout
    assert "Best: trial" in result.stdout
    study = optuna.load_study(study_name="folder-tpe", storage=f"sqlite:///{folder}/hpsearch.db")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.trials[0].distributions["frozen_layers"].high == 18  # all
    shown = json.loads(hpsearch(folder, "best", "folder-tpe", "--json").stdout)
    assert shown["score"] == shown["metrics"]["balanced_accuracy"] == study.best_value
    assert [len(column) for column in shown["per_class"].values()] == [10] * 4
    printed = hpsearch(folder, "best", "folder-tpe").stdout.splitlines()
    table = [line.split() for line in printed[printed.index(next(line for line in printed if line.startswith("class"))) + 1 :][:10]]
    assert {row[0] for row in table} == set("0123456789")
    assert [float(row[4]) for row in table] == sorted(float(row[4]) for row in table)  # recall
    assert all(len(line) <= 80 or str(folder) in line for line in printed)
    page = (folder / "hpsearch-runs" / "folder-tpe" / "report.html").read_text()
    assert "What the check found" in page
    assert "data:image/png;base64," in page
    assert "Best balanced accuracy" in page


def test_mlflow_has_the_objective_and_the_classes_of_each_trial(done):
    folder, _ = done
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("folder-tpe")
    runs = client.search_runs([experiment.experiment_id], "tags.`hpsearch.kind` = 'trial'")
    complete = [run for run in runs if run.info.status == "FINISHED"]
    assert {"best_balanced_accuracy", "best_top5", "images_per_second", "val_loss"} <= set(complete[0].data.metrics)
    assert "per_class.json" in [file.path for file in client.list_artifacts(complete[0].info.run_id)]
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`hpsearch.kind` = 'study'")
    assert parent.data.metrics["best_balanced_accuracy"] >= parent.data.metrics["default_balanced_accuracy"]
    assert "data-check.json" in [file.path for file in client.list_artifacts(parent.info.run_id)]


def test_the_same_command_goes_on_and_a_second_study_decodes_nothing(done):
    folder, _ = done
    more = hpsearch(folder, "run", "folder.yaml", "--trials", "5", "--objective", "balanced_accuracy", *QUICK)
    assert more.returncode == 0, more.stderr
    assert "[5/5]" in more.stdout
    other = hpsearch(folder, "run", "folder.yaml", "--sampler", "random", "--trials", "2", "--no-tracking", *QUICK)
    assert other.returncode == 0, other.stderr
    cached = json.loads(hpsearch(folder, "cache", "--json").stdout)
    assert [(e["data"], e["images"]) for e in cached["entries"]].count(("images", 1797)) == 1


def test_a_study_does_not_go_on_with_other_images(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    (folder / "images" / "0" / "0000.jpg").unlink()
    changed = hpsearch(folder, "run", "folder.yaml", "--trials", "9", "--objective", "balanced_accuracy", *QUICK)
    assert changed.returncode == 2
    assert "the images, labels or splits have changed since the study 'folder-tpe' began" in changed.stderr
    assert "choose another --name" in changed.stderr
    shutil.copy(done[0] / "images" / "0" / "0000.jpg", folder / "images" / "0")
    weights = folder / "shufflenet_v2_x0_5-glyphs.safetensors"
    save_file({name: t + 0.01 if t.is_floating_point() else t for name, t in load_file(weights).items()}, weights)
    other = hpsearch(folder, "run", "folder.yaml", "--trials", "9", "--objective", "balanced_accuracy", *QUICK)
    assert other.returncode == 2
    assert "the pretrained weights have changed since the study 'folder-tpe' began" in other.stderr
    named = hpsearch(folder, "run", "folder.yaml", "--trials", "1", "--name", "fresh", "--no-tracking", *QUICK)
    assert named.returncode == 0, named.stderr


@pytest.fixture
def photos(tmp_path):
    """Twelve photographs of each of two things, and a working folder around them."""
    for start, name in ((0, "temple"), (len(tiles()) - 12, "flower")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(tiles()[start + number]).save(tmp_path / "photos" / name / f"{number}.jpg", quality=95)
    return tmp_path


def test_checking_says_in_80_columns_what_is_wrong_and_exits_with_1_when_refused(photos):
    (photos / "photos" / "temple" / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    environment = os.environ | {"COLUMNS": "80"}
    first = hpsearch(photos, "check", "photos", "-o", "check.html", env=environment)
    assert first.returncode == 0, first.stderr
    assert "1 file (4.0 %) cannot be used and is left out" in first.stdout
    assert "temple/broken.jpg" in first.stdout
    assert all(len(line) <= 80 for line in first.stdout.splitlines()), first.stdout
    assert first.stdout.rstrip().splitlines()[-2] == "A study can be run on this data."
    assert "broken.jpg" in (photos / "check.html").read_text()
    refused = hpsearch(photos, "check", "photos", "--set", "bad_files=0.01", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["findings"][0]["level"] == "error"
    run = hpsearch(photos, "run", "--data", "photos", "--model", "glyphnet", "--set", "bad_files=0.01", "--no-tracking")
    assert run.returncode == 2
    assert "raise bad_files" in run.stderr
    assert "hpsearch check photos" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "photos"], "name a model for photos, such as --model resnet50"),
        (["--data", "fotos", "--model", "resnet18"], "fotos"),
        (["--data", "photos/temple", "--model", "resnet18"], "class"),
        (["--data", "photos", "--model", "resnet5"], "unknown model 'resnet5': did you mean 'resnet50'?"),
        (["--data", "photos", "--model", "resnet18", "--weights", "gone.pt"], "there is no weights file"),
        (["--data", "photos", "--model", "glyphnet", "--objective", "top5"], "top5 says nothing with 2 classes"),
        (["--data", "photos", "--model", "glyphnet", "--set", "space.frozen_layers=[0, 7]"], "goes up to 7, but glyphnet has 6 blocks"),
        (["--data", "photos", "--model", "glyphnet", "--set", "split.val=0.9"], "too few for"),
        (["--data", "nowhere:photos", "--model", "glyphnet"], "nowhere"),
        (["--model", "nets:missing"], "nets"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_trial_with_its_remedy(photos, arguments, message):
    (photos / "nets.py").write_text("x = 1\n")
    result = hpsearch(photos, "run", *arguments, "--no-tracking")
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "] trial" not in result.stdout


def test_own_data_and_own_model_are_taken_from_the_working_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n\n"
        "def odd(num_classes):\n"
        "    class Odd(nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, num_classes)\n"
        "        def forward(self, x):\n"
        "            if x.sum() > 1e9:  # cannot be traced\n"
        "                return self.head(self.body(x).mean((2, 3)))\n"
        "            return self.head(self.body(x).amax((2, 3)))\n"
        "    return Odd()\n\n" + SQUARES
    )
    quick = ["--trials", "2", "--set", "preprocess.size=16", "--set", "space.epochs=3", "--set", "space.batch_size=8"]
    result = hpsearch(tmp_path, "run", "--data", "mine:squares", "--model", "mine:net", *quick)
    assert result.returncode == 0, result.stderr
    assert "Study mine-squares-mine-net-tpe is complete: 2 trials" in result.stdout
    facts = json.loads(hpsearch(tmp_path, "show", "--json").stdout)["facts"]
    assert facts["classes"] == ["dark", "light"]
    assert facts["shares_frozen_features"] is True
    odd = hpsearch(tmp_path, "run", "--data", "mine:squares", "--model", "mine:odd", "--name", "odd", "--no-tracking", *quick)
    assert odd.returncode == 0, odd.stderr
    assert "Model: torch.fx cannot trace it" in odd.stdout
    blocks = hpsearch(tmp_path, "model", "mine:net")
    assert blocks.returncode == 0, blocks.stderr
    assert "mine:net: 2 blocks and a new head" in blocks.stdout


@pytest.mark.parametrize(
    ("arguments", "file"),
    [(["run", "flowers102-resnet50"], "datasets"), (["run", "--data", "photos", "--model", "resnet50"], "resnet50-11ad3fa6.pth")],
)
def test_without_a_network_the_error_names_the_file_and_how_to_bring_it(photos, arguments, file):
    environment = os.environ | NO_NETWORK | {"TORCH_HOME": str(photos / "torch"), "HPSEARCH_CACHE": str(photos / "cache")}
    result = hpsearch(photos, *arguments, "--no-tracking", env=environment)
    assert result.returncode == 1, result.stdout + result.stderr
    assert file in result.stderr
    assert "Traceback" not in result.stderr
    assert str(photos) in result.stderr


def test_a_check_without_its_weights_still_tells_what_it_found(photos):
    (photos / "photos" / "temple" / "broken.jpg").write_bytes(b"")
    environment = os.environ | NO_NETWORK | {"TORCH_HOME": str(photos / "torch")}
    result = hpsearch(photos, "check", "photos", "--model", "resnet50", env=environment)
    assert result.returncode == 0, result.stderr
    assert "temple/broken.jpg" in result.stdout
    assert "Labels were not checked: the pretrained weights of resnet50 are not" in " ".join(result.stdout.split())


def fake_weights(home, name, file):
    """What torchvision would have downloaded: drawn, not trained."""
    from torchvision.models import get_model

    path = home / "hub" / "checkpoints" / file
    path.parent.mkdir(parents=True)
    torch.save(get_model(name).state_dict(), path)


def test_the_readmes_command_for_photographs_trains_and_stops_neatly(photos):
    """With weights where torchvision keeps them, `run --data photos --model resnet50` reaches its first trial; Ctrl-C ends it."""
    fake_weights(photos / "torch", "resnet50", "resnet50-11ad3fa6.pth")
    environment = os.environ | NO_NETWORK | {"TORCH_HOME": str(photos / "torch")}
    command = [HPSEARCH, "run", "--data", "photos", "--model", "resnet50"]
    assert f"hpsearch {' '.join(command[1:])} " in (Path(__file__).parent.parent / "README.md").read_text()
    process = Command(command, cwd=photos, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("resnet50 ("):
                break
        assert "resnet50 (23,512,130 parameters) on photos: 16/4/4 train/val/test images" in seen[-1], seen
        assert any("Weights: 265 of 265 tensors" in line for line in seen), seen
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest


def test_ctrl_c_while_preparing_leaves_nothing_running(photos):
    (photos / "slow.py").write_text("import time\n\ndef data():\n    print('begun', flush=True)\n    time.sleep(600)\n")
    command = [HPSEARCH, "run", "--data", "slow:data", "--model", "glyphnet", "--no-tracking"]
    process = Command(command, cwd=photos, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if line.startswith("begun"):
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, rest
    assert "stopped while preparing the study" in rest
    give_up = time.monotonic() + 10
    while (left := processes_in(photos)) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not left


def test_a_decoder_that_crashes_ends_the_study_with_a_reason_not_the_terminal(photos):
    (photos / "crash.py").write_text("import os, signal\n\ndef data():\n    os.kill(os.getpid(), signal.SIGSEGV)\n")
    result = hpsearch(photos, "run", "--data", "crash:data", "--model", "glyphnet", "--no-tracking")
    assert result.returncode == 1
    assert "preparing the study ended with SIGSEGV: a damaged image may have crashed its decoder" in result.stderr


def processes_in(folder):
    """Processes that work in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if Path(os.readlink(link)) == folder:
                found.append(int(link.parent.name))
        except OSError:
            continue
    return found


def test_the_model_command_prints_blocks_and_names(tmp_path):
    rows = json.loads(hpsearch(tmp_path, "model", "resnet18", "--json").stdout)
    assert [row["name"] for row in rows][1:3] == ["layer1.0", "layer1.1"]
    assert len(rows) == 9
    assert rows[-1]["trainable"] == 5130  # a head for ten classes
    table = hpsearch(tmp_path, "model", "vit_b_16", env=os.environ | {"COLUMNS": "80"}).stdout
    assert "vit_b_16: 13 blocks and a new head" in table
    assert all(len(line) <= 80 for line in table.splitlines())
    names = hpsearch(tmp_path, "model").stdout.split()
    assert len(names) == 81
    assert "did you mean 'resnet18'" in hpsearch(tmp_path, "model", "resnet81").stderr


def test_the_cache_is_listed_and_emptied(photos):
    environment = os.environ | {"HPSEARCH_CACHE": str(photos / "cache")}
    assert hpsearch(photos, "check", "photos", env=environment).returncode == 0
    listed = hpsearch(photos, "cache", env=environment).stdout
    assert "24 images" in listed
    assert "photos" in listed
    assert "deleted" in hpsearch(photos, "cache", "--clear", env=environment).stdout
    assert json.loads(hpsearch(photos, "cache", "--json", env=environment).stdout) == {
        "folder": str(photos / "cache"),
        "bytes": 0,
        "entries": [],
    }
