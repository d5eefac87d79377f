"""Kernels for tests: honest small things that keep the contract of `protocols.Kernel`, without torch."""

import json
import math
import os
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

from hpsearch.errors import FixInput
from hpsearch.keeping import state_path
from hpsearch.types import Facts, Outcome, Progress, Status

PARAMS = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 4, "weight_decay": 1e-2, "dropout": 0.1, "frozen_layers": 0}


def loss_at(params, epoch):
    """A validation loss with its optimum at learning rate 1e-2, dropout 0.2 and 3 frozen layers, falling with epochs."""
    distance = (math.log10(params["learning_rate"]) + 2) ** 2 + (params["dropout"] - 0.2) ** 2 + 0.05 * (params["frozen_layers"] - 3) ** 2
    return 0.2 + 0.3 * distance + 1.0 / epoch


class CurveKernel:
    """Tabulated learning curves, at once.

    `config` may hold `sleep` [s per epoch], `faults` {trial number: what goes wrong in its first attempt, "always ..." in every one},
    `folder` (a trial keeps its state there after every epoch), `states` (a folder; trials that are stopped can go on from there) and
    `ledger` (a file; what was trained is written there, whatever becomes of it).
    """

    def __init__(self, config):
        self.sleep = config.get("sleep", 0.0)
        self.folder = config.get("folder")
        self.states = Path(config["states"]) if config.get("states") else None
        self.faults = {int(k): v for k, v in config.get("faults", {}).items()}
        self.slots, self.wears = config.get("slots", 1), config.get("worn", "")
        self.ledger = config.get("ledger")
        self.keeping = False
        self.child = config.get("child")
        self.first = config.get("first", 0.0)  # seconds that the first epoch of trial 0 takes in its first attempt
        if config.get("broken"):
            raise FixInput(config["broken"])

    def facts(self):
        return Facts(
            {"model": "curves", "parameters": 6, "data": "none", "train_images": 1, "val_images": 1, "test_images": 1, "pid": os.getpid()}
            | {"visible": os.environ.get("CUDA_VISIBLE_DEVICES", "")},
            slots=self.slots,
        )

    def worn(self):
        return self.wears

    def keep(self):
        self.keeping = True

    def note(self, *words):
        """Tell the outside truth, on the disk before anything else happens."""
        if self.ledger:
            with open(self.ledger, "a") as file:
                file.write(json.dumps([*words, os.getpid(), time.time()]) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def session(self, job):
        for trial in job.trials:
            yield from self.train(trial)

    def train(self, trial):
        fault = self.faults.get(trial.number)
        if isinstance(fault, str):
            fault = fault.removeprefix("always ") if fault.startswith("always ") or trial.attempt == 1 else None
        best, begun, first, past = None, time.monotonic(), 1, []
        if trial.resume is not None:
            stored = json.loads(Path(trial.resume).read_text())
            if stored["key"] == [trial.study, trial.number, dict(trial.params)]:
                best, first, past = Progress(**stored["best"]), stored["epoch"] + 1, [Progress(**p) for p in stored["curve"]]
        if self.child:
            self.child = None
            self.note("child", subprocess.Popen(["sleep", "3600"]).pid)
        self.note("start", trial.number, trial.attempt, first, dict(trial.params))
        stop = frozenset()
        for now in past:
            stop |= yield (replace(now, again=now is not past[-1]),)
        for epoch in range(first, trial.params["epochs"] + 1):
            if trial.number in stop:
                break
            time.sleep(self.first if (trial.number, trial.attempt, epoch) == (0, 1, 1) and self.first else self.sleep)
            if fault == "raise":
                raise RuntimeError("no such tensor")
            if fault == "exit" and epoch == 2:
                os._exit(7)
            if fault == "kill" and epoch == 2:
                os.kill(os.getpid(), 9)
            if fault == "hang" and epoch == 2:
                time.sleep(3600)
            if fault == "silent":
                return
            loss = loss_at(trial.params, epoch)
            results = {"val_loss": loss, "train_loss": loss / 2, "accuracy": 1 / (1 + loss)}
            if isinstance(fault, dict) and epoch == 2:  # such as {"val_loss": -inf}
                results |= fault
            metrics, seconds = {"accuracy": results.pop("accuracy")}, time.monotonic() - begun
            now = Progress(trial.number, epoch, trial.params["epochs"], **results, metrics=metrics, seconds=seconds, at=time.time())
            best = now if best is None or not isinstance(best.val_loss, float) or loss < best.val_loss else best
            past.append(now)
            self.note("epoch", trial.number, trial.attempt, epoch, loss)
            if self.folder:
                self.save(trial, state_path(trial.folder or self.folder, trial.name), best, past)
            stop = yield (now,)
        full = now.epoch == now.epochs and trial.number not in stop
        status = Status.COMPLETE if full else Status.PRUNED
        state = None
        if not full and (self.states is not None or (self.keeping and self.folder)):
            state = state_path(trial.folder or self.folder or self.states, trial.name)
            self.save(trial, state, best, past)
            state = str(state)
        self.note("finish", trial.number, trial.attempt, status.value, best.val_loss)
        yield (Outcome(trial.number, status, best.val_loss, best.epoch, now.seconds, best.metrics, dict(trial.params), state=state),)

    def save(self, trial, path, best, past):
        """Keep a state, whole or not at all."""
        key = [trial.study, trial.number, dict(trial.params)]
        stored = {"key": key, "epoch": past[-1].epoch, "best": asdict(best), "curve": [asdict(p) for p in past]}
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(stored))
        os.replace(aside, path)


def curves(config):
    return CurveKernel(config)


def visible(config, say):
    """The device that a process sees."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
