"""B2: the tuned loop on Ray Tune, actors reused. Optional: pip install 'ray[tune]'."""

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.curve import Curve
from benchmarks.tasks import Setting


@functools.cache
def trainer_of(task: str) -> Any:
    """The tuned trainer; a reused actor finds the one it made for its first trial."""
    from benchmarks.by_hand import Tuned

    made = Tuned(json.loads(task))
    made.choose()
    return made


def train(params: dict[str, Any], task: str) -> None:
    """One trial, in an actor."""
    import torch
    from ray import tune

    trainer = trainer_of(task)
    torch.set_num_threads(trainer.threads)  # OpenMP counts by thread, and Ray starts one for every trial
    began, best = time.time(), float("inf")
    for epoch in trainer.epochs(params):
        best = min(best, epoch["val_loss"])
        tune.report({"val_loss": epoch["val_loss"], "best": best, "began": began, "ended": time.time()})


def start_ray(task: dict[str, Any]) -> Any:
    """Ray on this machine, and what a trial takes of it."""
    import ray
    from ray import tune

    from hpsearch.machine import usable_cores

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    ray.init(num_cpus=usable_cores(), include_dashboard=False, log_to_driver=False, logging_level="error")
    told = json.dumps({**task, "trials": []})
    return functools.partial(tune.with_resources, resources={"cpu": task["cpus"], "gpu": task["gpus"]}), told


def ray(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The replayed list, without a scheduler: the same work as in the other arms."""
    from ray import tune

    with_resources, told = start_ray(task)
    trials = task["trials"]
    tuner = tune.Tuner(
        with_resources(lambda config: train(trials[config["index"]], told)),
        param_space={"index": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(metric="val_loss", mode="min", reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    rows = [r.metrics for r in sorted(results, key=lambda r: r.config["index"])]
    return {
        "seconds": max(row["ended"] for row in rows) - min(row["began"] for row in rows),
        "each": [row["ended"] - row["began"] for row in rows],
        "best": [row["best"] for row in rows],
        "final": [row["val_loss"] for row in rows],
    }


def asha(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """A search within a wall: random configurations, the default recipe first, stopped by ASHA."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    with_resources, told = start_ray(task)
    setting, curve = Setting("", task["study"], task["blocks"]), Curve(task["wall"], task.get("epoch_seconds"))
    longest = int(next(max(p.high, *p.choices, 0) for p in setting.space if p.name == "epochs"))

    numbers: dict[str, int] = {}

    class Listen(tune.Callback):
        """Keeps the curve as the driver hears of it."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            del iteration, trials, info
            number = numbers.setdefault(trial.trial_id, len(numbers))
            curve.start(number, trial.config, at=result["began"])
            curve.epoch(number, result["val_loss"])
            if result["training_iteration"] == trial.config["epochs"]:
                curve.end(number)

    class Wall(tune.Stopper):
        """Ends everything when time is up."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            del trial_id, result
            return False

        def stop_all(self) -> bool:
            return curve.seconds() > task["wall"]

    tuner = tune.Tuner(
        with_resources(lambda config: train(config, told)),
        param_space={p.name: domain(p) for p in setting.space},
        tune_config=tune.TuneConfig(
            metric="val_loss",
            mode="min",
            num_samples=2000,
            reuse_actors=True,
            scheduler=ASHAScheduler(max_t=longest, grace_period=max(1, longest // 9), reduction_factor=3),
            search_alg=BasicVariantGenerator(points_to_evaluate=[setting.default()], random_state=task["seed"]),
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=[Listen()], stop=Wall()),
    )
    tuner.fit()
    return curve.result()


def domain(p: Any) -> Any:
    """A parameter as Ray has it."""
    from ray import tune

    if p.choices:
        return tune.choice(list(p.choices))
    if p.kind == "int":
        return tune.randint(int(p.low), int(p.high) + 1)
    return tune.loguniform(p.low, p.high) if p.log else tune.uniform(p.low, p.high)
