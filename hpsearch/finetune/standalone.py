"""Class probabilities of images, by a model that hpsearch has trained. Runs without hpsearch.

    python predict.py photo.jpg another.png

Needs torch, safetensors and Pillow, and torchvision for its models. README.md says what the model is and what it can do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

from hpsearch.finetune.architectures import network

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ORIENTATION = 0x112  # the EXIF tag
TOP = 5  # classes printed per image


def load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, in eval mode on the CPU, and config.json. ValueError when they do not belong together."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    net, weights = network(config).eval(), load_file(folder / "model.safetensors")
    own = net.state_dict()
    other = sorted({*own} ^ {*weights}) or [name for name in own if own[name].shape != weights[name].shape]
    if other:
        raise ValueError(f"the weights are of another {config['model']}; they differ in {', '.join(other[:3])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    return net, config


def pixels(path: Path, config: dict[str, Any]) -> Tensor:
    """An image file as the network was trained on them: uint8 (C, size, size). Raises ValueError, or what Pillow raises."""
    pre = config["preprocessing"]
    shorter = max(pre["resize"], pre["size"])
    Image.init()
    with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as file:
        if file.format == "TIFF" and {0xC612, 0x14A} & {*file.tag_v2}:  # type: ignore[attr-defined]
            raise ValueError("a camera's raw file, or several images in one")
        drafted = file.draft(None, (2 * shorter, 2 * shorter))  # decode a large JPEG at 1/2, 1/4 or 1/8
        file.load()
        right, bottom = drafted[1][2:] if drafted else file.size  # whole pixels stand for what is left over at its edges
        region = turned((0.0, 0.0, float(right), float(bottom)), file.size, file.getexif().get(ORIENTATION, 1))
        image = ImageOps.exif_transpose(file)
    if image.mode == "F" or image.mode == "LAB":
        raise ValueError(f"pixels of mode {image.mode}")
    if image.mode.startswith("I"):  # 16 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:  # on white
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    image = image.convert("L" if pre["channels"] == 1 else "RGB")
    # The shorter side becomes `shorter`, and the centre of `size` is cut out, both in one step.
    box = [0.0, 0.0, 0.0, 0.0]
    sides = region[2] - region[0], region[3] - region[1]
    for axis, side in enumerate(sides):
        resized = int(shorter * side / min(sides))
        start = round((resized - pre["size"]) / 2)
        box[axis] = region[axis] + start * side / resized
        box[axis + 2] = min(region[axis + 2], region[axis] + (start + pre["size"]) * side / resized)
    resample = Image.Resampling[pre["interpolation"].upper()]
    cut = np.asarray(image.resize((pre["size"], pre["size"]), resample, (box[0], box[1], box[2], box[3])))
    return torch.from_numpy(cut.transpose(2, 0, 1).copy() if cut.ndim == 3 else cut[None].copy())


def turned(region: tuple[float, float, float, float], size: tuple[int, int], orientation: int) -> tuple[float, float, float, float]:
    """Where a region of an image of that size lies once the image has been turned upright, by EXIF's orientation."""
    (left, top, right, bottom), (width, height) = region, size
    if not 2 <= orientation <= 8:
        return region
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


@torch.inference_mode()
def logits(net: nn.Module, images: Tensor, config: dict[str, Any]) -> Tensor:
    """Scores (N, K) of images (N, C, size, size) uint8 on the network's device; softmax(logits / temperature) are probabilities."""
    mean, std = (images.new_tensor(config["preprocessing"][key], dtype=torch.float32).view(1, -1, 1, 1) for key in ("mean", "std"))
    scores: Tensor = net(images.float().div_(255).sub_(mean).div_(std))
    return scores.float()


def probabilities(scores: Tensor, config: dict[str, Any]) -> Tensor:
    """(N, K), calibrated: the temperature was fitted on the validation images."""
    return torch.softmax(scores.double() / config["temperature"], dim=1)


def main(paths: list[str]) -> int:
    """Print the most probable classes of each image; the number of images that could not be read."""
    net, config = load(Path(__file__).resolve().parent)
    bad = 0
    for path in paths:
        try:
            image = pixels(Path(path), config)
        except Exception as error:  # decoders raise anything on damaged data
            print(f"{path}: cannot be read: {error}", file=sys.stderr)
            bad += 1
            continue
        shares = probabilities(logits(net, image[None], config), config)[0]
        print(path)
        for i in shares.argsort(descending=True)[:TOP].tolist():
            print(f"  {100 * shares[i]:6.2f} %  {config['classes'][i]}")
    return bad


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python predict.py IMAGE ...")
    sys.exit(1 if main(sys.argv[1:]) else 0)
