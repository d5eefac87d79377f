"""The reference loop: fine-tune one trial, yielding after every epoch.

Notation: N images in a batch, K classes, k frozen blocks. The session yields `Progress`, is sent the trials to stop,
and yields the `Outcome` last. It owns nobody and does no input or output but the checkpoint it writes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from hpsearch.finetune import data as datasets
from hpsearch.finetune import metrics, models, optim
from hpsearch.finetune.context import DeviceContext
from hpsearch.seeds import seed_for
from hpsearch.types import Facts, Job, Outcome, Params, Progress, Session, Status, Trial

EVAL_BATCH = 128  # images; small enough for a core's cache


@dataclass(frozen=True)
class Resident:
    """What all trials of a study share on the device."""

    model: models.FineTuneModel
    initial: dict[str, Tensor]  # state at the start of every trial; its new head is the study's
    x_train: Tensor  # (N_train, C, H, W) float32, normalised
    y_train: Tensor  # (N_train,)
    x_val: Tensor
    y_val: Tensor
    digest: str


@dataclass(frozen=True)
class Recipe:
    """A trial's hyperparameters as the loop uses them."""

    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float
    dropout: float
    frozen_layers: int

    @classmethod
    def of(cls, params: Params) -> Recipe:
        """From sampled values; KeyError or ValueError when one is missing or no number."""
        return cls(
            learning_rate=float(str(params["learning_rate"])),
            batch_size=int(str(params["batch_size"])),
            epochs=int(str(params["epochs"])),
            weight_decay=float(str(params["weight_decay"])),
            dropout=float(str(params["dropout"])),
            frozen_layers=int(str(params["frozen_layers"])),
        )


class FineTuneKernel:
    """Fine-tunes one architecture on one data set; `config` is JSON-able and holds the study's fixed part.

    Keys: data, split, model, weights, seed, space, folder (for checkpoints), device, threads.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.seed = int(config["seed"])
        self.context = DeviceContext(config.get("device", "auto"), int(config.get("threads", 1)))

    def resident(self) -> Resident:
        """Data and weights on the device, built once."""
        return self.context.fetch("resident", self.load)

    def load(self) -> Resident:
        """Decode, split, normalise, and load the pretrained weights; raises FixInput or FixSetup."""
        cfg, device = self.config, self.context.device
        arch = models.ARCHITECTURES[cfg["model"]]
        split = cfg["split"]
        data = datasets.load(cfg["data"], arch.size, split["train_per_class"], split["val_images"], self.seed)
        self.data = data
        pretrained = cfg["weights"] != "none"
        model, initial = models.initial_state(cfg["model"], len(data.classes), pretrained, seed_for(self.seed, 0, "head"))
        # channels_last: training a little, evaluation up to 1.7 times faster on this CPU (studies/LOG.md); GPUs want it too.
        model.to(device).to(memory_format=torch.channels_last)
        tensors = {
            f"x_{n}": datasets.normalise(s.images.to(device), arch.mean, arch.std).contiguous(memory_format=torch.channels_last)
            for n, s in (("train", data.train), ("val", data.val))
        }
        return Resident(
            model,
            {k: v.to(device) for k, v in initial.items()},
            y_train=data.train.labels.to(device),
            y_val=data.val.labels.to(device),
            digest=data.digest,
            **tensors,
        )

    def facts(self) -> Facts:
        """Load everything and describe it."""
        r = self.resident()
        return Facts(
            {
                "model": self.config["model"],
                "weights": self.config["weights"],
                "parameters": sum(p.numel() for p in r.model.parameters()),
                "blocks": len(r.model.blocks),
                "data": self.config["data"],
                "classes": list(self.data.classes),
                "train_images": len(self.data.train),
                "val_images": len(self.data.val),
                "test_images": len(self.data.test),
                "data_digest": r.digest,
                **self.context.describe(),
            }
        )

    def session(self, job: Job) -> Session:
        """Train the job's trials one after the other."""
        for trial in job.trials:
            try:
                yield from self.train(trial)
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                yield (Outcome(trial.number, Status.FAILED, error=f"{type(error).__name__}: {error}"),)

    def train(self, trial: Trial) -> Session:
        """Fine-tune one trial; keeps the weights of its best epoch by validation loss."""
        start = time.monotonic()
        recipe, r = Recipe.of(trial.params), self.resident()
        model, k = r.model, recipe.frozen_layers
        model.load_state_dict(r.initial)
        model.dropout.rate = torch.tensor(recipe.dropout, device=self.context.device)
        model.dropout.generator = self.generator(trial.number, "dropout")
        shuffle = self.generator(trial.number, "shuffle", device="cpu")
        learning_rate = torch.tensor(recipe.learning_rate, device=self.context.device)
        optimiser = optim.AdamW(model.freeze(k), learning_rate, recipe.weight_decay)

        cut_train, cut_val = self.cut(r, k)
        batches = epoch_batches(len(r.y_train), recipe.batch_size)
        steps, step, largest = recipe.epochs * batches, 0, 0
        best: Progress | None = None
        kept: dict[str, Tensor] = {}
        for epoch in range(1, recipe.epochs + 1):
            model.freeze(k)
            losses = torch.zeros((), device=self.context.device)
            order = torch.randperm(len(r.y_train), generator=shuffle).to(self.context.device)
            for chosen in order.tensor_split(batches):
                factor = optim.warmup_cosine(step, steps, warmup=batches)
                learning_rate.fill_(recipe.learning_rate * factor)
                loss = F.cross_entropy(model.suffix(cut_train[chosen], k), r.y_train[chosen])
                largest = max(largest, len(chosen))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses += loss.detach()
                step += 1
            scores = self.evaluate(r, cut_val, k)
            now = Progress(
                trial.number,
                epoch,
                recipe.epochs,
                scores.pop("loss"),
                (losses / batches).item(),
                scores | {"learning_rate": learning_rate.item()},
                time.monotonic() - start,
            )
            if not (math.isfinite(now.val_loss) and math.isfinite(now.train_loss)):
                yield (diverged(now, recipe),)
                return
            if best is None or now.val_loss < best.val_loss:
                best, kept = now, {name: t.detach().clone() for name, t in model.trainable_state(k).items()}
            stop = (yield (now,)) or frozenset()  # a plain for loop sends None: nobody is to stop
            if trial.number in stop:
                break
        assert best is not None  # epochs >= 1
        finished = epoch == recipe.epochs and trial.number not in stop
        used = effective(recipe, model, optimiser, largest, steps // batches)
        yield (self.outcome(trial, best, now, kept, used, finished),)

    def cut(self, r: Resident, k: int) -> tuple[Tensor, Tensor]:
        """Activations of the k frozen blocks for all training and validation images, computed once per k.

        Call it on a model that still holds its initial state: frozen blocks never change, so all trials share these.
        """

        def build() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                train, val = (torch.cat([r.model.prefix(x, k) for x in part.split(EVAL_BATCH)]) for part in (r.x_train, r.x_val))
            return train, val

        return self.context.fetch(("cut", k), build)

    def evaluate(self, r: Resident, cut_val: Tensor, k: int) -> dict[str, float]:
        """Loss and scores on the validation split, in eval mode."""
        r.model.eval()
        with torch.no_grad():
            logits = torch.cat([r.model.suffix(x, k) for x in cut_val.split(EVAL_BATCH)])
            return metrics.evaluate(logits, r.y_val)

    def outcome(self, trial: Trial, best: Progress, last: Progress, kept: dict[str, Tensor], used: Params, finished: bool) -> Outcome:
        """The result of a trial that was not cut short by an error; writes the whole model of a finished one."""
        checkpoint = None
        if finished and self.config.get("folder"):
            path = Path(self.config["folder"]) / f"trial-{trial.number:04d}.safetensors"
            r, arch = self.resident(), models.ARCHITECTURES[self.config["model"]]
            about = {key: self.config[key] for key in ("model", "weights", "data", "split", "seed")}
            about |= {"classes": list(self.data.classes), "size": arch.size, "mean": arch.mean, "std": arch.std, "data_digest": r.digest}
            about |= {"trial": trial.number, "epoch": best.epoch, "val_loss": best.val_loss, "params": dict(trial.params)}
            save_weights({**r.initial, **kept}, path, {"hpsearch": json.dumps(about)})
            checkpoint = str(path)
        return Outcome(
            trial.number,
            Status.COMPLETE if finished else Status.PRUNED,
            val_loss=best.val_loss,
            epoch=best.epoch,
            seconds=last.seconds,
            metrics=best.metrics,
            effective=used,
            checkpoint=checkpoint,
        )

    def generator(self, number: int, purpose: str, device: str | None = None) -> torch.Generator:
        """Random numbers of one trial for one purpose, independent of everything else in the process."""
        return torch.Generator(device or self.context.device).manual_seed(seed_for(self.seed, number, purpose))


def epoch_batches(images: int, batch_size: int) -> int:
    """Steps in an epoch. Batches differ by at most one image and, for BatchNorm's sake, never hold a single one."""
    return max(1, min(math.ceil(images / batch_size), images // 2))


def effective(recipe: Recipe, model: models.FineTuneModel, optimiser: optim.AdamW, largest: int, epochs: int) -> Params:
    """The hyperparameters as the trainer used them, read back from its own state.

    Epochs are those the schedule was made for, also when the trial was stopped before. The batch size is that of the largest
    batch: 50 images in batches of at most 32 are two of 25. Rates are float32.
    """
    return {
        "learning_rate": recipe.learning_rate,
        "batch_size": largest,
        "epochs": epochs,
        "weight_decay": optimiser.groups[0][1],
        "dropout": model.dropout.rate.item(),
        "frozen_layers": sum(not any(p.requires_grad for p in block.parameters()) for block in model.blocks),
    }


def diverged(now: Progress, recipe: Recipe) -> Outcome:
    """A trial whose loss stopped being a number."""
    which = "validation" if math.isfinite(now.train_loss) else "training"
    value = now.val_loss if which == "validation" else now.train_loss
    reason = f"diverged: {which} loss is {value} after epoch {now.epoch} of {now.epochs} at learning rate {recipe.learning_rate:.3g}"
    return Outcome(now.trial, Status.FAILED, seconds=now.seconds, error=reason)


def save_weights(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write safetensors aside and rename, so that a reader never sees half a file."""
    aside = path.with_suffix(".tmp")
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, aside, metadata)
    os.replace(aside, path)


def make(config: Mapping[str, Any]) -> FineTuneKernel:
    """Entry point for executors."""
    return FineTuneKernel(config)
