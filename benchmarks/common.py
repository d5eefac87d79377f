"""What every benchmark shares: the machine in words, medians with spread, results written as they come."""

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

OUT = Path(__file__).parent / "out"
PACKAGES = ("torch", "optuna", "mlflow", "numpy")


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
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def spread(values: list[float], unit: str = "s", digits: int = 1) -> str:
    """Median (minimum to maximum), n."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:.{digits}f} {unit} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f}, n={len(ordered)})"


def save(name: str, result: dict[str, object]) -> Path:
    """Write a result with the machine it came from."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
