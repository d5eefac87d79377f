"""Searches of one space within the same wall seconds: best validation loss over time, and the winners on the test split.

The wall counts from the first trial's start: imports and stores are outside, choosing and pruning inside. A search's best so far is
the best epoch of any trial, finished or not. Each winner is trained anew by one common code (B1, float32, three seeds) and scored on
the test split. A repeat is another seed of everything: data splits, heads, samplers.

median      B1 with Optuna's TPE and median pruner, in memory
asha        B2, Ray Tune with ASHA, at its usual concurrency (optional)
top_k       B1: one epoch of each of many configurations for half the wall, then the best of them in full
halving     hpsearch, everything on, `pruner: halving`
our_median  the same with `pruner: median`
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import arms, tasks
from benchmarks.common import brief, installed, save, table
from benchmarks.replay import new_store, ready

ARMS = ("median", "top_k", "halving", "our_median", "asha")
SHARES = (0.25, 0.5, 1.0)  # of the wall
WALL = {"small": 10.0, "full": 20.0}  # seconds
SEEDS = (0, 1, 2)  # of a winner's training


def run(form: str | None = None, wall: float | None = None, repeats: int = 2, only: str | None = None) -> None:
    """Every arm once in each repeat, in turns; then the winners."""
    form = form or tasks.form_here()
    wall = wall or WALL[form]
    names = [name for name in ARMS if not only or name in only.split(",")]
    if "asha" in names and not installed("ray"):
        names.remove("asha")
        print("without Ray Tune: pip install 'ray[tune]' to include it")
    begun = time.monotonic()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    ways = tasks.variants("tuned", form)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        store = new_store(Path(place))
        setting = ready(tasks.settings(form, Path(place))[0], Path(place))
        for repeat in range(repeats):
            seeded = replace(setting, study=setting.study | {"seed": repeat})
            for name in names if repeat % 2 == 0 else reversed(names):
                result = one(name, form, seeded, wall, repeat, store, ways)
                ways = [result["variant"]] if result.get("variant") else ways  # the fastest, chosen once
                results[name].append(result)
                said = result.get("error") or f"{best_at(result, wall)} nats"
                print(f"[{time.monotonic() - begun:4.0f} s] repeat {repeat}, {name}: {said}", flush=True)
                keep(form, wall, setting, results)
            judge(seeded, results, repeat)
            keep(form, wall, setting, results)
    show(setting, wall, results)


def one(
    name: str, form: str, setting: tasks.Setting, wall: float, repeat: int, store: tuple[Path, float], ways: list[dict[str, Any]]
) -> dict[str, Any]:
    """One search; a failure is a result without losses."""
    more: dict[str, Any] = {"wall": wall, "seed": repeat}
    if name in ("median", "top_k"):
        more["variants"] = ways
    elif name == "asha":  # as many at once as there are cores; on a GPU, two
        more |= tasks.concurrencies(form, ways[0]["precision"])[1 if form == "full" else 0]
    try:
        return arms.run(name, setting.task(**more), store)
    except RuntimeError as error:
        return {"error": str(error)}


def judge(setting: tasks.Setting, results: dict[str, list[dict[str, Any]]], repeat: int) -> None:
    """Score the winners of a repeat on the test split."""
    winners = {name: found[repeat]["winner"] for name, found in results.items() if found[repeat].get("winner")}
    if not winners:
        return
    try:
        scores = arms.run("judge", setting.task(trials=list(winners.values()), seeds=list(SEEDS)))["scores"]
    except RuntimeError as error:
        print(error)
        return
    for number, name in enumerate(winners):
        results[name][repeat]["test"] = scores[number * len(SEEDS) : (number + 1) * len(SEEDS)]


def keep(form: str, wall: float, setting: tasks.Setting, results: dict[str, list[dict[str, Any]]]) -> None:
    """Write what there is."""
    save(f"search-{form}", {"setting": setting.name, "study": setting.study, "wall": wall, "results": results})


def best_at(result: dict[str, Any], seconds: float) -> float | None:
    """The best validation loss that a search had found by then."""
    return min((loss for at, _, loss in result.get("losses", ()) if at <= seconds), default=None)


def show(setting: tasks.Setting, wall: float, results: dict[str, list[dict[str, Any]]]) -> None:
    """One line an arm."""
    repeats = max(map(len, results.values()), default=0)
    print(f"\n{setting.name}: {wall:g} s a search, {repeats} repeats; median (least-most) over repeats")
    print(f"test scores: each winner trained {len(SEEDS)} times by one code; median (least-most) over repeats and seeds")
    at = [f"loss at {share:.0%}" for share in SHARES]
    head = ["arm", "n", "started", "finished", "epochs", *at, "test accuracy %", "test loss"]
    rows = []
    for name, found in results.items():
        good = [r for r in found if r.get("losses")]
        tests = [score for r in good for score in r.get("test", ())]
        rows.append(
            [
                name,
                str(len(good)),
                *(brief([r[key] for r in good], 0) for key in ("started", "finished", "epochs")),
                *(brief([loss for r in good if (loss := best_at(r, share * wall)) is not None], 3) for share in SHARES),
                brief([100 * score["test_accuracy"] for score in tests], 1),
                brief([score["test_loss"] for score in tests], 3),
            ]
        )
    print(table(head, rows))
