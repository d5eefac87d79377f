"""What is lost when something dies: workers, the orchestrator, both. Real processes, and a ledger that the trainer itself writes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from hpsearch.keeping import read_results, result_path, state_path
from hpsearch.machine import survivors
from hpsearch.search.catalog import read_study
from hpsearch.search.records import RECORD
from hpsearch.search.store import open_storage, opened
from hpsearch.startup import await_workers
from hpsearch.types import Status
from tests.kernels import loss_at
from tests.storm import ours
from tests.support.commands import Command
from tests.waiting import until

pytestmark = pytest.mark.process


ROOT = Path(__file__).parents[1]
SESSION = [sys.executable, "-m", "tests.session"]


@pytest.fixture
def place(tmp_path):
    """A folder with an empty storage."""
    open_storage(f"sqlite:///{tmp_path}/hpsearch.db", create=True).engine.dispose()
    return tmp_path


def begin(place, crash="", **values):
    """Start a session of the study in `place`; `values` are those of tests/session.py."""
    environment = os.environ | {"HPSEARCH_CRASH_AT": crash, "PYTHONPATH": str(ROOT)}
    (place / "session.json").write_text(json.dumps(values))
    return Command([*SESSION, str(place)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(place, **values):
    """A session to its end."""
    process = begin(place, **values)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out


def ledger(place, kind):
    """What the trainer wrote of one kind: trial, attempt, ..."""
    path = place / "ledger"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row[1:] for row in rows if row[0] == kind]


def records(place):
    with opened(f"sqlite:///{place}/hpsearch.db") as storage:
        return read_study(storage, "s").records


def whole(place, trials=8, epochs=4):
    """Every trial complete, each epoch once in its curve, with the values that they have."""
    found = records(place)
    assert [r.number for r in found] == list(range(trials))
    assert {r.status for r in found} == {Status.COMPLETE}
    for r in found:
        assert [row["epoch"] for row in r.curve] == list(range(1, epochs + 1))
        assert [row["val_loss"] for row in r.curve] == [loss_at(r.params, epoch) for epoch in range(1, epochs + 1)]
    assert len({json.dumps(dict(r.params), sort_keys=True) for r in found}) == trials
    return found


def test_a_killed_orchestrator_wastes_no_epoch_and_nothing_of_it_lives_on(place):
    first = begin(place, sleep=0.3)
    until(lambda: len(ledger(place, "epoch")) >= 7)
    first.kill()
    first.communicate()
    until(lambda: not ours(place), 10)
    before = records(place)
    assert not list(place.glob("**/*.tmp"))
    finish(place, sleep=0.01)
    whole(place)
    trained = Counter((trial, epoch) for trial, _, epoch, *_ in ledger(place, "epoch"))
    assert set(trained.values()) == {1}, "an epoch was trained twice"
    attempts = {r.number: r.attempt for r in records(place)}
    assert max(attempts.values()) == 2
    assert {r.number for r in before if r.status.ended} <= {n for n, attempt in attempts.items() if attempt == 1}


def test_the_next_session_waits_for_workers_of_a_killed_one(place):
    first = begin(place, sleep=1.5)
    until(lambda: len(ledger(place, "start")) >= 2)
    time.sleep(0.2)
    first.kill()
    first.communicate()
    finish(place, sleep=0.01)  # begins while the old workers are at their first epoch
    whole(place)
    assert set(Counter((trial, epoch) for trial, _, epoch, *_ in ledger(place, "epoch")).values()) == {1}


def test_that_workers_of_a_killed_session_are_waited_for_is_said_once(tmp_path):
    hold = "import sys, time; from pathlib import Path; from hpsearch import machine\n"
    hold += "with machine.claim(Path(sys.argv[1]), 1.0): print('held', flush=True); time.sleep(0.5)"
    holder = Command([sys.executable, "-c", hold, str(tmp_path / "worker-0.lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    said = []
    await_workers(tmp_path, lambda *words: said.append(words[0]))
    assert holder.poll() is not None or survivors(tmp_path) == []
    assert len(said) == 1
    await_workers(tmp_path, lambda *words: said.append(words[0]))
    assert len(said) == 1
    holder.communicate()


def test_a_killed_worker_costs_an_attempt_and_no_trial(place):
    session = begin(place, sleep=0.15)
    killed = []
    while len(killed) < 3:
        last = until(lambda: [row for row in ledger(place, "epoch") if row[4] not in killed and psutil.pid_exists(row[4])])[-1]
        os.kill(last[4], signal.SIGKILL)
        killed.append(last[4])
        time.sleep(0.4)
    _, err = session.communicate(timeout=120)
    assert session.returncode == 0, err
    found = whole(place)
    assert sum(r.attempt - 1 for r in found) == 3
    assert len(ledger(place, "start")) == 8 + 3
    assert until(lambda: not ours(place), 10)


def test_a_worker_that_hangs_is_ended_and_its_trial_trained_on(place):
    out = finish(place, sleep=0.02, stall=2.0, faults={"3": "hang"})
    found = whole(place)
    assert [r.attempt for r in found] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert "made no progress for 2 s" in out
    assert [first for trial, attempt, first, *_ in ledger(place, "start") if trial == 3] == [1, 2], "it went on from its first epoch"


def test_a_stopped_worker_is_ended_too(place):
    session = begin(place, sleep=0.1, stall=2.0)
    pid = until(lambda: ledger(place, "epoch"))[-1][4]
    os.kill(pid, signal.SIGSTOP)
    _, err = session.communicate(timeout=120)
    assert session.returncode == 0, err
    whole(place)
    assert not psutil.pid_exists(pid)


def test_what_a_worker_started_ends_with_it(place):
    session = begin(place, sleep=0.2, child=True)
    child = until(lambda: ledger(place, "child"))[0][0]
    worker = until(lambda: ledger(place, "epoch"))[0][4]
    os.kill(worker, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, 10)
    session.kill()
    session.communicate()
    until(lambda: not ours(place), 10)


def test_results_that_the_storage_never_heard_of_are_taken(place):
    """The storage is locked, trials end, everything is killed: what was trained is in the folder."""
    session = begin(place, sleep=0.05)
    until(lambda: ledger(place, "finish"))
    lock = Command([sys.executable, "-c", LOCK, str(place / "hpsearch.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert lock.stdout.readline() == "locked\n"
    before = len(ledger(place, "finish"))
    until(lambda: len(ledger(place, "finish")) >= min(8, before + 3))
    session.kill()
    session.communicate()
    lock.communicate("")
    until(lambda: not ours(place), 10)
    assert sum(r.status.ended for r in records(place)) < len(ledger(place, "finish"))
    finish(place)
    whole(place)
    assert set(Counter((trial, epoch) for trial, _, epoch, *_ in ledger(place, "epoch")).values()) == {1}, "an epoch was trained twice"


LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_results_of_another_study_of_that_name_are_not_taken(place):
    finish(place)
    assert len(read_results(place, uid(place))) == 8
    (place / "hpsearch.db").unlink()
    open_storage(f"sqlite:///{place}/hpsearch.db", create=True).engine.dispose()
    finish(place, seed=1)
    assert len(ledger(place, "start")) == 16
    assert len(read_results(place, uid(place))) == 8


def uid(place):
    with opened(f"sqlite:///{place}/hpsearch.db") as storage:
        return storage.get_study_user_attrs(storage.get_study_id_from_name("s"))[RECORD]["uid"]


def test_results_agree_with_the_storage_and_states_are_gone(place):
    finish(place)
    results = read_results(place, uid(place))
    for record in records(place):
        result = results[record.name]
        assert (result.params, result.status, result.val_loss, list(result.curve)) == (
            record.params,
            record.status,
            record.val_loss,
            list(record.curve),
        )
        assert result_path(place, record.name).exists()
        assert not state_path(place, record.name).exists()
