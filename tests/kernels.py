"""Kernels for tests: honest small things that keep the contract of `protocols.Kernel`, without torch."""

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

from hpsearch.errors import FixInput
from hpsearch.types import Facts, Outcome, Progress, Status

PARAMS = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 4, "weight_decay": 1e-2, "dropout": 0.1, "frozen_layers": 0}


def loss_at(params, epoch):
    """A validation loss with its optimum at learning rate 1e-2, dropout 0.2 and 3 frozen layers, falling with epochs."""
    distance = (math.log10(params["learning_rate"]) + 2) ** 2 + (params["dropout"] - 0.2) ** 2 + 0.05 * (params["frozen_layers"] - 3) ** 2
    return 0.2 + 0.3 * distance + 1.0 / epoch


class CurveKernel:
    """Tabulated learning curves, at once; `config` may hold `sleep` [s per epoch] and `fault` {trial number: what goes wrong}."""

    def __init__(self, config):
        self.sleep = config.get("sleep", 0.0)
        self.states = Path(config["states"]) if config.get("states") else None  # folder; trials that are stopped can go on
        self.faults = {int(k): v for k, v in config.get("faults", {}).items()}
        self.slots, self.wears = config.get("slots", 1), config.get("worn", "")
        if config.get("broken"):
            raise FixInput(config["broken"])

    def facts(self):
        return Facts(
            {"model": "curves", "parameters": 6, "data": "none", "train_images": 1, "val_images": 1, "test_images": 1, "pid": os.getpid()},
            slots=self.slots,
        )

    def worn(self):
        return self.wears

    def session(self, job):
        for trial in job.trials:
            yield from self.train(trial)

    def train(self, trial):
        fault = self.faults.get(trial.number) if trial.attempt == 1 else None
        best, begun, first = None, time.monotonic(), 1
        if trial.resume is not None:
            stored = json.loads(Path(trial.resume).read_text())
            assert stored["trial"] == trial.number
            best, first = Progress(**stored["best"]), stored["epoch"] + 1
        for epoch in range(first, trial.params["epochs"] + 1):
            time.sleep(self.sleep)
            if fault == "raise":
                raise RuntimeError("no such tensor")
            if fault == "exit" and epoch == 2:
                os._exit(7)
            if fault == "kill" and epoch == 2:
                os.kill(os.getpid(), 9)
            if fault == "hang":
                time.sleep(3600)
            if fault == "silent":
                return
            loss = loss_at(trial.params, epoch)
            results = {"val_loss": loss, "train_loss": loss / 2, "accuracy": 1 / (1 + loss)}
            if isinstance(fault, dict) and epoch == 2:  # such as {"val_loss": -inf}
                results |= fault
            accuracy = {"accuracy": results.pop("accuracy")}
            now = Progress(trial.number, epoch, trial.params["epochs"], **results, metrics=accuracy, seconds=time.monotonic() - begun)
            best = now if best is None or not isinstance(best.val_loss, float) or loss < best.val_loss else best
            stop = yield (now,)
            if trial.number in stop:
                break
        full = now.epoch == now.epochs and trial.number not in stop
        status = Status.COMPLETE if full else Status.PRUNED
        state = None
        if not full and self.states is not None:
            state = str(self.states / f"trial-{trial.number}-{now.epoch}.state")
            Path(state).write_text(json.dumps({"trial": trial.number, "epoch": now.epoch, "best": asdict(best)}))
        yield (Outcome(trial.number, status, best.val_loss, best.epoch, now.seconds, best.metrics, dict(trial.params), state=state),)


def curves(config):
    return CurveKernel(config)
