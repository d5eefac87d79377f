"""One arm in a process of its own: `run` starts it and measures its memory, `python -m benchmarks.arms ARM FOLDER` is it.

An arm is told its task by FOLDER/task.json and leaves FOLDER/result.json. Replayed lists are trained without pruning; "seconds" go
from the first trial's start to the last one's end, "cold" is the whole process with imports, and the making of an empty MLflow store
where one is used, which is measured once and copied.

by_hand    B0: Optuna and SQLite, DataLoader, float32, MLflow call by call (by_hand.py)
tuned      B1: resident data, channels_last, fused AdamW, bf16 where it pays, study in memory, no tracking
ray        B2: the tuned loop on Ray Tune, actors reused (ray_tune.py)
plain      hpsearch's kernel alone, one trial at a time, eager, activations computed at each step (ours.py)
graphs     the same with captured steps; CUDA only, as the next
slots      the same with several trials at once
features   the same with activations of frozen blocks kept
hpsearch   everything: workers, storage, MLflow, report

Searches within a wall: median, top_k (B1), asha (B2), halving and our_median (hpsearch). judge: trains winners, scores the test split.
"""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

Arm = Callable[[Path, dict[str, Any]], dict[str, Any]]
PLACES = {
    **dict.fromkeys(("by_hand", "tuned", "median", "top_k", "judge"), "by_hand"),
    **dict.fromkeys(("ray", "asha"), "ray_tune"),
    **dict.fromkeys(("plain", "graphs", "slots", "features", "hpsearch", "halving", "our_median"), "ours"),
}
STORES = ("by_hand", "hpsearch", "halving", "our_median")  # have MLflow
LIMIT = 300.0  # seconds
EVERY = 1.0  # seconds between looks at memory


def arm(name: str) -> Arm:
    """The arm's function, what it needs imported."""
    if name == "prepare":
        return prepare
    module: Any = importlib.import_module(f"benchmarks.{PLACES[name]}")
    if name in ("halving", "our_median"):
        pruner = name.removeprefix("our_")
        return lambda folder, task: module.search(folder, task | {"pruner": pruner})
    if PLACES[name] == "ours" and name in module.RUNGS:
        return lambda _, task: module.rung(name, task)
    found: Arm = getattr(module, name)
    return found


def prepare(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Data as hpsearch makes it ready, for the arms that have no hpsearch to do it."""
    from hpsearch.finetune.prepare import prepare as make_ready
    from hpsearch.spec import parse_spec

    del folder
    ready = make_ready(parse_spec(task["study"]).resolved() | {"folder": task["folder"]})
    return {"index": ready.index, "blocks": ready.blocks}


# ---------------------------------------------------------------- from outside


def new_store(place: Path) -> tuple[Path, float]:
    """An empty MLflow store to copy, and the seconds that making it took."""
    import mlflow  # noqa: F401  an arm imports it in its own time

    from hpsearch import tracking

    begun = time.monotonic()
    tracking.create_store(f"sqlite:///{place}/empty.db")
    return place / "empty.db", time.monotonic() - begun


def run(name: str, task: dict[str, Any], store: tuple[Path, float] | None = None, keep: dict[str, str] | None = None) -> dict[str, Any]:
    """One arm's result with cold seconds and the peak of its memory; RuntimeError with its last words when it fails or takes too long."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        (folder / "task.json").write_text(json.dumps(task))
        uses_store = store is not None and name in STORES
        if uses_store:
            shutil.copy(store[0], folder / "mlflow.db")
        threads = max([task["threads"], *(way["threads"] for way in task.get("variants", ()))])
        environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")}
        path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path, "HPSEARCH_CACHE": str(folder / "cache"), **(keep or {})}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.arms", name, place]
        before, begun = device_memory(), time.monotonic()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            peak, on_device = 0, 0
            while time.monotonic() - begun < LIMIT:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(EVERY)
                    break
                peak, on_device = max(peak, memory_of(process.pid)), max(on_device, device_memory() - before)
            cold = time.monotonic() - begun
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode or not (folder / "result.json").exists():
            raise RuntimeError(f"{name} ended with {process.returncode} after {cold:.0f} s: {(folder / 'log').read_text()[-2000:]}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    cold += (store[1] if uses_store else 0) - result.get("probe", 0.0)
    return result | {"cold": cold, "memory_mb": peak, "device_used_mb": on_device}


def memory_of(pid: int) -> int:
    """MB of a process and all below it; what they share counts once (PSS, where the system tells it)."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                info = process.memory_full_info()
                total += getattr(info, "pss", info.rss)
    return total >> 20


def device_memory() -> int:
    """MB in use on the GPU, contexts included; 0 without one."""
    if shutil.which("nvidia-smi") is None:
        return 0
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return sum(int(line) for line in done.stdout.split() if line.isdigit())


# ---------------------------------------------------------------- from inside


def main() -> None:
    """Be an arm."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    result = arm(name)(folder, json.loads((folder / "task.json").read_text()))
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and "device_mb" not in result:
        result["device_mb"] = torch.cuda.max_memory_allocated() >> 20
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
