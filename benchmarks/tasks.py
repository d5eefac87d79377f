"""What the arms are given: data, network and space of each form, trials drawn from the space, rendered glyphs as a folder of images."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpsearch.machine import usable_cores
from hpsearch.space import Space, default_params
from hpsearch.spec import parse_spec

PER_CLASS = {"train": 100, "val": 50, "test": 50}  # rendered images
SIZES = (64, 224)  # pixels, of the full form
CUDA_THREADS = 4


@dataclass(frozen=True)
class Setting:
    """One study that all arms work on; `index` as `prepare` left it, "" for the embedded digits."""

    name: str
    study: dict[str, Any]  # as in a study file
    blocks: int
    index: str = ""

    @cached_property
    def space(self) -> Space:
        """The space, with `all` frozen layers as their number."""
        return parse_spec(self.study).bound(self.blocks).parameters()

    def default(self) -> dict[str, Any]:
        """The default recipe."""
        return dict(default_params(self.space))

    def trials(self, cuts: list[int], per_cut: int) -> list[dict[str, Any]]:
        """`per_cut` trials for each number of frozen layers, in an order that mixes them."""
        rng = random.Random(20261125)
        listed = [draw(self.space, rng) | {"frozen_layers": k} for k in cuts for _ in range(per_cut)]
        rng.shuffle(listed)
        return listed

    def task(self, **more: Any) -> dict[str, Any]:
        """What an arm is told: a study, its data, and `more`."""
        usual = {"study": self.study, "index": self.index, "blocks": self.blocks, "trials": [], "seed": 0}
        return usual | {"threads": 1, "precision": "fp32", "loaders": 0} | more


def draw(space: Space, rng: random.Random) -> dict[str, Any]:
    """One point of a space, at random."""
    values: dict[str, Any] = {}
    for p in space:
        if p.choices:
            values[p.name] = rng.choice(p.choices)
        elif p.kind == "int":
            values[p.name] = rng.randint(int(p.low), int(p.high))
        else:
            values[p.name] = p.low * (p.high / p.low) ** rng.random() if p.log else rng.uniform(p.low, p.high)
    return values


def form_here() -> str:
    """The full form where there is a GPU."""
    import torch

    return "full" if torch.cuda.is_available() else "small"


def variants(arm: str, form: str) -> list[dict[str, Any]]:
    """The ways of which an arm by hand takes the fastest: threads, precision, workers of the DataLoader."""
    if form == "full":
        return [{"threads": CUDA_THREADS, "loaders": n} for n in (0, 4, 8)] if arm == "by_hand" else [tuned_on_gpu()]
    threads = sorted({1, 2, usable_cores()})
    return [{"threads": n, "precision": p} for n in threads for p in (("fp32",) if arm == "by_hand" else ("fp32", "bf16"))]


def tuned_on_gpu() -> dict[str, Any]:
    """The tuned arm's way on a GPU: issue 4 defines it as bf16."""
    return {"threads": CUDA_THREADS, "precision": "bf16"}


def concurrencies(form: str, precision: str) -> list[dict[str, Any]]:
    """What Ray Tune may do at once; `cpus` and `gpus` are of one trial."""
    cores = usable_cores()
    if form == "full":
        ways = [{"cpus": max(1, cores // n), "gpus": 1 / n, "threads": CUDA_THREADS} for n in (1, 2, 4)]
    else:
        ways = [{"cpus": n, "gpus": 0, "threads": n} for n in sorted({1, 2, cores})]
    return [way | {"precision": precision} for way in ways]


def settings(form: str, place: Path) -> list[Setting]:
    """The studies of a form; rendered images are written below `place`."""
    if form == "small":
        return [Setting("glyphnet, embedded digits at 16 px", {}, 6)]
    return [rendered(size, place / f"glyphs-{size}") for size in SIZES]


def rendered(size: int, folder: Path, model: str = "resnet18", blocks: int = 9, per_class: Mapping[str, int] = PER_CLASS) -> Setting:
    """A torchvision network, not pretrained, on ten rendered digits."""
    write_glyphs(folder, size, per_class)
    study = {
        "data": str(folder),
        "model": model,
        "weights": "none",
        "preprocess": {"size": size, "resize": size},
        "space": {
            "learning_rate": {"low": 1e-4, "high": 3e-3, "log": True, "default": 1e-3},
            "batch_size": {"choices": [16, 32, 64], "default": 32},
            "epochs": {"low": 2, "high": 4, "default": 3},
            "frozen_layers": {"low": 0, "high": blocks, "default": 0},
        },
    }
    return Setting(f"{model}, rendered digits at {size} px", study, blocks)


def write_glyphs(folder: Path, size: int, per_class: Mapping[str, int]) -> None:
    """train, val and test folders of ten rendered digits as gray PNG files."""
    import torch
    from PIL import Image

    from hpsearch.finetune import glyphs

    generator = torch.Generator().manual_seed(size)
    for split, each in per_class.items():
        labels = torch.arange(10 * each) % 10
        fonts = torch.randint(len(glyphs.templates()), labels.shape, generator=generator)
        for number, (label, image) in enumerate(zip(labels, glyphs.draw(glyphs.templates()[fonts, labels], generator, size), strict=True)):
            place = folder / split / str(label.item())
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{number:05d}.png", compress_level=1)
