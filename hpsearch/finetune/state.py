"""What a trial has come to, in a file: everything that its next epoch depends on, so that it goes on as if never stopped.

Random numbers are not among it: every epoch starts its own sequences, from seeds made of study, trial and epoch.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hpsearch.errors import FixSetup
from hpsearch.faults import crash_point
from hpsearch.finetune.blocks import FineTuneModel
from hpsearch.finetune.optim import Optimiser
from hpsearch.keeping import FULL
from hpsearch.types import Progress, Trial

STATE_SECONDS = 5.0  # of training that a trial may lose with its worker
STATE_SHARE = 50  # saving takes no more than this part of the time


@dataclass(frozen=True)
class Kept:
    """The best epoch so far, and the weights it had."""

    progress: Progress
    state: dict[str, Tensor]  # outside the frozen blocks
    confusion: Tensor


@dataclass
class Live:
    """A trial in training."""

    model: FineTuneModel
    frozen: int  # blocks
    optimiser: Optimiser
    epoch: int = 0  # finished
    step: int = 0  # finished
    largest: int = 0  # images in the largest batch so far
    seconds: float = 0.0  # of training before this session
    stale: int = 0  # epochs since the best one
    best: Kept | None = None
    curve: list[Progress] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes in training, by name (not copied): weights, buffers, moments, the best epoch's weights."""
        found = {f"net.{name}": t for name, t in self.model.trainable_state(self.frozen).items()}
        found |= {f"loose.{name}": self.model.net.get_buffer(name) for name in self.model.loose}
        found |= {f"optimiser.{name}": t for name, t in self.optimiser.state().items()}
        if self.best is not None:
            found |= {f"best.{name}": t for name, t in self.best.state.items()} | {"confusion": self.best.confusion}
        return found


class Keeper:
    """Keeps a trial's state in `path` as it trains: rarely enough to cost nothing, often enough to lose little."""

    def __init__(self, path: Path | None, key: str, seconds: float = STATE_SECONDS) -> None:
        self.path, self.key, self.seconds = path, key, seconds
        self.cost, self.last = 0.0, time.monotonic()

    def keep(self, live: Live) -> None:
        """Save the state if it is time to; a disk that is full, or gone, is no reason to stop training."""
        begun = time.monotonic()
        if self.path is not None and begun - self.last >= max(self.seconds, STATE_SHARE * self.cost):
            with suppress(OSError):
                save_state(live, self.path, self.key)
            self.last = time.monotonic()
            self.cost = self.last - begun


def key_of(trial: Trial) -> str:
    """What a state must belong to, to be the trial's."""
    return json.dumps([trial.study, trial.number, dict(trial.params)], sort_keys=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write safetensors aside and rename, so that a reader never sees half a file. OSError, also for a full disk."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it under the session
    try:
        save_file({name: t.cpu().contiguous().clone() for name, t in tensors.items()}, aside, metadata)
        crash_point("tensors-aside")
        os.replace(aside, path)
        crash_point("tensors-written")
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, SafetensorError) and any(os.strerror(number) in str(error) for number in FULL):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


def read_about(path: Path) -> dict[str, Any]:
    """What the kernel wrote into a checkpoint beside the weights; FixSetup when it is gone, or no checkpoint of hpsearch."""
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["hpsearch"])
        if missing := {"model", "classes", "preprocessing", "data_digest", "trial", "val_loss"} - set(about):
            raise KeyError(", ".join(sorted(missing)))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FixSetup(f"{path} is no checkpoint of hpsearch ({error}): bring back the file that the study wrote") from None
    return about


def save_state(live: Live, path: Path, key: str) -> None:
    """Write the trial's state; `key` says whose it is."""
    about: dict[str, Any] = {name: getattr(live, name) for name in ("epoch", "step", "largest", "seconds", "stale")}
    about["best"] = asdict(live.best.progress) if live.best is not None else None
    about |= {"key": key, "curve": [asdict(progress) for progress in live.curve]}
    save_tensors(live.tensors(), path, {"hpsearch": json.dumps(about)})


def load_state(live: Live, path: Path, key: str) -> bool:
    """Put a trial back to where `save_state` left it; it has been set up as for its first epoch.

    False, with nothing changed, when the file is gone, damaged, or of another trial.
    """
    expected = live.tensors()
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["hpsearch"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["key"] != key or any(stored[name].shape != tensor.shape for name, tensor in expected.items()):
            return False
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return False
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(stored[name])
    live.curve = [Progress(**progress) for progress in about["curve"]]
    for name in ("epoch", "step", "largest", "seconds", "stale"):
        setattr(live, name, about[name])
    if about["best"] is not None:
        device = next(live.model.parameters()).device
        state = {name.removeprefix("best."): t.to(device) for name, t in stored.items() if name.startswith("best.")}
        live.best = Kept(Progress(**about["best"]), state, stored["confusion"].to(device))
    return True
