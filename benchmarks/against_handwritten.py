"""Trials per minute, hpsearch against a hand-written loop, over the same list of trials without pruning.

Both are whole studies in one run on one machine, interleaved A-B-A-B, from the first trial to the last: imports, store
creation and the final report are outside the clock of both, storage and tracking of every trial inside. The hand-written
loop runs with one and with two threads; the better one counts.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import save, spread
from hpsearch import actions, tracking
from hpsearch.spec import load_spec
from hpsearch.types import StudyEnded, TrialEnded, TrialStarted

TRIALS = 12


class Clock:
    """From the first trial's start to the last trial's end."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def record(self, event: object) -> None:
        if isinstance(event, TrialStarted):
            self.first = self.first or time.monotonic()
        elif isinstance(event, TrialEnded):
            self.last = time.monotonic()
        elif isinstance(event, StudyEnded):
            self.mirror_begun = time.monotonic()

    def close(self) -> None:
        pass


def ours(folder: Path, trials: int) -> tuple[float, list[dict[str, object]]]:
    """Seconds and records of a study of random trials."""
    tracking.create_store(f"sqlite:///{folder}/mlflow.db")
    spec = load_spec(None, ["pruner=none"], {"sampler": "random", "trials": trials, "name": "ours"})
    clock = Clock()
    where = actions.place(folder)
    actions.run(spec, where, [clock])
    records = actions.show(where, "ours").records
    return clock.last - clock.first, [{"params": dict(r.params), "val_loss": r.val_loss, "seconds": r.seconds} for r in records]


def theirs(folder: Path, threads: int, trials: list[object]) -> dict[str, object]:
    """Seconds and values of the hand-written loop over the same trials, in a process of its own."""
    tracking.create_store(f"sqlite:///{folder}/mlflow.db")
    listed = folder / "trials.json"
    listed.write_text(json.dumps(trials))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.handwritten", str(folder), str(threads), str(listed)], check=True, capture_output=True
    )
    return json.loads((folder / "result.json").read_text())


def run(repeats: int = 3, trials: int = TRIALS) -> None:
    rows: dict[str, list[float]] = {"hpsearch": [], "by hand, 1 thread": [], "by hand, 2 threads": []}
    differences: list[float] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            folders = [Path(name) / part for part in ("a", "b", "c")]
            for folder in folders:
                folder.mkdir()
            seconds, records = ours(folders[0], trials)
            rows["hpsearch"].append(seconds)
            listed = [r["params"] for r in records]
            for threads, folder in ((1, folders[1]), (2, folders[2])):
                result = theirs(folder, threads, listed)
                rows[f"by hand, {threads} thread{'s' * (threads > 1)}"].append(result["seconds"])
            differences += [a["val_loss"] - b for a, b in zip(records, result["values"], strict=True)]
    for arm, seconds in rows.items():
        print(f"{arm:<20} {trials} trials in {spread(seconds)}: {60 * trials / statistics.median(seconds):.1f} trials a minute")
    best = min((arm for arm in rows if arm != "hpsearch"), key=lambda arm: statistics.median(rows[arm]))
    ratios = [b / a for a, b in zip(rows["hpsearch"], rows[best], strict=True)]
    print(f"ratio against the better one ({best}): {spread(ratios, 'x', 2)}")
    median = statistics.median(differences)
    print(f"paired difference in best val_loss: median {median:+.3f} nats (other shuffles; n={len(differences)})")
    save("against_handwritten", {"trials": trials, "seconds": rows, "ratios": ratios, "differences": differences})
