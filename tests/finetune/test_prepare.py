"""From files to a prepared study: what the workers get, what is refused, and that nothing is done twice."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpsearch.errors import FixInput
from hpsearch.finetune import data as datasets
from hpsearch.finetune import prepare as room
from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.finetune.prepare import prepare
from hpsearch.spec import parse_spec
from hpsearch.types import Job, Status, Trial
from tests.finetune.photographs import recompressed, tiles
from tests.kernels import PARAMS


@pytest.fixture
def photos(tmp_path):
    """Two classes of 30 photographs each: tiles of a temple and of a flower."""
    for number, tile in enumerate(tiles()[:35]):
        save(tile, tmp_path / "photos" / "temple" / f"{number}.png")
    for number, tile in enumerate(tiles()[-35:]):
        save(tile, tmp_path / "photos" / "flower" / f"{number}.jpg")
    return tmp_path / "photos"


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def config(photos, model=None, **values):
    spec = parse_spec({"data": str(photos), "model": "glyphnet", "preprocess": {"size": 16, "resize": 16}, **values})
    return spec.resolved() | {"model": model, "folder": str(photos.parent)}


def kinds(prepared):
    return {finding.kind: finding for finding in prepared.report.findings}


def test_a_folder_is_divided_and_the_workers_find_the_same_images(photos):
    prepared = prepare(config(photos, "glyphnet", split={"val": 0.2, "test": 0.2}))
    assert prepared.blocks == 6
    assert "65 of 65 tensors" in prepared.weights
    assert prepared.report.counts == {"train": (21, 21), "val": (7, 7), "test": (7, 7)}
    found = datasets.from_index(Path(prepared.index))
    assert found.classes == ("flower", "temple")
    assert found.digest == prepared.digest
    assert found.train.pixels().shape == (42, 1, 16, 16)
    again = prepare(config(photos, "glyphnet", split={"val": 0.2, "test": 0.2}))
    assert again == prepared
    other = prepare(config(photos, "glyphnet", split={"val": 0.2, "test": 0.2}, seed=1))
    assert other.digest != prepared.digest


def test_checking_the_same_data_again_looks_at_nothing(photos, monkeypatch):
    first = prepare(config(photos, "glyphnet"))
    for name in ("look", "find_copies", "doubts"):
        monkeypatch.setattr(room, name, lambda *_: pytest.fail("looked again"))
    assert prepare(config(photos, "glyphnet")) == first


def test_relabelling_is_noticed_without_decoding_again(photos, monkeypatch):
    first = prepare(config(photos))
    (photos / "other").mkdir()
    for number in range(12):
        shutil.move(photos / "temple" / f"{number}.png", photos / "other")
    second = prepare(config(photos))
    assert second.digest != first.digest
    assert second.report.classes == ("flower", "other", "temple")


def test_the_same_data_is_divided_alike_whatever_the_cache_holds(photos, monkeypatch):
    """A label corrected by moving a file: with pixels decoded before, in another order, and with an empty cache."""
    prepare(config(photos))
    shutil.move(photos / "temple" / "3.png", photos / "flower" / "3.png")
    warm = prepare(config(photos))
    pixels = datasets.from_index(Path(warm.index)).val.pixels()
    monkeypatch.setenv("HPSEARCH_CACHE", str(photos.parent / "empty"))
    cold = prepare(config(photos))
    assert cold.digest == warm.digest
    assert torch.equal(datasets.from_index(Path(cold.index)).val.pixels(), pixels)


def test_what_is_wrong_with_new_files_is_told_although_the_images_were_looked_at_before(photos):
    before = prepare(config(photos, "glyphnet")).report
    (photos / "empty").mkdir()
    (photos / "temple" / "zero.jpg").write_bytes(b"")
    (photos / "temple" / "notes.txt").write_text("mine")
    after = prepare(config(photos, "glyphnet")).report
    new = {f.kind for f in after.findings} - {f.kind for f in before.findings}
    assert new == {"unreadable", "ignored", "empty-class"}
    assert after.left_out == 1


def test_one_bad_file_never_ends_a_study_and_many_do(photos):
    (photos / "temple" / "zero.jpg").write_bytes(b"")
    prepared = prepare(config(photos))
    assert prepared.report.left_out == 1
    assert kinds(prepared)["unreadable"].examples[0].names == ("temple/zero.jpg",)
    assert not prepared.report.refused
    for number in range(9):
        (photos / "flower" / f"text{number}.png").write_text("no image")
    assert [f.kind for f in prepare(config(photos)).report.refused] == ["unreadable"]
    assert not prepare(config(photos, bad_files=0.2)).report.refused


def test_only_bad_files_are_refused_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_text("no image")
    with pytest.raises(FixInput, match=r"none of the 2 images .* can be used: a/x.jpg: "):
        prepare(config(tmp_path))


def test_classes_too_small_to_divide_are_an_error_that_names_them(photos):
    for number in range(33):
        (photos / "temple" / f"{number}.png").unlink()
    prepared = prepare(config(photos))
    (error,) = prepared.report.refused
    assert "class temple has 2 images: too few" in error.text
    assert prepared.index == ""


def test_copies_stay_together_and_leaks_that_the_data_brings_are_named(photos):
    for number in range(20):
        save(tiles()[number], photos / "temple" / f"copy{number}.png")
        Image.fromarray(recompressed(tiles()[-1 - number], 60)).save(photos / "flower" / f"again{number}.png")
    prepared = prepare(config(photos))
    assert kinds(prepared)["exact-copies-within"].count == 20
    assert kinds(prepared)["near-copies-within"].count >= 10
    assert not {"exact-copies-across", "near-copies-across"} & set(kinds(prepared))
    train, val = photos.parent / "split" / "train", photos.parent / "split" / "val"
    shutil.copytree(photos, train)
    for name in ("temple/0.png", "flower/3.jpg"):
        (val / name).parent.mkdir(parents=True)
        shutil.copy(photos / name, val / name)
    leaked = kinds(prepare(config(photos.parent / "split")))
    assert leaked["exact-copies-across"].count >= 2
    assert leaked["exact-copies-across"].level == "warning"


def test_wrong_labels_among_the_digits_are_found_in_the_frozen_features(tmp_path):
    images, labels = datasets.digits(16)
    rng = np.random.default_rng(0)
    wrong = set(rng.choice(600, 15, replace=False).tolist())
    for i in range(600):
        label = (labels[i] + 5) % 10 if i in wrong else labels[i]
        save(images[i, 0].numpy(), tmp_path / "d" / str(label) / f"{i}.png")
    prepared = prepare(config(tmp_path / "d", "glyphnet"))
    finding = kinds(prepared)["labels"]
    assert 10 <= finding.count <= 20
    named = {int(example.names[0].split("/")[1].split(".")[0]) for example in finding.examples}
    assert len(named & wrong) >= 0.8 * len(named)
    assert all(example.thumbnails[0].startswith("data:image/png;base64,") for example in finding.examples)
    assert "pretrained" in kinds(prepare(config(tmp_path / "d", "glyphnet", weights="none")))["labels"].text
    assert "--model" in kinds(prepare(config(tmp_path / "d")))["labels"].text


def test_labels_are_looked_at_for_a_bounded_time_and_the_part_is_said(photos, monkeypatch):
    monkeypatch.setattr(room, "LABEL_SECONDS", 0.0)
    monkeypatch.setattr(room, "FEATURE_BATCH", 25)
    report = prepare(config(photos, "glyphnet")).report
    assert report.facts["labels_checked"] == 25


def test_an_objective_that_the_classes_do_not_allow_is_refused(photos):
    (error,) = prepare(config(photos, objective="top5")).report.refused
    assert "top5 says nothing with 2 classes" in error.text


def test_a_trial_trains_the_same_from_the_file_as_from_memory(photos, tmp_path):
    """Slow twin: the images mapped from the cache, and the same images held in memory."""
    cfg = config(photos, "glyphnet")
    prepared = prepare(cfg)
    kernel = FineTuneKernel(cfg | {"index": prepared.index, "folder": "", "device": "cpu", "threads": 1})
    curve = [item for step in kernel.session(Job(0, (Trial(0, PARAMS),))) for item in step]
    assert curve[-1].status is Status.COMPLETE
    twin = FineTuneKernel(cfg | {"index": prepared.index, "folder": "", "device": "cpu", "threads": 1})
    resident = twin.resident()
    for name, split in resident.features.splits.items():
        resident.features.splits[name] = replace(split, images=split.pixels().clone(), rows=torch.arange(len(split)))
    memory = [item for step in twin.session(Job(0, (Trial(0, PARAMS),))) for item in step]
    assert [p.val_loss for p in curve[:-1]] == [p.val_loss for p in memory[:-1]]


def test_the_embedded_digits_are_checked_too():
    prepared = prepare(parse_spec({}).resolved())
    assert prepared.report.counts["train"] == (5,) * 10
    assert prepared.index == ""
    assert not prepared.report.refused
    for values in ({}, {"model": "shufflenet_v2_x0_5", "weights": "none", "preprocess": {"size": 32}}):
        cfg = parse_spec(values).resolved()
        assert prepare(cfg).digest == FineTuneKernel(cfg | {"device": "cpu"}).facts().values["data_digest"]
