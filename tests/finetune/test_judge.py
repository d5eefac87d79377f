"""Checkpoints judged: the kernel's own numbers again, scikit-learn's scores, the worst mistakes, and what was forgotten."""

import base64
import io
import json
import multiprocessing
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import make_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn import metrics as sk

from hpsearch.errors import FixInput, FixSetup
from hpsearch.executors import aside
from hpsearch.finetune import data as datasets
from hpsearch.finetune import glyphs, images, judge, models
from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.finetune.prepare import prepare
from hpsearch.finetune.pretrained import GLYPHNET_FILE
from hpsearch.finetune.state import read_about
from hpsearch.spec import parse_spec
from hpsearch.types import Job, Judged, Outcome, Setup, Trial, Verdict, say_nothing
from tests.kernels import PARAMS

EXAMPLE = GLYPHNET_FILE.with_name("shufflenet_v2_x0_5-glyphs.safetensors")


def configuration(folder, **values):
    """A kernel's: on the embedded digits unless values say otherwise."""
    precision = values.pop("precision", "fp32")
    spec = parse_spec({"name": "little", **values}).resolved()
    return spec | {"folder": str(folder), "threads": 1, "device": "cpu", "precision": precision, "index": ""}


def train(config, number=0, setup=None, **params):
    """The outcome of one trial."""
    kernel = FineTuneKernel(config)
    session = kernel.session(Job(0, (Trial(number, {**PARAMS, "epochs": 2, **params}, setup=setup),)))
    outcome = next(item for step in session for item in step if isinstance(item, Outcome))
    assert outcome.error is None
    return outcome


def judged(config, outcomes, split="val", source=False, **asked):
    """The verdict's judgements of trials; the source task, which takes seconds, on request."""
    checkpoints = [[f"trial-{o.trial}", o.checkpoint] for o in outcomes]
    with pytest.MonkeyPatch.context() as patch:
        if not source:
            patch.setattr(judge, "source_file", lambda about: None)
        verdict = judge.judge({**config, "checkpoints": checkpoints, "judge_split": split, **asked})
    assert verdict.split == split
    return verdict.judged


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A configuration, and two trials trained in it: the whole network, and its head alone."""
    config = configuration(tmp_path_factory.mktemp("digits"))
    tuned = train(config, 0, learning_rate=3e-3, epochs=6)
    return config, tuned, train(config, 1, frozen_layers=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration on 90 image files of three classes, and a trial."""
    root = tmp_path_factory.mktemp("folder")
    make_folder(root / "photos", {"a cat": 30, "dog": 30, "émeu": 30})
    values = {"data": str(root / "photos"), "model": "glyphnet", "preprocess": {"size": 16, "resize": 16}}
    config = configuration(root, **values, split={"val": 0.3, "test": 0.3})
    config["index"] = prepare(config).index
    return config, train(config)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("frozen", [0, 3, 6])
def test_the_validation_split_gives_the_logged_numbers_to_the_last_bit(precision, frozen, tmp_path):
    config = configuration(tmp_path, precision=precision)
    outcome = train(config, frozen_layers=frozen)
    (found,) = judged(config, [outcome])
    assert found.loss == outcome.val_loss
    assert found.metrics == {key: outcome.metrics[key] for key in found.metrics}
    assert set(found.metrics) == {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "top5"}
    assert found.per_class == outcome.per_class
    assert found.images == 401


def test_a_folder_gives_the_logged_numbers_too(folder):
    config, outcome = folder
    (found,) = judged(config, [outcome])
    assert (found.loss, found.per_class) == (outcome.val_loss, outcome.per_class)
    assert "top5" not in found.metrics


def test_the_test_split_as_a_plain_slow_computation_has_it(digits):
    """Slow twin: one image after the other through the network as its maker wrote it, scored by scikit-learn."""
    config, tuned, _ = digits
    (found,) = judged(config, [tuned], "test")
    net = models.glyphnet(10).eval()
    net.load_state_dict(load_file(tuned.checkpoint))
    part = datasets.embedded(models.preprocessing("glyphnet", "DEFAULT"), config["split"], config["seed"]).test
    with torch.inference_mode():
        logits = torch.cat([net((image[None].float() / 255 - 0.32) / 0.31) for image in part.pixels()]).double()
    labels, predicted, shares = part.labels.numpy(), logits.argmax(1).numpy(), logits.softmax(1).numpy()
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted, zero_division=0)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "top5": sk.top_k_accuracy_score(labels, shares, k=5),
    }
    assert found.metrics == pytest.approx(expected, abs=1e-9)
    assert found.loss == pytest.approx(sk.log_loss(labels, shares), abs=1e-6)
    assert np.array_equal(found.confusion, sk.confusion_matrix(labels, predicted))
    assert found.per_class["images"] == support.tolist()
    assert found.per_class["f1"] == pytest.approx(f1, abs=1e-4)
    assert found.images == sum(map(sum, found.confusion)) == len(part)


def test_networks_of_different_kinds_and_sizes_are_judged_together(digits, tmp_path):
    config, tuned, _ = digits
    other = configuration(tmp_path, model="shufflenet_v2_x0_5", weights=str(EXAMPLE), preprocess={"size": 32})
    outcome = train(other, 7, epochs=1)
    first, second = judged(config, [tuned, outcome], source=True)
    assert (first.loss, second.loss) == (tuned.val_loss, outcome.val_loss)
    assert (first.name, second.name) == ("trial-0", "trial-7")
    assert second.forgetting.before == pytest.approx(0.9374, abs=0.002)  # what its file says, in half precision
    assert second.forgetting.after < second.forgetting.before
    assert first.mistakes
    assert not second.mistakes


def test_each_model_has_an_index_of_its_own(folder, digits):
    config, outcome = folder
    found = judged(config | {"index": "", "indexes": {"glyphnet": config["index"]}}, [outcome])
    assert found == judged(config, [outcome])


@pytest.mark.parametrize("number", [0, 2])
def test_a_fold_is_judged_on_its_own_validation_images_and_on_everybody_s_test_images(digits, number, tmp_path):
    config, tuned, _ = digits
    outcome = train(configuration(tmp_path) | {"fold": (number, 3)}, -1, Setup(f"confirm-fold-{number}", 0, fold=number, folds=3))
    (found,) = judged(config, [outcome])
    assert found.loss == outcome.val_loss
    assert found.images == pytest.approx((401 + 50) / 3, abs=10)
    tested = judged(config, [tuned, outcome], "test")
    assert [sum(row) for row in tested[0].confusion] == [sum(row) for row in tested[1].confusion]


def test_a_batch_that_does_not_fit_is_halved(digits, monkeypatch):
    config, tuned, _ = digits
    real, seen = models.FineTuneModel.suffix, []

    def small(self, x, k):
        seen.append(len(x))
        if len(x) > 40:
            raise torch.OutOfMemoryError("no room")
        return real(self, x, k)

    monkeypatch.setattr(models.FineTuneModel, "suffix", small)
    (found,) = judged(config, [tuned])
    assert seen[:3] == [128, 64, 32]
    assert found.loss == pytest.approx(tuned.val_loss, abs=1e-6)


# ---------------------------------------------------------------- the value


@pytest.mark.process
def test_a_verdict_crosses_walls_without_torch(digits):
    config, tuned, frozen = digits
    said = []
    asked = {**config, "checkpoints": [["best", tuned.checkpoint], ["probe", frozen.checkpoint]], "judge_split": "test"}
    context = multiprocessing.get_context("forkserver")
    verdict = aside.call(context, "hpsearch.finetune.judge:judge", asked, lambda *told: said.append(told))
    assert verdict == judge.judge(asked, say_nothing)
    assert b"torch" not in pickle.dumps(verdict)
    assert [Judged.from_json(j) for j in json.loads(json.dumps(asdict(verdict)))["judged"]] == list(verdict.judged)
    assert said == [("Measuring best on the test images", 0, 2), ("Measuring probe on the test images", 1, 2)]
    assert isinstance(verdict, Verdict)


# ---------------------------------------------------------------- mistakes


def test_the_mistakes_are_the_worst_ones(digits):
    config, tuned, _ = digits
    (found,) = judged(config, [tuned], mistakes=5)
    (every,) = judged(config, [tuned], mistakes=10_000)
    wrong = sum(map(sum, found.confusion)) - sum(row[i] for i, row in enumerate(found.confusion))
    assert len(every.mistakes) == wrong > 5
    assert found.mistakes == every.mistakes[:5]
    built = models.build("glyphnet", 10, "none", 0)
    built.model.restore(load_file(tuned.checkpoint))
    pixels, labels = datasets.digits(16)
    confidences = []
    for example in every.mistakes:
        row = int(example.names[0].removeprefix("digits/"))
        with torch.inference_mode():
            shares = built.model.eval()((pixels[row : row + 1].float() / 255 - 0.32) / 0.31).double().softmax(1)[0]
        assert example.text == f"{labels[row]} taken for {shares.argmax()} ({100 * shares.max():.0f} %)"
        assert shares.argmax() != labels[row]
        assert example.thumbnails[0].startswith("data:image/png;base64,")
        confidences.append(shares.max().item())
    assert confidences == pytest.approx(sorted(confidences, reverse=True), abs=1e-6)


def test_mistakes_of_a_folder_have_the_names_of_their_files(folder):
    config, outcome = folder
    built = models.build("glyphnet", 3, "none", 0)
    built.model.restore(load_file(outcome.checkpoint))
    for split in ("val", "test"):
        (found,) = judged(config, [outcome], split)
        assert len(found.mistakes) >= 5
        for example in found.mistakes:
            image = images.decode((Path(config["data"]) / example.names[0]).read_bytes(), built.preprocessing).image
            with torch.inference_mode():
                shares = built.model.eval()((torch.from_numpy(image)[None].float() / 255 - 0.32) / 0.31).double().softmax(1)[0]
            told = f"{example.names[0].split('/')[0]} taken for {['a cat', 'dog', 'émeu'][shares.argmax()]} ({100 * shares.max():.0f} %)"
            assert example.text == told


def test_an_index_that_does_not_name_its_images_counts_them(folder, tmp_path):
    config, outcome = folder
    with np.load(config["index"]) as index:
        np.savez(tmp_path / "old.npz", **{key: index[key] for key in index if not key.endswith("_names")})
    (found,) = judged(config | {"index": str(tmp_path / "old.npz")}, [outcome], "test")
    assert all(example.names[0].startswith("test/") for example in found.mistakes)


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_judged_is_refused_with_what_to_do(digits, folder, tmp_path):
    config, tuned, _ = digits
    with pytest.raises(FixInput, match="no split 'train'"):
        judged(config, [tuned], "train")
    gone = replace(tuned, checkpoint=str(tmp_path / "gone.safetensors"))
    with pytest.raises(FixSetup, match=r"gone.safetensors is no checkpoint .* bring back the file"):
        judged(config, [gone])
    with pytest.raises(FixSetup, match="is no checkpoint of hpsearch"):
        judged(config, [replace(tuned, checkpoint=str(GLYPHNET_FILE))])
    about = read_about(Path(tuned.checkpoint))
    state = load_file(tuned.checkpoint)
    save_file(state, tmp_path / "other.safetensors", {"hpsearch": json.dumps(about | {"model": "resnet18"})})
    models_differ = replace(tuned, checkpoint=str(tmp_path / "other.safetensors"))
    with pytest.raises(FixSetup, match="does not fit resnet18"):
        judged(config, [models_differ])
    with pytest.raises(FixInput, match=r"not those that .* was trained with .*bring the data back"):
        judged(config | {"seed": 1}, [tuned])
    with pytest.raises(FixInput, match="not those that"):
        judged(folder[0], [tuned])
    (tmp_path / "cut.safetensors").write_bytes(Path(tuned.checkpoint).read_bytes()[:5000])
    with pytest.raises(FixSetup, match="is no checkpoint"):
        judged(config, [replace(tuned, checkpoint=str(tmp_path / "cut.safetensors"))])


def test_a_split_without_images_is_refused(tmp_path):
    make_folder(tmp_path / "photos", {"a": 12, "b": 12})
    config = configuration(tmp_path, data=str(tmp_path / "photos"), preprocess={"size": 16, "resize": 16}, split={"val": 0.3, "test": 0})
    config["index"] = prepare(config).index
    outcome = train(config)
    with pytest.raises(FixInput, match=r"no test images: set split\.test"):
        judged(config, [outcome], "test")
    assert judged(config, [outcome])[0].loss == outcome.val_loss


def test_a_cache_that_was_cleared_is_told(folder, tmp_path):
    config, outcome = folder
    copied = dict(np.load(config["index"])) | {"images": np.array(str(tmp_path / "images.u8"))}
    np.savez(tmp_path / "split.npz", **copied)
    with pytest.raises(FixInput, match="decoded images are gone"):
        judged(config | {"index": str(tmp_path / "split.npz")}, [outcome])
    shutil.copy(str(dict(np.load(config["index"]))["images"]), tmp_path / "images.u8")
    assert judged(config | {"index": str(tmp_path / "split.npz")}, [outcome])


# ---------------------------------------------------------------- forgetting


def test_a_frozen_network_forgets_nothing_and_a_tuned_one_much(digits):
    config, tuned, frozen = digits
    first, second = (found.forgetting for found in judged(config, [tuned, frozen], "test", source=True))
    assert second.drop == 0  # not nearly
    assert second.refitted_after == second.refitted_before
    assert first.before == second.before == pytest.approx(0.9735, abs=1e-3)  # as in the weights' file
    assert first.drop > 0.2  # measured 0.6
    assert 0.01 < first.refitted_before - first.refitted_after < first.drop  # measured 0.09: the features know more than the head
    assert first.images == 3100


def test_forgetting_as_a_plain_computation_has_it(digits):
    """Slow twin: the pretrained head under the fine-tuned body, BatchNorm statistics and all, on the held-out characters."""
    config, tuned, _ = digits
    source, ours = load_file(GLYPHNET_FILE), load_file(tuned.checkpoint)
    net = models.glyphnet(62)
    net.load_state_dict({name: source[name] if name.startswith("head.") else ours[name] for name in source})
    pixels, labels = glyphs.held_out()
    reached = glyphs.accuracy(net, glyphs.prepared(pixels, models.preprocessing("glyphnet", "DEFAULT")), labels)
    assert judged(config, [tuned], source=True)[0].forgetting.after == pytest.approx(reached, abs=1e-3)


def test_where_the_source_task_is_not_known_nothing_is_said_of_it(digits, tmp_path):
    config, tuned, _ = digits
    scratch = train(config | {"folder": str(tmp_path)}, -1, Setup("reference-scratch", 0, scratch=True))
    drawn = train(configuration(tmp_path, weights="none"))
    (found,) = judged(config, [scratch], source=True)
    assert found.forgetting is None
    (found,) = judged(config, [drawn], source=True)
    assert found.forgetting is None
    foreign = train(configuration(tmp_path, weights=str(tuned.checkpoint)), 3)
    (found,) = judged(config, [foreign], source=True)
    assert found.forgetting is None
    assert judge.source_file({"model": "resnet18", "weights": "DEFAULT"}) is None
    assert judge.source_file({"model": "resnet18", "weights": str(GLYPHNET_FILE)}) is None
    assert judge.source_file({"model": "glyphnet", "weights": "gone.safetensors"}) is None
    assert judge.source_file({"model": "glyphnet", "weights": "default"}) == GLYPHNET_FILE


def test_a_head_fitted_to_features_that_tell_everything_is_right():
    labels = torch.arange(400) % 4
    generator = torch.Generator().manual_seed(0)
    useful = torch.nn.functional.one_hot(labels).double() + 0.1 * torch.rand(400, 4, generator=generator, dtype=torch.float64)
    assert judge.share(judge.refitted(useful, labels), labels) == 1
    useless = torch.rand(400, 6, generator=generator, dtype=torch.float64)
    assert judge.share(judge.refitted(useless, labels), labels) == pytest.approx(0.25, abs=0.1)
    assert judge.share(judge.refitted(torch.zeros(400, 3, dtype=torch.float64), labels), labels) <= 0.5  # a dead layer is no error


def test_thumbnails_of_large_images_are_small():
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    part = datasets.Split(pixels, torch.tensor([0]), torch.tensor([0]))
    (example,) = judge.mistakes(torch.tensor([[0.0, 3.0]]), torch.tensor([0]), part, ["a", "b"], ["x.png"], 3)
    assert example.text == "a taken for b (95 %)"
    header, _, content = example.thumbnails[0].partition(",")
    assert header == "data:image/jpeg;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(content))).size) == 96
