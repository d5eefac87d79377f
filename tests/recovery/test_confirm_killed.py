"""A session that is killed while it confirms its best trials: the same command completes the confirmation, and trains nothing twice."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.support.commands import HPSEARCH, Command, run_command

pytestmark = pytest.mark.process

WORDS = ["run", "--name", "s", "--trials", "3", "--confirm", "2x2", "--pruner", "none", "--no-tracking", "--set", "workers=1"]
WORDS += [
    "--set",
    "space.epochs=3",
    "--set",
    "space.frozen_layers=5",
    "--set",
    "space.batch_size=64",
    "--set",
    "split={val: 200, test: 200}",
]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_same_command_completes_the_confirmation(tmp_path, request, database):
    url = request.getfixturevalue("postgres").database() if database == "postgresql" else None
    environment = os.environ | ({"OPTUNA_STORAGE": url} if url else {})
    results = tmp_path / "hpsearch-runs" / "s" / "results"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = Command([HPSEARCH, *WORDS], cwd=tmp_path, env=environment, start_new_session=True, **silent)
    while not list(results.glob("confirm-*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    for _ in range(60):
        done = run_command([HPSEARCH, *WORDS], cwd=tmp_path, env=environment)
        if "held" not in done.stderr and "runs" not in done.stderr:  # the lease of a killed session runs out
            break
        time.sleep(0.5)
    assert done.returncode == 0, done.stderr
    assert "Confirmed on 2 fresh seeds" in done.stdout
    after = {path.name: path.read_bytes() for path in results.iterdir()}
    assert before.items() <= after.items(), "what was trained is not trained again"
    assert len([name for name in after if name.startswith("confirm-")]) == 4
    best = json.loads(run_command([HPSEARCH, "best", "s", "--json"], cwd=tmp_path, env=environment).stdout)
    assert best["proof"]["confirmed"]
    assert best["proof"]["test"] is not None
