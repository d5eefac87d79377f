"""Links into MLflow's page, and what GPUs tell, against the programs themselves or what they print."""

import pytest
from mlflow import MlflowClient

from hpsearch.errors import NotFound
from hpsearch.machine import GpuLoad, gpu_loads
from hpsearch.service.mlflow_links import page_of
from tests.mlflow_server import Server
from tests.support.commands import HPSEARCH, run_command

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A folder in which a study was mirrored."""
    folder = tmp_path_factory.mktemp("mirrored")
    command = [HPSEARCH, "run", "--trials", "2", "--name", "one", "--set", "space.epochs=2"]
    run_command(command, cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def server(mirrored):
    """MLflow's server on it."""
    running = Server(mirrored, f"sqlite:///{mirrored}/mlflow.db").start()
    yield running
    running.kill()


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_study_and_its_trials_are_found_in_mlflow(mirrored, kind, request):
    uri = f"sqlite:///{mirrored}/mlflow.db"
    tracking = uri if kind == "file" else request.getfixturevalue("server").uri
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("one").experiment_id
    runs = {run.data.tags.get("hpsearch.trial"): run.info.run_id for run in client.search_runs([experiment])}
    assert page_of(tracking, "one", None) == f"#/experiments/{experiment}"
    assert page_of(tracking, "one", 1) == f"#/experiments/{experiment}/runs/{runs['1']}"
    for name, trial in (("two", None), ("one", 7)):
        with pytest.raises(NotFound, match="hpsearch sync"):
            page_of(tracking, name, trial)


def test_without_mlflow_there_is_no_link(tmp_path):
    for tracking in (None, f"sqlite:///{tmp_path}/mlflow.db", "http://127.0.0.1:9"):
        with pytest.raises(NotFound):
            page_of(tracking, "one", None)


def test_gpus_as_nvidia_smi_tells(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, NVIDIA H200, 87, 143771, 1024'\necho '1, NVIDIA A100-SXM4, [N/A], 81920, 0'\necho 'nonsense'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = gpu_loads()
    assert found == (GpuLoad(0, "NVIDIA H200", 0.87, 143771 << 20, 1024 << 20), GpuLoad(1, "NVIDIA A100-SXM4", 0.0, 81920 << 20, 0))
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_loads() == ()
