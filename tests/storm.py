"""A storm of kill -9 over a study, and what is left of it: checked against what the trainer itself wrote down.

python -m tests.storm [--seed S] [--kills N] [--points N] [--real N] [--hosts N] [--storage sqlite|postgresql]: prints a line for each
storm, exit code 0 when all is as promised. The first has a trainer that keeps a ledger; the second, of `--real` kills, is the installed
command with everything real; the third, of `--hosts` kills, has two hosts and a PostgreSQL server (tests/hosts.py), where there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import optuna
import psutil
from mlflow import MlflowClient

from hpsearch.search.store import open_storage
from hpsearch.tracking import create_store
from tests.kernels import loss_at
from tests.support.commands import HPSEARCH, Command, run_command
from tests.support.fork_server import MARK

ROOT = Path(__file__).parents[1]
SHARES = {"orchestrator": 30, "worker": 60, "tracker": 10}
EPOCHS = 5
GIVEN_UP = "for the 3. time"


@dataclass
class Toll:
    """What a storm cost. All but kills, attempts, given_up, changes and wall are to be zero."""

    kills: dict[str, int] = field(default_factory=dict)
    lost: int = 0  # trials that were complete once, and are not, or with another value
    dup: int = 0  # points with more than one trial
    missing: int = 0  # points without a complete trial, not counting those given up with a reason
    running: int = 0
    waiting: int = 0
    attempts: int = 0  # trainings begun or gone on with
    retrained: int = 0  # epochs trained again, beyond one for each killed worker, and the trials under way where hosts change
    wrong: int = 0  # trials whose values are not those that were trained
    disagree: int = 0  # trials of which MLflow, the result files or the best trial say something else than Optuna
    orphans: int = 0
    errors: int = 0  # sessions that ended with an error, though nothing was wrong but the kills
    given_up: int = 0  # trials that lost their worker three times
    changes: int = 0  # how often the study went from one host to another
    wall: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether everything that was promised was kept."""
        kept = ("lost", "dup", "missing", "running", "waiting", "retrained", "wrong", "disagree", "orphans", "errors")
        return not any(getattr(self, name) for name in kept)

    def line(self) -> str:
        """For people and logs."""
        values = asdict(self) | {"kills": sum(self.kills.values()), "wall": f"{self.wall:.0f}s"}
        kinds = dict.fromkeys((*SHARES, *self.kills))
        counts = "/".join(str(self.kills.get(kind, 0)) for kind in kinds)
        return " ".join(f"{key}={value}" for key, value in values.items()) + f" ({counts} of {'/'.join(kinds)})"


def prepare(place: Path) -> None:
    """Empty stores: their first start has tests of its own."""
    open_storage(f"sqlite:///{place}/hpsearch.db", create=True).engine.dispose()
    create_store(f"sqlite:///{place}/mlflow.db")


def begin(place: Path, asked: dict[str, object], crash: str = "", without: str = "") -> Command:
    """Start a session; it does the same thing every time. `crash` is where it is to be killed, `without` a safeguard to go without."""
    (place / "session.json").write_text(json.dumps(asked))
    environment = os.environ | {"HPSEARCH_CRASH_AT": crash, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SESSION_WITHOUT": without}
    with (place / "log").open("a") as log:
        return Command([sys.executable, "-m", "tests.session", str(place)], cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)


def family(session: Command) -> dict[str, list[int]]:
    """Processes of a session that a storm may hit, by kind."""
    found: dict[str, list[int]] = {"orchestrator": [session.pid], "worker": [], "tracker": []}
    try:
        for child in psutil.Process(session.pid).children():
            command = " ".join(child.cmdline())
            if "spawn_main" in command:
                found["tracker"].append(child.pid)
            elif "forkserver" in command:
                found["worker"] += [worker.pid for worker in child.children()]
    except psutil.Error:
        return found
    return found


def ours(place: Path) -> list[int]:
    """Processes that belong to sessions of this place, however orphaned."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = {str(place), f"{MARK}={place}"} & {*process.cmdline(), f"{MARK}={process.environ().get(MARK)}"}
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def ledgered(place: Path) -> int:
    """How much was trained, in bytes of its ledger."""
    path = place / "ledger"
    return path.stat().st_size if path.exists() else 0


def storage_of(place: Path) -> str:
    """The URL of a session's storage."""
    file = place / "session.json"
    asked = json.loads(file.read_text()) if file.exists() else {}
    return asked.get("storage") or f"sqlite:///{place}/hpsearch.db"


def complete(place: Path) -> dict[int, float]:
    """The values of trials that Optuna calls complete."""
    storage = optuna.storages.RDBStorage(storage_of(place))
    try:
        trials = optuna.load_study(study_name="s", storage=storage).get_trials(deepcopy=False)
    except KeyError:
        return {}
    finally:
        storage.engine.dispose()  # asked often, it would use up the connections of a server
    return {t.number: t.value for t in trials if t.state.name == "COMPLETE" and t.value is not None}


def grid(points: int) -> dict[str, object]:
    """A space of so many points."""
    rates = [10 ** (-4 + 3 * i / 9) for i in range(10)]
    rest = math.ceil(points / 10)
    return {
        "learning_rate": {"choices": rates, "default": rates[3]},
        "dropout": {"choices": [round(0.01 * i, 2) for i in range(rest)], "default": 0.0},
        "epochs": EPOCHS,
        "batch_size": 8,
        "weight_decay": 0.01,
        "frozen_layers": 0,
    }


def storm(place: Path, seed: int, kills: int, points: int, sleep: float = 0.15, gap: float = 0.7, **more: object) -> Toll:
    """Kill until all kills are spent, then let the study end; what it came to."""
    rng, toll, begun = random.Random(seed), Toll(), time.monotonic()
    asked = {"trials": points, "space": grid(points), "sampler": "grid", "sleep": sleep, "mlflow": True, **more}
    told: dict[int, float] = {}
    session = begin(place, asked)
    calm = ledgered(place)
    while sum(toll.kills.values()) < kills:
        time.sleep(rng.uniform(0.1, 2 * gap))
        if rng.random() < 0.7:  # else the storm would hit little but starts, which take longest
            patience = time.monotonic() + 20
            while ledgered(place) == calm and session.poll() is None and time.monotonic() < patience:
                time.sleep(0.02)
        if session.poll() is not None:
            if session.returncode == 0:
                break  # the study is whole: the rest of the kills has nothing to hit
            toll.errors += 1
            session = begin(place, asked)
            continue
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        victims = family(session)[kind]
        if not victims:
            continue
        if kind == "orchestrator":
            told |= complete(place)
        try:
            os.kill(rng.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            continue
        toll.kills[kind] = toll.kills.get(kind, 0) + 1
        calm = ledgered(place)
        if kind == "orchestrator":
            session.wait()
            session = begin(place, asked)
    code = session.wait(timeout=600)
    while code < 0:  # it fell to the last kill
        session = begin(place, asked)
        code = session.wait(timeout=600)
    if code:
        raise RuntimeError((place / "log").read_text()[-3000:])
    if toll.kills.get("tracker"):  # a mirror that was killed is completed by the next session
        code = begin(place, asked).wait(timeout=600)
    examine(place, toll, told, points)
    toll.wall = time.monotonic() - begun
    return toll


def examine(place: Path, toll: Toll, told: dict[int, float], points: int) -> None:
    """Count what is not as it should be, with Optuna's and MLflow's own eyes and the trainer's ledger."""
    rows = [json.loads(line) for line in (place / "ledger").read_text().splitlines()]
    study = optuna.load_study(study_name="s", storage=storage_of(place))
    trials = study.get_trials(deepcopy=False)
    done = count(toll, trials, told, points)
    toll.attempts = sum(row[0] == "start" for row in rows)
    epochs = Counter((row[1], row[3]) for row in rows if row[0] == "epoch")
    toll.retrained = max(0, sum(n - 1 for n in epochs.values()) - toll.kills.get("worker", 0) - toll.changes * 2 * EPOCHS)
    params = {row[1]: row[4] for row in rows if row[0] == "start"}
    for number, trial in done.items():
        curve = [row["val_loss"] for row in trial.user_attrs["hpsearch"]["curve"]]
        toll.wrong += curve != [loss_at(params[number], epoch) for epoch in range(1, EPOCHS + 1)] or trial.value != min(curve)
    toll.disagree = disagreements(place, study, trials)
    toll.orphans = remaining(place)


def remaining(place: Path) -> int:
    """Processes that are left after ten seconds."""
    give_up = time.monotonic() + 10
    while (left := ours(place)) and time.monotonic() < give_up:
        time.sleep(0.1)
    return len(left)


def count(toll: Toll, trials: list[optuna.trial.FrozenTrial], told: dict[int, float], points: int) -> dict[int, optuna.trial.FrozenTrial]:
    """What Optuna's own eyes see; the complete trials."""
    done = {t.number: t for t in trials if t.state.name == "COMPLETE"}
    reasons = {t.number: (t.user_attrs.get("hpsearch") or {}).get("error") or "" for t in trials}
    given_up = [t for t in trials if t.state.name == "FAIL" and GIVEN_UP in reasons[t.number]]
    of_point = Counter(json.dumps(t.params, sort_keys=True) for t in trials)
    toll.lost = sum(number not in done or done[number].value != value for number, value in told.items())
    toll.dup = sum(n - 1 for n in of_point.values())
    toll.given_up = len(given_up)
    toll.missing = points - len({json.dumps(t.params, sort_keys=True) for t in done.values()}) - len(given_up)
    toll.running = sum(t.state.name == "RUNNING" for t in trials)
    toll.waiting = sum(t.state.name == "WAITING" for t in trials)
    return done


def disagreements(place: Path, study: optuna.Study, trials: list[optuna.trial.FrozenTrial], runs_in: str = "") -> int:
    """Trials on which MLflow, the result files and Optuna differ; one more for the best trial."""
    if (place / "session.json").exists() and not json.loads((place / "session.json").read_text())["mlflow"]:
        return sum(not agrees(place, trial) for trial in trials)
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    states = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    children: dict[int, list[object]] = {}
    for run in runs:
        if run.data.tags.get("hpsearch.kind") == "trial":
            children.setdefault(int(run.data.tags["hpsearch.trial"]), []).append(run)
    wrong = len(set(children) - {t.number for t in trials})
    for trial in trials:
        found = children.get(trial.number, [])
        if len(found) != 1:
            wrong += 1
            continue
        (run,) = found
        about = trial.user_attrs["hpsearch"]
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val_loss")}  # type: ignore[attr-defined]
        wrong += not (
            run.info.status == states.get(trial.state.name)  # type: ignore[attr-defined]
            and all(run.data.params[key] == str(value) for key, value in trial.params.items())  # type: ignore[attr-defined]
            and history == {row["epoch"]: row["val_loss"] for row in about["curve"]}
            and agrees(place / runs_in, trial)
        )
    parents = [run for run in runs if run.data.tags.get("hpsearch.kind") == "study"]
    wrong += [run.data.tags.get("hpsearch.best_trial") for run in parents] != [str(study.best_trial.number)]
    wrong += [run.info.status for run in parents] != ["FINISHED"]
    return wrong


def agrees(place: Path, trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial's result file says what Optuna says; of several hosts, one has it to the last bit."""
    about = trial.user_attrs.get("hpsearch") or {}
    if trial.state.name != "COMPLETE":
        return True  # one that was given up has left none
    name = f"results/trial-{trial.number:04d}.json"
    files = [json.loads(path.read_text()) for path in (*place.glob(name), *place.glob(f"host-*/{name}"))]
    same = all(file[key] == about[key] for file in files for key in ("status", "val_loss"))  # two hosts may have trained it, at other times
    return same and any(file["curve"] == about["curve"] for file in files)


REAL = {
    "name": "s",
    "sampler": "grid",
    "pruner": "none",
    "trials": 24,
    "space": {
        "learning_rate": {"choices": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2], "default": 1e-3},
        "dropout": {"choices": [0.0, 0.1, 0.2, 0.3], "default": 0.1},
        "epochs": 25,
        "batch_size": 8,
        "weight_decay": 0.01,
        "frozen_layers": 2,
    },
}


def real_storm(place: Path, seed: int, kills: int) -> tuple[Toll, int]:
    """The same over `hpsearch run`; also how many trials differ in any epoch from those of a run that was left alone."""
    rng, toll, begun = random.Random(seed), Toll(), time.monotonic()
    command = [HPSEARCH, "run", "study.json", "--workers", "2"]
    for name in ("calm", "storm"):
        (place / name).mkdir()
        (place / name / "study.json").write_text(json.dumps(REAL))
    run_command(command, cwd=place / "calm", check=True)
    told: dict[int, float] = {}

    def start() -> Command:
        with (place / "storm" / "log").open("a") as log:
            return Command(command, cwd=place / "storm", stdout=log, stderr=log, text=True)

    session = start()
    while sum(toll.kills.values()) < kills:
        time.sleep(rng.uniform(0.5, 8))
        if session.poll() is not None:
            if session.returncode == 0:
                break
            toll.errors += session.returncode > 0
            session = start()
            continue
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if victims := family(session)[kind]:
            told |= complete(place / "storm") if (place / "storm" / "hpsearch.db").exists() else {}
            os.kill(rng.choice(victims), signal.SIGKILL)
            toll.kills[kind] = toll.kills.get(kind, 0) + 1
    while session.wait(timeout=600) or toll.kills.get("tracker"):  # a mirror that was killed is completed by the next session
        if session.returncode > 0:
            raise RuntimeError((place / "storm" / "log").read_text()[-3000:])
        if not session.returncode:
            toll.kills["tracker"], finished = 0, toll.kills["tracker"]
            session = start()
            session.wait(timeout=600)
            toll.kills["tracker"] = finished
            break
        session = start()
    studies = [optuna.load_study(study_name="s", storage=f"sqlite:///{place}/{name}/hpsearch.db") for name in ("calm", "storm")]
    calm, stormy = (study.get_trials(deepcopy=False) for study in studies)
    count(toll, stormy, told, REAL["trials"])
    toll.attempts = sum(int(t.user_attrs["hpsearch"]["attempt"]) for t in stormy)
    toll.disagree = disagreements(place / "storm", studies[1], stormy, "hpsearch-runs/s/")
    differ = sum(losses(a) != losses(b) for a, b in zip(calm, stormy, strict=True))
    toll.orphans = remaining(place / "storm")
    toll.wall = time.monotonic() - begun
    return toll, differ


def losses(trial: optuna.trial.FrozenTrial) -> list[tuple[float, float]]:
    """Every epoch of a trial, to the last bit."""
    return [(row["train_loss"], row["val_loss"]) for row in trial.user_attrs["hpsearch"]["curve"]]


def hosts_clean(seed: int, kills: int, points: int, needed: bool) -> bool:
    """Whether a storm over two hosts and a server left nothing undone; without a server there is none, unless it is needed."""
    from tests.hosts import storm_of_hosts
    from tests.postgres import MISSING, Postgres, binaries

    if binaries() is None:
        print(f"two hosts: {MISSING}", flush=True)
        return not needed
    server = Postgres()
    try:
        server.start()
        with tempfile.TemporaryDirectory() as folder:
            toll = storm_of_hosts(Path(folder), server, seed, kills, points, sleep=1.0)
            print(f"two hosts: seed={seed} points={points} {toll.line()}", flush=True)
            if not toll.clean:
                print("\n".join(log.read_text()[-2000:] for log in Path(folder).glob("*/log")), file=sys.stderr)
    finally:
        server.close()
    return toll.clean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--points", type=int, default=120)
    parser.add_argument("--real", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--storage", choices=("sqlite", "postgresql"), help="only the storms on it  [default: both]")
    asked = parser.parse_args()
    clean = asked.storage == "sqlite" or not asked.hosts or hosts_clean(asked.seed, asked.hosts, asked.points, asked.storage is not None)
    if asked.storage == "postgresql":
        return not clean
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        toll = storm(Path(folder), asked.seed, asked.kills, asked.points)
        print(f"seed={asked.seed} points={asked.points} {toll.line()}", flush=True)
        if not toll.clean:
            print((Path(folder) / "log").read_text()[-2000:], file=sys.stderr)
        clean = clean and toll.clean
    if asked.real:
        with tempfile.TemporaryDirectory() as folder:
            toll, differ = real_storm(Path(folder), asked.seed, asked.real)
            print(f"real: seed={asked.seed} points={REAL['trials']} {toll.line()}; {differ} trials differ from those of a calm run")
            if not toll.clean:
                print((Path(folder) / "storm" / "log").read_text()[-2000:], file=sys.stderr)
            clean = clean and toll.clean and not differ
    return not clean


if __name__ == "__main__":
    sys.exit(main())
