"""One list of trials, replayed by hand, by a tuned loop, by Ray Tune and by hpsearch: trials an hour at equal work and quality.

The list covers every cut and batch size of the default study. Arms run one after the other, the order reversed in every other
repeat; each by-hand arm at its better number of threads. Partial results are written as they come.
"""

import importlib.util
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.common import save, spread
from hpsearch import tracking

THREADS = {"by_hand": (1, 2), "tuned": (1, 2), "ray": (1,), "plain": (1,), "features": (1,), "hpsearch": (1,)}


def trial_list(per_cut: int) -> list[dict[str, float]]:
    """Trials of the default space, `per_cut` for each number of frozen layers."""
    rng = random.Random(20261125)
    listed = []
    for k, _ in itertools.product(range(7), range(per_cut)):
        listed.append(
            {
                "learning_rate": 10 ** rng.uniform(-4, -1.5),
                "batch_size": rng.choice((8, 16, 32)),
                "epochs": rng.randint(3, 20),
                "weight_decay": 10 ** rng.uniform(-4, -1),
                "dropout": rng.uniform(0, 0.5),
                "frozen_layers": k,
            }
        )
    rng.shuffle(listed)
    return listed


def replay(arm: str, threads: int, listed: list[dict[str, float]], seed: int = 0) -> dict[str, object]:
    """One arm over the list, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if arm in ("by_hand", "hpsearch"):
            tracking.create_store(f"sqlite:///{folder}/mlflow.db")
        path = Path(folder) / "trials.json"
        path.write_text(json.dumps(listed))
        environment = os.environ | {"ARM_SEED": str(seed), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.arms", arm, folder, str(threads), str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{arm}: {done.stderr[-2000:]}")
        return json.loads((Path(folder) / "result.json").read_text())


def run(repeats: int = 3, per_cut: int = 2, only: tuple[str, ...] = ()) -> None:
    listed = trial_list(per_cut)
    arms = [(arm, n) for arm, counts in THREADS.items() for n in counts if not only or arm in only]
    if importlib.util.find_spec("ray") is None:
        arms = [pair for pair in arms if pair[0] != "ray"]
        print("without Ray Tune: pip install 'ray[tune]' to include it")
    found: dict[str, list[dict[str, object]]] = defaultdict(list)
    for repeat in range(repeats):
        for arm, threads in arms if repeat % 2 == 0 else reversed(arms):
            found[f"{arm}, {threads} thread{'s' * (threads > 1)}"].append(replay(arm, threads, listed))
            save("replay", {"trials": listed, "results": found})
    noise = replay("tuned", 1, listed, seed=1)
    show(listed, found, noise)
    save("replay", {"trials": listed, "results": found, "noise": noise})


def better(found: dict[str, list[dict[str, object]]], arm: str) -> str | None:
    """The arm at its better number of threads."""
    names = [name for name in found if name.startswith(f"{arm},")]
    return min(names, key=lambda name: statistics.median(r["seconds"] for r in found[name]), default=None)  # type: ignore[type-var]


def show(listed, found, noise) -> None:
    """The table: trials an hour, ratios, ratio per cut, difference in loss beside the noise of another seed."""
    count = len(listed)
    print(f"{count} trials, {len(next(iter(found.values())))} repeats; epochs in all: {sum(t['epochs'] for t in listed)}")
    for name, results in found.items():
        seconds = [r["seconds"] for r in results]
        rate = 3600 * count / statistics.median(seconds)
        print(f"{name:<22} {spread(seconds):<36} {rate:7.0f} trials an hour, peak {max(r['peak_mb'] for r in results)} MB")
    ours = found.get("hpsearch, 1 thread")
    if ours is None:
        return
    for arm in ("by_hand", "tuned", "ray"):
        name = better(found, arm)
        if name is None:
            continue
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(found[name], ours, strict=True)]
        print(f"hpsearch over {name}: {spread(ratios, 'times', 2)}")
    if (name := better(found, "tuned")) and (alone := found.get("features, 1 thread")):
        print("ratio per cut, tuned over hpsearch's kernel alone, one worker each:")
        for k in sorted({t["frozen_layers"] for t in listed}):
            rows = [i for i, t in enumerate(listed) if t["frozen_layers"] == k]
            ratios = [sum(a["each"][i] for i in rows) / sum(b["each"][i] for i in rows) for a, b in zip(found[name], alone, strict=True)]
            print(f"  {k} frozen: {spread(ratios, 'times', 2)}")
        base = found[name][0]["values"]
        for label, values in (("hpsearch", ours[0]["values"]), ("tuned with another seed", noise["values"])):
            gaps = sorted(a - b for a, b in zip(values, base, strict=True))
            low, middle, high = gaps[0], statistics.median(gaps), gaps[-1]
            print(f"best val_loss, {label} minus tuned: median {middle:+.3f}, {low:+.3f} to {high:+.3f} nats, n={count}")
