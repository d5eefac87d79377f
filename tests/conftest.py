"""Shared by all tests: one thread, no telemetry, an empty working folder on request, processes ended."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # it would write a token into the home folder
for name in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)

import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

os.environ["HPSEARCH_CACHE"] = tempfile.mkdtemp(prefix="hpsearch-cache-")

# A runner in the background has SIGINT ignored, and so would every process that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache():
    """The cache of decoded images that all tests share; removed at the end."""
    yield os.environ["HPSEARCH_CACHE"]
    shutil.rmtree(os.environ["HPSEARCH_CACHE"], ignore_errors=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """An MLflow store without runs, made once: 3 to 10 seconds each time otherwise."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    code = f"from hpsearch.tracking import create_store; create_store('sqlite:///{path}')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return path


@pytest.fixture(scope="session")
def new_store(empty_mlflow):
    """Put an empty MLflow store into a folder; its URI."""

    def make(folder):
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    return make


@pytest.fixture(scope="session")
def ray_here():
    """A Ray of four processors in this process; started when a test first asks for it."""
    import ray

    ray.init("local", num_cpus=4, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for all tests that need one."""
    from tests.postgres import MISSING, Postgres, binaries

    if binaries() is None:
        pytest.skip(MISSING)
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def empty_storage(tmp_path_factory):
    """A storage without studies, to be copied: making one takes longer than most tests."""
    from hpsearch.search.store import open_storage

    path = tmp_path_factory.mktemp("storage") / "hpsearch.db"
    open_storage(f"sqlite:///{path}", create=True).engine.dispose()
    return path


@pytest.fixture
def url(tmp_path, empty_storage):
    """A storage of the test's own."""
    shutil.copy(empty_storage, tmp_path / "hpsearch.db")
    return f"sqlite:///{tmp_path}/hpsearch.db"
