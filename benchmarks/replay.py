"""One list of trials, replayed by hand, by a tuned loop, on Ray Tune and here: trials an hour at equal work and quality.

The list covers every cut of the space, without pruning. What arms are is told in arms.py. In the first round every arm runs once, each
by-hand arm in the fastest of its variants, Ray in all of them; as many more rounds follow as the minutes allow, the most important
arms first. Results are written as they come.
"""

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import arms, tasks
from benchmarks.common import brief, installed, save, table
from benchmarks.ours import CPU_RUNGS, RUNGS

MINUTES = {"small": 3.0, "full": 7.5}
PER_CUT = {"small": 1, "full": 2}
ROUNDS = 7
BASES = {"B0": "by_hand", "B1": "tuned", "B2": "ray"}
Result = dict[str, Any]


@dataclass
class Replay:
    """One list and what the arms made of it."""

    setting: tasks.Setting
    trials: list[dict[str, Any]]
    found: dict[str, list[Result]] = field(default_factory=dict)  # by arm; Ray's best concurrency is `ray`
    tried: dict[str, list[Result]] = field(default_factory=dict)  # Ray's others
    failed: dict[str, str] = field(default_factory=dict)

    def variant(self, arm: str) -> dict[str, Any]:
        """What the arm chose in its first run."""
        chosen: dict[str, Any] = self.found[arm][0].get("variant") or {} if self.found.get(arm) else {}
        return chosen

    def json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "setting": self.setting.name,
            "study": self.setting.study,
            "trials": self.trials,
            "results": self.found,
            "ray_variants": self.tried,
            "failed": self.failed,
        }


def run(
    form: str | None = None,
    minutes: float | None = None,
    cuts: str | None = None,
    per_cut: int | None = None,
    only: str | None = None,
    settings: str | None = None,
    repeats: int = ROUNDS,
) -> None:
    """Replay until the minutes are over, but every arm once if there is any time left for it."""
    form = form or tasks.form_here()
    begun, limit = time.monotonic(), 60 * (minutes or MINUTES[form])

    def left() -> float:
        return limit - (time.monotonic() - begun)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        store = new_store(Path(place))
        known = tasks.settings(form, Path(place))
        chosen = [known[int(i)] for i in settings.split(",")] if settings else known
        lists = [listed(setting, Path(place), cuts, per_cut or PER_CUT[form]) for setting in chosen]
        for number in range(repeats):
            for replay in lists:
                for arm, work in plan(form, replay, store, first=number == 0, alone=replay is lists[0]):
                    if only and arm not in only.split(","):
                        continue
                    last = replay.found.get(arm, [{}])[-1].get("cold", 0.0)
                    if arm in replay.failed or left() < last:
                        continue
                    attempt(replay, arm, work, f"[{time.monotonic() - begun:4.0f} s]")
                    save(f"replay-{form}", {"minutes": limit / 60, "lists": [each.json() for each in lists]})
    for replay in lists:
        show(replay)


def new_store(place: Path) -> tuple[Path, float]:
    """An empty MLflow store, and what it costs."""
    store = arms.new_store(place)
    print(f"an empty MLflow store takes {store[1]:.1f} s: part of the cold seconds of by_hand and hpsearch")
    return store


def listed(setting: tasks.Setting, place: Path, cuts: str | None, per_cut: int) -> Replay:
    """A setting with its data made ready and its list of trials."""
    setting = ready(setting, place)
    numbers = [int(k) for k in cuts.split(",")] if cuts else list(range(setting.blocks + 1))
    return Replay(setting, setting.trials(numbers, per_cut))


def ready(setting: tasks.Setting, place: Path) -> tasks.Setting:
    """The setting with the index of its images, which are decoded where all arms find them."""
    if "data" not in setting.study:
        return setting
    folder = Path(setting.study["data"]).with_suffix(".index")
    folder.mkdir()
    made = arms.run("prepare", setting.task(folder=str(folder)), keep={"HPSEARCH_CACHE": str(place / "cache")})
    return tasks.Setting(setting.name, setting.study, made["blocks"], made["index"])


def plan(form: str, replay: Replay, store: Any, first: bool, alone: bool) -> list[tuple[str, Callable[[], Result]]]:
    """What to run in a round, the most important first; the ladder and Ray on the first list alone."""
    setting, trials = replay.setting, replay.trials

    def one(arm: str, **more: Any) -> tuple[str, Callable[[], Result]]:
        return arm, lambda: arms.run(arm, setting.task(trials=trials, **more), store)

    def by_hand(arm: str) -> tuple[str, Callable[[], Result]]:
        chosen = replay.variant(arm)
        return one(arm, variants=[chosen] if chosen else tasks.variants(arm, form))

    def noise() -> Result:
        return arms.run("tuned", setting.task(trials=trials, seed=1, **replay.variant("tuned")), store)

    rungs = list(RUNGS if form == "full" else CPU_RUNGS)
    if not alone:
        rungs = rungs[-1:]
    planned = [one("hpsearch"), by_hand("tuned"), by_hand("by_hand"), *(one(rung) for rung in reversed(rungs))]
    if first:
        planned.append(("noise", noise))
    if alone and installed("ray"):
        planned.append(("ray", lambda: ray(form, replay, first)))
    elif alone and first:
        print("without Ray Tune: pip install 'ray[tune]' to include it")
    return planned


def ray(form: str, replay: Replay, first: bool) -> Result:
    """Ray at all its concurrencies in the first round, of which the fastest is kept; then at that one."""
    ways = tasks.concurrencies(form, replay.variant("tuned").get("precision", "fp32")) if first else [replay.variant("ray")]
    results = []
    for way in ways:
        result = arms.run("ray", replay.setting.task(trials=replay.trials, **way)) | {"variant": way}
        results.append(result)
        if first:
            replay.tried[worded(way)] = [result]
            print(f"        ray, {worded(way)}: {result['seconds']:.1f} s", flush=True)
    return min(results, key=lambda r: r["seconds"])


def attempt(replay: Replay, arm: str, work: Callable[[], Result], when: str) -> None:
    """Run an arm; a failure is kept, and the rest goes on."""
    try:
        result = work()
    except RuntimeError as error:
        replay.failed[arm] = str(error)
        print(f"{when} {replay.setting.name}: {error}", flush=True)
        return
    replay.found.setdefault(arm, []).append(result)
    told = f"{result['seconds']:.1f} s warm, {result['cold']:.1f} s cold"
    print(f"{when} {replay.setting.name}: {arm} {worded(result.get('variant'))} {told}", flush=True)


def worded(variant: dict[str, Any] | None) -> str:
    """A variant in words."""
    variant = variant or {}
    words = [f"{variant['threads']} thread{'s' * (variant['threads'] > 1)}"] if "threads" in variant else []
    words += [variant["precision"]] if "precision" in variant else []
    words += [f"{variant['loaders']} loaders"] if "loaders" in variant else []
    words += [f"{variant['cpus']} CPUs, {variant['gpus']:g} GPU a trial"] if "cpus" in variant else []
    return ", ".join(words)


# ---------------------------------------------------------------- what is printed


def show(replay: Replay) -> None:
    """The ladder, the cuts, and the quality."""
    found, trials = replay.found, replay.trials
    epochs = sum(t["epochs"] for t in trials)
    print(f"\n{replay.setting.name}: {len(trials)} trials, {epochs} epochs; median (least-most) over rounds")
    head = [
        "arm",
        "n",
        "warm s",
        "cold s",
        "trials/h",
        *(f"x {base}" for base in BASES),
        "memory MB",
        "GPU MB: tensors",
        "in use",
        "failed",
    ]
    rows = []
    for arm in (*BASES.values(), *RUNGS, "hpsearch"):
        results = found.get(arm)
        if not results:
            continue
        seconds = [r["seconds"] for r in results]
        rows.append(
            [
                f"{arm} {worded(results[0].get('variant'))}".strip(),
                str(len(results)),
                brief(seconds, 1),
                brief([r["cold"] for r in results], 1),
                f"{3600 * len(trials) / statistics.median(seconds):.0f}",
                *(brief(ratios(found.get(base, []), results)) for base in BASES.values()),
                str(max(r["memory_mb"] for r in results)),
                str(max(r.get("device_mb", 0) for r in results)),
                str(max(r["device_used_mb"] for r in results)),
                str(max(len(r.get("errors", ())) for r in results)),
            ]
        )
    print(table(head, rows))
    show_cuts(replay)
    show_quality(replay)
    for arm, error in replay.failed.items():
        print(f"{arm} failed: {error.splitlines()[-1] if error else ''}")


def ratios(base: list[Result], results: list[Result]) -> list[float]:
    """How many times as fast as the base, round by round."""
    return [a["seconds"] / b["seconds"] for a, b in zip(base, results, strict=False)]


def show_cuts(replay: Replay) -> None:
    """How many trials have each cut, and how much the kernel alone (one process) gains there."""
    found, trials = replay.found, replay.trials
    best = found.get("features", [])
    if not best:
        return
    print("cut points, and how many times as fast the kernel alone is there as each arm (one process; each trial's own turns):")
    count = Counter(t["frozen_layers"] for t in trials)
    rows = []
    for k in sorted(count):
        of_cut = [i for i, t in enumerate(trials) if t["frozen_layers"] == k]

        def seconds(result: Result, of_cut: list[int] = of_cut) -> float:
            return sum(result["each"][i] for i in of_cut)

        columns = [
            brief([seconds(a) / max(seconds(b), 1e-9) for a, b in zip(found.get(arm, []), best, strict=False)])
            for arm in ("by_hand", "tuned", "plain")
        ]
        rows.append([f"{k} frozen", f"{'#' * count[k]} {count[k]}", *columns])
    print(table(["cut", "trials", "x by_hand", "x tuned", "x plain"], rows))


def show_quality(replay: Replay) -> None:
    """Paired differences in validation loss from the tuned arm, beside those of the tuned arm with another seed."""
    found = replay.found
    base = found.get("tuned")
    if not base:
        return
    rows = []
    for arm in ("noise", "by_hand", "ray", *RUNGS, "hpsearch"):
        if arm in found:
            pairs = [gaps(found[arm][0][which], base[0][which]) for which in ("final", "best")]
            name = "tuned, another seed" if arm == "noise" else arm
            rows.append([f"{name} - tuned", str(len(pairs[0])), *(cell for each in pairs for cell in told(each))])
    print("paired differences in validation loss [nats], trial by trial; the first line is the noise floor:")
    print(table(["", "n", "last epoch: median", "mean", "range", "best epoch: median", "mean", "range"], rows))


def gaps(losses: list[float | None], base: list[float]) -> list[float]:
    """Differences where both are numbers."""
    return [a - b for a, b in zip(losses, base, strict=True) if a is not None and math.isfinite(a) and math.isfinite(b)]


def told(values: list[float]) -> list[str]:
    """Median, mean and range, signed."""
    if not values:
        return ["-"] * 3
    return [f"{statistics.median(values):+.3f}", f"{statistics.mean(values):+.3f}", f"{min(values):+.3f} to {max(values):+.3f}"]
