"""What every benchmark shares: the machine in words, medians with spread, results written as they come."""

import json
import os
import platform
import shutil
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OUT = Path(os.environ.get("BENCHMARKS_OUT") or Path(__file__).parent / "out")
PACKAGES = ("torch", "torchvision", "optuna", "mlflow", "numpy", "ray")


def machine() -> dict[str, object]:
    """Hardware and versions."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), "")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        **gpu(),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := installed(name))},
    }


def gpu() -> dict[str, str]:
    """The GPU and its driver, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return {}
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {"gpu": done.stdout.strip()} if done.returncode == 0 else {}


def installed(name: str) -> str:
    """A package's version; "" without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def spread(values: list[float], unit: str = "s", digits: int = 1) -> str:
    """Median (minimum to maximum), n."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:.{digits}f} {unit} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f}, n={len(ordered)})"


def brief(values: list[float], digits: int = 2) -> str:
    """Median (minimum to maximum) for a table's cell; "-" without values."""
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})" if len(values) > 1 else f"{middle:.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they need, the first one left-aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = (
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in (head, *rows)
    )
    return "\n".join(lines)


def save(name: str, result: dict[str, object]) -> Path:
    """Write a result with the machine it came from."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
