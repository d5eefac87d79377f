"""What the loop itself costs a trial: a kernel that returns at once, ten reports a trial, storage on.

"Critical path" is the time in ask, report, tell and the handing over: what a free worker waits for. The storage is
written behind; "behind" is what it still had to write when the last trial had ended.
"""

import statistics
import tempfile
import time
from itertools import pairwise

from benchmarks.common import save
from hpsearch.executors.inline import InlineExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.orchestrator import Orchestrator
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import load_spec
from hpsearch.types import Facts, Job, Outcome, Progress, Session, Status

EPOCHS = 10


class NullKernel:
    """Ten reports and an outcome, at once."""

    def facts(self) -> Facts:
        return Facts({})

    def session(self, job: Job) -> Session:
        (trial,) = job.trials
        for epoch in range(1, EPOCHS + 1):
            loss = 1 / epoch + float(str(trial.params["learning_rate"]))
            yield (Progress(trial.number, epoch, EPOCHS, loss, loss, {"accuracy": 0.5}, 0.0),)
        yield (Outcome(trial.number, Status.COMPLETE, loss, EPOCHS, 0.0, {"accuracy": 0.5}, trial.params),)


def make(config: object) -> NullKernel:
    del config
    return NullKernel()


def run(trials: int = 300) -> None:
    print(f"orchestration cost per trial, {EPOCHS} reports each, SQLite on, one worker; milliseconds")
    print(f"{'sampler':<8} {'first 50':>9} {'100-150':>9} {'200-250':>9} {'whole':>9} {'behind':>9}")
    result: dict[str, object] = {}
    for sampler in ("random", "tpe", "gp"):
        count = trials if sampler != "gp" else 60
        with tempfile.TemporaryDirectory() as folder:
            spec = load_spec(None, ["pruner=none"], {"sampler": sampler, "trials": count, "name": "null"})
            searcher = OptunaSearcher(spec, open_storage(f"sqlite:///{folder}/hpsearch.db", create=True))
            ends: list[float] = []

            class Ends:
                """Remembers when trials ended."""

                def record(self, event: object, ends: list[float] = ends) -> None:
                    if type(event).__name__ in ("TrialEnded", "StudyStarted"):
                        ends.append(time.perf_counter())

                def close(self) -> None:
                    pass

            executor = InlineExecutor(KernelRef("benchmarks.orchestration:make", {}))
            Orchestrator(searcher, executor, [Ends()], budget=count).run("null", spec.resolved())
            done = time.perf_counter()
            searcher.close()
            behind = (time.perf_counter() - done) / count
        costs = [1e3 * (b - a) for a, b in pairwise(ends)]
        parts = [statistics.median(costs[a:b]) if len(costs) > a else float("nan") for a, b in ((0, 50), (100, 150), (200, 250))]
        whole = statistics.mean(costs)
        print(f"{sampler:<8} {parts[0]:>9.2f} {parts[1]:>9.2f} {parts[2]:>9.2f} {whole:>9.2f} {1e3 * behind:>9.2f}")
        result[sampler] = {"n": count, "median_ms": parts, "mean_ms": whole, "behind_ms": 1e3 * behind}
    save("orchestration", result)
