"""One session of a study as a process of its own, with the real loop, searcher, storage and workers, and a kernel that keeps a ledger.

python -m tests.session FOLDER: what is asked for is in FOLDER/session.json.
"""

import json
import os
import sys
from contextlib import closing
from pathlib import Path

from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.machine import outlive, stop_signals, study_lock
from hpsearch.orchestrator import Orchestrator
from hpsearch.protocols import GRACE
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
from hpsearch.types import TrialAgain


class Told:
    """Prints what a person should read."""

    def record(self, event):
        if isinstance(event, TrialAgain):
            print(event.reason, flush=True)

    def close(self):
        pass


def main(place, trials=8, epochs=4, workers=2, stall=300.0, sampler="random", seed=0, **config):
    os.environ["HPSEARCH_PLACE"] = str(place)
    spec = parse_spec({"name": "s", "sampler": sampler, "trials": trials, "pruner": "none", "seed": seed, "space": {"epochs": epochs}})
    config |= {"folder": str(place), "ledger": str(place / "ledger")}
    executor = ProcessExecutor(KernelRef("tests.kernels:curves", config), workers, preload=("tests.kernels",), stall=stall)
    with study_lock([place], "s"), stop_signals() as stopped_by, closing(executor):
        storage = open_storage(f"sqlite:///{place}/hpsearch.db", create=True)
        outlive(place, GRACE)
        with closing(OptunaSearcher(spec, storage, folder=place)) as searcher:
            loop = Orchestrator(searcher, executor, [Told()], budget=trials, stop=lambda: "interrupted" if stopped_by() else None)
            reason = loop.run("s", spec.resolved())
    return 0 if reason == "budget" else 130


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.exit(main(folder, **json.loads((folder / "session.json").read_text())))
