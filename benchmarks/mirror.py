"""A study of 1,000 trials of 20 epochs in MLflow: the time to log it, to list it, and to open it in MLflow's page."""

import math
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.browser import Page, browser
from benchmarks.common import OUT, brief, save
from hpsearch.spec import parse_spec
from hpsearch.tracking import MlflowTracker, create_store
from hpsearch.types import EpochDone, Event, Progress, Status, StudyEnded, StudyStarted, Trial, TrialEnded, TrialRecord, TrialStarted

EPOCH = 0.01  # seconds; the parent run is the oldest, as in a real study
METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "top5", "learning_rate")
PARENT = "document.querySelectorAll('.ag-row button').length > 0"  # the table of runs, with the parent's run folded
UNFOLD = "document.querySelector('.ag-row button').click()"
CHILDREN = "document.querySelectorAll('.ag-row a').length > 20"
LINES = "document.querySelectorAll('.js-plotly-plot svg path, canvas').length > 0"


def stream(trials: int, epochs: int) -> Iterator[Event]:
    """What the mirror hears of a study, one trial after another, a third of them pruned."""
    draw, at, best = random.Random(0), time.time(), None
    yield StudyStarted("thousand", "uid-of-thousand", parse_spec({"name": "thousand"}).resolved(), (), trials, 2)
    for number in range(trials):
        params = {"learning_rate": 10 ** draw.uniform(-5, -1), "batch_size": draw.choice([8, 16, 32]), "epochs": epochs}
        params |= {"weight_decay": 10 ** draw.uniform(-5, -1), "dropout": draw.uniform(0, 0.5), "frozen_layers": draw.randrange(7)}
        yield TrialStarted(Trial(number, params), at)
        rows, pruned = [], draw.random() < 1 / 3
        for epoch in range(1, epochs + 1 if not pruned else epochs // 3):
            loss = (1 + math.log10(params["learning_rate"]) / 10) / epoch + draw.random() / 10
            found = Progress(number, epoch, epochs, loss, loss, dict.fromkeys(METRICS, 1 - loss / 2), epoch * EPOCH, 1000.0)
            rows.append(found.row())
            yield EpochDone(found, False, at + epoch * EPOCH)
        at += len(rows) * EPOCH
        kept = min(rows, key=lambda row: row["val_loss"])
        record = TrialRecord(
            number=number,
            status=Status.PRUNED if pruned else Status.COMPLETE,
            params=params,
            origin="sampled",
            attempt=1,
            val_loss=kept["val_loss"],
            best_epoch=int(kept["epoch"]),
            seconds=len(rows) * EPOCH,
            started=at - len(rows) * EPOCH,
            ended=at,
            metrics={key: kept[key] for key in METRICS},
            effective=params,
            curve=tuple(rows),
            checkpoint=None,
            error=None,
            per_class={key: [0.5] * 10 for key in ("images", "precision", "recall", "f1")},
        )
        best = record if not pruned and (best is None or record.cost < best.cost) else best
        yield TrialEnded(record, best.number if best else None)
    yield StudyEnded("budget", best, None)


def run(trials: int = 1000, epochs: int = 20, repeats: int = 3) -> None:
    events = list(stream(trials, epochs))
    told = sum(isinstance(event, EpochDone) for event in events)
    print(f"{trials:,} trials, {told:,} epochs of {len(METRICS) + 4} metrics; SQLite; seconds: median (least to most), n = {repeats}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = folder / "empty.db"
        create_store(f"sqlite:///{empty}")
        logged: dict[str, list[float]] = {"record": [], "whole": [], "processor": []}
        for repeat in range(repeats):
            store = folder / f"{repeat}.db"
            store.write_bytes(empty.read_bytes())
            for key, value in log(events, f"sqlite:///{store}", folder).items():
                logged[key].append(value)
        each = 1e6 * statistics.median(logged["record"]) / len(events)
        print(f"log: told by the loop    {brief(logged['record'], 3)}, {each:.0f} µs an event")
        print(f"     in MLflow           {brief(logged['whole'], 1)}, {1e3 * statistics.median(logged['whole']) / trials:.1f} ms a trial")
        print(f"     processor time      {brief(logged['processor'], 1)}; the store has {store.stat().st_size >> 20} MB")
        result: dict[str, object] = {"trials": trials, "epochs": told, **logged}
        result |= look(f"sqlite:///{store}", folder, repeats)
    save("mirror", result)


def log(events: list[Event], uri: str, folder: Path) -> dict[str, float]:
    """Seconds to tell the tracker everything, until MLflow has it, and processor time of the mirror."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    tracker = MlflowTracker(uri, folder)
    begun = time.monotonic()
    for event in events:
        tracker.record(event)
    told = time.monotonic()
    tracker.close(patience=None)
    done, after = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not tracker.problem, tracker.problem
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"record": told - begun, "whole": done - begun, "processor": used}


def look(uri: str, folder: Path, repeats: int) -> dict[str, object]:
    """Seconds to list all runs with the client, and to open MLflow's page on them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("thousand")
    assert experiment is not None
    listed = []
    for _ in range(repeats):
        begun = time.monotonic()
        runs, token = [], None
        while token != "":
            page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
            runs, token = runs + list(page), page.token or ""
        listed.append(time.monotonic() - begun)
    print(f"list: {len(runs):,} runs by the client  {brief(listed, 2)}")
    result: dict[str, object] = {"list": listed}
    if browser() is None:
        print("open: no Chromium here")
        return result
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "from hpsearch.cli import main; main()"
    command = [sys.executable, "-c", script, "ui", "--tracking-uri", uri, "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        where = f"http://127.0.0.1:{port}"
        ready(where)
        children = [r for r in runs if "mlflow.parentRunId" in r.data.tags][:100]
        chosen = "%5B" + ",".join(f"%22{r.info.run_id}%22" for r in children) + "%5D"
        compare = f"{where}/#/compare-runs?runs={chosen}&experiments=%5B%22{experiment.experiment_id}%22%5D"
        table = f"{where}/#/experiments/{experiment.experiment_id}/runs"
        opened: dict[str, list[float]] = {"table": [], "children": [], "compare": []}
        for _ in range(repeats):
            page = Page()
            opened["table"].append(page.open(table, PARENT))
            page.value(UNFOLD)
            opened["children"].append(page.wait(CHILDREN))
            page.shot(OUT / "mlflow-table.png")
            opened["compare"].append(page.open(compare, LINES))
            page.shot(OUT / "mlflow-compare.png")
            page.close()
        for what, times in opened.items():
            print(f"open: {what:<8} in the browser   {brief(times, 1)}")
        result |= opened
    finally:
        server.terminate()
        server.wait()
    return result


def ready(where: str) -> None:
    """Wait for the server."""
    give_up = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{where}/health", timeout=1).close()
            return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.3)
