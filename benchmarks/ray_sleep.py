"""Ray Tune on epochs that are slept through, in its own actors, which it uses again."""

import os
import tempfile
import time
from typing import Any

import psutil
import ray
from ray import tune

from benchmarks.sleeping import Clock, progress

CLOCK = Clock(0)  # an actor's own, for all of its trials


def train(config: dict[str, Any]) -> None:
    """One trial, in an actor."""
    CLOCK.worker = os.getpid()
    for epoch in range(1, config["epochs"] + 1):
        began = time.monotonic()
        time.sleep(config["seconds"])
        found = progress(0, config, epoch, config["epochs"], CLOCK.epoch(began, time.monotonic(), config["seconds"]))
        tune.report(found.row())


class Listen(tune.Callback):
    """Keeps what the driver hears."""

    def __init__(self, workers: int, trials: int) -> None:
        self.workers, self.trials, self.ended = workers, trials, 0
        self.clocks: dict[float, tuple[float, float]] = {}  # worker -> busy and idle, at its last epoch
        self.first = self.last = 0.0  # when as many trials as workers had ended, and when the last one
        self.workers_mb = 0.0

    def on_trial_result(self, result: dict[str, Any], **info: Any) -> None:
        del info
        self.clocks[result["worker"]] = (result["busy"], result["idle"])

    def on_trial_complete(self, **info: Any) -> None:
        del info
        self.ended, self.last = self.ended + 1, time.perf_counter()
        self.first = self.last if self.ended <= self.workers else self.first
        if self.ended == self.trials // 2:
            self.workers_mb = sum(child.memory_full_info().pss for child in psutil.Process().children(recursive=True)) / 1e6


def tune_null(workers: int, trials: int, seconds: float, epochs: int) -> dict[str, Any]:
    """One run, on as many CPUs as there are to be workers."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
    ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    listen = Listen(workers, trials)
    space = {"learning_rate": tune.loguniform(1e-4, 1e-1), "dropout": tune.uniform(0, 0.5), "frozen_layers": tune.randint(0, 7)}
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={**space, "seconds": seconds, "epochs": epochs},
            tune_config=tune.TuneConfig(metric="val_loss", mode="min", num_samples=trials, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[listen]),
        )
        before = time.process_time()
        tuner.fit()
        spent = time.process_time() - before
    memory = psutil.Process().memory_info().rss / 1e6
    ray.shutdown()
    busy, idle = (sum(sums) for sums in zip(*listen.clocks.values(), strict=True))
    share = busy / (busy + idle)
    rate = share * workers / (seconds * epochs) if seconds else (trials - workers) / (listen.last - listen.first)
    return {
        "trials": trials,
        "busy": share,
        "hourly": 3600 * rate,
        "all_ms": 1e3 * spent / trials,
        "memory_mb": {trials: memory},
        "workers_mb": listen.workers_mb,
    }
