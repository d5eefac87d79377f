"""What the loop itself costs a trial: a kernel that returns at once, ten reports a trial, storage on.

"Critical path" is the time in ask, report, tell and the handing over: what a free worker waits for. The storage is
written behind; "behind" is what it still had to write when the last trial had ended. Then, with MLflow: the same trials by
Optuna's own loop on SQLite, and by that loop with MLflow's calls one by one, as examples have it.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.common import brief, save
from hpsearch.executors.inline import InlineExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.orchestrator import Orchestrator
from hpsearch.protocols import Session, Tracker
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import load_spec
from hpsearch.tracking import MlflowTracker, create_store
from hpsearch.types import Event, Facts, Job, Outcome, Progress, Status, StudyEnded

EPOCHS = 10
METRICS = dict.fromkeys(("accuracy", "balanced_accuracy", "precision", "recall", "f1", "top5", "learning_rate"), 0.5)


class NullKernel:
    """Ten reports and an outcome, at once."""

    def facts(self) -> Facts:
        return Facts({})

    def session(self, job: Job) -> Session:
        (trial,) = job.trials
        for epoch in range(1, EPOCHS + 1):
            loss = 1 / epoch + float(str(trial.params["learning_rate"]))
            yield (Progress(trial.number, epoch, EPOCHS, loss, loss, METRICS, 0.0),)
        yield (Outcome(trial.number, Status.COMPLETE, loss, EPOCHS, 0.0, METRICS, trial.params),)

    def worn(self) -> str:
        return ""


def make(config: object) -> NullKernel:
    del config
    return NullKernel()


class Ends:
    """Remembers when trials ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def record(self, event: Event) -> None:
        if type(event).__name__ in ("TrialEnded", "StudyStarted"):
            self.times.append(time.perf_counter())

    def close(self) -> None:
        pass


def run(trials: int = 300, repeats: int = 3) -> None:
    print(f"orchestration cost per trial, {EPOCHS} reports each, SQLite on, one worker; milliseconds")
    print(f"{'sampler':<8} {'first 50':>9} {'100-150':>9} {'200-250':>9} {'whole':>9} {'behind':>9}")
    result: dict[str, object] = {}
    for sampler in ("random", "tpe", "gp"):
        count = trials if sampler != "gp" else min(60, trials)
        with tempfile.TemporaryDirectory() as folder:
            costs, behind = ours(Path(folder), sampler, count, [])
        parts = [statistics.median(costs[a:b]) if len(costs) > a else float("nan") for a, b in ((0, 50), (100, 150), (200, 250))]
        whole = statistics.mean(costs)
        print(f"{sampler:<8} {parts[0]:>9.2f} {parts[1]:>9.2f} {parts[2]:>9.2f} {whole:>9.2f} {1e3 * behind:>9.2f}")
        result[sampler] = {"n": count, "median_ms": parts, "mean_ms": whole, "behind_ms": 1e3 * behind}
    result["against"] = against(min(100, trials), repeats)
    save("orchestration", result)


def ours(folder: Path, sampler: str, count: int, trackers: Sequence[Tracker]) -> tuple[list[float], float]:
    """Milliseconds of each trial, and seconds per trial that the storage was behind at the end."""
    spec = load_spec(None, ["pruner=none"], {"sampler": sampler, "trials": count, "name": "null"})
    searcher = OptunaSearcher(spec, open_storage(f"sqlite:///{folder}/hpsearch.db", create=True))
    ends = Ends()
    executor = InlineExecutor(KernelRef("benchmarks.orchestration:make", {}))
    Orchestrator(searcher, executor, [*trackers, ends], TrialFiles(folder), budget=count).run("null", spec.resolved())
    done = time.perf_counter()
    searcher.close()
    return [1e3 * (b - a) for a, b in pairwise(ends.times)], (time.perf_counter() - done) / count


# ---------------------------------------------------------------- against others


def against(count: int, repeats: int) -> dict[str, object]:
    """Milliseconds per trial, random sampling, in turns; a few trials suffice where each is slow."""
    arms = {
        "hpsearch, storage and MLflow": (mirrored, count),
        "Optuna, SQLite": (optuna_alone, count // 2),
        "by hand": (by_hand, count // 5),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    waits = []
    with tempfile.TemporaryDirectory() as place:
        create_store(f"sqlite:///{place}/empty.db")
        for _ in range(repeats):
            for name, (arm, n) in arms.items():
                with tempfile.TemporaryDirectory() as folder:
                    store = Path(folder) / "mlflow.db"
                    store.write_bytes(Path(place, "empty.db").read_bytes())
                    cost, waited = arm(Path(folder), n)
                    found[name].append(cost)
                    waits += [waited] if arm is mirrored else []
    print(f"\nthe same trials with others, {repeats} times in turns; ms of the critical path per trial: median (least to most)")
    for name, costs in found.items():
        ratios = [cost / own for cost, own in zip(costs, found["hpsearch, storage and MLflow"], strict=True)]
        print(f"{name:<30} {brief(costs, 1):>24}   {brief(ratios, 1)} times ours")
    print(f"seconds that the end of the study waits for MLflow, after {count} trials: {brief(waits, 1)}")
    return {"ms_per_trial": found, "wait_s": waits}


def mirrored(folder: Path, count: int) -> tuple[float, float]:
    """Everything on; the mirror has started, as it has when a study's first trial begins."""
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", folder)
    give_up = time.monotonic() + 60
    while not tracker.beats.value and time.monotonic() < give_up:
        time.sleep(0.05)
    costs, _ = ours(folder, "random", count, [tracker])
    tracker.record(StudyEnded("budget", None, None))
    begun = time.perf_counter()
    tracker.close(patience=None)
    assert not tracker.problem, tracker.problem
    return statistics.mean(costs), time.perf_counter() - begun


def suggested(trial: object) -> dict[str, float]:
    """Six hyperparameters, as the default space has."""
    suggest = getattr(trial, "suggest_float")  # noqa: B009
    return {name: suggest(name, 0.0, 1.0) for name in ("learning_rate", "weight_decay", "dropout", "batch_size", "epochs", "frozen_layers")}


def optuna_alone(folder: Path, count: int) -> tuple[float, float]:
    """Optuna's own loop: suggest, ten reports, a value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        rate = suggested(trial)["learning_rate"]
        for epoch in range(1, EPOCHS + 1):
            trial.report(1 / epoch + rate, epoch)
            trial.should_prune()
        return 1 / EPOCHS + rate

    study = optuna.create_study(
        storage=f"sqlite:///{folder}/optuna.db", sampler=optuna.samplers.RandomSampler(0), pruner=optuna.pruners.NopPruner()
    )
    begun = time.perf_counter()
    study.optimize(objective, n_trials=count)
    return 1e3 * (time.perf_counter() - begun) / count, 0.0


def by_hand(folder: Path, count: int) -> tuple[float, float]:
    """The same with a run per trial, its parameters, and each metric logged by a call."""
    import mlflow
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("by hand")

    def objective(trial: optuna.Trial) -> float:
        params = suggested(trial)
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(params)
            for epoch in range(1, EPOCHS + 1):
                loss = 1 / epoch + params["learning_rate"]
                for name, value in {"val_loss": loss, "train_loss": loss, **METRICS}.items():
                    mlflow.log_metric(name, value, step=epoch)
                trial.report(loss, epoch)
                trial.should_prune()
        return loss

    study = optuna.create_study(
        storage=f"sqlite:///{folder}/optuna.db", sampler=optuna.samplers.RandomSampler(0), pruner=optuna.pruners.NopPruner()
    )
    begun = time.perf_counter()
    study.optimize(objective, n_trials=count)
    return 1e3 * (time.perf_counter() - begun) / count, 0.0
