"""Fine-tuning and searching by hand: B0, what users glue, and B1, the same by a careful person.

Network, weights, head, data, optimiser, schedule, epochs and validation after every epoch are hpsearch's, so that loops differ and the
work does not. They warm up before the clock starts, and what may be done in several ways (threads, bf16, workers of the DataLoader)
is tried then, and done in the fastest.
"""

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.curve import Curve
from benchmarks.tasks import Setting, draw
from hpsearch.finetune import data, models
from hpsearch.finetune.schedules import factor
from hpsearch.seeds import seed_for
from hpsearch.spec import parse_spec

EVALUATED = 128  # images at once
Epoch = dict[str, float]


class Trainer:
    """Data and a network on the device, for trials one after the other."""

    form = torch.contiguous_format

    def __init__(self, task: dict[str, Any]) -> None:
        self.task, self.device = task, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec = parse_spec(task["study"])
        self.config = config = spec.resolved()
        self.pre = models.preprocessing(config["model"], config["weights"], config["preprocess"])
        self.data = data.from_index(Path(task["index"])) if task["index"] else data.embedded(self.pre, config["split"], spec.seed)
        head = seed_for(spec.seed, 0, "head")
        built = models.build(config["model"], len(self.data.classes), config["weights"], head, config["preprocess"])
        self.model = built.model.to(self.device).to(memory_format=self.form)
        self.initial = {name: tensor.to(self.device) for name, tensor in built.initial.items()}
        self.variant: dict[str, Any] = {}
        self.probe = 0.0  # seconds that choosing took
        self.use(task)

    def use(self, variant: dict[str, Any]) -> None:
        """Train in this way from now on."""
        self.threads, self.bf16, self.loaders = variant["threads"], variant.get("precision") == "bf16", variant.get("loaders", 0)
        torch.set_num_threads(self.threads)

    def choose(self) -> None:
        """Warm up; take the fastest of the task's variants on one epoch of a deep and of a shallow trial; then seed."""
        begun, ways = time.monotonic(), self.task.get("variants") or [self.task]
        listed = sorted(self.task["trials"] or usual(self.task), key=lambda params: params["frozen_layers"])
        short = [listed[len(listed) * i // 4] | {"epochs": 1} for i in (1, 3)]
        seconds: list[list[float]] = [[] for _ in ways]
        for _ in range(4 if len(ways) > 1 else 1):
            for way, taken in zip(ways, seconds, strict=True):
                self.use(way)
                at = time.perf_counter()
                for params in short:
                    list(self.epochs(params))
                taken.append(time.perf_counter() - at)
        fastest = min(range(len(ways)), key=lambda i: statistics.median(seconds[i][1:] or seconds[i]))
        self.use(ways[fastest])
        self.variant = {name: ways[fastest][name] for name in ("threads", "precision", "loaders") if name in ways[fastest]}
        self.probe = time.monotonic() - begun
        torch.manual_seed(self.task["seed"])

    def start(self, params: dict[str, Any], batches: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """The network as at the start of every trial; optimiser and schedule as torch has them."""
        model, k = self.model, int(params["frozen_layers"])
        model.restore(self.initial)
        model.dropout.rate = torch.tensor(params["dropout"], device=self.device)
        live = model.freeze(k)
        groups = [
            {"params": [p for p in live if p.ndim > 1], "weight_decay": params["weight_decay"]},
            {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=params["learning_rate"], fused=True)
        steps = int(params["epochs"]) * batches
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: factor("cosine", step, steps, batches))

    def epochs(self, params: dict[str, Any]) -> Iterator[Epoch]:
        """Train one trial, an epoch at a time: train_loss, val_loss, accuracy."""
        raise NotImplementedError


class Glued(Trainer):
    """B0 in the style of Optuna's PyTorch example: data sets and DataLoaders made in the objective, float32, losses read at every step."""

    def loaders_of(self, batch_size: int) -> tuple[Any, Any]:
        """Of training and validation images: files where the data is a folder."""
        from torch.utils.data import DataLoader, TensorDataset

        if self.task["index"]:
            from torchvision.datasets import ImageFolder
            from torchvision.transforms import Compose, Normalize, ToTensor

            look = Compose([ToTensor(), Normalize(self.pre.mean, self.pre.std)])
            train, val = (ImageFolder(str(Path(self.config["data"]) / split), look) for split in ("train", "val"))
        else:
            digits = data.embedded(self.pre, self.config["split"], self.config["seed"])
            train, val = (
                TensorDataset(data.normalise(s.pixels(), self.pre.mean, self.pre.std), s.labels) for s in (digits.train, digits.val)
            )
        more = {"num_workers": self.loaders, "pin_memory": self.device.type == "cuda", "persistent_workers": self.loaders > 0}
        return DataLoader(train, batch_size, shuffle=True, **more), DataLoader(val, EVALUATED, **more)

    def epochs(self, params: dict[str, Any]) -> Iterator[Epoch]:
        train, val = self.loaders_of(int(params["batch_size"]))
        optimiser, schedule = self.start(params, len(train))
        model, device = self.model, self.device
        for _ in range(int(params["epochs"])):
            model.freeze(int(params["frozen_layers"]))
            total = 0.0
            for x, y in train:
                x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                optimiser.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item()
            model.eval()
            losses, right = 0.0, 0
            with torch.no_grad():
                for x, y in val:
                    x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                    logits = model(x)
                    losses += F.cross_entropy(logits, y, reduction="sum").item()
                    right += (logits.argmax(1) == y).sum().item()
            images = len(val.dataset)
            yield {"train_loss": total / len(train), "val_loss": losses / images, "accuracy": right / images}


class Tuned(Trainer):
    """B1: data resident and normalised once, channels_last, fused AdamW, bf16 where it pays, no waiting for the device within an epoch."""

    form = torch.channels_last

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        self.x_train, self.y_train = self.resident(self.data.train)
        self.x_val, self.y_val = self.resident(self.data.val)

    def resident(self, split: data.Split) -> tuple[Tensor, Tensor]:
        """Normalised images (N, C, H, W) and labels (N,) on the device."""
        pixels = data.normalise(split.pixels().to(self.device), self.pre.mean, self.pre.std)
        return pixels.contiguous(memory_format=self.form), split.labels.to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(x).float()

    def epochs(self, params: dict[str, Any]) -> Iterator[Epoch]:
        images = len(self.y_train)
        batches = -(-images // int(params["batch_size"]))
        optimiser, schedule = self.start(params, batches)
        for _ in range(int(params["epochs"])):
            self.model.freeze(int(params["frozen_layers"]))
            for chosen in torch.randperm(images).to(self.device).tensor_split(batches):
                optimiser.zero_grad()
                F.cross_entropy(self.forward(self.x_train[chosen]), self.y_train[chosen]).backward()
                optimiser.step()
                schedule.step()
            loss, accuracy = self.score(self.x_val, self.y_val)
            yield {"val_loss": loss, "accuracy": accuracy}

    def score(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Loss [nats] and accuracy."""
        self.model.eval()
        with torch.inference_mode():
            logits = torch.cat([self.forward(part) for part in x.split(EVALUATED)])
            return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


def usual(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Trials to try variants on where there is no list: the default recipe at several cuts."""
    default = Setting("", task["study"], task["blocks"]).default()
    return [default | {"frozen_layers": k} for k in range(task["blocks"] + 1)]


# ---------------------------------------------------------------- the replayed list


def by_hand(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """B0: SQLite and MLflow, call by call."""
    import mlflow
    import optuna

    trainer, trials = Glued(task), task["trials"]
    trainer.choose()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("by hand")
    each, final = [], []

    def objective(trial: optuna.Trial) -> float:
        at, best = time.monotonic(), float("inf")
        params = trials[trial.number]
        for name, value in params.items():
            trial.suggest_float(name, value, value)
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(params)
            for number, epoch in enumerate(trainer.epochs(params)):
                for name, value in epoch.items():
                    mlflow.log_metric(name, value, step=number)
                trial.report(epoch["val_loss"], number)
                best = min(best, epoch["val_loss"])
        each.append(time.monotonic() - at)
        final.append(epoch["val_loss"])
        return best

    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="by hand")
    begun = time.monotonic()
    study.optimize(objective, n_trials=len(trials))
    seconds = time.monotonic() - begun
    values = [t.value for t in study.trials]
    return {"seconds": seconds, "each": each, "best": values, "final": final, "probe": trainer.probe, "variant": trainer.variant}


def tuned(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """B1: no tracking."""
    del folder
    trainer = Tuned(task)
    trainer.choose()
    begun, each, best, final = time.monotonic(), [], [], []
    for params in task["trials"]:
        at = time.monotonic()
        losses = [epoch["val_loss"] for epoch in trainer.epochs(params)]
        each.append(time.monotonic() - at)
        best.append(min(losses))
        final.append(losses[-1])
    seconds = time.monotonic() - begun
    return {"seconds": seconds, "each": each, "best": best, "final": final, "probe": trainer.probe, "variant": trainer.variant}


# ---------------------------------------------------------------- searches within a wall


def median(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """B1 with Optuna in memory: TPE and the median pruner, the default recipe first."""
    import optuna

    del folder
    trainer = Tuned(task)
    trainer.choose()
    setting = Setting("", task["study"], task["blocks"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=task["seed"]), pruner=optuna.pruners.MedianPruner())
    study.enqueue_trial(setting.default())
    curve = Curve(task["wall"], task.get("epoch_seconds"))

    def objective(trial: optuna.Trial) -> float:
        params = {}
        for p in setting.space:
            if p.choices:
                params[p.name] = trial.suggest_categorical(p.name, p.choices)
            elif p.kind == "int":
                params[p.name] = trial.suggest_int(p.name, int(p.low), int(p.high))
            else:
                params[p.name] = trial.suggest_float(p.name, p.low, p.high, log=p.log)
        curve.start(trial.number, params)
        best = float("inf")
        for number, epoch in enumerate(trainer.epochs(params)):
            if curve.epoch(trial.number, epoch["val_loss"]):
                study.stop()
                raise optuna.TrialPruned
            best = min(best, epoch["val_loss"])
            trial.report(epoch["val_loss"], number)
            if trial.should_prune():
                raise optuna.TrialPruned
        curve.end(trial.number)
        return best

    study.optimize(objective)
    return curve.result() | {"variant": trainer.variant}


def top_k(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """B1 without a searcher: half the wall for one epoch of each of many configurations, the rest for the best of them, in full."""
    del folder
    trainer = Tuned(task)
    trainer.choose()
    setting, rng = Setting("", task["study"], task["blocks"]), random.Random(task["seed"])
    curve, seen = Curve(task["wall"], task.get("epoch_seconds")), {}
    while curve.seconds() < task["wall"] / 2:
        params = draw(setting.space, rng) if seen else setting.default()
        number = len(seen)
        curve.start(number, params)
        seen[number] = next(trainer.epochs(params))["val_loss"]
        curve.epoch(number, seen[number])
    for number in sorted(seen, key=lambda n: seen[n]):
        if not all(not curve.epoch(number, epoch["val_loss"]) for epoch in trainer.epochs(curve.params[number])):
            break
        curve.end(number)
    return curve.result() | {"variant": trainer.variant}


def judge(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Train each of the task's trials with every one of its seeds, in float32, and score the best epoch's weights on the test split."""
    del folder
    trainer = Tuned(task)
    x, y = trainer.resident(trainer.data.test)
    scores = []
    for params in task["trials"]:
        for seed in task["seeds"]:
            torch.manual_seed(seed)
            best, kept = float("inf"), {}
            for epoch in trainer.epochs(params):
                if epoch["val_loss"] < best:
                    best, kept = epoch["val_loss"], {name: t.clone() for name, t in trainer.model.net.state_dict().items()}
            trainer.model.restore(kept)
            loss, accuracy = trainer.score(x, y)
            scores.append({"params": params, "seed": seed, "val_loss": best, "test_loss": loss, "test_accuracy": accuracy})
    return {"scores": scores, "images": len(y)}
