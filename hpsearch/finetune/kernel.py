"""The reference loop: fine-tune one trial, yielding after every epoch.

Notation: N images in a batch, K classes, k frozen blocks. The session yields `Progress`, is sent the trials to stop,
and yields the `Outcome` last. It owns nobody and does no input or output but the checkpoint it writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.finetune import data as datasets
from hpsearch.finetune import metrics, models, optim
from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.features import Features, Reader
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.memory import Parts, attempt
from hpsearch.finetune.state import Kept, Live, load_state, save_state, save_tensors
from hpsearch.seeds import seed_for
from hpsearch.types import OBJECTIVES, Facts, Job, Outcome, Params, PerClass, Progress, Session, Status, Trial, score_of


@dataclass(frozen=True)
class Resident:
    """What all trials of a study share on the device."""

    model: models.FineTuneModel
    initial: dict[str, Tensor]  # the network's state at the start of every trial; its new head is the study's
    preprocessing: Preprocessing
    weights: str  # which were loaded, and what of them did not fit
    data: datasets.Data
    features: Features
    y_train: Tensor  # (N_train,)
    y_val: Tensor


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

    Keys: those of a resolved study, and index and weights_digest (from `prepare`), folder (for checkpoints), device, threads,
    workers, memory [bytes].
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.seed, self.objective = int(config["seed"]), str(config["objective"])
        self.context = DeviceContext(config.get("device", "auto"), int(config.get("threads", 1)))
        self.parts = Parts()

    def resident(self) -> Resident:
        """Data and weights on the device, built once."""
        return self.context.fetch("resident", self.load)

    def load(self) -> Resident:
        """Open the prepared data and load the pretrained weights; raises FixInput or FixSetup."""
        cfg, device = self.config, self.context.device
        pre = models.preprocessing(cfg["model"], cfg["weights"], cfg["preprocess"])
        data = datasets.from_index(Path(cfg["index"])) if cfg.get("index") else datasets.embedded(pre, cfg["split"], self.seed)
        built = models.build(cfg["model"], len(data.classes), cfg["weights"], seed_for(self.seed, 0, "head"), cfg["preprocess"])
        # channels_last: training a little, evaluation up to 1.7 times faster on this CPU (studies/LOG.md); GPUs want it too.
        model = built.model.to(device).to(memory_format=torch.channels_last)
        workers = cfg["workers"] if isinstance(cfg.get("workers"), int) else 1
        memory = int(cfg.get("memory") or self.context.memory_budget(workers))
        return Resident(
            model,
            {k: v.to(device) for k, v in built.initial.items()},
            pre,
            built.matched.text(),
            data,
            Features(model, data, pre, device, memory),
            y_train=data.train.labels.to(device),
            y_val=data.val.labels.to(device),
        )

    def facts(self) -> Facts:
        """Load everything and describe it."""
        r = self.resident()
        model, data = r.model, r.data
        return Facts(
            {
                "model": self.config["model"],
                "weights": r.weights,
                "parameters": sum(p.numel() for p in model.parameters()),
                "blocks": len(model.blocks),
                "shares_frozen_features": model.cacheable or model.reason,
                "image_size": r.preprocessing.size,
                "data": self.config["data"],
                "classes": list(data.classes),
                "train_images": len(data.train),
                "val_images": len(data.val),
                "test_images": len(data.test),
                "data_digest": data.digest,
                "weights_digest": self.config.get("weights_digest", ""),
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
        """Fine-tune one trial, from its beginning or from a state; keeps the weights of the epoch that `rank` likes best."""
        start = time.monotonic()
        recipe, r = Recipe.of(trial.params), self.resident()
        live = self.set_up(trial, recipe, r)
        model, k = live.model, live.frozen
        inputs = r.features.at(k)
        train, images = inputs["train"], inputs["train"].images
        batches = epoch_batches(images, recipe.batch_size)
        steps = recipe.epochs * batches
        if trial.resume is not None:
            load_state(live, Path(trial.resume))
        start -= live.seconds
        stop: frozenset[int] = frozenset()
        while live.epoch < recipe.epochs and trial.number not in stop:
            live.epoch += 1
            model.freeze(k)
            torch.manual_seed(seed_for(self.seed, trial.number, f"epoch {live.epoch}"))  # the network's own dropouts draw from there
            losses = torch.zeros((), device=self.context.device)
            order = torch.randperm(images, generator=live.generators["shuffle"]).to(self.context.device)
            begun = time.monotonic()
            for chosen in order.tensor_split(batches):
                factor = optim.warmup_cosine(live.step, steps, warmup=batches)
                live.optimiser.learning_rate.fill_(recipe.learning_rate * factor)
                losses += self.gradients(live, r, train, chosen)
                live.optimiser.step()
                live.largest = max(live.largest, len(chosen))
                live.step += 1
            train_loss = (losses / batches).item()
            rate = images / max(time.monotonic() - begun, 1e-9)
            scores, confusion = self.evaluate(r, inputs["val"], k)
            now = Progress(
                trial.number,
                live.epoch,
                recipe.epochs,
                scores.pop("loss"),
                train_loss,
                scores | {"learning_rate": live.optimiser.learning_rate.item()},
                time.monotonic() - start,
                rate,
            )
            if not (math.isfinite(now.val_loss) and math.isfinite(now.train_loss)):
                yield (diverged(now, recipe),)
                return
            if live.best is None or self.rank(now) < self.rank(live.best.progress):
                live.best = Kept(now, {name: t.detach().clone() for name, t in model.trainable_state(k).items()}, confusion)
            stop = (yield (now,)) or frozenset()  # a plain for loop sends None: nobody is to stop
        live.seconds = now.seconds
        yield (self.outcome(trial, live, effective(recipe, live, steps // batches), trial.number not in stop or now.epoch == now.epochs),)

    def set_up(self, trial: Trial, recipe: Recipe, r: Resident) -> Live:
        """The model as at the start of every trial, with the trial's own optimiser and random numbers."""
        r.model.restore(r.initial)
        r.model.dropout.rate = torch.tensor(recipe.dropout, device=self.context.device)
        dropout = r.model.dropout.generator = self.generator(trial.number, "dropout")
        learning_rate = torch.tensor(recipe.learning_rate, device=self.context.device)
        optimiser = optim.AdamW(r.model.freeze(recipe.frozen_layers), learning_rate, recipe.weight_decay)
        generators = {"dropout": dropout, "shuffle": self.generator(trial.number, "shuffle", device="cpu")}
        return Live(r.model, recipe.frozen_layers, optimiser, generators)

    def gradients(self, live: Live, r: Resident, train: Reader, chosen: Tensor) -> Tensor:
        """Gradients of one batch, in parts where it does not fit into memory; its mean loss."""
        model, k = live.model, live.frozen
        draws = live.generators["dropout"].get_state()

        def begin() -> None:
            live.optimiser.zero_grad()
            live.generators["dropout"].set_state(draws)

        def loss_of(part: Tensor) -> Tensor:
            return F.cross_entropy(model.suffix(train.read(part), k), r.y_train[part])

        return self.parts.backward((k, len(chosen)), chosen, loss_of, begin)

    def rank(self, progress: Progress) -> tuple[float, float]:
        """What makes an epoch's weights the ones to keep, less being better: the objective, then the validation loss."""
        score = score_of(self.objective, progress.val_loss, progress.metrics)
        if score is None:
            raise ValueError(f"this data has no {self.objective}: choose another objective")
        return OBJECTIVES[self.objective] * score, progress.val_loss

    def evaluate(self, r: Resident, val: Reader, k: int) -> tuple[dict[str, float], Tensor]:
        """Scores and confusion matrix on the validation split, in eval mode."""
        r.model.eval()

        def scores() -> tuple[dict[str, float], Tensor]:
            with torch.no_grad():
                logits = torch.cat([r.model.suffix(val.read(chosen), k) for chosen in r.features.batches(val.images)])
                return metrics.evaluate(logits, r.y_val)

        while (found := attempt(scores)) is None:
            r.features.halve()
        return found

    def outcome(self, trial: Trial, live: Live, used: Params, finished: bool) -> Outcome:
        """The result of a trial that no error cut short; writes the whole model of a finished one, the state of one that may go on."""
        assert live.best is not None  # epochs >= 1
        kept, checkpoint, state = live.best.progress, None, None
        per_class: PerClass = metrics.per_class(live.best.confusion) if finished else {}
        folder = Path(self.config["folder"]) if self.config.get("folder") else None
        if folder is not None and finished:
            path = folder / f"trial-{trial.number:04d}.safetensors"
            r = self.resident()
            about = {key: self.config[key] for key in ("model", "weights", "data", "split", "seed", "objective")}
            about |= {"classes": list(r.data.classes), "preprocessing": asdict(r.preprocessing), "data_digest": r.data.digest}
            about |= {"trial": trial.number, "epoch": kept.epoch, "val_loss": kept.val_loss, "params": dict(trial.params)}
            save_tensors({**r.initial, **live.best.state}, path, {"hpsearch": json.dumps(about)})
            checkpoint = str(path)
        elif folder is not None and self.config["pruner"]["name"] == "halving":
            path = folder / f"trial-{trial.number:04d}-epoch-{live.epoch:03d}.state"
            save_state(live, path)
            state = str(path)
        return Outcome(
            trial.number,
            Status.COMPLETE if finished else Status.PRUNED,
            val_loss=kept.val_loss,
            epoch=kept.epoch,
            seconds=live.seconds,
            metrics=kept.metrics,
            effective=used,
            checkpoint=checkpoint,
            per_class=per_class,
            state=state,
        )

    def generator(self, number: int, purpose: str, device: str | None = None) -> torch.Generator:
        """Random numbers of one trial for one purpose, independent of everything else in the process."""
        return torch.Generator(device or self.context.device).manual_seed(seed_for(self.seed, number, purpose))


def epoch_batches(images: int, batch_size: int) -> int:
    """Steps in an epoch. Batches differ by at most one image and, for BatchNorm's sake, never hold a single one."""
    return max(1, min(math.ceil(images / batch_size), images // 2))


def effective(recipe: Recipe, live: Live, epochs: int) -> Params:
    """The hyperparameters as the trainer used them, read back from its own state.

    Epochs are those the schedule was made for, also when the trial was stopped before. The batch size is that of the largest
    batch: 50 images in batches of at most 32 are two of 25. Rates are float32.
    """
    return {
        "learning_rate": recipe.learning_rate,
        "batch_size": live.largest,
        "epochs": epochs,
        "weight_decay": live.optimiser.groups[0][1],
        "dropout": live.model.dropout.rate.item(),
        "frozen_layers": live.model.frozen(),
    }


def diverged(now: Progress, recipe: Recipe) -> Outcome:
    """A trial whose loss stopped being a number."""
    which = "validation" if math.isfinite(now.train_loss) else "training"
    value = now.val_loss if which == "validation" else now.train_loss
    reason = f"diverged: {which} loss is {value} after epoch {now.epoch} of {now.epochs} at learning rate {recipe.learning_rate:.3g}"
    return Outcome(now.trial, Status.FAILED, seconds=now.seconds, error=reason)


def make(config: Mapping[str, Any]) -> FineTuneKernel:
    """Entry point for executors."""
    return FineTuneKernel(config)
