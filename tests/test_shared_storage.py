"""Studies on one PostgreSQL server, by the installed command: several at once and several readers, one orchestrator each, two hosts."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from hpsearch.search.catalog import read_study
from hpsearch.search.store import open_storage, opened
from hpsearch.types import Status
from tests.support.commands import HPSEARCH, Command
from tests.test_main_job import hpsearch
from tests.waiting import until

RUN = ("--no-tracking", "--workers", "1", "--set", "space.epochs=2", "--set", "space.frozen_layers.low=5")
SECRET = "correct-horse-canary"


@pytest.fixture(scope="module")
def storage(postgres):
    """The URL of a database, with a password, which a server that trusts everybody does not look at."""
    return postgres.database().replace("hpsearch@", f"hpsearch:{SECRET}@")


def begin(folder, *arguments, **environment):
    """Start the command in a folder of its own."""
    folder.mkdir(exist_ok=True)
    how = {"cwd": folder, "env": os.environ | environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return Command([HPSEARCH, *arguments], **how)


def trials(url, name):
    """What the storage has of a study; none before it is there."""
    try:
        with opened(url) as storage:
            return read_study(storage, name).records
    except Exception:
        return ()


@pytest.fixture(scope="module")
def two(storage, tmp_path_factory):
    """Two folders, in which two studies were run at once while others read; what was printed, and where secrets were seen."""
    place, seen = tmp_path_factory.mktemp("hosts"), []
    names = {"a": "random", "b": "tpe"}
    running = [
        begin(place / name, "run", "--name", name, "--sampler", sampler, "--trials", "5", *RUN, OPTUNA_STORAGE=storage)
        for name, sampler in names.items()
    ]
    try:
        until(lambda: trials(storage, "a") and trials(storage, "b"))
        for process in running:
            seen += [p.cmdline() for p in psutil.Process(process.pid).children(recursive=True) if SECRET in " ".join(p.cmdline())]
        readers = [begin(place / "reader", "list", "--json", OPTUNA_STORAGE=storage) for _ in range(2)]
        said = [process.communicate(timeout=120)[0] for process in (*readers, *running)]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in (*readers, *running)] == [0] * 4, said
    return place, said, seen


def test_two_studies_run_at_once_in_one_database_while_others_read(storage, two):
    for name in ("a", "b"):
        assert [r.number for r in trials(storage, name)] == list(range(5))
        assert {r.status for r in trials(storage, name)} <= {Status.COMPLETE, Status.PRUNED}
    assert {row["study"] for row in json.loads(two[1][0])} == {"a", "b"}


def test_the_password_of_a_storage_reaches_no_output_no_file_and_no_title_of_a_process(storage, two):
    place, said, seen = two
    assert seen == []
    assert SECRET not in "".join(said)
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


LOOKS = [["list"], ["show", "a"], ["best", "a"], ["report", "a"], ["doctor"], ["compare", "a", "b", "--anyway"], ["replay", "a", "0"]]


@pytest.mark.parametrize("command", LOOKS, ids=" ".join)
def test_every_look_works_on_a_server(storage, two, empty_mlflow, command):
    folder = two[0] / "a"
    more = {"MLFLOW_TRACKING_URI": f"sqlite:///{empty_mlflow}"} if command[0] in ("doctor", "compare") else {}
    done = hpsearch(folder, *command, env=os.environ | {"OPTUNA_STORAGE": storage} | more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_lost_database_is_rebuilt_from_the_folder(postgres, storage, two):
    url = postgres.database()
    done = hpsearch(two[0] / "a", "rebuild", "--storage", url)
    assert done.returncode == 0, done.stderr
    kept = [(r.number, r.params, r.val_loss, r.status) for r in trials(storage, "a")]
    assert [(r.number, r.params, r.val_loss, r.status) for r in trials(url, "a")] == kept


def test_a_second_host_is_refused_then_takes_over_from_one_that_was_killed(postgres, tmp_path):
    """Without its folder: what was stored stays, what was under way begins again, and no number is doubled."""
    url, asked = postgres.database(), ("run", "--name", "s", *RUN[:3], "--set", "space.epochs=10")
    first = begin(tmp_path / "first", *asked, "--trials", "500", "--storage", url)
    ended = until(lambda: [r for r in trials(url, "s") if r.status.ended])
    refused = hpsearch(make(tmp_path / "second"), *asked, "--storage", url)
    assert refused.returncode == 1
    assert f"the study 's' is being run by {os.uname().nodename}, process {first.pid}, since 20" in refused.stderr
    examined = hpsearch(tmp_path / "second", "doctor", "--json", "--storage", url, "--tracking-uri", "sqlite:///mlflow.db").stdout
    assert f"'s' is being run by {os.uname().nodename}, process {first.pid}" in examined
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    left = trials(url, "s")
    done = hpsearch(tmp_path / "second", *asked, "--trials", str(len(left) + 1), "--storage", url)
    assert done.returncode == 0, done.stderr
    records = trials(url, "s")
    assert [r.number for r in records] == list(range(len(left) + 1))
    assert all(r.status.ended for r in records)
    assert [records[r.number] for r in ended] == ended
    assert {records[r.number].attempt for r in left if not r.status.ended} <= {2}, "what was under way is another attempt of the same trial"


def make(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_the_doctor_puts_back_what_a_killed_host_left_running(postgres, tmp_path):
    url = postgres.database()
    process = begin(tmp_path / "first", "run", "--name", "s", "--trials", "8", *RUN[:3], "--set", "space.epochs=40", "--storage", url)
    until(lambda: [r for r in trials(url, "s") if r.status is Status.RUNNING])
    process.kill()
    process.communicate()
    done = hpsearch(make(tmp_path / "second"), "doctor", "--fix", "--json", "--storage", url, "--tracking-uri", "sqlite:///mlflow.db")
    assert "'s' was cut off: trial" in done.stdout
    assert {r.status for r in trials(url, "s")} <= {Status.WAITING, Status.COMPLETE, Status.PRUNED}


def test_storage_and_tracking_in_one_database_are_refused(postgres, tmp_path):
    url = postgres.database()
    done = hpsearch(tmp_path, "run", "--storage", url, "--tracking-uri", url.replace("+psycopg", ""))
    assert done.returncode == 1
    assert "storage and tracking name the same database" in done.stderr
    assert not list(Path(tmp_path).iterdir())


def test_a_storage_that_was_never_used_says_so(postgres, tmp_path):
    done = hpsearch(tmp_path, "list", "--storage", postgres.database())
    assert done.returncode == 1
    assert "holds no study yet: run one first" in done.stderr


def test_the_storage_of_a_study_names_no_sqlite_file(storage, two):
    assert not list(two[0].glob("*/hpsearch.db"))
    open_storage(storage).engine.dispose()
