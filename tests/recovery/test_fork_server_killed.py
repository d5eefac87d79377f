"""The fork server of a study's workers dies by itself: its workers train on, and another one takes its place when a worker is lost."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support.commands import HPSEARCH, Command, run_command

pytestmark = pytest.mark.process

WORDS = ["run", "--name", "s", "--trials", "8", "--pruner", "none", "--no-tracking", "--set", "workers=2"]
WORDS += ["--set", "space.epochs=10", "--set", "space.frozen_layers=4", "--set", "space.batch_size=16"]


def fork_server_of(process):
    for child in psutil.Process(process.pid).children():
        if "forkserver" in Path(f"/proc/{child.pid}/cmdline").read_text():
            return child
    raise AssertionError("no fork server")


@pytest.mark.parametrize("with_worker", [False, True])
def test_a_study_goes_on_without_its_fork_server(tmp_path, with_worker):
    process = Command([HPSEARCH, *WORDS], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "hpsearch-runs" / "s" / "results" / "trial-0000.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    server = fork_server_of(process)
    worker = server.children()[0]
    os.kill(server.pid, signal.SIGKILL)
    if with_worker:
        os.kill(worker.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    trials = json.loads(run_command([HPSEARCH, "show", "s", "--json"], cwd=tmp_path).stdout)["trials"]
    assert [trial["status"] for trial in trials] == ["COMPLETE"] * 8
