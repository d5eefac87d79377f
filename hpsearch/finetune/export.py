"""A trained model as a folder that stands on its own: weights, configuration, model card, and a script that needs no hpsearch."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpsearch import __version__
from hpsearch.errors import FixInput, FixSetup, HpsearchError
from hpsearch.finetune import architectures, models, standalone, state, zoo
from hpsearch.finetune import data as datasets
from hpsearch.finetune.calibrate import Calibration, calibrate
from hpsearch.finetune.card import Winner, card
from hpsearch.finetune.data import Data, Split
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.names import choices_of, is_own
from hpsearch.finetune.own import own_model
from hpsearch.finetune.prepare import prepare
from hpsearch.machine import usable_cores
from hpsearch.runtime.leftover_files import EXPORTED, aside_paths, clear_export, left_by_exports
from hpsearch.types import OBJECTIVES, Say

FORMAT = 1  # of config.json
WEIGHTS, CONFIG, CARD, SCRIPT = FILES = EXPORTED
PIXELS = 2**20  # of one batch


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: str
    study: str
    trial: int
    val_loss: float  # logged
    recomputed: float | None  # by the exported folder, in float32; None without the validation images
    calibration: Calibration | None


def export(winner: Winner, out: Path, force: bool, with_data: bool, say: Say) -> Exported:
    """Write the folder `out`, whole or not at all; `force` replaces an earlier export there.

    `with_data` recomputes the logged validation loss from what was written and fits the temperature. Raises FixInput when `out`
    is taken or the data has changed, FixSetup when weights are gone or are not those that earned the score.
    """
    for left in left_by_exports(out.parent, out.name):  # of one that was killed
        clear_export(left)
    check_free(out, force)
    about = read_about(winner)
    config = describe(winner, about)
    val = validation(winner, about, say).val if with_data else None
    with written_aside(out, force) as aside:
        copy_weights(winner, aside / WEIGHTS)
        write_config(aside, config)
        found, loss = None, None
        if val is not None:
            say("Computing the validation images with the exported model", 0, 0)
            scores = validation_logits(aside, val)
            found = calibrate(scores, val.labels)
            loss = found.nll_before
            check_loss(winner, loss)
            config |= {"temperature": found.temperature, "calibration": asdict(found)}
            write_config(aside, config)
        (aside / CARD).write_text(card(winner, config, loss), encoding="utf-8")
        (aside / SCRIPT).write_text(script(config["model"]), encoding="utf-8")
    assert winner.record.val_loss is not None
    return Exported(str(out), winner.study, winner.record.number, winner.record.val_loss, loss, found)


# ---------------------------------------------------------------- what goes into the folder


def read_about(winner: Winner) -> dict[str, Any]:
    """What the kernel wrote into the checkpoint beside the weights; FixSetup when it is gone or of another trial."""
    path, record = winner.checkpoint, winner.record
    about = state.read_about(path)
    logged = record.val_loss if record.val_loss is not None else math.nan
    # Trained again on a GPU, a trial may differ in the last bits.
    near = about.get("again", False) and abs(about["val_loss"] - logged) <= winner.tolerance * (1 + logged)
    if about["trial"] != record.number or not (about["val_loss"] == logged or near):
        raise FixSetup(
            f"{path} holds trial {about['trial']} with val_loss {about['val_loss']}, and the study knows trial {record.number} with "
            f"{record.val_loss}: another study of this name has written there since. Bring back its file, or run the study anew"
        )
    return about


def describe(winner: Winner, about: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: all that it takes to use the weights, and where they come from."""
    model, classes, pre = about["model"], about["classes"], preprocessing(about)
    head, dropout = layers(model, len(classes), pre)
    record = winner.record
    return {
        "format": FORMAT,
        "hpsearch": __version__,
        "model": model,
        "arguments": architectures.arguments(model, len(classes), pre.size),
        "head": head,
        "dropout": dropout,
        "classes": classes,
        "preprocessing": {**asdict(pre), "channels": pre.channels},
        "temperature": 1.0,
        "calibration": None,
        "study": winner.study,
        "trial": record.number,
        "epoch": record.best_epoch,
        "params": dict(record.params),
        "objective": record.objective,
        "measured_on": {"split": "val", "images": winner.facts.get("val_images"), "precision": winner.precision},
        "scores": {"val_loss": record.val_loss} | {key: record.metrics[key] for key in OBJECTIVES if key in record.metrics},
        "data": about["data"],
        "data_digest": about["data_digest"],
    }


def preprocessing(about: Mapping[str, Any]) -> Preprocessing:
    """From JSON, where tuples have become lists."""
    values = about["preprocessing"]
    return Preprocessing(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def layers(model: str, classes: int, pre: Preprocessing) -> tuple[str, str]:
    """Names of a model's head, and of the dropout before it that fine-tuning took out ("" for none)."""
    if is_own(model):
        with torch.random.fork_rng(devices=[]):
            found = own_model(model, zoo.own_net(model, classes, None), classes, pre)
    else:
        with zoo.Shapes():
            net = zoo.known_net(model, classes, pre.size)
        found = models.known_model(model, net.to("meta"), classes)
    head = found.cuts.head if found.cuts.head in dict(found.net.named_modules()) else ""
    layer = found.net.get_submodule(head)
    mine = getattr(layer, "out_features", getattr(layer, "out_channels", None))
    return head if mine == classes else "", found.cuts.before


def copy_weights(winner: Winner, path: Path) -> None:
    """The checkpoint, byte for byte."""
    try:
        shutil.copyfile(winner.checkpoint, path)
    except FileNotFoundError:
        raise FixSetup(f"{winner.checkpoint} has just been deleted: a better trial has come. Export again") from None


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json; lists of numbers stay on one line."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda numbers: " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def script(model: str) -> str:
    """predict.py: `standalone` with the code of the architecture in the place of its import."""
    code = Path(standalone.__file__).read_text(encoding="utf-8")
    code = re.sub(r"  # type: ignore\[[a-z-]+\]", "", code)
    constant, rest = code.split("from hpsearch.finetune.architectures import network\n\n")
    constants, rest = rest.split("\n\n\n", 1)
    architecture = re.sub(r"  # type: ignore\[[a-z-]+\]", "", architectures.source(model))
    return f"{constant}{constants.lstrip()}\n\n\n{architecture.strip()}\n\n\n{rest}"


# ---------------------------------------------------------------- what it does on the validation images


def validation(winner: Winner, about: Mapping[str, Any], say: Say) -> Data:
    """The data that the trial was measured on; decoded again where the cache has lost it. FixInput when it cannot be had."""
    remedy = "bring it back, or export with --uncalibrated"
    if about["data"] == "digits":
        data = datasets.embedded(preprocessing(about), about["split"], about["seed"])
    else:
        try:
            data = datasets.from_index(winner.folder / datasets.index_name(about["model"], len(choices_of(winner.spec))))
        except (OSError, ValueError, KeyError):  # another study's folder, or the cache was cleared
            with tempfile.TemporaryDirectory() as folder:
                try:
                    prepared = prepare({**winner.spec, "folder": folder}, say, need_weights=False)
                    data = datasets.from_index(Path(prepared.indexes.get(about["model"], prepared.index)))
                except (HpsearchError, OSError) as error:
                    raise FixInput(
                        f"the validation images are needed for calibration, and the data is not as it was ({error}): {remedy}"
                    ) from None
    if data.digest != about["data_digest"]:
        raise FixInput(f"the images, labels or splits of {about['data']} have changed since the study was run: {remedy}")
    return data


def validation_logits(folder: Path, val: Split) -> Tensor:
    """(N, K) logits of the validation images by the model in a folder, in float32."""
    torch.set_num_threads(max(1, usable_cores() // 2))  # a study may be running on the same cores
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, config = standalone.load(folder)
    net.to(device)
    batch = max(1, PIXELS // config["preprocessing"]["size"] ** 2)
    parts = torch.arange(len(val)).split(batch)
    return torch.cat([standalone.logits(net, val.pixels(part).to(device), config).cpu() for part in parts])


def check_loss(winner: Winner, loss: float) -> None:
    """FixSetup unless the exported model has the loss that was logged."""
    logged = winner.record.val_loss
    assert logged is not None
    if not abs(loss - logged) <= winner.tolerance * (1 + logged):
        raise FixSetup(
            f"the exported model has a validation loss of {loss:.6f}, and {logged:.6f} was logged ({winner.precision}): its code, torch or "
            "the machine's arithmetic differs from when it was trained; export where the study was run, or skip this with --uncalibrated"
        )


# ---------------------------------------------------------------- whole or not at all


def check_free(out: Path, force: bool) -> None:
    """FixInput when something is at `out` that must not be overwritten."""
    if out.exists() and not out.is_dir():
        raise FixInput(f"{out} is a file: name a folder")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    others = sorted(there - {*FILES, "__pycache__"})
    if others and force:
        raise FixInput(
            f"{out} holds more than an exported model ({', '.join(others[:3])}), which --force would delete: name another folder"
        )
    if there and not force:
        raise FixInput(f"{out} is not empty: name another folder" + ("" if others else ", or replace the model in it with --force"))


@contextmanager
def written_aside(out: Path, force: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its place in the end, or goes without a trace."""
    aside, old = aside_paths(out, os.getpid())
    try:
        aside.mkdir(parents=True)
        yield aside
        check_free(out, force)  # once more: computing takes time
        if out.exists():
            out.rename(old)
        try:
            aside.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise FixSetup(f"{out} cannot be written ({error.strerror or error}): name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
