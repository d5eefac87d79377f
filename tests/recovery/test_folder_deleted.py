"""A study's folder that somebody deletes while the study runs: the study goes on and ends whole, and the folder is there again."""

import json
import shutil
import subprocess
import time

import pytest

from hpsearch.journal import read_events
from tests.support.commands import HPSEARCH, Command, run_command

pytestmark = pytest.mark.process

WORDS = ["run", "--name", "s", "--trials", "6", "--pruner", "none", "--no-tracking", "--set", "workers=1"]
WORDS += ["--set", "space.epochs=3", "--set", "space.frozen_layers=5", "--set", "space.batch_size=64"]


def test_a_study_outlives_its_folder(tmp_path):
    folder = tmp_path / "hpsearch-runs" / "s"
    process = Command([HPSEARCH, *WORDS], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "results" / "trial-0001.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)
    assert process.wait(120) == 0
    trials = json.loads(run_command([HPSEARCH, "show", "s", "--json"], cwd=tmp_path).stdout)["trials"]
    assert [trial["status"] for trial in trials] == ["COMPLETE"] * 6
    assert [row["trial"] for _, row in read_events(folder)[0] if row["event"] == "ended"][-1] == 5
    assert len(list((folder / "results").iterdir())) >= 3
