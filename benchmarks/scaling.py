"""How many workers one orchestrator keeps busy, and what a trial costs it as the history grows: a kernel that sleeps.

"Busy" is the share of the workers' time that went into epochs, from the beginning of each one's first to the end of its last, and
trials an hour are what that share comes to. "Cost" is processor time of the orchestrator's main thread, "all" that of its process,
with the thread that writes the storage. Real worker processes up to 256; ten thousand trials on simulated ones (`sleeping`).
Ray Tune trains the same epochs, its actors reused; "all" is its driver, without raylet and GCS.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import installed, save, table
from benchmarks.sleeping import Simulated
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.orchestrator import Orchestrator
from hpsearch.protocols import Executor
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.samplers import ask_ahead
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import load_spec
from hpsearch.tracking import MlflowTracker, create_store
from hpsearch.types import EpochDone, Event, TrialEnded

EPOCHS = 10
WINDOW = 100  # trials that a cost is the mean of; two rounds of all workers, where that is more
POINTS = (100, 1_000, 2_000, 5_000, 10_000)  # trials at which it is told


class Meter:
    """Hears the loop, and keeps what it cost."""

    def __init__(self, workers: int) -> None:
        self.window = max(WINDOW, 2 * workers)
        self.cpu: list[float] = []  # of the main thread, at the end of each trial [s]
        self.epochs = 0
        self.clocks: dict[float, tuple[float, float]] = {}  # worker -> busy and idle, at its last epoch
        self.memory: dict[int, float] = {}  # trials -> MB of this process
        self.workers, self.first, self.last = workers, 0.0, 0.0  # when as many trials as workers had ended, and when the last one

    def record(self, event: Event) -> None:
        match event:
            case EpochDone(progress):
                self.epochs += 1
                self.clocks[progress.metrics["worker"]] = (progress.metrics["busy"], progress.metrics["idle"])
            case TrialEnded():
                self.cpu.append(time.thread_time())
                self.last = time.perf_counter()
                self.first = self.last if len(self.cpu) <= self.workers else self.first
                if len(self.cpu) in POINTS:
                    self.memory[len(self.cpu)] = megabytes(os.getpid())

    def close(self) -> None:
        pass

    def cost(self, trials: int) -> float:
        """Milliseconds a trial, over the window of trials around that one."""
        first = max(0, trials - self.window // 2)
        last = min(len(self.cpu) - 1, first + self.window)
        return 1e3 * (self.cpu[last] - self.cpu[first]) / max(1, last - first)

    def rate(self) -> float:
        """Trials a second, once every worker has begun."""
        return (len(self.cpu) - self.workers) / max(1e-9, self.last - self.first)

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
    folder: Path,
    executor: Executor,
    trials: int,
    sampler: str,
    pruner: str,
    seconds: float,
    tracker: MlflowTracker | None,
    keep: bool = False,
) -> dict[str, Any]:
    """What one study cost, and how far its storage was behind at its end. `keep`: workers leave results in the folder."""
    spec = load_spec(None, [f"pruner={pruner}"], {"sampler": sampler, "trials": trials, "name": "null"})
    searcher = OptunaSearcher(spec, open_storage(f"sqlite:///{folder}/hpsearch.db", create=True), folder=folder if keep else None)
    ask = Timed(searcher.ask)
    searcher.ask = ask  # type: ignore[method-assign]
    meter = Meter(executor.workers)
    loop = Orchestrator(
        searcher,
        executor,
        [meter, *([tracker] if tracker else [])],
        TrialFiles(folder),
        budget=trials,
        ahead=ask_ahead(sampler, executor.workers),
    )
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
        "busy": (busy := meter.busy()),
        "hourly": 3600 * (trials * busy * executor.workers / (seconds * meter.epochs) if seconds else meter.rate()),
        "cost_ms": {n: meter.cost(n) for n in POINTS if n < trials} | {trials: meter.cost(trials - executor.workers - meter.window // 2)},
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


def processes(workers: int, trials: int, sampler: str, pruner: str, seconds: float, mlflow: bool) -> dict[str, Any]:
    """Real worker processes, which leave results in a folder."""
    with tempfile.TemporaryDirectory() as name:
        executor = ProcessExecutor(None, workers, preload=("hpsearch.executors.preload", "benchmarks.sleeping"))
        executor.ref = KernelRef("benchmarks.sleeping:make", {"seconds": seconds, "epochs": EPOCHS, "folder": name})
        tracker = mirror(Path(name)) if mlflow else None
        try:
            return study(Path(name), executor, trials, sampler, pruner, seconds, tracker, keep=True)
        finally:
            executor.close()
            if tracker:
                tracker.abandon()


def simulated(workers: int, trials: int, sampler: str, pruner: str, seconds: float, mlflow: bool) -> dict[str, Any]:
    """Workers that are due times."""
    with tempfile.TemporaryDirectory() as name:
        tracker = mirror(Path(name)) if mlflow else None
        try:
            return study(Path(name), Simulated(workers, seconds, EPOCHS, pruner == "halving"), trials, sampler, pruner, seconds, tracker)
        finally:
            if tracker:
                tracker.abandon()


def mirror(folder: Path) -> MlflowTracker:
    """MLflow's process, on a store that is there."""
    create_store(f"sqlite:///{folder}/mlflow.db")
    return MlflowTracker(f"sqlite:///{folder}/mlflow.db", folder)


def ray(workers: int, trials: int, sampler: str, pruner: str, seconds: float, mlflow: bool) -> dict[str, Any]:
    """Ray Tune on the same epochs; it draws at random and stops nothing."""
    from benchmarks.ray_sleep import tune_null

    del sampler, pruner, mlflow
    return tune_null(workers, trials, seconds, EPOCHS)


Arm = tuple[str, int, int, str, str, float, bool]  # kind, workers, trials, sampler, pruner, seconds of an epoch, MLflow


def plan(counts: list[int], trials: int, only: list[str]) -> list[Arm]:
    """What is run, one after the other."""
    most, few = counts[-1], min(16, counts[-1])
    arms: list[Arm] = [("processes", n, 2 * n, "random", "none", 1.0, False) for n in counts]
    arms += [("processes", most, rounds * most, "tpe", "median", 1.0, mlflow) for rounds, mlflow in ((6, False), (3, True))]
    arms += [("processes", few, 50 * few, "random", "none", 0.0, False)]
    arms += [("simulated", most, trials, "random", pruner, 1.0, False) for pruner in ("none", "median", "halving")]
    arms += [("simulated", most, trials, "tpe", "median", 1.0, False), ("simulated", few, trials // 4, "tpe", "none", 1.0, False)]
    arms += [("simulated", few, min(100, trials), "gp", "none", 1.0, False)]
    if installed("ray"):
        arms += [("ray", n, 2 * n, "random", "none", 1.0, False) for n in sorted({few, min(64, most)})]
        arms += [("ray", few, 10 * few, "random", "none", 0.0, False)]
    return [arm for arm in arms if arm[0] in only]


HEAD = [
    "arm",
    "workers",
    "trials",
    "busy %",
    "trials/h",
    "cost ms at 100",
    "at the end",
    "all ms",
    "ask ms (p99)",
    "queued",
    "MB",
    "workers MB",
]


def row(arm: Arm, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    kind, workers, trials, sampler, pruner, seconds, mlflow = arm
    costs = list(found.get("cost_ms", {}).values())
    return [
        f"{kind}, {sampler}, {pruner}{', MLflow' * mlflow}, {seconds:g} s",
        str(workers),
        str(trials),
        f"{100 * found['busy']:.1f}" if seconds else "-",
        f"{found['hourly']:,.0f}",
        f"{costs[0]:.2f}" if costs else "-",
        f"{costs[-1]:.2f}" if costs else "-",
        f"{found['all_ms']:.2f}",
        f"{found['ask_ms']:.2f} ({found['ask_p99_ms']:.1f})" if costs else "-",
        str(found.get("queued", "-")) + (f"; MLflow {found['unmirrored']:,}" if mlflow else ""),
        f"{found['memory_mb'][str(trials)]:.0f}",
        f"{found['workers_mb']:.0f}",
    ]


def run(workers: str = "1,4,16,64,256", trials: int = 10_000, only: str = "processes,simulated,ray") -> None:
    """Every arm in a process of its own."""
    counts = sorted(int(n) for n in workers.split(","))
    rows, results = [], []
    for arm in plan(counts, trials, only.split(",")):
        found = apart(arm)
        results.append({"arm": arm, **found})
        rows.append(row(arm, found))
        print("  ".join(rows[-1]), flush=True)
    print("\n" + table(HEAD, rows))
    save("scaling", {"epochs": EPOCHS, "arms": results})


def apart(arm: Arm) -> dict[str, Any]:
    """One arm in a fresh process, which workers are not forked from."""
    call = "import json, sys; from benchmarks import scaling; arm = json.loads(sys.argv[1]); "
    call += "json.dump(getattr(scaling, arm[0])(*arm[1:]), open(sys.argv[2], 'w'))"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", call, json.dumps(arm), str(out)], env=environment, check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found
