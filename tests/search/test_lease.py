"""The lease of a study on a real PostgreSQL server: one session at a time, by the server's clock, and none writes that was overtaken."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy
from optuna.study import StudyDirection

from hpsearch.errors import WaitOrStop
from hpsearch.search import lease, server
from hpsearch.search.lease import holders, leased
from hpsearch.search.store import open_storage
from tests.support.commands import Command
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(postgres):
    return postgres.database()


@pytest.fixture
def short(monkeypatch):
    """Leases of two seconds, and of a machine that is no other's."""
    monkeypatch.setattr(lease, "SECONDS", 2.0)
    monkeypatch.setattr(lease, "BEAT", 0.3)
    monkeypatch.setattr(server, "IDLE", 1)


def elsewhere(monkeypatch, name="elsewhere"):
    """From now on, leases are taken as on another machine."""
    monkeypatch.setattr(lease, "system_id", lambda: name)


def columns(postgres, url):
    (row,) = postgres.sql("SELECT row_to_json(l) FROM hpsearch_leases l", database=url.rpartition("/")[2])
    return json.loads(row)


def test_a_second_session_is_told_who_runs_the_study_and_since_when(url):
    with leased(url, "s"):
        with pytest.raises(WaitOrStop) as caught, leased(url, "s"):
            pass
        words = str(caught.value)
        assert f"the study 's' is being run by {os.uname().nodename}, process {os.getpid()}, since 20" in words
        assert "wait for it, stop it, or choose another --name. If that machine is gone, the same command takes over 30 s after" in words
        with leased(url, "other"):
            storage = open_storage(url)
            assert set(holders(storage)) == {"s", "other"}
    assert holders(storage) == {}
    storage.engine.dispose()


def test_it_is_free_at_once_when_a_session_ends_and_its_number_grows(postgres, url):
    for fence in (1, 2, 3):
        with leased(url, "s"):
            assert columns(postgres, url)["fence"] == fence
        assert columns(postgres, url)["expires"] == 0


def test_a_session_that_lives_keeps_it_and_one_that_is_silent_loses_it(url, short, monkeypatch):
    with leased(url, "s") as first:
        storage = open_storage(url, create=True)
        first.guard(storage)
        time.sleep(3 * lease.SECONDS)
        elsewhere(monkeypatch)
        with pytest.raises(WaitOrStop, match="is being run by"), leased(url, "s"):
            pass
        first.over.set()  # as if frozen: no sign of life any more
        first.thread.join()
        begun = time.monotonic()
        with until(lambda: take(url)):
            assert time.monotonic() - begun > 0.5, "not before it ran out"
            with pytest.raises(
                WaitOrStop, match=r"the study 's' was taken over by .*, process \d+, since .*; this session writes nothing more"
            ):
                storage.create_new_study([StudyDirection.MINIMIZE], "late")
        assert storage_names(url) == []
        with pytest.raises(WaitOrStop, match="was taken over"):
            first.check()
    storage.engine.dispose()


def take(url):
    """The lease, entered; None while somebody holds it."""
    stack = leased(url, "s")
    try:
        held = stack.__enter__()
    except WaitOrStop:
        return None
    return Entered(stack, held)


class Entered:
    def __init__(self, stack, held):
        self.stack, self.held = stack, held

    def __enter__(self):
        return self.held

    def __exit__(self, *about):
        return self.stack.__exit__(*about)


def storage_names(url):
    storage = open_storage(url)
    names = [study.study_name for study in storage.get_all_studies()]
    storage.engine.dispose()
    return names


HOLDING = """
import sys, time
from hpsearch.search.lease import leased
with leased(sys.argv[1], "s"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_session_of_the_same_machine_is_not_waited_for(url):
    with Command([sys.executable, "-c", HOLDING, url], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        with pytest.raises(WaitOrStop, match=f"process {process.pid},"), leased(url, "s"):
            pass
        process.kill()
    with leased(url, "s"):
        pass


def test_a_killed_session_of_another_machine_is_waited_for_by_the_servers_clock(url, short, monkeypatch):
    holding = leased(url, "s")
    held = holding.__enter__()
    held.over.set()
    elsewhere(monkeypatch)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this host's clock is decades ahead
    with pytest.raises(WaitOrStop, match="is being run by"), leased(url, "s"):
        pass
    with until(lambda: take(url)):
        pass
    holding.__exit__(None, None, None)


def test_a_restart_of_the_server_does_not_lose_it(postgres, url, short, monkeypatch):
    with leased(url, "s") as held:
        before = columns(postgres, url)
        for _ in range(2):
            postgres.restart()
        until(lambda: columns(postgres, url)["beat"] > before["beat"])
        held.check()
        elsewhere(monkeypatch)
        with pytest.raises(WaitOrStop, match="is being run by"), leased(url, "s"):
            pass
        assert columns(postgres, url)["fence"] == before["fence"]


def test_a_transaction_holds_the_study_until_it_is_through(url, short, monkeypatch):
    """Nobody takes over between a look at the number and the commit that hangs on it; who is frozen there loses the transaction."""
    with leased(url, "s") as first:
        storage = open_storage(url, create=True)
        first.guard(storage)
        first.over.set()
        first.thread.join()
        elsewhere(monkeypatch)
        time.sleep(lease.SECONDS + 0.2)
        db = storage.engine.connect()
        db.execute(sqlalchemy.text("CREATE TABLE marks (id int)"))
        taken = []

        def overtake():
            with leased(url, "s"):
                taken.append(time.monotonic())
                done.wait()

        done = threading.Event()
        thread = threading.Thread(target=overtake)
        thread.start()
        time.sleep(0.3)
        assert not taken, "it waits for the transaction"
        until(lambda: taken)  # the server ended what was idle for a second
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            db.execute(sqlalchemy.text("INSERT INTO marks VALUES (1)"))
        db.close()
        with pytest.raises(WaitOrStop):
            storage.get_all_studies()
        done.set()
        thread.join()
    assert not sqlalchemy.inspect(open_storage(url).engine).has_table("marks")


FROZEN = """
import sys, time
from hpsearch.errors import WaitOrStop
from hpsearch.search import lease
from hpsearch.search.store import open_storage
from optuna.study import StudyDirection
lease.SECONDS, lease.BEAT, lease.system_id = 2.0, 0.3, lambda: "there"
with lease.leased(sys.argv[1], "s") as held:
    storage = open_storage(sys.argv[1], create=True)
    held.guard(storage)
    print("held", flush=True)
    try:
        for i in range(10**6):
            storage.create_new_study([StudyDirection.MINIMIZE], f"{i}")
            time.sleep(0.01)
    except WaitOrStop as error:
        print(error, flush=True)
"""


def test_a_process_that_was_frozen_and_wakes_after_a_takeover_writes_nothing(postgres, url, short):
    process = Command([sys.executable, "-c", FROZEN, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    until(lambda: len(storage_names(url)) > 3)
    process.send_signal(signal.SIGSTOP)
    try:
        with until(lambda: take(url)):
            before = storage_names(url)
            process.send_signal(signal.SIGCONT)
            said = process.communicate(timeout=60)[0]
            assert storage_names(url) == before
    finally:
        process.kill()
        process.wait()
    assert f"the study 's' was taken over by {os.uname().nodename}, process {os.getpid()}" in said
    assert process.returncode == 0


def test_a_session_that_slept_and_lost_nothing_goes_on(url, short, monkeypatch):
    with leased(url, "s") as held:
        held.looked -= 100  # as if it had slept
        held.check()
        assert not held.lost


def test_a_file_needs_no_lease(tmp_path):
    with leased(f"sqlite:///{tmp_path}/s.db", "s") as held:
        held.check()
    assert not list(tmp_path.iterdir())
