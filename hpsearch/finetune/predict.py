"""An exported model at work: class probabilities of image files, from the folder alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from hpsearch.errors import FixInput, FixSetup, HpsearchError
from hpsearch.finetune import standalone
from hpsearch.finetune.export import CONFIG, FORMAT, preprocessing
from hpsearch.finetune.folders import Walk, left_out
from hpsearch.finetune.functions import brief
from hpsearch.finetune.images import Bytes, Preprocessing, Unusable, decode, read_file
from hpsearch.finetune.printable import escaped
from hpsearch.machine import usable_cores
from hpsearch.types import Say

PIXELS = 2**21  # of one batch


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image; `error` is why it says nothing."""

    image: str
    top: tuple[tuple[str, float], ...] = ()  # (class, probability), the most probable first
    error: str = ""


@dataclass(frozen=True)
class Model:
    """An exported model on a device."""

    net: nn.Module
    config: dict[str, Any]
    pre: Preprocessing
    device: torch.device


def open_model(folder: Path, device: str, code: str | None = None) -> Model:
    """The model that `export` wrote. Raises FixInput when the folder holds none, FixSetup without the device.

    A folder may come from anybody: `code` is the function that it may have imported for a model of one's own, named by the user.
    """
    if not (folder / CONFIG).is_file():
        raise FixInput(f"{folder} holds no exported model (no {CONFIG} in it): `hpsearch export STUDY -o {folder}` writes one")
    try:
        wanted = str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"])
        if ":" in wanted and wanted != code:
            remedy = f"look at it, then allow it by --code {wanted}"
            raise FixInput(f"the model in {folder} is made by {wanted}, a function outside of it: {remedy}")
        net, config = standalone.load(folder)
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']}, and this hpsearch knows {FORMAT}")
        pre = preprocessing({"preprocessing": {k: v for k, v in config["preprocessing"].items() if k != "channels"}})
    except HpsearchError:
        raise
    except Exception as error:  # the user's function and files may fail in any way
        kind = "" if isinstance(error, ValueError | SafetensorError | OSError) else f"{type(error).__name__}: "
        raise FixInput(f"the model in {folder} cannot be used: {kind}{error}; export it again") from error
    place = on(device)
    return Model(net.to(place), config, pre, place)


def on(device: str) -> torch.device:
    """A device by name, or the best there is for "auto"."""
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FixSetup(f"the device '{device}' cannot be used ({brief(error)}): use --device cpu") from error
    return place


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images in and below them, in order. FixInput for a folder without images."""
    found: list[Path] = []
    for path in paths:
        walk = Walk(path, [path])
        images = walk.below(path) if path.is_dir() else [path]
        if not images:
            raise FixInput(
                ". ".join([f"the folder {path} holds no images", *(finding.text.rstrip(".") for finding in left_out(path, walk))])
            )
        found += images
    return found


def predict(model: Model, paths: Sequence[Path], top: int, say: Say) -> Iterator[Prediction]:
    """What the model says of each image, in order; one batch of them is in memory at a time."""
    torch.set_num_threads(max(1, usable_cores() // 2))
    batch = max(1, min(256, PIXELS // model.pre.size**2))
    top = min(top, len(model.config["classes"]))
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(paths), batch):
            chosen = paths[start : start + batch]
            yield from of_batch(model, chosen, list(pool.map(lambda path: pixels(path, model.pre), chosen)), top)
            say("Looking at images", start + len(chosen), len(paths))


def of_batch(model: Model, paths: Sequence[Path], images: Sequence[Bytes | str], top: int) -> Iterator[Prediction]:
    """Predictions for images that are in memory; in the place of one that could not be read is the reason."""
    usable = [torch.from_numpy(image) for image in images if not isinstance(image, str)]
    rows: Iterator[tuple[list[int], list[float]]] = iter(())
    if usable:
        scores = standalone.logits(model.net, torch.stack(usable).to(model.device), model.config)
        shares, classes = standalone.probabilities(scores, model.config).topk(top)
        rows = zip(classes.tolist(), shares.tolist(), strict=True)
    for path, image in zip(paths, images, strict=True):
        if isinstance(image, str):
            yield Prediction(escaped(str(path)), error=image)
        else:
            which, how_much = next(rows)
            yield Prediction(escaped(str(path)), tuple((model.config["classes"][i], p) for i, p in zip(which, how_much, strict=True)))


def pixels(path: Path, pre: Preprocessing) -> Bytes | str:
    """(C, size, size) uint8, or why there is none."""
    try:
        return decode(read_file(path), pre).image
    except Unusable as error:
        return str(error)
