"""The reference loop: fine-tune one trial, yielding after every step and, with its progress, after every epoch.

Notation: N images of the training split, n in a batch, K classes, k frozen blocks. A session owns nobody and does no input or output
but the checkpoint it writes. An empty step says that work was started and another session may go on: sessions share a device by turns.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Generator, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpsearch.errors import FixSetup
from hpsearch.finetune import beside, heads, idle, metrics, models
from hpsearch.finetune import data as datasets
from hpsearch.finetune.augment import Strengths
from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.features import Features, Reader
from hpsearch.finetune.heads import Heads, Request
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.memory import Parts, attempt
from hpsearch.finetune.packing import Crowd, Packing
from hpsearch.finetune.recipe import AUGMENTATIONS, Recipe
from hpsearch.finetune.schedules import factor
from hpsearch.finetune.slot import Slot
from hpsearch.finetune.state import STATE_SECONDS, Keeper, Kept, Live, key_of, load_state, save_state, save_tensors
from hpsearch.finetune.step import Shape
from hpsearch.keeping import patiently, state_path
from hpsearch.machine import pulse
from hpsearch.protocols import Session, Step
from hpsearch.recipes import CORE
from hpsearch.seeds import seed_for
from hpsearch.types import OBJECTIVES, Facts, Job, Outcome, Params, PerClass, Progress, Status, Trial, score_of

LEAK = 2**26  # bytes on the device that a trial may keep: the allocator's rounding, libraries' work spaces
LOST = ("CUDA error", "CUBLAS_STATUS", "INTERNAL ASSERT", "outside graph capture")  # errors after which a process is of no use
NAP = 1e-4  # seconds between looks at a device that works for one trial
LEAKS = 3  # trials in a row that keep more


@dataclass
class Shared:
    """What all trials of a study share on the device."""

    initial: dict[str, Tensor]  # the network's state at the start of every trial; its new head is the study's
    preprocessing: Preprocessing
    weights: str  # which were loaded, and what of them did not fit
    data: datasets.Data
    features: Features
    y_val: Tensor  # (N_val,)
    packing: Packing
    heads: Heads

    @property
    def model(self) -> models.FineTuneModel:
        """The first slot's network."""
        return self.packing.slots[0].model


class FineTuneKernel:
    """Fine-tunes one architecture on one data set; `config` is JSON-able and holds the study's fixed part.

    Keys: those of a resolved study, and index and weights_digest (from `prepare`), folder (for checkpoints), device, threads,
    workers, memory [bytes], graphs (False: steps on CUDA are not captured), fold ([i, n]: trains and validates on fold i of n),
    provenance (told among the facts as it is), weights_here (files by model, on a machine that lacks those of
    `weights`; `parcel` fetches them).
    Kernels may share a `context`: then each has a `key` of its own there, and slots that are numbered from `first`.
    """

    def __init__(self, config: Mapping[str, Any], context: DeviceContext | None = None, key: Hashable = "resident", first: int = 0) -> None:
        self.config = config
        self.seed, self.objective = int(config["seed"]), str(config["objective"])
        self.fixed: Params = {**unused(config.get("space") or {}), **(config.get("recipe") or {})}
        self.context, self.key, self.first = context or context_of(config), key, first
        self.slots = self.context.slots(config.get("trials_per_device", "auto"))
        self.parts = Parts()
        self.broken = ""
        self.grown: list[int] = []  # bytes, by the last trials one after the other
        self.drawn: tuple[int, dict[str, Tensor]] = (-1, {})  # by seed: the last network that was drawn

    # ---------------------------------------------------------------- what trials share

    def resident(self) -> Shared:
        """Data and weights on the device, built once."""
        return self.context.fetch(self.key, self.load)

    def load(self) -> Shared:
        """Open the prepared data and load the pretrained weights; raises FixInput or FixSetup."""
        cfg, device, before = self.config, self.context.device, self.context.free()
        pre = models.preprocessing(cfg["model"], cfg["weights"], cfg["preprocess"])
        data = datasets.from_index(Path(cfg["index"])) if cfg.get("index") else datasets.embedded(pre, cfg["split"], self.seed)
        if cfg.get("fold"):
            i, n = cfg["fold"]
            data = datasets.fold(data, i, n, self.seed)
        weights = cfg.get("weights_here", {}).get(cfg["model"], cfg["weights"])
        built = models.build(cfg["model"], len(data.classes), weights, seed_for(self.seed, 0, "head"), cfg["preprocess"])
        # channels_last: training a little, evaluation up to 1.7 times faster on this CPU (studies/LOG.md); GPUs want it too.
        model = built.model.to(device).to(memory_format=torch.channels_last)
        initial = {k: v.to(device) for k, v in built.initial.items()}
        workers = cfg["workers"] if isinstance(cfg.get("workers"), int) else 1
        memory = int(cfg.get("memory") or self.context.memory_budget(workers))
        y_train, y_val = data.train.labels.to(device), data.val.labels.to(device)
        model.eval()
        features = Features(copy.deepcopy(model) if model.cacheable else model, data, pre, self.context, memory, self.seed)
        networks = [model, *(copy.deepcopy(model) for _ in range(self.slots - 1))]
        classes, numbered = len(data.classes), enumerate(networks, self.first)
        slots = [Slot(i, net, initial, features, y_train, classes, self.context, self.parts) for i, net in numbered]
        if self.context.cuda:
            torch.cuda.synchronize(device)  # slots work on streams of their own
        stream = torch.cuda.Stream(device) if self.context.cuda else None
        crowd = self.context.fetch("crowd", Crowd)
        # A fold keeps its activations in the place of those of the study's own division.
        crowd.enter(slots, self.context.free(), before - self.context.free(), 0 if cfg.get("fold") else features.budget)
        if self.context.cuda:
            crowd.share = self.context.fetch("share", lambda: self.context.share(str(cfg.get("name"))))
            crowd.share.enter(0 if cfg.get("fold") else features.most(self.augmented))
        packing = Packing(slots, crowd, graphs=bool(cfg.get("graphs", True)), heads=stream)
        return Shared(initial, pre, built.matched.text(), data, features, y_val, packing, Heads())

    @property
    def augmented(self) -> bool:
        """Whether any trial may augment its images."""
        searched = self.config.get("space") or {}
        return any(name in searched or self.fixed.get(name, off) != off for name, off in AUGMENTATIONS.items())

    def facts(self) -> Facts:
        """Load everything and describe it."""
        r = attempt(self.resident)
        if r is None:
            raise FixSetup(f"the model and its data do not fit into what is free of {self.context.place()}: `nvidia-smi` says who holds it")
        model, data = r.model, r.data
        values = {
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
            "class_counts": {name: part.labels.bincount(minlength=len(data.classes)).tolist() for name, part in data.splits().items()},
            "weights_digest": self.config.get("weights_digest", ""),
            "trials_per_device": self.slots,
            **self.context.describe(),
            **self.config.get("provenance", {}),
        }
        return Facts(values, slots=self.slots)

    # ---------------------------------------------------------------- turns

    def session(self, job: Job) -> Session:
        """Train the job's trials one after the other."""
        for trial in job.trials:
            try:
                settings = {name: value for name, value in {**self.fixed, **trial.params}.items() if name != "model"}
                yield from self.turns(trial, Recipe.of(settings))
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                if any(words in str(error) for words in LOST):
                    self.broken = f"the device failed: {error}"
                yield (Outcome(trial.number, Status.FAILED, error=f"{type(error).__name__}: {error}", lost=bool(self.broken)),)

    def keep(self) -> None:
        """From now on a trial that is stopped leaves the state from which it can go on."""
        self.context.keeping = True

    def turns(self, trial: Trial, recipe: Recipe) -> Session:
        """Train a trial in a slot whose random numbers and stream are in place whenever it is its turn."""
        packing, blocks = self.resident().packing, len(self.resident().model.blocks)
        alone = heads.fits(recipe, self.resident().model) and self.reader(recipe, blocks, 1).kept
        slot, refused = None, -1
        while slot is None:
            if packing.free() and (packing.ended != refused or packing.crowd.due):  # memory comes back when a trial ends
                refused = packing.ended
                slot = packing.take(recipe, self.steps(recipe), training=not alone)
            if slot is None:
                if packing.crowd.waits and not packing.busy:
                    pulse(packing.crowd.waits)
                    time.sleep(50 * NAP)
                yield ()
        before = self.held() if len(packing.busy) == 1 else None
        # Heads take their steps together, so they share a stream.
        stream = packing.heads if alone else None
        session = self.train(trial, recipe, slot)
        advance = functools.partial(next, session)
        try:
            while True:
                with slot.turn(stream):
                    try:
                        step = advance()
                    except StopIteration:
                        break
                advance = functools.partial(session.send, (yield step))
        finally:
            session.close()
            packing.leave(slot)
            slot.optimiser(recipe).zero_grad()
        del session, advance
        if before is not None and not packing.busy:
            grown = self.held() - before
            self.grown = [*self.grown, grown] if grown > LEAK else []

    def steps(self, recipe: Recipe) -> list[tuple[Shape, Tensor]]:
        """The shapes of a trial's steps with an input for each; on a CPU, where nothing is captured or measured, none."""
        r, found = self.resident(), []
        if self.context.cuda:
            images = len(r.data.train)
            sizes = {len(part) for part in torch.arange(images).tensor_split(epoch_batches(images, recipe.batch_size))}
            for k in recipe.cuts(len(r.model.blocks)):
                reader = self.reader(recipe, k, 1)
                for size in sizes:
                    x = reader.read(torch.arange(size, device=reader.place))
                    found.append((r.packing.slots[0].shape(recipe, k, size, reader.kept), x))
            torch.cuda.synchronize(self.context.device)  # slots read them on their own streams
        return found

    def held(self) -> int:
        """Bytes on a GPU that are no kept activations."""
        return self.context.allocated() - self.resident().features.bytes()

    def reader(self, recipe: Recipe, k: int, epoch: int) -> Reader:
        """The training images behind k blocks in an epoch."""
        features = self.resident().features
        if recipe.cutmix:
            return features.passing("train")
        views = int(self.config["augment_views"])
        return features.train(k, Strengths.values(recipe) if recipe.augments else (), epoch - 1, views)

    def worn(self) -> str:
        """Why this process should be replaced by a new one; "" while it need not.

        Libraries allocate what they keep at first use, so that one trial may leave more than it found; not every one.
        """
        total = sum(self.grown)
        if self.broken:
            return self.broken
        return f"{total / 2**20:.0f} MiB on the device were not given back by {LEAKS} trials" if len(self.grown) >= LEAKS else ""

    # ---------------------------------------------------------------- a trial

    def draw(self, seed: int) -> dict[str, Tensor]:
        """The state of a network drawn by `seed`; trials of one repeat ask for the same, and tracing it anew takes seconds."""
        if self.drawn[0] != seed:
            name, classes = self.config["model"], len(self.resident().data.classes)
            self.drawn = (seed, models.build(name, classes, "none", seed, self.config["preprocess"]).initial)
        return self.drawn[1]

    def train(self, trial: Trial, recipe: Recipe, slot: Slot) -> Session:
        """Fine-tune one trial, from its beginning or from a state; keeps the weights of the epoch that `rank` likes best."""
        start = time.monotonic()
        r, blocks = self.resident(), len(slot.model.blocks)
        images = len(r.data.train)
        batches = epoch_batches(images, recipe.batch_size)
        initial = beside.start(trial, recipe, slot.model, r.initial, self.config, self.draw)
        seed, number = beside.draws(trial, self.seed)
        live = Live(slot.model, recipe.frozen_layers, slot.begin(recipe, initial))
        if trial.resume is not None:
            load_state(live, Path(trial.resume), key_of(trial))
        folder = self.folder(trial)
        keeper = Keeper(state_path(folder, trial.name) if folder else None, key_of(trial), self.config.get("state_seconds", STATE_SECONDS))
        start -= live.seconds
        plan = Plan(recipe, batches)
        stop: frozenset[int] = frozenset()
        for past in live.curve:  # nobody may have judged the last one
            stop |= (yield (replace(past, again=past is not live.curve[-1]),)) or frozenset()
        while not plan.over(live) and trial.number not in stop:
            live.epoch += 1
            k = recipe.frozen(live.epoch, blocks)
            slot.model.freeze(k)
            reader = self.reader(recipe, k, live.epoch)
            self.context.draws.seed(seed_for(seed, number, f"epoch {live.epoch}"))
            slot.shares.manual_seed(seed_for(seed, number, f"mix {live.epoch}"))
            shuffle = torch.Generator().manual_seed(seed_for(seed, number, f"shuffle {live.epoch}"))
            order = torch.randperm(images, generator=shuffle).to(reader.place).tensor_split(batches)
            begun = time.monotonic()
            alone = reader.kept and k == blocks and heads.fits(recipe, slot.model)
            loss = yield from (self.head_epoch if alone else self.epoch)(live, slot, plan, reader, order)
            yield from self.caught_up()
            rate = images / max(time.monotonic() - begun, 1e-9)
            logits = slot.logits(r.features.val(k), k)
            yield from self.caught_up()
            scores, confusion = metrics.evaluate(logits, r.y_val)
            now = Progress(
                trial.number,
                live.epoch,
                recipe.epochs,
                scores.pop("loss"),
                loss.item() / batches,
                scores | {"learning_rate": recipe.learning_rate * plan.factor(live.step - 1)},
                time.monotonic() - start,
                rate,
                time.time(),
            )
            if not (math.isfinite(now.val_loss) and math.isfinite(now.train_loss)):
                yield (diverged(now, recipe),)
                return
            live.stale += 1
            if live.best is None or self.rank(now) < self.rank(live.best.progress):
                state = {name: t.detach().clone() for name, t in slot.model.trainable_state(recipe.frozen_layers).items()}
                live.best, live.stale = Kept(now, state, confusion), 0
            live.seconds = now.seconds
            live.curve.append(now)
            keeper.keep(live)
            stop = (yield (now,)) or frozenset()  # a plain for loop sends None: nobody is to stop
        yield (self.outcome(trial, live, initial, effective(trial.params, recipe, live, slot, self.config["model"]), plan.over(live)),)

    def epoch(self, live: Live, slot: Slot, plan: Plan, reader: Reader, order: tuple[Tensor, ...]) -> Generator[Step, Any, Tensor]:
        """One pass over the training images; the sum of the steps' losses, on the device."""
        recipe, losses = plan.recipe, torch.zeros((), device=self.context.device)
        k = recipe.frozen(live.epoch, len(slot.model.blocks))
        for chosen, y in self.with_labels(slot, order):
            slot.hyper.learning_rate.fill_(recipe.learning_rate * plan.factor(live.step))
            slot.draw_shares(recipe)
            shape = slot.shape(recipe, k, len(chosen), reader.kept)
            losses += slot.step(shape, live.optimiser, reader.read(chosen), y)
            live.largest = max(live.largest, len(chosen))
            live.step += 1
            yield ()
        return losses

    def head_epoch(self, live: Live, slot: Slot, plan: Plan, reader: Reader, order: tuple[Tensor, ...]) -> Generator[Step, Any, Tensor]:
        """The same for a trial that trains its head alone: its steps are taken together with those of other such trials."""
        r, losses = self.resident(), torch.zeros((), device=self.context.device)
        head = slot.head(live.optimiser)
        for chosen, y in self.with_labels(slot, order):
            x, target, scale = slot.head_batch(reader.read(chosen), y)
            request = r.heads.request(Request(head, x, target, scale, plan.recipe.learning_rate * plan.factor(live.step)))
            if len(r.packing.busy) > 1:
                yield ()
            if request.loss is None:
                r.heads.flush()
            if request.loss is None:
                raise RuntimeError("the step that this head shared with others failed")
            losses += request.loss
            live.largest = max(live.largest, len(chosen))
            live.step += 1
        slot.keep_head(head, live.optimiser)
        return losses

    def with_labels(self, slot: Slot, order: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions of each batch with their labels, which are on the device; moved there once, since a copy waits for the device."""
        there = torch.cat(order).to(slot.labels.device).split([len(part) for part in order])
        return ((chosen, slot.labels[positions]) for chosen, positions in zip(order, there, strict=True))

    def caught_up(self) -> Session:
        """Let others go on until the device has done what was asked of it so far."""
        if self.context.cuda:
            event = torch.cuda.Event()
            event.record()
            while not event.query():
                if len(self.resident().packing.busy) == 1:
                    time.sleep(NAP)
                yield ()

    def folder(self, trial: Trial) -> Path | None:
        """Where the trial's files go."""
        place = trial.folder or self.config.get("folder")
        return Path(place) if place else None

    def rank(self, progress: Progress) -> tuple[float, float]:
        """What makes an epoch's weights the ones to keep, less being better: the objective, then the validation loss."""
        score = score_of(self.objective, progress.val_loss, progress.metrics)
        if score is None:
            raise ValueError(f"this data has no {self.objective}: choose another objective")
        return OBJECTIVES[self.objective] * score, progress.val_loss

    def outcome(self, trial: Trial, live: Live, initial: Mapping[str, Tensor], used: Params, finished: bool) -> Outcome:
        """The result of a trial that no error cut short; writes the whole model of a finished one, the state of one that may go on."""
        assert live.best is not None  # epochs >= 1
        kept, checkpoint, state = live.best.progress, None, None
        per_class: PerClass = metrics.per_class(live.best.confusion) if finished else {}
        folder = self.folder(trial)
        if folder is not None and finished:
            path = folder / f"{beside.stem(trial)}.safetensors"
            r = self.resident()
            about = {key: self.config[key] for key in ("model", "weights", "data", "split", "seed", "objective")}
            about |= {"classes": list(r.data.classes), "preprocessing": asdict(r.preprocessing), "data_digest": r.data.digest}
            about |= {"again": True} if trial.origin == "winner" else {}
            about |= {"trial": beside.identity(trial), "epoch": kept.epoch, "val_loss": kept.val_loss, "params": dict(trial.params)}
            about |= {"scratch": trial.setup is not None and trial.setup.scratch, "fold": self.config.get("fold")}
            whole = {**initial, **live.best.state}
            patiently(lambda: save_tensors(whole, path, {"hpsearch": json.dumps(about)}), folder)
            checkpoint = str(path)
        elif folder is not None and (self.context.keeping or self.config["pruner"]["name"] == "halving"):
            state = str(state_path(folder, trial.name))
            save_state(live, Path(state), key_of(trial))
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
            remark=idle.remark(live, initial, live.optimiser.hyper.weight_decay.item()),
        )


@dataclass(frozen=True)
class Plan:
    """A trial's way through its steps."""

    recipe: Recipe
    batches: int  # in an epoch

    def factor(self, step: int) -> float:
        """On the learning rate."""
        recipe = self.recipe
        return factor(recipe.schedule, step, recipe.epochs * self.batches, round(recipe.warmup_epochs * self.batches))

    def over(self, live: Live) -> bool:
        """Whether all epochs are done, or none of the last ones was of use."""
        return live.epoch >= self.recipe.epochs or 0 < self.recipe.early_stopping <= live.stale


def epoch_batches(images: int, batch_size: int) -> int:
    """Steps in an epoch. Batches differ by at most one image and, for BatchNorm's sake, never hold a single one."""
    return max(1, min(math.ceil(images / batch_size), images // 2))


def effective(params: Params, recipe: Recipe, live: Live, slot: Slot, model: str) -> Params:
    """The trial's hyperparameters as the trainer used them, read back from its own state where it keeps them.

    Epochs are those the schedule was made for, also when the trial was stopped before. The batch size is that of the largest
    batch: 50 images in batches of at most 32 are two of 25. Numbers in tensors are float32.
    """
    used = {"model": model} | asdict(recipe)
    used |= {name: getattr(slot.hyper, name).item() for name in ("weight_decay", "momentum", "label_smoothing", "l1", "l2_sp", "clip_norm")}
    used |= {"batch_size": live.largest, "dropout": slot.model.dropout.rate.item(), "frozen_layers": slot.model.frozen()}
    used |= {"optimizer": live.optimiser.kind, "layer_decay": live.optimiser.used}
    return {name: used[name] for name in params if name in used}


def diverged(now: Progress, recipe: Recipe) -> Outcome:
    """A trial whose loss stopped being a number."""
    which = "validation" if math.isfinite(now.train_loss) else "training"
    value = now.val_loss if which == "validation" else now.train_loss
    reason = f"diverged: {which} loss is {value} after epoch {now.epoch} of {now.epochs} at learning rate {recipe.learning_rate:.3g}"
    return Outcome(now.trial, Status.FAILED, seconds=now.seconds, error=reason)


def unused(space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the core settings that have a condition are at in trials that do not use them: at their default, since none can be off."""
    return {name: space[name].get("default", space[name].get("value")) for name in CORE if "when" in space.get(name, {})}


def context_of(config: Mapping[str, Any]) -> DeviceContext:
    """The device that a configuration asks for."""
    return DeviceContext(config.get("device", "auto"), int(config.get("threads", 1)), config.get("precision", "auto"))
