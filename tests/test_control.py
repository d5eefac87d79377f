"""What is asked of a study while it runs, and the events that it leaves: files in its folder, the loop that heeds them."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest

from hpsearch.control import FOLDER, Control
from hpsearch.executors.inline import InlineExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.journal import EVENTS, Journal, read_events
from hpsearch.orchestrator import STOPPED, Orchestrator
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.catalog import read_study
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
from hpsearch.types import BudgetRaised, EpochDone, Notice, Status, StudyEnded, TrialEnded
from tests.support.commands import HPSEARCH, Command, run_command
from tests.waiting import Memory


class When(Memory):
    """Asks something as soon as an event fits."""

    def __init__(self, fits, ask):
        super().__init__()
        self.fits, self.ask = fits, ask

    def record(self, event):
        super().record(event)
        if self.fits(event):
            self.ask()


def session(url, folder, memory, trials=4, reason_at_end="budget", **values):
    """A session whose loop looks at the folder's requests; why it ended."""
    spec = parse_spec({"name": "s", "sampler": "random", "pruner": "none", "trials": trials, "space": {"epochs": 10}, **values})
    control, journal = Control(folder), Journal(folder)
    control.begin()
    searcher = OptunaSearcher(spec, open_storage(url, create=True), folder=folder)
    executor = InlineExecutor(KernelRef("tests.kernels:curves", {"folder": str(folder)}))
    trackers = [control, journal, memory]
    try:
        stop = lambda: "interrupted" if control.asked().pause else None  # noqa: E731
        loop = Orchestrator(searcher, executor, trackers, TrialFiles(folder), budget=trials, stop=stop, asked=control.asked)
        control.looked = -1.0
        reason = loop.run("s", spec.resolved())
    finally:
        executor.close()
        searcher.close()
    for tracker in trackers:
        tracker.record(StudyEnded(reason, None, None))
        tracker.close()
    return reason


@pytest.fixture(autouse=True)
def looked_at_every_time(monkeypatch):
    """Curves without training come faster than the folder is usually looked at."""
    monkeypatch.setattr("hpsearch.control.OFTEN", 0.0)


def records(url):
    return read_study(open_storage(url), "s").records


def reached(trial, epoch):
    return lambda event: isinstance(event, EpochDone) and (event.progress.trial, event.progress.epoch) == (trial, epoch)


@pytest.mark.parametrize("pruner", ["none", "halving"])
@pytest.mark.parametrize("trial", [0, 2])
def test_one_trial_is_stopped_and_the_others_are_not(url, tmp_path, trial, pruner):
    memory = When(reached(trial, 1), lambda: Control(tmp_path).stop(trial))
    assert session(url, tmp_path, memory, pruner=pruner) == "budget"
    record = records(url)[trial]
    assert (record.status, record.error, record.state) == (Status.PRUNED, STOPPED, None)
    assert len(record.curve) == 2
    if pruner == "none":
        assert [r.status for r in records(url) if r.number != trial] == [Status.COMPLETE] * 3
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert list(tmp_path.glob("*.state")) == []


def test_a_request_in_the_last_epoch_changes_nothing(url, tmp_path):
    memory = When(reached(1, 9), lambda: Control(tmp_path).stop(1))
    session(url, tmp_path, memory)
    assert records(url)[1].status is Status.COMPLETE


def test_more_trials_while_it_runs(url, tmp_path):
    memory = When(reached(3, 5), lambda: Control(tmp_path).extend(7))
    assert session(url, tmp_path, memory) == "budget"
    assert len(records(url)) == 7
    assert [event.budget for event in memory.of(BudgetRaised)] == [7]
    assert read_study(open_storage(url), "s").spec["trials"] == 7
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_fewer_trials_are_not_a_request(url, tmp_path):
    memory = When(reached(1, 5), lambda: Control(tmp_path).extend(2))
    session(url, tmp_path, memory)
    assert (len(records(url)), memory.of(BudgetRaised)) == (4, [])


def test_a_pause_leaves_a_study_that_goes_on(url, tmp_path):
    memory = When(reached(1, 3), lambda: Control(tmp_path).pause())
    assert session(url, tmp_path, memory) == "interrupted"
    assert {r.status for r in records(url)} == {Status.COMPLETE, Status.WAITING}
    assert session(url, tmp_path, Memory()) == "budget", "the next session does not heed an old request"
    assert {r.status for r in records(url)} == {Status.COMPLETE}


def test_a_request_outlives_a_session_that_did_not_carry_it_out(url, tmp_path):
    def ask():
        Control(tmp_path).pause()
        Control(tmp_path).extend(6)

    session(url, tmp_path, When(reached(1, 3), ask))
    Control(tmp_path).stop(3)
    session(url, tmp_path, Memory())
    assert len(records(url)) == 6
    assert records(url)[3].error == STOPPED


def test_files_that_are_no_requests_are_none(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for name in ("stop-x", "stop-", "trials--3", "trials-٣", "nonsense", "stop-3.123.tmp"):
        (tmp_path / FOLDER / name).touch()
    asked = Control(tmp_path).asked()
    assert (asked.pause, asked.stop, asked.trials) == (False, frozenset(), 0)


# ---------------------------------------------------------------- events


def test_events_are_read_from_any_place_on(url, tmp_path):
    session(url, tmp_path, Memory())
    found, end = read_events(tmp_path)
    kinds = [row["event"] for _, row in found]
    assert (kinds[0], kinds[-1]) == ("session", "over")
    assert kinds.count("ended") == 4
    assert kinds.count("epoch") == 40
    place = found[7][0]
    assert read_events(tmp_path, place) == (found[8:], end)
    assert read_events(tmp_path, place + 5) == (found[9:], end), "a line whose beginning was skipped is left out"
    assert read_events(tmp_path, end) == ([], end)
    assert read_events(tmp_path, end + 1000)[0] == found, "another file than the reader knew"


def test_an_end_that_a_kill_left_out_is_told_by_the_next_session(url, tmp_path):
    session(url, tmp_path, Memory(), trials=3)
    file = tmp_path / EVENTS
    file.write_bytes(b"".join(line for line in file.read_bytes().splitlines(True) if not (b'"ended"' in line and b'"trial":1,' in line)))
    before = [row["trial"] for _, row in read_events(tmp_path)[0] if row["event"] == "ended"]
    assert sorted(before) == [0, 2]
    session(url, tmp_path, Memory(), trials=4)
    after = [row["trial"] for _, row in read_events(tmp_path)[0] if row["event"] == "ended"]
    assert sorted(after) == [0, 1, 2, 3], "each once"


def test_half_a_line_waits_and_never_spoils_the_next(tmp_path):
    journal = Journal(tmp_path)
    journal.record(Notice("one"))
    journal.close()
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "not')
    found, place = read_events(tmp_path)
    assert [row["text"] for _, row in found] == ["one"]
    journal = Journal(tmp_path)  # whoever wrote it was killed
    journal.record(Notice("two"))
    journal.close()
    assert [row["text"] for _, row in read_events(tmp_path, place)[0]] == ["two"]


def test_numbers_that_json_has_no_word_for(tmp_path):
    journal = Journal(tmp_path)
    journal.record(Notice("a\nb"))
    journal.close()
    assert len((tmp_path / EVENTS).read_text().splitlines()) == 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file")
    journal.record(Notice("one"))
    journal.close()
    assert read_events(tmp_path / "file") == ([], 0)


# ---------------------------------------------------------------- the commands


def command(folder, *arguments):
    return run_command([HPSEARCH, *arguments], cwd=folder, timeout=120)


@pytest.mark.process
def test_a_study_that_a_command_runs_is_steered_by_others(tmp_path):
    run = [HPSEARCH, "run", "--trials", "3", "--no-tracking", "--workers", "1", "--name", "one", "--set", "space.epochs=60"]
    run += ["--set", "pruner=none"]
    process = Command(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "hpsearch-runs" / "one"
    Control(folder).stop(1)  # left by an earlier study of that name, whose storage is gone
    heard = threading.Thread(target=process.stdout.read)
    heard.start()
    wait_for(folder, "epoch")
    assert list((folder / FOLDER).iterdir()) == []
    assert command(tmp_path, "stop", "one", "0").returncode == 0
    assert wait_for(folder, "ended")["error"] == STOPPED
    assert "one: will come to 4 trials" in command(tmp_path, "extend", "one", "4").stdout
    wait_for(folder, "budget")
    assert command(tmp_path, "pause", "one").returncode == 0
    assert process.wait(60) == 128 + signal.SIGINT
    heard.join()
    process.stdout.close(), process.stderr.close()
    refused = command(tmp_path, "pause", "one")
    assert (refused.returncode, "no command runs 'one'" in refused.stderr) == (2, True)
    stored = json.loads(command(tmp_path, "show", "one", "--json").stdout)
    assert stored["spec"]["trials"] == 4
    assert stored["trials"][0]["status"] == "PRUNED"


@pytest.mark.process
def test_a_comparison_is_paused_and_a_trial_of_its_studies_stopped(tmp_path):
    run = [HPSEARCH, "compare", "--samplers", "random,tpe", "--repeats", "1", "--trials", "3", "--initial", "2", "--name", "duel"]
    run += ["--no-tracking", "--workers", "1", "--pruner", "none", "--set", "space.epochs=60"]
    process = Command(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "hpsearch-runs" / "duel-random-r1"
    wait_for(folder, "epoch")
    assert command(tmp_path, "stop", "duel-random-r1", "0").returncode == 0
    assert wait_for(folder, "ended")["error"] == STOPPED
    refused = command(tmp_path, "extend", "duel", "9")
    assert (refused.returncode, "'duel' is a comparison" in refused.stderr) == (2, True)
    assert command(tmp_path, "pause", "duel").returncode == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "The same command goes on with the comparison" in err
    told = [row for _, row in read_events(tmp_path / "hpsearch-runs" / "duel")[0]]
    assert [row["event"] for row in told][:3] == ["session", "study", "ended"]
    assert (told[2]["study"], told[2]["status"]) == ("duel-random-r1", "PRUNED")


def wait_for(folder, kind):
    """The first event of a kind in the latest session."""
    for _ in range(1200):
        for _, row in read_events(folder)[0]:
            if row["event"] == kind:
                return row
        time.sleep(0.05)
    raise AssertionError(f"no event '{kind}': {os.listdir(folder) if folder.exists() else 'no folder'}")


def test_trial_ended_names_what_it_takes_away(tmp_path, url):
    control = Control(tmp_path)
    control.stop(5)
    control.asked()
    session(url, tmp_path, When(lambda e: isinstance(e, TrialEnded), lambda: None), trials=2)
    assert list((tmp_path / FOLDER).iterdir()) == [], "a study that has come to its end has no open requests"
