"""How many workers one orchestrator keeps busy, and what a trial costs it as the history grows: a kernel that sleeps.

"Busy" is the share of the workers' time that went into epochs, from the beginning of each one's first to the end of its last.
"Cost" is processor time of the orchestrator's main thread, "all" that of its process, with the thread that writes the storage.
Real worker processes up to 256; ten thousand trials on simulated ones. Ray Tune trains the same epochs, its actors reused.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import installed, save, table
from benchmarks.sleeping import Simulated
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.orchestrator import Orchestrator
from hpsearch.protocols import Executor
from hpsearch.search.samplers import ASK_AHEAD
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import load_spec
from hpsearch.tracking import MlflowTracker, create_store
from hpsearch.types import EpochDone, Event, TrialEnded

EPOCHS = 10
LONG = (("random", "none"), ("random", "median"), ("tpe", "median"))  # sampler and pruner of long histories
WINDOW = 100  # trials that a cost is the mean of
POINTS = (100, 1_000, 2_000, 5_000, 10_000)  # trials at which it is told


class Meter:
    """Hears the loop, and keeps what it cost."""

    def __init__(self) -> None:
        self.cpu: list[float] = []  # of the main thread, at the end of each trial [s]
        self.epochs = 0
        self.clocks: dict[float, tuple[float, float]] = {}  # worker -> busy and idle, at its last epoch
        self.memory: dict[int, float] = {}  # trials -> MB of this process

    def record(self, event: Event) -> None:
        match event:
            case EpochDone(progress):
                self.epochs += 1
                self.clocks[progress.metrics["worker"]] = (progress.metrics["busy"], progress.metrics["idle"])
            case TrialEnded():
                self.cpu.append(time.thread_time())
                if len(self.cpu) in POINTS:
                    self.memory[len(self.cpu)] = megabytes(os.getpid())

    def close(self) -> None:
        pass

    def cost(self, trials: int) -> float:
        """Milliseconds a trial, over the WINDOW of them that ended up to that one."""
        first = max(0, trials - 1 - WINDOW)
        return 1e3 * (self.cpu[trials - 1] - self.cpu[first]) / max(1, trials - 1 - first)

    def busy(self) -> float:
        """Share of the workers' time."""
        busy, idle = (sum(sums) for sums in zip(*self.clocks.values(), strict=True))
        return busy / (busy + idle)


class Timed:
    """A call that is timed [ms]."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.took = call, list[float]()

    def __call__(self, *given: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.call(*given)
        finally:
            self.took.append(1e3 * (time.perf_counter() - began))


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    return psutil.Process(pid).memory_info().rss / 1e6


def study(
    folder: Path, executor: Executor, trials: int, sampler: str, pruner: str, tracker: MlflowTracker | None = None, keep: bool = False
) -> dict[str, Any]:
    """What one study cost, and how far its storage was behind at its end. `keep`: workers leave results in the folder."""
    spec = load_spec(None, [f"pruner={pruner}"], {"sampler": sampler, "trials": trials, "name": "null"})
    searcher = OptunaSearcher(spec, open_storage(f"sqlite:///{folder}/hpsearch.db", create=True), folder=folder if keep else None)
    ask = Timed(searcher.ask)
    searcher.ask = ask  # type: ignore[method-assign]
    meter = Meter()
    loop = Orchestrator(searcher, executor, [meter, *([tracker] if tracker else [])], budget=trials, ahead=ASK_AHEAD.get(sampler, 0))
    before = time.process_time()
    loop.run("null", spec.resolved())
    spent, ended, queued = time.process_time() - before, time.perf_counter(), searcher.writer.waiting.qsize()
    pids = [seat.process.pid or 0 for seat in getattr(executor, "seats", ())]
    pss = sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 1e6  # what they share counted once
    unmirrored = tracker.behind if tracker else 0
    searcher.close()
    late = ask.took[-max(1, len(ask.took) // 10) :]
    return {
        "trials": trials,
        "messages": meter.epochs + trials,
        "busy": meter.busy(),
        "cost_ms": {n: meter.cost(n) for n in sorted({*(n for n in POINTS if n < trials), trials})},
        "all_ms": 1e3 * spent / trials,
        "ask_ms": statistics.median(late),
        "ask_p99_ms": sorted(late)[int(0.99 * len(late))],
        "queued": queued,
        "drain_s": time.perf_counter() - ended,
        "memory_mb": {**meter.memory, trials: megabytes(os.getpid())},
        "workers_mb": pss,
        "unmirrored": unmirrored,
        "storage_mb": (folder / "hpsearch.db").stat().st_size / 1e6,
    }


# ---------------------------------------------------------------- arms, each in a process of its own


def forked(workers: int, trials: int, sampler: str, pruner: str, seconds: float, mlflow: bool) -> dict[str, Any]:
    """Real worker processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        executor = ProcessExecutor(None, workers, preload=("hpsearch.executors.preload", "benchmarks.sleeping"))
        executor.ref = KernelRef("benchmarks.sleeping:make", {"seconds": seconds, "epochs": EPOCHS, "folder": name})
        tracker = mirror(folder) if mlflow else None
        try:
            return study(folder, executor, trials, sampler, pruner, tracker, keep=True)
        finally:
            executor.close()
            if tracker:
                tracker.abandon()


def simulated(workers: int, trials: int, sampler: str, pruner: str, seconds: float, mlflow: bool) -> dict[str, Any]:
    """Workers that are due times."""
    with tempfile.TemporaryDirectory() as name:
        tracker = mirror(Path(name)) if mlflow else None
        try:
            return study(Path(name), Simulated(workers, seconds, EPOCHS, pruner == "halving"), trials, sampler, pruner, tracker)
        finally:
            if tracker:
                tracker.abandon()


def mirror(folder: Path) -> MlflowTracker:
    """MLflow's process, ready."""
    create_store(f"sqlite:///{folder}/mlflow.db")
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", folder)
    give_up = time.monotonic() + 60
    while not tracker.process.is_alive() and time.monotonic() < give_up:
        time.sleep(0.05)
    return tracker


def ray_tune(workers: int, trials: int, sampler: str, pruner: str, seconds: float, mlflow: bool) -> dict[str, Any]:
    """Ray Tune: random search, no scheduler, one CPU an actor."""
    del sampler, pruner, mlflow
    import ray
    from ray import tune

    from benchmarks.ray_sleep import Listen, train

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    listen = Listen()
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={"learning_rate": tune.loguniform(1e-4, 1e-1), "dropout": tune.uniform(0, 0.5), "seconds": seconds, "epochs": EPOCHS},
            tune_config=tune.TuneConfig(metric="val_loss", mode="min", num_samples=trials, reuse_actors=True, max_concurrent_trials=workers),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[listen]),
        )
        before = time.process_time()
        tuner.fit()
        spent = time.process_time() - before
    memory = megabytes(os.getpid())
    ray.shutdown()
    return {"trials": trials, "busy": listen.busy(), "all_ms": 1e3 * spent / trials, "memory_mb": {trials: memory}}


ARMS = {"processes": forked, "simulated": simulated, "ray": ray_tune}


def plan(workers: list[int], trials: int) -> list[tuple[str, int, int, str, str, float, bool]]:
    """Which arms: kind, workers, trials, sampler, pruner, seconds of an epoch, MLflow."""
    return []


def run(workers: str = "1,4,16,64,256", trials: int = 10_000, only: str = "processes,simulated,ray") -> None:
    counts = [int(n) for n in workers.split(",")]
