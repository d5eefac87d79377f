"""kill -9 of the server, of a study's process, of both, at any moment: the queue goes on and no trial is lost or doubled."""

import os
import random
import signal
import time
from contextlib import closing

import pytest
from serving import LONG, SHORT, Server

from hpsearch.journal import read_events
from hpsearch.search.queue import Queue

pytestmark = pytest.mark.process


SMALL = {"trials": 3, "pruner": "none", "space": {"epochs": 4, "frozen_layers": 5}}


@pytest.fixture
def servers(tmp_path):
    """Starts servers in one folder; all ended afterwards."""
    made = []

    def start(*options):
        made.append(Server(tmp_path, *options))
        return made[-1]

    yield start
    for server in made:
        server.end_all()


def whole(server, name):
    """Every trial of a study ended once, and has all of its epochs."""
    trials = server.ask("GET", f"/api/studies/{name}/trials")[1]["trials"]
    assert [trial["number"] for trial in trials] == list(range(len(trials)))
    assert [trial["error"] for trial in trials if trial["status"] != "COMPLETE"] == []
    assert {trial["epochs_done"] for trial in trials} == {trials[0]["params"]["epochs"]}
    ended = [row["trial"] for _, row in read_events(server.folder / "hpsearch-runs" / name)[0] if row["event"] == "ended"]
    assert sorted(set(ended)) == list(range(len(trials)))
    return len(trials)


def first_epoch(server, name, seconds=120):
    give_up = time.monotonic() + seconds
    while not any(row["event"] == "epoch" for _, row in read_events(server.folder / "hpsearch-runs" / name)[0]):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_the_server_is_killed_and_its_study_runs_on(servers):
    server = servers()
    server.submit("first", {**LONG, "trials": 3, "space": {"epochs": 40, "frozen_layers": 5}})
    server.submit("second", SMALL)
    first_epoch(server, "first")
    (child,) = server.children()
    server.kill()
    assert server.children() == [child], "what runs is not the server's to take along"
    again = servers()
    assert again.study("second")["state"] == "queued"
    again.until("second", "done")
    assert again.study("first")["state"] == "done"
    assert whole(again, "first") == 3
    assert whole(again, "second") == 3


def test_server_and_study_are_killed_and_it_goes_on_from_its_trials(servers):
    server = servers()
    server.submit("first", {**LONG, "trials": 2, "space": {"epochs": 30, "frozen_layers": 5}})
    first_epoch(server, "first")
    children = server.children()
    server.kill()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    again = servers()
    again.until("first", "done")
    assert whole(again, "first") == 2
    assert again.stop() == 128 + signal.SIGTERM


def test_a_study_that_dies_takes_nothing_with_it(servers):
    server = servers("--at-once", "2")
    server.submit("first", {**SMALL, "workers": 1})
    server.submit("second", {**SMALL, "workers": 1, "space": {"epochs": 30, "frozen_layers": 5}})
    first_epoch(server, "second")
    children = {row.study: row.pid for row in asked(server, Queue.running)}
    os.kill(children["second"], signal.SIGKILL)
    server.until("first", "done")
    server.until("second", "done")
    assert whole(server, "first") == whole(server, "second") == 3


def asked(server, verb):
    """What the queue says, read beside the server."""
    with closing(Queue(f"sqlite:///{server.folder}/hpsearch.db", server.folder)) as queue:
        return verb(queue)


def test_a_neat_end_leaves_studies_that_the_next_server_goes_on_with(servers):
    server = servers()
    server.submit("first", {**LONG, "trials": 2, "space": {"epochs": 60, "frozen_layers": 5}})
    first_epoch(server, "first")
    assert server.stop() == 128 + signal.SIGTERM
    assert server.children() == []
    (entry,) = [row for row in asked(server, Queue.all_latest) if row.study == "first"]
    assert (entry.state, entry.losses) == ("queued", 0)
    again = servers()
    again.until("first", "done")
    assert whole(again, "first") == 2


def test_a_study_that_cannot_run_fails_with_its_reason_and_the_queue_goes_on(servers):
    server = servers()
    server.submit("bad", {"workers": 1000})
    server.submit("good", {**SHORT, "trials": 1})
    assert "need more than this machine's" in server.until("bad", "failed")["note"]
    server.until("good", "done")


def test_kills_at_random_moments_lose_nothing(servers):
    """Seeded; the server or a study's process, while three small studies go through."""
    chance, server = random.Random(9), servers()
    names = ["one", "two", "three"]
    for name in names:
        server.submit(name, SMALL)
    for _ in range(6):
        time.sleep(chance.uniform(0.0, 4.0))
        if chance.random() < 0.5:
            server.kill()
            server = servers()
        else:
            for pid in server.children():
                os.kill(pid, signal.SIGKILL)
    for name in names:
        if server.until(name, "done", "failed")["state"] == "failed":
            server.ask("POST", f"/api/studies/{name}/resume")  # killed five times in a row
            server.until(name, "done")
        assert whole(server, name) == 3


def test_the_same_on_a_database_server_which_is_restarted_too(servers, postgres):
    """A lost study's lease has to run out first; meanwhile it waits in the queue."""
    url = postgres.database()
    server = servers("--storage", url)
    server.submit("first", {**LONG, "trials": 2, "space": {"epochs": 30, "frozen_layers": 5}})
    first_epoch(server, "first")
    children = server.children()
    server.kill()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    again = servers("--storage", url)
    postgres.restart()
    again.until("first", "done", seconds=300)
    assert whole(again, "first") == 2
    assert not list(again.folder.glob("*.db"))
