"""One session of a study as a process of its own, with everything real but a kernel that keeps a ledger.

python -m tests.session FOLDER does what FOLDER/session.json asks for, without the safeguard that SESSION_WITHOUT names.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from hpsearch import keeping, machine, tracking
from hpsearch.errors import WaitOrStop
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.ray import RayExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.machine import stop_signals
from hpsearch.orchestrator import Orchestrator
from hpsearch.protocols import GRACE
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search import lease, rows, server, store
from hpsearch.search import searcher as searching
from hpsearch.spec import parse_spec
from hpsearch.types import EpochDone, Notice, StudyEnded, TrackingBehind, TrialAgain, best_record


class Told:
    """Prints what a person should read, and keeps when epochs were reached: FOLDER/epochs."""

    def __init__(self, place):
        self.epochs, self.behind = place / "epochs", 0

    def record(self, event):
        if isinstance(event, EpochDone):
            with self.epochs.open("a") as file:
                file.write(json.dumps([event.progress.trial, event.progress.epoch, event.at]) + "\n")
        if isinstance(event, TrackingBehind) and bool(event.points) != bool(self.behind):
            self.behind = event.points
            print(f"tracking behind by {event.points}", flush=True)
        if isinstance(event, TrialAgain):
            print(event.reason, flush=True)
        if isinstance(event, Notice):
            print(event.text, flush=True)

    def close(self):
        pass


def without_adoption():
    """What trials left in the folder is not looked at."""
    searching.read_result = lambda folder, name, study: None
    searching.later_results = lambda folder, study, number: {}


def without_states():
    """An interrupted trial begins anew."""
    searching.resumed = lambda trial, folder: None


def without_waiting():
    """Workers of a killed session are not waited for."""
    machine.outlive = lambda folder, grace: None


def without_lock():
    """Two orchestrators may run one study."""
    machine.study_lock = lambda folders, name: contextlib.nullcontext()


def without_lease():
    """Two hosts may run one study of a database server."""
    lease.leased = lambda url, name: contextlib.nullcontext(lease.Lease())


def without_fence():
    """Whoever held the study writes on after it was taken over."""
    lease.ServerLease.verify = lambda self, db: None
    lease.ServerLease.check = lambda self: None


def without_lookup():
    """A trial whose row may be there is entered again without a look."""
    rows.find = lambda db, study_id, trial: None


def without_requeue():
    """Trials that were running when the session died stay so."""
    recall = searching.OptunaSearcher.recall

    def forgetful(self):
        recall(self)
        self.again.clear()

    searching.OptunaSearcher.recall = forgetful


def without_immediate():
    """A transaction takes the write lock only when it writes."""
    store.begin_immediate = lambda connection: connection.exec_driver_sql("BEGIN")


def without_reconciling():
    """The mirror takes the runs that it finds for whole."""
    from hpsearch.tracking.mirror import Mirror

    def trusting(self, event, ended):
        for run in self.search(f"tags.`mlflow.parentRunId` = '{self.parent}'"):
            self.runs[int(run.data.tags["hpsearch.trial"])] = run.info.run_id

    Mirror.adopt = trusting


def without_rename():
    """A result is written where it is read."""

    def write(path, text):
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            keeping.crash_point("result-aside")
            file.write(text[len(text) // 2 :])

    keeping.write_durably = write


MUTANTS = {name.removeprefix("without_"): mutant for name, mutant in list(globals().items()) if name.startswith("without_")}


if os.environ.get("SESSION_WITHOUT"):  # read by workers and by the mirror's process too, which import this module
    MUTANTS[os.environ["SESSION_WITHOUT"]]()


FENCED = 75  # exit code of a session whose study was taken over
PACE = (3.0, 0.5, 2)  # of a lease: its length, its beat, and how long a transaction may be idle; as it comes, a takeover takes 30 s


def held(stack, url, host):
    """The lease; `host` plays another machine than it is, and waits until the study is free."""
    if host:
        lease.system_id = lambda: host
        lease.SECONDS, lease.BEAT, server.IDLE = PACE
    while True:
        try:
            return stack.enter_context(lease.leased(url, "s"))
        except WaitOrStop:
            if not host:
                raise
            time.sleep(0.3)


def main(place, **asked):
    """A session; what it prints of a study that was taken over is for a person."""
    try:
        return session(place, **asked)
    except WaitOrStop as error:
        print(error, flush=True)
        return FENCED


def session(
    place,
    trials=8,
    epochs=4,
    workers=2,
    stall=300.0,
    sampler="random",
    seed=0,
    space=None,
    mlflow=False,
    storage=None,
    host="",
    ray=None,
    **config,
):
    os.environ["HPSEARCH_PLACE"] = str(place)
    url = storage or f"sqlite:///{place}/hpsearch.db"
    space = space or {"epochs": epochs}
    spec = parse_spec({"name": "s", "sampler": sampler, "trials": trials, "pruner": "none", "seed": seed, "space": space})
    config = {"folder": str(place), "ledger": str(place / "ledger")} | config
    ref = KernelRef("tests.kernels:curves", config)
    if ray:
        executor = RayExecutor(ref, workers, preload=("tests.kernels",), stall=stall, **ray)
    else:
        executor = ProcessExecutor(ref, workers, preload=("tests.kernels",), stall=stall)
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.study_lock([place], "s"))
        mine = held(stack, url, host)
        stopped_by = stack.enter_context(stop_signals())
        stack.enter_context(closing(executor))
        told = Told(place)
        uri = mlflow if isinstance(mlflow, str) else f"sqlite:///{place}/mlflow.db"
        mirror = tracking.MlflowTracker(uri, place, [told]) if mlflow else None
        trackers = [told, *([mirror] if mirror else [])]
        stack.push(lambda kind, *_: mirror.abandon() if mirror and kind else None)
        storage = store.open_storage(url, create=True)
        mine.guard(storage)
        machine.outlive(place, GRACE)
        with closing(searching.OptunaSearcher(spec, storage, folder=place)) as searcher:

            def stop():
                mine.check()
                return "interrupted" if stopped_by() else None

            loop = Orchestrator(searcher, executor, trackers, TrialFiles(place), budget=trials, stop=stop)
            reason = loop.run("s", spec.resolved())
            records = tuple(searcher.records())
        if mirror:
            mirror.record(StudyEnded(reason, best_record(records), records[0]))
            mirror.close()
            if mirror.problem:
                print(mirror.problem, flush=True)
    return 0 if reason in ("budget", "exhausted") else 130


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # whoever waits for it in vain can ask where it is
    folder = Path(sys.argv[1])
    sys.exit(main(folder, **json.loads((folder / "session.json").read_text())))
