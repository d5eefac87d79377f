"""hpsearch: its kernel alone as a ladder, and everything."""

import math
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.curve import Curve
from hpsearch.spec import parse_spec
from hpsearch.types import EpochDone, Event, Job, Outcome, Progress, Status, Trial, TrialEnded, TrialStarted

RUNGS: dict[str, dict[str, Any]] = {  # settings of the kernel
    "plain": {"graphs": False, "trials_per_device": 1, "memory": 1},  # a byte: nothing is kept
    "graphs": {"graphs": True, "trials_per_device": 1, "memory": 1},
    "slots": {"graphs": True, "trials_per_device": "auto", "memory": 1},
    "features": {"graphs": True, "trials_per_device": "auto", "memory": None},
}
CPU_RUNGS = ("plain", "features")  # no graphs there, and one slot


def rung(name: str, task: dict[str, Any]) -> dict[str, Any]:
    """The kernel alone, in one process."""
    from hpsearch.finetune.kernel import FineTuneKernel

    spec = parse_spec(task["study"] | {"threads": task["threads"], "pruner": "none"}).bound(task["blocks"])
    kernel = FineTuneKernel(spec.resolved() | {"device": "auto", "folder": "", "index": task["index"], **RUNGS[name]})
    kernel.resident()
    begun = time.monotonic()
    each, best, final, errors = by_turns(kernel, task["trials"], getattr(kernel, "slots", 1))
    return {"seconds": time.monotonic() - begun, "each": each, "best": best, "final": final, "errors": errors}


def by_turns(kernel: Any, trials: list[dict[str, Any]], slots: int) -> tuple[list[float], list[float], list[float], list[str]]:
    """Trials with `slots` of them alive: the seconds of each one's turns, best and final validation losses, what failed.

    A session that yields an empty step has started work, and it is the next one's turn.
    """
    each, best, final = ([initial] * len(trials) for initial in (0.0, math.nan, math.nan))
    errors: list[str] = []
    waiting, live = deque(enumerate(trials)), deque()
    while waiting or live:
        while waiting and len(live) < slots:
            number, params = waiting.popleft()
            live.append((number, kernel.session(Job(number, (Trial(number, params),)))))
        number, session = live.popleft()
        begun = time.monotonic()
        step = next(session, None)
        each[number] += time.monotonic() - begun
        if step is not None:
            live.append((number, session))
        for item in step or ():
            if isinstance(item, Progress):
                final[number] = item.val_loss
            elif isinstance(item, Outcome) and item.status is Status.COMPLETE and item.val_loss is not None:
                best[number] = item.val_loss
            elif isinstance(item, Outcome):
                errors.append(str(item.error))
    return each, best, final, errors


class Clock:
    """From the first trial's start to the last trial's end."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def record(self, event: Event) -> None:
        """Look at the clock."""
        if isinstance(event, TrialStarted):
            self.first = self.first or time.monotonic()
        elif isinstance(event, TrialEnded):
            self.last = time.monotonic()

    def close(self) -> None:
        """Nothing to finish."""


def hpsearch(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Everything over the replayed list: all workers, storage, MLflow, report."""
    from hpsearch import actions, places
    from hpsearch.search.searcher import OptunaSearcher

    trials = task["trials"]
    OptunaSearcher.planned = lambda _: (Trial(n, params) for n, params in enumerate(trials))  # type: ignore[method-assign]
    watch(folder)
    settings = {"name": "list", "pruner": "none", "sampler": "random", "trials": len(trials), "threads": task["threads"]}
    clock, where = Clock(), places.place(folder)
    actions.run(parse_spec(task["study"] | settings), where, [clock])
    records = places.show(where, "list").records
    return {
        "seconds": clock.last - clock.first,
        "each": [r.seconds for r in records],
        "best": [math.nan if r.val_loss is None else r.val_loss for r in records],
        "final": [r.curve[-1]["val_loss"] if r.curve else math.nan for r in records],
        "errors": [r.error for r in records if r.error],
        "device_mb": watched(folder),
    }


class Over(Exception):
    """Time is up."""


class Listener:
    """Keeps the curve of a study, and ends it."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve

    def record(self, event: Event) -> None:
        """Take note; raises Over when time is up."""
        if isinstance(event, TrialStarted):
            self.curve.start(event.trial.number, dict(event.trial.params))
        elif isinstance(event, EpochDone) and self.curve.epoch(event.progress.trial, event.progress.val_loss):
            raise Over
        elif isinstance(event, TrialEnded) and event.record.status is Status.COMPLETE:
            self.curve.end(event.record.number)

    def close(self) -> None:
        """Nothing to finish."""


def search(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """A study within a wall, everything on, with the task's pruner."""
    from hpsearch import actions, places

    curve = Curve(task["wall"], task.get("epoch_seconds"))
    settings = {"name": "search", "pruner": task["pruner"], "sampler": "tpe", "trials": 100_000, "threads": task["threads"]}
    with suppress(Over):
        actions.run(parse_spec(task["study"] | settings), places.place(folder), [Listener(curve)])
    return curve.result()


# ---------------------------------------------------------------- memory of workers on a GPU

WATCHED = "BENCHMARKS_WATCHED"


def watch(folder: Path) -> None:
    """Have workers note what they allocate on a GPU."""
    from hpsearch import startup

    os.environ[WATCHED] = str(folder)
    startup.KERNEL = "benchmarks.ours:watched_kernel"


def watched_kernel(config: Mapping[str, Any]) -> Any:
    """The kernel, which leaves the most that was ever allocated in a file after each trial."""
    import torch

    from hpsearch.finetune.family import make

    kernel = make(config)
    session = kernel.session

    def noting(job: Job) -> Any:
        yield from session(job)
        if torch.cuda.is_available():
            Path(os.environ[WATCHED], f"device-{os.getpid()}").write_text(str(torch.cuda.max_memory_allocated() >> 20))

    kernel.session = noting
    return kernel


def watched(folder: Path) -> int:
    """MB allocated on the GPU by all workers, each at its peak."""
    return sum(int(file.read_text()) for file in folder.glob("device-*"))
