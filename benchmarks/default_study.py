"""Wall time of the 50-trial default study, process start to summary, everything on: storage, MLflow, report."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import save, spread

HPSEARCH = Path(sys.executable).parent / "hpsearch"


def run(repeats: int = 3) -> None:
    walls, sessions, counts = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            command = [HPSEARCH, "run", "--sampler", "tpe", "--trials", "50", "--json"]
            done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            walls.append(time.monotonic() - begun)
            summary = json.loads(done.stdout)
            sessions.append(summary["seconds"])
            counts.append(summary["counts"])
    print(f"default study, 50 trials, whole command: {spread(walls)}")
    print(f"  of which until the last trial ended:   {spread(sessions)}")
    print(f"  fates: {counts}")
    save("default_study", {"wall_seconds": walls, "session_seconds": sessions, "fates": counts})
