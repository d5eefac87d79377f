"""The source task is a function of its seed, and the shipped weights solve it."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hpsearch.finetune import glyphs
from hpsearch.finetune.models import ARCHITECTURES, glyphnet

WEIGHTS = ARCHITECTURES["glyphnet"].weights


def test_source_task_is_a_function_of_the_seed_and_covers_all_classes():
    images, labels = glyphs.source_task(3, 186)
    again, labels_again = glyphs.source_task(3, 186)
    assert images.shape == (186, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert torch.bincount(labels).tolist() == [3] * 62
    assert not torch.equal(images, glyphs.source_task(4, 186)[0])


def test_every_font_draws_62_different_characters():
    drawn = glyphs.templates()
    assert len(drawn) == len(glyphs.font_files()) > 10
    assert drawn.shape[1:] == (62, glyphs.CANVAS, glyphs.CANVAS)
    for name, font in zip(glyphs.font_files(), drawn, strict=True):
        assert (font.flatten(1).amax(1) > 0).all(), name
        assert len({shape.numpy().tobytes() for shape in font}) == 62, name


def test_images_have_the_look_of_the_target():
    images, _ = glyphs.source_task(3, 620)
    corners = images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]  # bilinear enlargement keeps the corner pixels
    levels = {round(i * 255 / 16) for i in range(17)}
    assert set(corners.unique().tolist()) <= levels


def test_normalisation_constants_are_those_of_the_source_pixels():
    mean, std = glyphs.pixel_statistics(glyphs.held_out()[0])
    arch = ARCHITECTURES["glyphnet"]
    assert (mean, std) == pytest.approx((arch.mean, arch.std), abs=0.015)


def test_shipped_weights_fit_and_solve_the_source_task():
    assert WEIGHTS.stat().st_size < 1_000_000
    model = glyphnet(62)
    state = load_file(WEIGHTS)
    model.load_state_dict(state, strict=True)
    assert {v.dtype for k, v in state.items() if not k.endswith("num_batches_tracked")} == {torch.float32}
    with safe_open(WEIGHTS, "pt") as file:
        facts = json.loads(file.metadata()["hpsearch"])
    assert facts["classes"] == glyphs.CLASSES
    reached = glyphs.accuracy(model, *glyphs.source_task(seed=987654321, n=1240))
    assert reached > 0.93  # measured 0.97
    assert reached == pytest.approx(facts["source_accuracy"], abs=0.03)


def test_pretraining_is_bit_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(glyphs, "held_out", lambda: glyphs.source_task(9, 62))
    threads = torch.get_num_threads()
    try:
        digests = [run(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1] != digests[2]


def run(output: Path, seed: int) -> str:
    args = ["-o", str(output), "--seed", str(seed), "--images", "256", "--epochs", "1"]
    glyphs.main(args)
    return hashlib.sha256(output.read_bytes()).hexdigest()
