"""An exported folder: the architecture by itself, the same pixels, the same numbers, whole or not at all."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, picture
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune import architectures, card, export, models, predict, standalone, zoo
from hpsearch.finetune.images import INTERPOLATION, ORIENTATION, Preprocessing, Unusable, decode
from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.spec import parse_spec
from hpsearch.types import Forgetting, Job, Judged, Outcome, Status, Trial, TrialRecord, say_nothing
from tests.kernels import PARAMS

# One of each kind: heads of every shape, dropouts before them, constructors that want the size, names that torchvision rewrites.
NAMES = """
alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v3_small regnet_y_400mf
resnet18 shufflenet_v2_x0_5 squeezenet1_0 swin_v2_t vgg11 vit_b_16
""".split()  # noqa: SIM905


def config_of(model, classes, pre):
    """The part of config.json that `network` needs."""
    head, dropout = export.layers(model, classes, pre)
    arguments = json.loads(json.dumps(architectures.arguments(model, classes, pre.size)))
    about = {"model": model, "arguments": arguments, "head": head, "dropout": dropout, "classes": [str(i) for i in range(classes)]}
    return about | {"preprocessing": {**vars(pre), "channels": pre.channels}, "temperature": 1.0}


def script_of(model):
    """The names that the exported script defines."""
    code = export.script(model)
    assert not [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("hpsearch")]
    space = {"__name__": "predict"}
    exec(compile(code, "predict.py", "exec"), space)
    return space


# ---------------------------------------------------------------- architectures


@pytest.mark.parametrize("model", NAMES)
def test_the_script_builds_what_was_trained(model):
    pre = models.preprocessing(model, "none")
    with zoo.Shapes():
        trained = models.known_model(model, zoo.known_net(model, 7, pre.size).to("meta"), 7).net
        alone = script_of(model)["network"](config_of(model, 7, pre))
    assert [(n, tuple(t.shape)) for n, t in alone.state_dict().items()] == [(n, tuple(t.shape)) for n, t in trained.state_dict().items()]
    assert [(n, type(m).__name__) for n, m in alone.named_modules()] == [(n, type(m).__name__) for n, m in trained.named_modules()]


@pytest.mark.parametrize(
    ("model", "size"), [("glyphnet", 16), ("squeezenet1_0", 64), ("vit_b_32", 32), ("googlenet", 64), ("mobilenet_v3_small", 32)]
)
def test_with_its_weights_it_gives_the_same_logits(model, size, tmp_path):
    built = models.build(model, 5, "none", 0, {"size": size})
    config = config_of(model, 5, built.preprocessing)
    save_file(built.initial, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = torch.randint(0, 256, (3, built.preprocessing.channels, size, size), dtype=torch.uint8)
    built.model.eval()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (built.preprocessing.mean, built.preprocessing.std))
    with torch.inference_mode():
        expected = built.model((images.float() / 255 - mean) / std)
    space = script_of(model)
    for names in (space, vars(standalone)):
        net, read = names["load"](tmp_path)
        assert torch.allclose(names["logits"](net, images, read), expected, rtol=1e-5, atol=1e-5)


def test_weights_of_another_model_are_refused(tmp_path):
    config = config_of("glyphnet", 5, zoo.GLYPHNET)
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = zoo.glyphnet(6).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"of another glyphnet; they differ in head.weight, head.bias"):
        standalone.load(tmp_path)
    save_file({name: t for name, t in state.items() if name != "head.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"differ in head.bias"):
        standalone.load(tmp_path)


def test_a_model_of_ones_own_is_imported_by_name_and_gets_its_head(tmp_path, monkeypatch):
    (tmp_path / "exported_nets.py").write_text(
        "from torch import nn\n\ndef small(num_classes, pretrained=True):\n    assert not pretrained\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4, 9))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = "exported_nets:small"
    built = models.build(model, 5, "none", 0, {"size": 16})
    config = config_of(model, 5, built.preprocessing)
    assert (config["head"], config["dropout"], config["arguments"]) == ("5", "4", {"num_classes": 5, "pretrained": False})
    for names in (script_of(model), vars(standalone)):
        net = names["network"](config)
        assert [(n, t.shape) for n, t in net.state_dict().items()] == [(n, t.shape) for n, t in built.initial.items()]
    sys.modules.pop("exported_nets")


def test_the_configuration_of_a_stranger_runs_nothing(tmp_path):
    made = tmp_path / "made"
    config = config_of("glyphnet", 5, zoo.GLYPHNET) | {"arguments": {"args": ["touch", str(made)]}, "head": "", "dropout": ""}
    for name in ("subprocess:call", "nosuchmodel", "os.path"):
        with pytest.raises(FixInput):
            architectures.network(config | {"model": name})
    assert not made.exists()


# ---------------------------------------------------------------- pixels


def rotated(kind, value):
    """A file whose EXIF says how it is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return encoded(picture(1), kind, exif=exif)


def palette(transparent):
    image = Image.fromarray(picture(2)).convert("P", palette=Image.Palette.ADAPTIVE)
    return encoded(image, "PNG", **({"transparency": 3} if transparent else {}))


FILES = {
    "rgb.png": encoded(picture(0), "PNG"),
    "small.png": encoded(picture(0, 7, 5), "PNG"),
    "panorama.png": encoded(picture(0, 900, 8), "PNG"),
    "tall.jpg": encoded(picture(0, 31, 700), "JPEG"),
    "large.jpg": encoded(picture(3, 1500, 1100), "JPEG", quality=90),
    "gray.png": encoded(picture(0, channels=0), "PNG"),
    "gray.jpg": encoded(picture(0, channels=0), "JPEG"),
    "rgba.png": encoded(picture(4, channels=4), "PNG"),
    "la.png": encoded(Image.fromarray(picture(4, channels=4)).convert("LA"), "PNG"),
    "palette.png": palette(False),
    "palette-transparent.png": palette(True),
    "transparent-colour.png": encoded(picture(0), "PNG", transparency=(10, 20, 30)),
    "sixteen.png": encoded(Image.fromarray((picture(5, channels=0).astype(np.uint16) * 257 + 77).clip(0, 65535).astype(np.uint16)), "PNG"),
    "sixteen.tif": encoded(Image.fromarray(picture(5, channels=0).astype(np.uint16) * 200), "TIFF"),
    "bits.png": encoded(Image.fromarray(picture(6, channels=0)).convert("1"), "PNG"),
    "cmyk.jpg": encoded(Image.fromarray(picture(7)).convert("CMYK"), "JPEG"),
    "frames.gif": encoded(Image.fromarray(picture(8)), "GIF", save_all=True, append_images=[Image.fromarray(picture(9))]),
    "photo.webp": encoded(picture(10), "WEBP"),
    "plain.bmp": encoded(picture(11), "BMP"),
    "plain.ppm": encoded(picture(11), "PPM"),
    **{f"turned-{value}.jpg": rotated("JPEG", value) for value in range(1, 9)},
    "turned.tif": rotated("TIFF", 6),
    "turned.png": rotated("PNG", 5),
    "turned-nonsense.jpg": rotated("JPEG", 99),
}
PREPROCESSING = [
    Preprocessing(24, 32, (0.5,) * 3, (0.2,) * 3),
    Preprocessing(24, 24, (0.5,), (0.2,), "bicubic"),
    Preprocessing(33, 36, (0.5,) * 3, (0.2,) * 3, "nearest"),
]


@pytest.mark.parametrize("pre", PREPROCESSING, ids=lambda p: f"{p.channels}-{p.interpolation}")
@pytest.mark.parametrize("name", FILES)
def test_the_script_reads_an_image_as_training_did(name, pre, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    config = {"preprocessing": {**vars(pre), "channels": pre.channels}}
    expected = decode(FILES[name], pre).image
    assert np.array_equal(standalone.pixels(tmp_path / name, config).numpy(), expected)


def test_what_the_script_cannot_do_it_refuses(tmp_path):
    floats, lab, raw = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(picture(0, channels=0).astype(np.float32)).save(floats, "TIFF")
    Image.new("LAB", (8, 8)).save(lab, "TIFF")
    Image.fromarray(picture(0)).save(raw, "TIFF", tiffinfo={0xC612: b"\1\4\0\0"})
    numbers = encoded(Image.fromarray(np.full((5, 5), 70_000, dtype=np.int32)), "TIFF")
    contents = {
        "floats": floats.getvalue(),
        "lab": lab.getvalue(),
        "raw": raw.getvalue(),
        "numbers": numbers,
        "text": b"hello",
        "none": b"",
    }
    contents["half"] = FILES["large.jpg"][:2000]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((ValueError, OSError)):
            standalone.pixels(tmp_path / name, {"preprocessing": {**vars(PREPROCESSING[0]), "channels": 3}})


# ---------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study's folder and its one trial, trained on the embedded digits for two epochs in float32."""
    folder = tmp_path_factory.mktemp("study")
    spec = parse_spec({"name": "little", "objective": "accuracy"}).resolved()
    kernel = FineTuneKernel(spec | {"folder": str(folder), "threads": 1, "device": "cpu", "precision": "fp32"})
    facts = dict(kernel.facts().values) | {"precision": "fp32"}
    session = kernel.session(Job(0, (Trial(0, {**PARAMS, "epochs": 2, "learning_rate": 3e-3}),)))
    outcome = next(item for step in session for item in step if isinstance(item, Outcome))
    record = TrialRecord(
        number=0,
        status=Status.COMPLETE,
        params=PARAMS,
        origin="default",
        attempt=1,
        val_loss=outcome.val_loss,
        best_epoch=outcome.epoch,
        seconds=outcome.seconds,
        started=None,
        ended=None,
        metrics=outcome.metrics,
        effective=outcome.effective,
        curve=(),
        checkpoint=outcome.checkpoint,
        error=None,
        objective="accuracy",
        per_class=outcome.per_class,
    )
    return card.Winner("little", spec, facts, record, record, {"COMPLETE": 1}, Path(outcome.checkpoint), folder)


def exported(winner, out, force=False, with_data=True):
    return export.export(winner, out, force, with_data, say_nothing)


def test_the_folder_holds_the_checkpoint_and_the_temperature_and_gives_the_logged_loss(trained, tmp_path):
    done = exported(trained, tmp_path / "deep" / "out")
    out = Path(done.folder)
    assert {p.name for p in out.iterdir()} == set(export.FILES)
    assert list(out.parent.iterdir()) == [out]
    assert (out / "model.safetensors").read_bytes() == trained.checkpoint.read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert done.recomputed == pytest.approx(trained.record.val_loss, abs=card.FP32)
    assert config["temperature"] == done.calibration.temperature != 1
    assert done.calibration.nll_after < done.calibration.nll_before == done.recomputed
    assert config["scores"]["accuracy"] == trained.record.metrics["accuracy"]
    assert config["measured_on"] == {"split": "val", "images": 401, "precision": "fp32"}
    assert config["data_digest"] == trained.facts["data_digest"]


def test_the_card_says_what_was_measured_on_what(trained, tmp_path):
    done = exported(trained, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    record = trained.record
    assert f"| validation loss | {record.val_loss:.4f} nats |" in text
    assert "Measured on the 401 validation images." in text
    assert "chosen by accuracy on these same images" in text
    assert f"{done.calibration.temperature:.4g}" in text
    assert "the same 401 validation images that chose the weights" in text
    assert "| training | 50 |" in text
    assert "found by tpe with seed 0" in text
    shares = [values[3] for values in record.per_class.values()]
    assert f"| 3 | {shares[0]:.0f} | {100 * shares[1]:.1f} % | {100 * shares[2]:.1f} % | {100 * shares[3]:.1f} % |" in text
    assert str(Path.home()) not in text
    for heading in ("Use", "Scores", "Classes", "Calibration", "Data", "Recipe", "Search", "Limits"):
        assert f"\n## {heading}\n" in text


def judged(metrics, lost=None):
    """A model on 1,346 test images."""
    return Judged("trial-0000", 1346, 0.4321, metrics, {}, (), lost)


def test_the_card_says_nothing_of_a_test_that_was_not_made(trained):
    config = export.describe(trained, export.read_about(trained))
    for text in (card.scores(trained, config, None), card.limits(trained, config)):
        assert "opened" not in text
        assert "pretrained on, rendered" not in text
    assert "| validation loss |" in card.scores(trained, config, None)


def test_the_card_shows_the_test_beside_the_validation(trained):
    shares = {key: value for key, value in trained.record.metrics.items() if key != "learning_rate"} | {"accuracy": 0.875}
    winner = replace(trained, test=judged(shares), openings=1)
    config = export.describe(winner, export.read_about(winner))
    text = card.scores(winner, config, None)
    assert "|  | this model | default recipe (trial 0) | this model, test (opened once, 1,346 images) |" in text
    loss, accuracy = f"{winner.record.val_loss:.4f} nats", f"{100 * winner.record.metrics['accuracy']:.1f} %"
    assert f"| loss | {loss} | {loss} | 0.4321 nats |" in text
    assert f"| accuracy | {accuracy} | {accuracy} | 87.5 % |" in text
    low, high = card.wilson(0.875, 1346)
    assert (
        f"By the test images, which chose nothing, the accuracy of this model lies between {card.percent(low)} and {card.percent(high)}"
        in text
    )
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {5}
    assert "images like those it was tested on" in card.limits(winner, config)
    assert "opened" not in card.limits(winner, config)
    few = replace(winner, test=judged({"accuracy": 0.5}))
    assert "| F1, mean of classes |" in card.scores(few, config, None)
    assert re.search(r"\| F1, mean of classes \|.*\| – \|", card.scores(few, config, None))


def test_the_card_says_when_the_test_was_opened_again(trained):
    winner = replace(trained, test=judged({"accuracy": 0.9}), openings=3)
    config = export.describe(winner, export.read_about(winner))
    assert "this model, test (opened 3 times, 1,346 images)" in card.scores(winner, config, None)
    assert "which chose nothing" not in card.scores(winner, config, None)
    assert "- The test images were opened 3 times: " in card.limits(winner, config)


def test_the_card_says_what_was_forgotten(trained):
    lost = Forgetting("rendered characters", 3100, 0.9735, 0.3581, 0.9723, 0.8813)
    winner = replace(trained, test=judged({"accuracy": 0.9}, lost), openings=1)
    config = export.describe(winner, export.read_about(winner))
    text = card.limits(winner, config)
    assert "pretrained on, rendered characters, it solves 35.8 % with the head of that time, and did 97.4 % before fine-tuning" in text
    assert "; with a linear head fitted anew 88.1 %, before 97.2 % (3,100 images)." in text
    plainer = replace(winner, test=judged({"accuracy": 0.9}, replace(lost, refitted_before=None)))
    assert "97.4 % before fine-tuning (3,100 images)." in card.limits(plainer, config)


def test_names_of_classes_do_no_harm_to_the_card(trained):
    record = replace(trained.record, per_class={"images": [1.0], "precision": [1.0], "recall": [1.0], "f1": [1.0]})
    assert "| a \\| b \\*c\\* \\<script\\> |" in card.per_class(record, ["a | b *c* <script>"])


def test_without_its_data_it_is_exported_uncalibrated_on_request_only(trained, tmp_path):
    elsewhere = replace(trained, spec={**trained.spec, "data": "gone"}, folder=tmp_path / "nothing")
    state = load_file(trained.checkpoint)
    with safe_open(trained.checkpoint, "pt") as file:
        about = json.loads(file.metadata()["hpsearch"]) | {"data": "gone"}
    save_file(state, tmp_path / "moved.safetensors", {"hpsearch": json.dumps(about)})
    elsewhere = replace(elsewhere, checkpoint=tmp_path / "moved.safetensors")
    with pytest.raises(FixInput, match=r"validation images are needed .*'gone'.*--uncalibrated"):
        exported(elsewhere, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = exported(elsewhere, tmp_path / "out", with_data=False)
    assert (done.recomputed, done.calibration) == (None, None)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["temperature"] == 1
    assert "not tried on the validation images" in (tmp_path / "out" / "README.md").read_text()


def test_other_data_than_the_trial_s_is_refused(trained, tmp_path):
    state = load_file(trained.checkpoint)
    with safe_open(trained.checkpoint, "pt") as file:
        about = json.loads(file.metadata()["hpsearch"])
    about["split"]["val"] = 300
    save_file(state, tmp_path / "other.safetensors", {"hpsearch": json.dumps(about)})
    with pytest.raises(FixInput, match="splits of digits have changed"):
        exported(replace(trained, checkpoint=tmp_path / "other.safetensors"), tmp_path / "out")


def test_weights_that_did_not_earn_the_score_are_refused_and_nothing_is_left(trained, tmp_path):
    state = load_file(trained.checkpoint)
    with safe_open(trained.checkpoint, "pt") as file:
        metadata = file.metadata()
    state["head.bias"] += torch.linspace(0, 1, 10)
    save_file(state, tmp_path / "bent.safetensors", metadata)
    (tmp_path / "work").mkdir()
    with pytest.raises(FixSetup, match=r"validation loss of .* was logged \(fp32\)"):
        exported(replace(trained, checkpoint=tmp_path / "bent.safetensors"), tmp_path / "work" / "out")
    assert list((tmp_path / "work").iterdir()) == []
    other = replace(trained.record, val_loss=0.5)
    with pytest.raises(FixSetup, match=r"the study knows trial 0 with 0\.5"):
        exported(replace(trained, record=other), tmp_path / "work" / "out")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(FixSetup, match="no checkpoint of hpsearch"):
        exported(replace(trained, checkpoint=tmp_path / "text.safetensors"), tmp_path / "work" / "out")


def test_the_configuration_keeps_names_as_they_are_and_numbers_on_one_line(tmp_path):
    config = {"classes": ["[1,  2]", "a  {b}"], "mean": [0.5, 1e-7], "nothing": []}
    export.write_config(tmp_path, config)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text) == config
    assert '"mean": [0.5, 1e-07]' in text


def test_a_folder_in_use_is_left_alone(trained, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "file").write_text("x")
    with pytest.raises(FixInput, match="is a file"):
        exported(trained, tmp_path / "file")
    out.mkdir()
    exported(trained, out, with_data=False)  # an empty folder is as good as none
    with pytest.raises(FixInput, match="--force"):
        exported(trained, out)
    exported(trained, out, force=True)
    assert json.loads((out / "config.json").read_text())["temperature"] != 1
    (out / "mine.txt").write_text("keep")
    with pytest.raises(FixInput, match=r"more than an exported model \(mine.txt\)"):
        exported(trained, out, force=True)
    assert (out / "mine.txt").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"file", "out"}


# ---------------------------------------------------------------- predicting


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """An exported model, opened."""
    out = tmp_path_factory.mktemp("export") / "out"
    exported(trained, out)
    return predict.open_model(out, "cpu")


def test_predictions_come_in_order_whatever_the_batch(model, tmp_path, monkeypatch):
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encoded(picture(i), "PNG") if i != 3 else b"broken")
    whole = list(predict.predict(model, paths, 3, say_nothing))
    monkeypatch.setattr(predict, "PIXELS", 2 * model.pre.size**2)
    parts = list(predict.predict(model, paths, 3, say_nothing))
    assert [p.image for p in whole] == [p.image for p in parts] == list(map(str, paths))
    assert whole[3].error == parts[3].error == "not an image"
    for a, b in zip(whole, parts, strict=True):
        assert [name for name, _ in a.top] == [name for name, _ in b.top]
        assert [p for _, p in a.top] == pytest.approx([p for _, p in b.top], abs=1e-6)
    (everything,) = predict.predict(model, paths[:1], 99, say_nothing)
    assert sum(p for _, p in everything.top) == pytest.approx(1)
    assert len(everything.top) == 10


def test_the_script_gives_the_same_probabilities(model, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(FILES["rgba.png"])
    (prediction,) = predict.predict(model, [tmp_path / "a.png"], 5, say_nothing)
    script = script_of("glyphnet")
    image = script["pixels"](tmp_path / "a.png", model.config)
    shares = script["probabilities"](script["logits"](model.net, image[None], model.config), model.config)[0]
    assert [p for _, p in prediction.top] == pytest.approx(shares.sort(descending=True).values[:5].tolist())


def test_folders_are_their_images_and_an_empty_one_is_told(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/2.png", "a/1.jpg", "a/b/3.png", "a/notes.txt", "a/.hidden.png"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in predict.expand([tmp_path / "a", tmp_path / "x.png"])] == ["1.jpg", "2.png", "3.png", "x.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FixInput, match="holds no images"):
        predict.expand([tmp_path / "empty"])
    (tmp_path / "empty" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(FixInput, match=r"holds no images\. 1 file was left out \(1\.dcm\): DICOM cannot be read; convert to PNG$"):
        predict.expand([tmp_path / "empty"])


def test_a_folder_without_a_model_or_with_half_of_one_is_told(model, trained, tmp_path):
    with pytest.raises(FixInput, match="hpsearch export STUDY -o"):
        predict.open_model(tmp_path, "cpu")
    out = tmp_path / "out"
    exported(trained, out, with_data=False)
    with pytest.raises(FixSetup, match="device 'nonsense' cannot be used"):
        predict.open_model(out, "nonsense")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(FixInput, match="its format is 2"):
        predict.open_model(out, "cpu")
    (out / "config.json").write_text("{")
    with pytest.raises(FixInput, match="cannot be used"):
        predict.open_model(out, "cpu")
    (out / "config.json").write_text(json.dumps(config))
    (out / "model.safetensors").unlink()
    with pytest.raises(FixInput, match="cannot be used"):
        predict.open_model(out, "cpu")
    shutil.rmtree(out)


def test_interpolations_have_the_names_that_the_script_knows():
    assert {Image.Resampling[name.upper()] for name in INTERPOLATION} == set(INTERPOLATION.values())
    with pytest.raises(Unusable):
        decode(b"", PREPROCESSING[0])


@pytest.mark.process
def test_what_killed_exports_left_is_cleared_by_the_next_one_and_an_earlier_export_goes_back(trained, tmp_path):
    gone, mine = subprocess.Popen(["true"]), os.getpid()
    gone.wait()
    names = [f".out.{gone.pid}", f".out.{mine}", f".other.{gone.pid}", f".own.{gone.pid}.old", f".own.{gone.pid}"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    (tmp_path / f".own.{gone.pid}" / "mine.txt").write_text("no file of an export")
    exported(trained, tmp_path / "out")
    assert {path.name for path in tmp_path.glob(".*")} == {*names[2:]}  # a process writes one export at a time
    with pytest.raises(FixInput, match="is not empty"):
        exported(trained, tmp_path / "own")
    assert (tmp_path / "own" / "config.json").read_text() == f".own.{gone.pid}.old"
    assert (tmp_path / f".own.{gone.pid}" / "mine.txt").exists()
