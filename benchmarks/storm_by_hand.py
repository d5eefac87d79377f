"""The storm of tests/storm.py over Optuna and MLflow wired by hand, as their documentation has it: what is left of 60 grid points.

python -m benchmarks.storm_by_hand [--seed S] [--kills N]. Workers are processes that call `optimize` on one SQLite file with Optuna's
heartbeat and retry callback; each trial is an MLflow run; a worker that was killed is started again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

WORKERS, POINTS, EPOCHS, EPOCH = 2, 60, 5, 0.15

WORKER = """
import sys, time, warnings
warnings.simplefilter("ignore")
import mlflow, optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
optuna.logging.set_verbosity(optuna.logging.ERROR)
place, points, epochs, epoch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
mlflow.set_experiment("s")
retry = RetryHeartbeatStaleTrialCallback(max_retry=10)
storage = RDBStorage(f"sqlite:///{place}/study.db", heartbeat_interval=1, grace_period=3, heartbeat_stale_trial_callback=retry)
space = {"x": list(range(points // 10)), "y": list(range(10))}
study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.GridSampler(space), load_if_exists=True)

def objective(trial):
    x, y = (trial.suggest_categorical(name, space[name]) for name in "xy")
    with mlflow.start_run(run_name=f"trial-{trial.number}", tags={"trial": str(trial.number)}):
        mlflow.log_params(trial.params)
        for step in range(epochs):
            time.sleep(epoch)
            value = x + y / 10 + 1 / (1 + step)
            trial.report(value, step)
            mlflow.log_metric("value", value, step=step)
            with open(f"{place}/ledger", "a") as file:
                print(trial.number, step, file=file)
    return value

study.optimize(objective)
"""


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=40)
    asked = parser.parse_args()
    rng, begun = random.Random(asked.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", WORKER, folder, str(POINTS), str(EPOCHS), str(EPOCH)]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        workers, kills, ended = [start() for _ in range(WORKERS)], 0, 0
        limit = time.monotonic() + 900
        while any(worker.poll() is None for worker in workers) and time.monotonic() < limit:
            time.sleep(rng.uniform(0.1, 1.4))
            if rng.random() < 0.7:  # as the storm over hpsearch: else starts would be hit, and little else
                calm, patience = trained(Path(folder)), time.monotonic() + 20
                while trained(Path(folder)) == calm and time.monotonic() < patience and any(worker.poll() is None for worker in workers):
                    time.sleep(0.02)
            live = [worker for worker in workers if worker.poll() is None]
            if kills < asked.kills and live:
                victim = rng.choice(live)
                os.kill(victim.pid, signal.SIGKILL)
                victim.wait()
                kills += 1
                workers[workers.index(victim)] = start()
            for i, worker in enumerate(workers):  # it died by itself, of a locked file or the like: started again too
                if worker.poll() not in (None, 0) and time.monotonic() < limit:
                    ended += 1
                    workers[i] = start()
        found, wall = counted(Path(folder)), time.monotonic() - begun
        print(f"by hand: seed={asked.seed} points={POINTS} kills={kills} {found} errors={ended} wall={wall:.0f}s")


def prepare(place: Path) -> None:
    """Both stores, made before anybody is killed: a kill in MLflow's first start would end the comparison at once."""
    import mlflow
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(storage=f"sqlite:///{place}/study.db", study_name="s")
    mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db").create_experiment("s")


def trained(place: Path) -> int:
    """How much was trained, in bytes of a ledger."""
    path = place / "ledger"
    return path.stat().st_size if path.exists() else 0


def counted(place: Path) -> str:
    """The columns of tests/storm.py, as far as there is something to count."""
    import mlflow
    import optuna

    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{place}/study.db").get_trials(deepcopy=False)
    done = Counter((t.params["x"], t.params["y"]) for t in trials if t.state.name == "COMPLETE")
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("s")
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    states = {"COMPLETE": "FINISHED", "FAIL": "FAILED"}
    of = {t.number: t for t in trials}
    wrong = sum(run.info.status != states.get(of[int(run.data.tags["trial"])].state.name) for run in runs)
    values = {
        "dup": sum(done.values()) - len(done),
        "missing": POINTS - len(done),
        "running": sum(t.state.name == "RUNNING" for t in trials),
        "waiting": sum(t.state.name == "WAITING" for t in trials),
        "attempts": sum(t.state.name != "WAITING" for t in trials),
        "disagree": f"{wrong}/{len(runs)}",
    }
    return " ".join(f"{key}={value}" for key, value in values.items())


if __name__ == "__main__":
    main()
