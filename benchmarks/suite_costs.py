"""What the test suite costs: processor and wall seconds by folder, and its slowest tests.

Processor time is that of each test process and of all that it started, also of what outlives its parent: it is read from a control
group of its own (Linux with cgroup v1's `cpuacct`, as root). `update_order` writes the order of tests/order.json, by which the longest
files begin first; run it after tests have moved or changed their length.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ROOT / "tests" / "order.json"
GROUPS = Path("/sys/fs/cgroup/cpuacct")
FOLDER = "HPSEARCH_SUITE_COSTS"
GROUP = "HPSEARCH_SUITE_GROUP"  # read by tests/support/fork_server.py


def run(repeats: int = 3, only: str = "not slow", workers: str = "3") -> None:
    """Runs the suite `repeats` times and prints medians with their ranges; `only` is a marker expression of pytest."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.suite_costs", "-n", workers, "-m", only]
            environment = os.environ | {FOLDER: folder, "OMP_NUM_THREADS": "1"}
            began = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            print(f"{time.monotonic() - began:.0f} s: {done.stdout.splitlines()[-1]}")
            runs.append((time.monotonic() - began, read_costs(Path(folder))))
    print_table(runs)
    update_order([costs for _, costs in runs])


def read_costs(folder: Path) -> dict[str, tuple[float, float]]:
    """Processor and wall seconds of each test, and of what is done beside them ("")."""
    costs: dict[str, tuple[float, float]] = {}
    beside = 0.0
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        costs |= {row["test"]: (row["cpu"], row["wall"]) for row in rows if row["test"]}
        beside += sum(row["cpu"] for row in rows if not row["test"]) - sum(row["cpu"] for row in rows if row["test"])
    return costs | {"": (beside, 0.0)}


def folder_of(test: str) -> str:
    """The folder of a test's file; the file itself where it lies on top."""
    return str(Path(test.partition("::")[0]).parent) if test else "start, collection, shared servers"


def print_table(runs: list[tuple[float, dict[str, tuple[float, float]]]]) -> None:
    """Prints processor and wall seconds by folder, and the ten slowest tests."""
    totals: dict[str, list[list[float]]] = defaultdict(list)
    for _, costs in runs:
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for test, (cpu, wall) in costs.items():
            row = sums[folder_of(test)]
            row[0], row[1], row[2] = row[0] + cpu, row[1] + wall, row[2] + bool(test)
        for name, row in sums.items():
            totals[name].append(row)
    print("| folder | tests | processor [s] | wall, summed over processes [s] |\n|---|---|---|---|")
    for name, rows in sorted(totals.items(), key=lambda item: -item[1][0][0]):
        cpu, wall = ([row[i] for row in rows] for i in (0, 1))
        print(f"| `{name}` | {rows[0][2]:.0f} | {spread(cpu)} | {spread(wall)} |")
    print(f"wall of the whole run: {spread([wall for wall, _ in runs])} s, n = {len(runs)}")
    slowest = sorted(runs[0][1].items(), key=lambda item: -item[1][1])[:10]
    for test, (cpu, wall) in slowest:
        print(f"{wall:6.1f} s, {cpu:5.1f} s of processor time: {test}")


def spread(values: list[float]) -> str:
    """The median with the range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def update_order(runs: list[dict[str, tuple[float, float]]]) -> None:
    """Writes the files of tests with their wall seconds, the longest first."""
    seconds: dict[str, float] = defaultdict(float)
    for test, (_, wall) in runs[0].items():
        if test:
            seconds[test.partition("::")[0]] += wall
    listed = sorted(seconds.items(), key=lambda item: -item[1])
    ORDER.write_text(json.dumps({name: round(wall, 1) for name, wall in listed if wall >= 1}, indent=1) + "\n")


class CostRecorder:
    """Writes what each test costs into a file of the test process."""

    def __init__(self, folder: Path) -> None:
        self.group = GROUPS / f"hpsearch-tests-{os.getpid()}"
        self.group.mkdir()
        (self.group / "cgroup.procs").write_text(str(os.getpid()))
        os.environ[GROUP] = str(self.group)
        self.before = time.process_time()
        self.file = (folder / f"{os.getpid()}.jsonl").open("w", buffering=1)

    def used(self) -> float:
        """Processor seconds of this process and of all that it started."""
        return int((self.group / "cpuacct.usage").read_text()) / 1e9

    def write(self, test: str, cpu: float, wall: float) -> None:
        """Writes a row."""
        self.file.write(json.dumps({"test": test, "cpu": cpu, "wall": wall}) + "\n")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item):  # type: ignore[no-untyped-def]
        """Measures a test with its fixtures."""
        wall, cpu = time.monotonic(), self.used()
        result = yield
        self.write(item.nodeid, self.used() - cpu, time.monotonic() - wall)
        return result

    def pytest_unconfigure(self) -> None:
        """Writes what the whole process has used."""
        self.write("", self.used() + self.before, 0.0)


def pytest_configure(config: pytest.Config) -> None:
    """Begins to record, where a run of `python -m benchmarks suite_costs` asks for it."""
    if folder := os.environ.get(FOLDER):
        config.pluginmanager.register(CostRecorder(Path(folder)))
