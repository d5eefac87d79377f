"""Training that costs nothing: a kernel that sleeps, and workers that are only due times. What is left is the orchestration."""

import heapq
import math
import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hpsearch.protocols import Message, Session
from hpsearch.types import Facts, Job, Outcome, Params, Progress, Status

SHARES = dict.fromkeys(("balanced_accuracy", "precision", "recall", "f1", "top5", "learning_rate"), 0.5)


def loss_at(params: Params, epoch: int) -> float:
    """A validation loss that falls with the epochs, least at learning rate 1e-2, dropout 0.2 and 3 frozen layers."""
    rate, dropout, frozen = (float(str(params[key])) for key in ("learning_rate", "dropout", "frozen_layers"))
    return 0.2 + 0.3 * (math.log10(rate) + 2) ** 2 + (dropout - 0.2) ** 2 + 0.05 * (frozen - 3) ** 2 + 1.0 / epoch


def progress(number: int, params: Params, epoch: int, epochs: int, metrics: Mapping[str, float]) -> Progress:
    """An epoch's report, of the size that real ones have."""
    loss = loss_at(params, epoch)
    return Progress(number, epoch, epochs, loss, loss, {"accuracy": 1 / (1 + loss), **SHARES, **metrics}, 0.0, 1000.0, time.time())


def outcome(last: Progress, params: Params, status: Status) -> Outcome:
    """The end of a trial."""
    return Outcome(last.trial, status, last.val_loss, last.epoch, 0.0, last.metrics, params)


@dataclass
class Clock:
    """What a worker did with its time since its first epoch began [s]: `busy` is the epochs as they were meant, all else is `idle`."""

    worker: int
    busy: float = 0.0
    idle: float = 0.0
    last: float | None = None  # when its last epoch ended

    def epoch(self, began: float, ended: float, seconds: float) -> dict[str, float]:
        """Count an epoch; whose, and both sums, as metrics."""
        self.idle += began - (began if self.last is None else self.last) + max(0.0, ended - began - seconds)
        self.busy += seconds
        self.last = ended
        return {"worker": self.worker, "busy": self.busy, "idle": self.idle}


class SleepKernel:
    """`epochs` of `seconds` each."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.seconds, self.epochs = float(config["seconds"]), int(config["epochs"])
        self.clock = Clock(os.getpid())

    def facts(self) -> Facts:
        return Facts({})

    def session(self, job: Job) -> Session:
        (trial,) = job.trials
        for epoch in range(1, self.epochs + 1):
            began = time.monotonic()
            time.sleep(self.seconds)
            found = progress(trial.number, trial.params, epoch, self.epochs, self.clock.epoch(began, time.monotonic(), self.seconds))
            stopped = yield (found,)
            if trial.number in stopped:
                yield (outcome(found, trial.params, Status.PRUNED if epoch < self.epochs else Status.COMPLETE),)
                return
        yield (outcome(found, trial.params, Status.COMPLETE),)

    def keep(self) -> None:
        pass

    def worn(self) -> str:
        return ""


def make(config: Mapping[str, Any]) -> SleepKernel:
    return SleepKernel(config)


@dataclass
class Course:
    """A trial on a simulated worker."""

    worker: int
    job: Job
    epoch: int = 0
    began: float = 0.0
    over: Outcome | None = None
    last: Progress | None = None


@dataclass
class Simulated:
    """Workers that are due times on a heap, in the orchestrator's process. Messages are pickled, as a pipe would do it.

    While nothing is due, time jumps, so that ten thousand trials take as long as the orchestrator is busy with them: what a
    worker waits for is true, but nothing behind the loop (the storage's thread, MLflow's process) is given time to catch up.
    """

    workers: int
    seconds: float
    epochs: int
    states: bool  # trials that are stopped can go on
    skipped: float = 0.0
    heap: list[tuple[float, int]] = field(default_factory=list)  # when a job has something to say
    jobs: dict[int, Course] = field(default_factory=dict)

    def now(self) -> float:
        return time.perf_counter() + self.skipped

    def start(self) -> None:
        self.clocks = [Clock(worker) for worker in range(self.workers)]
        self.idle = list(range(self.workers))
        self.unsaid = [Message(worker, None, facts=Facts({})) for worker in self.idle]

    def free(self, alone: bool = False) -> int:
        del alone
        return len(self.idle)

    def submit(self, job: Job) -> None:
        (trial,) = job.trials
        done = int(trial.resume or 0)  # it goes on from there
        self.jobs[job.id] = Course(self.idle.pop(), job, done)
        self.go_on(job.id)

    def go_on(self, job: int) -> None:
        self.jobs[job].began = self.now()
        heapq.heappush(self.heap, (self.jobs[job].began + self.seconds, job))

    def poll(self, timeout: float) -> list[Message]:
        out, self.unsaid = self.unsaid, []
        wait = min(self.heap[0][0] - self.now() if self.heap else timeout, timeout)
        if wait > 0 and not out:
            self.skipped += wait
        now = self.now()
        while self.heap and self.heap[0][0] <= now:
            out.append(pickle.loads(pickle.dumps(self.message(*heapq.heappop(self.heap)))))
        return out

    def message(self, due: float, job: int) -> Message:
        course = self.jobs[job]
        if course.over is not None:
            self.idle.append(course.worker)
            del self.jobs[job]
            return Message(course.worker, job, step=(course.over,), done=True)
        (trial,) = course.job.trials
        course.epoch += 1
        sums = self.clocks[course.worker].epoch(course.began, due, self.seconds)
        course.last = progress(trial.number, trial.params, course.epoch, self.epochs, sums)
        return Message(course.worker, job, step=(course.last,))

    def answer(self, job: int, stop: frozenset[int]) -> None:
        course = self.jobs[job]
        (trial,) = course.job.trials
        if trial.number not in stop and course.epoch < self.epochs:
            self.go_on(job)
            return
        assert course.last is not None
        cut = course.epoch < self.epochs
        course.over = outcome(course.last, trial.params, Status.PRUNED if cut else Status.COMPLETE)
        if cut and self.states:
            course.over = replace(course.over, state=str(course.epoch))
        heapq.heappush(self.heap, (self.now(), job))

    def keep(self) -> None:
        pass

    def close(self) -> None:
        pass
