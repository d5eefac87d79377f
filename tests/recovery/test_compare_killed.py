"""A comparison whose mirror and orchestrator are killed: the same command brings everything into MLflow, nobody has to sync."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from mlflow import MlflowClient

from tests.recovery.test_moved_folder import point_at
from tests.support.commands import HPSEARCH, Command, run_command

pytestmark = pytest.mark.process

WORDS = ["compare", "--samplers", "random,tpe", "--repeats", "1", "--trials", "2", "--initial", "1", "--name", "c"]
WORDS += ["--set", "workers=1", "--set", "space.epochs=2", "--set", "space.frozen_layers=6", "--set", "space.batch_size=64"]


def trials_in_mlflow(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("c")
    runs = client.search_runs([experiment.experiment_id], max_results=100) if experiment else []
    found = {}
    for run in runs:
        if run.data.tags.get("hpsearch.kind") == "trial":
            found.setdefault(run.data.tags["hpsearch.study"], []).append(run.info.status)
    return found


@pytest.mark.parametrize("moment", ["first study whole", "all whole"])
def test_the_same_command_completes_mlflow(tmp_path, empty_mlflow, moment):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    point_at(tmp_path / "mlflow.db", tmp_path)
    wanted = ["c-random-r1"] if moment == "first study whole" else ["c-random-r1", "c-tpe-r1"]
    last = tmp_path / "hpsearch-runs" / wanted[-1] / "spec.json"  # written once a study has ended
    process = Command([HPSEARCH, *WORDS], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # the mirror with it
    process.wait()
    done = run_command([HPSEARCH, *WORDS], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sync" not in done.stdout + done.stderr
    assert trials_in_mlflow(tmp_path) == {name: ["FINISHED"] * 2 for name in ("c-random-r1", "c-tpe-r1")}
