"""Ways to train one list of trials, each a process: `python -m benchmarks.arms ARM FOLDER THREADS LIST`; writes FOLDER/result.json.

Network, weights, data, optimiser, schedule, epochs and validation after every epoch are the same in all, so that the loops differ
and the work does not. No trial is pruned. The clock runs from the first trial's start to the last one's end: imports and the
creation of stores are outside.

by_hand    what users glue, in the style of Optuna's PyTorch example: data set and DataLoader in the objective, SQLite, MLflow call by call
tuned      the same by a careful person: data resident and normalised once, channels_last, fused AdamW, study in memory, no tracking
ray        Ray Tune, the tuned loop in each trial, actors reused, as many at once as there are cores
plain      hpsearch's kernel alone, one worker, activations computed at each step
features   the same with activations of frozen blocks kept
hpsearch   everything: two workers, storage, MLflow, report
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

SPLIT = {"train_per_class": 5, "val": 400, "test": None}
SEED = int(os.environ.get("ARM_SEED", "0"))


def by_hand(folder, threads, trials):
    import mlflow
    import optuna
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    models, data, pre = room(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("by hand")
    each = []

    def objective(trial):
        import torch

        begun = time.monotonic()
        params = trials[trial.number]
        for name, value in params.items():
            trial.suggest_float(name, value, value)
        digits = data.embedded(pre, SPLIT, 0)
        sets = {
            n: TensorDataset(data.normalise(s.pixels(), pre.mean, pre.std), s.labels)
            for n, s in (("train", digits.train), ("val", digits.val))
        }
        train = DataLoader(sets["train"], batch_size=int(params["batch_size"]), shuffle=True)
        val = DataLoader(sets["val"], batch_size=128)
        model, optimiser, schedule, epochs, k = start(models, params, len(train))
        best = float("inf")
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(params)
            for epoch in range(epochs):
                model.freeze(k)
                total = 0.0
                for x, y in train:
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
                        logits = model(x)
                        losses += F.cross_entropy(logits, y, reduction="sum").item()
                        right += (logits.argmax(1) == y).sum().item()
                val_loss = losses / len(sets["val"])
                best = min(best, val_loss)
                mlflow.log_metric("train_loss", total / len(train), step=epoch)
                mlflow.log_metric("val_loss", val_loss, step=epoch)
                mlflow.log_metric("accuracy", right / len(sets["val"]), step=epoch)
                trial.report(val_loss, epoch)
        each.append(time.monotonic() - begun)
        return best

    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="by hand")
    begun = time.monotonic()
    study.optimize(objective, n_trials=len(trials))
    return time.monotonic() - begun, each, [t.value for t in study.trials]


def tuned(folder, threads, trials):
    del folder
    loop = tuned_loop(threads)
    begun, each, values = time.monotonic(), [], []
    for params in trials:
        at = time.monotonic()
        values.append(min(loop(params)))
        each.append(time.monotonic() - at)
    return time.monotonic() - begun, each, values


def tuned_loop(threads):
    """A function that trains one trial and yields its validation losses."""
    import torch
    from torch.nn import functional as F

    models, data, pre = room(threads)
    digits = data.embedded(pre, SPLIT, 0)
    form = torch.channels_last
    x, v = (data.normalise(s.pixels(), pre.mean, pre.std).contiguous(memory_format=form) for s in (digits.train, digits.val))
    y, w = digits.train.labels, digits.val.labels

    def loop(params):
        batches = -(-len(y) // int(params["batch_size"]))
        model, optimiser, schedule, epochs, k = start(models, params, batches)
        model.to(memory_format=form)
        for _ in range(epochs):
            model.freeze(k)
            for chosen in torch.randperm(len(y)).tensor_split(batches):
                optimiser.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimiser.step()
                schedule.step()
            model.eval()
            with torch.inference_mode():
                logits = torch.cat([model(part) for part in v.split(128)])
                yield F.cross_entropy(logits, w).item()

    return loop


def ray(folder, threads, trials):
    import ray
    from ray import tune

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")

    def objective(config):
        best = float("inf")
        for loss in tuned_loop(threads)(trials[config["index"]]):
            best = min(best, loss)
            tune.report({"val_loss": loss, "best": best})

    tuner = tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        param_space={"index": tune.grid_search(list(range(len(trials))))},  # no scheduler: the same work as in the other arms
        tune_config=tune.TuneConfig(metric="val_loss", mode="min", reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    begun = time.monotonic()
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    seconds = time.monotonic() - begun
    ordered = sorted(results, key=lambda r: r.config["index"])
    return seconds, [r.metrics["time_total_s"] for r in ordered], [r.metrics["best"] for r in ordered]


def plain(folder, threads, trials):
    return kernel_alone(folder, threads, trials, memory=1)


def features(folder, threads, trials):
    return kernel_alone(folder, threads, trials, memory=None)


def kernel_alone(folder, threads, trials, memory):
    from hpsearch.finetune.kernel import FineTuneKernel
    from hpsearch.spec import parse_spec
    from hpsearch.types import Job, Trial

    del folder
    kernel = FineTuneKernel(parse_spec({"threads": threads}).resolved() | {"device": "cpu", "memory": memory, "folder": ""})
    kernel.resident()
    begun, each, values = time.monotonic(), [], []
    for number, params in enumerate(trials):
        at = time.monotonic()
        *_, (outcome,) = kernel.session(Job(0, (Trial(number, params),)))
        values.append(outcome.val_loss)
        each.append(time.monotonic() - at)
    return time.monotonic() - begun, each, values


class Clock:
    """From the first trial's start to the last trial's end."""

    def __init__(self):
        self.first = self.last = 0.0

    def record(self, event):
        from hpsearch.types import TrialEnded, TrialStarted

        if isinstance(event, TrialStarted):
            self.first = self.first or time.monotonic()
        elif isinstance(event, TrialEnded):
            self.last = time.monotonic()

    def close(self):
        pass


def hpsearch(folder, threads, trials):
    from hpsearch import actions
    from hpsearch.search.searcher import OptunaSearcher
    from hpsearch.spec import load_spec
    from hpsearch.types import Trial

    OptunaSearcher.planned = lambda _: (Trial(n, params) for n, params in enumerate(trials))
    settings = ["pruner=none", f"threads={threads}"]
    spec = load_spec(None, settings, {"sampler": "random", "trials": len(trials), "name": "list"})
    clock, where = Clock(), actions.place(Path(folder))
    actions.run(spec, where, [clock])
    records = actions.show(where, "list").records
    return clock.last - clock.first, [r.seconds for r in records], [r.val_loss for r in records]


def room(threads):
    """The parts that all arms share."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    from hpsearch.finetune import data, models

    return models, data, models.preprocessing("glyphnet", "DEFAULT", {})


def start(models, params, batches):
    """Model, optimiser and schedule of a trial, as torch has them."""
    import torch

    from hpsearch.finetune.optim import warmup_cosine

    model = models.build("glyphnet", 10, "DEFAULT", 0).model
    model.dropout.rate = torch.tensor(params["dropout"])
    k, epochs = int(params["frozen_layers"]), int(params["epochs"])
    optimiser = torch.optim.AdamW(model.freeze(k), lr=params["learning_rate"], weight_decay=params["weight_decay"], fused=True)
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, steps, batches))
    return model, optimiser, schedule, epochs, k


ARMS = {arm.__name__: arm for arm in (by_hand, tuned, ray, plain, features, hpsearch)}

if __name__ == "__main__":
    name, folder, threads, listed = sys.argv[1:]
    seconds, each, values = ARMS[name](folder, int(threads), json.loads(Path(listed).read_text()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MB, this process; not its workers
    Path(folder, "result.json").write_text(json.dumps({"seconds": seconds, "each": each, "values": values, "peak_mb": peak}))
