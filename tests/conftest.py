"""Shared by all tests: one thread, no telemetry, an empty working folder on request, processes ended."""

import multiprocessing.util
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # it would write a token into the home folder
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process compiles the package anew
for name in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)

import gc
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.browser import BROWSER, Browser
from tests.support.browser import MISSING as MISSING_BROWSER
from tests.support.commands import SHARED, Command, fork_what_multiprocessing_spawns, run_command, shared_folder, start_server

sys.dont_write_bytecode = False
os.environ["HPSEARCH_CACHE"] = tempfile.mkdtemp(prefix="hpsearch-cache-")
if SHARED not in os.environ:  # the first process of the run; those that it starts find it there
    os.environ[SHARED] = f"{tempfile.mkdtemp(prefix='hpsearch-tests-')}:{os.getpid()}"

# A runner in the background has SIGINT ignored, and so would every process that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A test that asks for one of these fixtures needs what its marker says.
NEEDS = {"browser": "browser", "postgres": "postgres", "ray_here": "ray", "empty_mlflow": "process", "new_store": "process"}
running: list[pytest.Item] = []


def pytest_collection_modifyitems(config, items):
    """Marks tests by the fixtures that they ask for, each of which starts processes; puts the longest files first."""
    seconds = json.loads((Path(__file__).parent / "order.json").read_text())
    if not config.getoption("random_order", False):
        items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))
    for item in items:
        for name in {NEEDS[name] for name in item.fixturenames if name in NEEDS}:
            item.add_marker(name)
        if any(item.get_closest_marker(name) for name in ("browser", "postgres", "ray", "slow")):
            item.add_marker("process")


def pytest_collection_finish(session):
    """Has the server of commands load while the first tests run; spares the garbage collector what was made so far: two million objects."""
    needed = any(item.get_closest_marker("process") for item in session.items)
    if needed and not session.config.option.collectonly and os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        start_server()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Knows which test is running."""
    running[:] = [item]
    try:
        return (yield)
    finally:
        running.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown():
    """What is ended after a test may belong to others, and may take a process to end."""
    running.clear()


def refuse_processes(owner, name):
    """Has a test fail in `make test-fast` that starts a process: it is to be marked so."""
    start = getattr(owner, name)

    def checked(*given, **options):
        fast = bool(running) and "not process" in running[0].config.option.markexpr  # whoever starts what is shared depends on the order
        if fast and not running[0].get_closest_marker("process"):
            note = os.environ.get("HPSEARCH_TESTS_NOTE")
            if not note:
                pytest.fail(f"{running[0].nodeid} starts a process: mark it with pytest.mark.process")
            with open(note, "a") as file:
                file.write(f"{running[0].nodeid}\n")
        return start(*given, **options)

    setattr(owner, name, checked)


fork_what_multiprocessing_spawns()
refuse_processes(os, "fork")
refuse_processes(subprocess.Popen, "_execute_child")
refuse_processes(Command, "_execute_child")
refuse_processes(multiprocessing.util, "spawnv_passfds")


def pytest_unconfigure():
    """Removes what the processes of a run shared, at the end of the first of them."""
    folder, owner = shared_folder()
    if owner == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


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
def empty_mlflow():
    """An MLflow store without runs, made once for all test processes: 3 to 10 seconds each time otherwise."""
    path = shared_folder()[0] / "mlflow.db"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            code = f"from hpsearch.tracking import create_store; create_store('sqlite:///{path}')"
            run_command([sys.executable, "-c", code], check=True)
    return path


@pytest.fixture(scope="session")
def new_store(empty_mlflow):
    """Put an empty MLflow store into a folder; its URI."""

    def make(folder):
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    return make


@pytest.fixture(scope="module")
def ray_here():
    """A Ray of four processors in this process, for the tests of a file: idle, it would use a tenth of a core."""
    import ray

    ray.init("local", num_cpus=4, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser for all tests of a process."""
    if BROWSER is None:
        pytest.skip(MISSING_BROWSER)
    with closing(Browser(tmp_path_factory.mktemp("profile"))) as started:
        yield started


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
