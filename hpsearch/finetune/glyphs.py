"""The source task of the weights that ship with hpsearch (rendered letters and digits) and the script that pre-trains on it.

`python -m hpsearch.finetune.glyphs` renders 62 classes (0-9A-Za-z) with the fonts matplotlib ships, in the look of
`data.digits`, trains glyphnet and writes its weights. The shipped files were made with the defaults below, and with
`--model shufflenet_v2_x0_5 --epochs 8` for the example of a torchvision model on a folder of images.

Notation: N images, 62 classes in the order of CLASSES.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from hpsearch.finetune import models, zoo
from hpsearch.finetune.data import normalise
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.pretrained import GLYPHNET_FILE as WEIGHTS
from hpsearch.seeds import seed_for

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEED = 20261121
IMAGES = 18_600
EPOCHS = 5
BATCH = 128
LEARNING_RATE = 4e-3  # peak of the one-cycle schedule
CANVAS = 64  # pixels, side of a rendered template
CAPITAL = 44  # pixels, height of "H" on the canvas
CHUNK = 4096  # images rendered at once
EXAMPLE_SIZE = 32  # pixels, of the images that torchvision's models see in the example


def font_files() -> list[Path]:
    """matplotlib's TrueType fonts that hold all of CLASSES, sorted by file name."""
    return [f for f in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")) if holds_classes(f)]


def holds_classes(font: Path) -> bool:
    """Whether every character of CLASSES has its own shape; symbol fonts map letters to other shapes, so names decide."""
    face = FT2Font(str(font))
    glyphs = face.get_charmap()
    names = (*DIGIT_NAMES, *CLASSES[10:])
    return all(ord(c) in glyphs and face.get_glyph_name(glyphs[ord(c)]) == name for c, name in zip(CLASSES, names, strict=True))


def template(font: Path, character: str) -> np.ndarray:
    """One character centred on a (CANVAS, CANVAS) uint8 canvas, at the font's own proportions unless too large."""
    probe = ImageFont.truetype(str(font), CANVAS).getbbox("H")
    size = CANVAS * CAPITAL / (probe[3] - probe[1])
    for _ in range(2):
        face = ImageFont.truetype(str(font), size)
        left, top, right, bottom = face.getbbox(character)
        size *= min(1.0, (CANVAS - 6) / max(right - left, bottom - top))
    image = Image.new("L", (CANVAS, CANVAS))
    corner = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=face)
    return np.asarray(image)


@functools.cache
def templates() -> Tensor:
    """Every character in every font: (fonts, 62, CANVAS, CANVAS) uint8."""
    return torch.from_numpy(np.stack([[template(f, c) for c in CLASSES] for f in font_files()]))


def source_task(seed: int, n: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """`n` rendered characters: images (N, 1, size, size) uint8 and labels (N,) int64 in [0, 62), all classes in turn.

    A pure function of its arguments (and of matplotlib's fonts), so a held-out set is another seed.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(CLASSES)
    fonts = torch.randint(len(templates()), (n,), generator=generator)
    chunks = [draw(templates()[f, y], generator, size) for f, y in zip(torch.split(fonts, CHUNK), torch.split(labels, CHUNK), strict=True)]
    return torch.cat(chunks), labels


def held_out(n: int = 3100, size: int = 16) -> tuple[Tensor, Tensor]:
    """The fixed source set no training has seen; accuracy on it before and after fine-tuning measures forgetting."""
    return source_task(seed_for(0, 0, "glyphs held out"), n, size)


def draw(glyphs: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Templates (N, CANVAS, CANVAS) uint8 to images (N, 1, size, size) uint8: affine, stroke width, blur, 8x8, enlarged."""
    n = len(glyphs)
    pixels = glyphs[:, None].float() / 255
    grid = F.affine_grid(affine(n, generator), [n, 1, 32, 32], align_corners=False)
    ink = blur(F.grid_sample(pixels, grid, align_corners=False))

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator) * (high - low) + low

    # A threshold on the blurred edge moves it in or out: low values give a thick stroke.
    ink = ((ink - uniform(0.15, 0.45)) * 4 + 0.5).clamp(0, 1)
    ink = torch.lerp(ink, blur(ink), uniform(0, 1))
    # As the digits of data.digits: 4x4 cells of a 32x32 bitmap, 17 levels, then enlarged bilinearly.
    small = (F.avg_pool2d(ink, 4) * 16).round().clamp(0, 16)
    large = F.interpolate(small * (255 / 16), size=(size, size), mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)


def affine(n: int, generator: torch.Generator) -> Tensor:
    """Random maps (N, 2, 3) from output to template: rotation, slant, width, size and shift."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, slant = uniform(-15, 15) * (math.pi / 180), uniform(-0.35, 0.35)
    high = CAPITAL / CANVAS / uniform(0.85, 1.1)  # template units per output unit
    wide = high / uniform(0.75, 1.15)
    cos, sin = angle.cos(), angle.sin()
    rows = [wide * cos, wide * (slant * cos - sin), uniform(-0.08, 0.08), high * sin, high * (slant * sin + cos), uniform(-0.06, 0.06)]
    return torch.stack(rows, 1).reshape(n, 2, 3)


def blur(images: Tensor) -> Tensor:
    """Binomial 5x5 blur of (N, 1, H, W), zero outside."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return F.conv2d(images, torch.outer(row, row)[None, None], padding=2)


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 images as pixels in [0, 1]."""
    pixels = images.double() / 255
    return pixels.mean().item(), pixels.std().item()


def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of normalised images (N, C, H, W) put in their class by the network in eval mode, which it is left in."""
    net.eval()
    with torch.inference_mode():
        predicted = torch.cat([net(x).argmax(1) for x in torch.split(inputs, 512)])
    return (predicted == labels).double().mean().item()


def prepared(images: Tensor, pre: Preprocessing) -> Tensor:
    """Images (N, 1, H, W) uint8 as a network expects them: one channel or three equal ones, normalised."""
    return normalise(images.expand(-1, pre.channels, -1, -1), pre.mean, pre.std).contiguous(memory_format=torch.channels_last)


def pretrain(name: str, size: int, seed: int, images: int, epochs: int) -> tuple[nn.Module, Preprocessing]:
    """Network `name` for 62 classes trained on `images` rendered characters: AdamW, one-cycle, label smoothing 0.1, seeded."""
    built = models.build(name, len(CLASSES), "none", seed_for(seed, 0, "weights"), {"size": size})
    net, pre = built.model.net.to(memory_format=torch.channels_last), built.preprocessing
    pixels, labels = source_task(seed_for(seed, 0, "glyphs"), images, size)
    inputs = prepared(pixels, pre)
    generator = torch.Generator().manual_seed(seed_for(seed, 0, "shuffle"))
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2, fused=True)
    steps = epochs * math.ceil(images / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        net.train()
        for index in torch.split(torch.randperm(images, generator=generator), BATCH):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(inputs[index]), labels[index], label_smoothing=0.1)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(index)
        sys.stdout.write(f"epoch {epoch + 1}/{epochs}: loss {total / images:.3f} nats, {time.perf_counter() - start:.1f} s\n")
    return net.to(memory_format=torch.contiguous_format), pre


def main(arguments: list[str] | None = None) -> None:
    """Pre-train a network on rendered characters and write its weights (safetensors)."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="glyphnet", help="glyphnet or one of torchvision's")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: beside the shipped weights)")
    parser.add_argument("--seed", type=int, default=SEED, help="of images, weights and order")
    parser.add_argument("--images", type=int, default=IMAGES, help="characters rendered for training")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over them")
    options = parser.parse_args(arguments)
    name, seed, images, epochs = options.model, options.seed, options.images, options.epochs
    size = zoo.GLYPHNET.size if name == "glyphnet" else EXAMPLE_SIZE
    output = options.output or (WEIGHTS if name == "glyphnet" else WEIGHTS.with_name(f"{name}-glyphs.safetensors"))
    torch.set_num_threads(1)  # the order of sums, and so the file's digest, depends on the number of threads
    net, pre = pretrain(name, size, seed, images, epochs)
    pixels, labels = held_out(size=size)
    reached = accuracy(net, prepared(pixels, pre), labels)
    facts = {"model": name, "size": size} if name != "glyphnet" else {}
    facts |= {"seed": seed, "images": images, "epochs": epochs, "source_accuracy": round(reached, 4), "classes": CLASSES}
    versions = {"torch": torch.__version__, "matplotlib": matplotlib.__version__}
    output.parent.mkdir(parents=True, exist_ok=True)
    # One metadata key: safetensors writes several in an order that differs from process to process.
    state = net.state_dict() if name == "glyphnet" else {k: halved(t) for k, t in net.state_dict().items()}
    output.write_bytes(save(state, metadata={"hpsearch": json.dumps(facts | versions)}))
    sys.stdout.write(f"accuracy on the held-out source set {reached:.4f}; wrote {output} ({output.stat().st_size:,} bytes)\n")


def halved(tensor: Tensor) -> Tensor:
    """Floats in half precision, for half the file."""
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
