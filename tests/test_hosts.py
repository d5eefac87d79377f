"""Two hosts and a PostgreSQL server that restarts, as `make chaos` has it in large: nothing is lost, doubled, or written too late."""

import json
import signal
import subprocess
from collections import Counter

import pytest

from hpsearch.search.store import open_storage
from tests.hosts import HOSTS, Pair, storm_of_hosts
from tests.storm import begin, examine, grid
from tests.waiting import until

SMALL = {"trials": 20, "space": grid(20), "sampler": "grid", "sleep": 0.2, "mlflow": False}


@pytest.mark.slow  # leases have to run out, the server restarts twice: a minute and more; one storm, on one host, is in `make test`
def test_a_storm_over_two_hosts_and_the_server_loses_nothing(tmp_path, postgres):
    toll = storm_of_hosts(tmp_path, postgres, seed=2, kills=6, points=30, restarts=2, freezes=1, sleep=0.3, gap=0.3)
    assert toll.clean, toll.line()
    assert sum(toll.kills.values()) >= 5, "the study was over before the storm"


@pytest.mark.parametrize("without", ["", "fence"], ids=["as it is", "without"])
def test_an_orchestrator_that_was_frozen_and_overtaken_writes_nothing_when_it_wakes(tmp_path, postgres, without):
    pair = Pair(tmp_path, postgres, SMALL, without)
    try:
        for host in HOSTS:
            pair.begin(host)
        host = until(pair.active)
        until(lambda: pair.told())
        told = pair.told()
        pair.freeze(host)
        pair.finish()
        examine(tmp_path, pair.toll, told, 20)
        clean = pair.toll.clean
    except (AssertionError, RuntimeError, subprocess.TimeoutExpired):
        clean = False
    finally:
        pair.close()
    assert clean == (not without), pair.toll.line() + pair.log()
    if not without:
        assert "was taken over by" in (tmp_path / host / "log").read_text()


def trainers(place):
    """The processes that have trained an epoch."""
    return {row[-2] for row in ledger_rows(place) if row[0] == "epoch"}


def ledger_rows(place):
    return [json.loads(line) for line in (place / "ledger").read_text().splitlines()]


def test_without_the_lease_two_hosts_are_noticed(tmp_path, postgres):
    pair = Pair(tmp_path, postgres, SMALL, "lease")
    try:
        pair.begin(HOSTS[0])
        until(pair.told)
        pair.sessions[HOSTS[0]].send_signal(signal.SIGSTOP)
        pair.begin(HOSTS[1])
        first = trainers(tmp_path)
        until(lambda: trainers(tmp_path) - first)
        pair.sessions[HOSTS[0]].send_signal(signal.SIGCONT)
        codes = [session.wait(timeout=120) for session in pair.sessions.values()]
    finally:
        pair.close()
    trained = Counter((row[1], row[3]) for row in ledger_rows(tmp_path) if row[0] == "epoch")
    assert codes != [0, 0] or max(trained.values()) > 1, "both trained the same, and neither knew"


def test_in_a_shared_folder_the_other_host_goes_on_from_the_states(tmp_path, postgres):
    url = postgres.database()
    open_storage(url, create=True).engine.dispose()
    asked = {**SMALL, "trials": 4, "space": grid(10), "sleep": 0.5, "storage": url}
    first = begin(tmp_path, asked | {"host": "host-a"})
    ledger = tmp_path / "ledger"
    until(lambda: ledger.exists() and '["epoch", 1, 1, 3' in ledger.read_text())
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert begin(tmp_path, asked | {"host": "host-b"}).wait(timeout=120) == 0
    starts = [row for row in map(json.loads, ledger.read_text().splitlines()) if row[0] == "start" and row[2] == 2]
    assert starts, "what was under way is the next attempt of its trial"
    assert all(row[3] > 1 for row in starts), "from the epoch that it had come to"
