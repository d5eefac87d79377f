"""The line to MLflow's process, and that nothing of it is left behind whoever is killed."""

import multiprocessing
import queue
import subprocess
import sys
import threading

import pytest

from hpsearch.tracking.channel import Sender, receive
from tests.support.commands import ROOT
from tests.waiting import until

KILLED = """
import os, resource, signal, sys
from pathlib import Path
from hpsearch.tracking import MlflowTracker
from tests.events import study_events
if __name__ == "__main__":
    if sys.argv[3] == "full":  # the store cannot grow, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    tracker = MlflowTracker(sys.argv[1], Path(sys.argv[2]))
    for event in study_events():
        tracker.record(event)
    if sys.argv[3] == "mirror":
        tracker.process.kill()
        tracker.close()
    elif sys.argv[3] == "full":
        tracker.close(3.0)
        print(tracker.problem)
    else:
        os.kill(os.getpid(), signal.SIGKILL if sys.argv[3] == "kill" else signal.SIGTERM)
"""


@pytest.fixture
def line():
    theirs, ours = multiprocessing.Pipe(duplex=False)
    return theirs, Sender(ours)


def test_items_arrive_in_order_and_whoever_puts_them_never_waits(line):
    theirs, sender = line
    for number in range(5):
        sender.put((number, "x" * 1_000_000))  # more than a pipe holds
    sender.put(None)
    assert [receive(theirs, 10)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert receive(theirs, 10) is None
    with pytest.raises(EOFError):
        receive(theirs, 10)


def test_nothing_comes_in_time_and_nobody_is_there(line):
    theirs, sender = line
    with pytest.raises(queue.Empty):
        receive(theirs, 0.01)
    theirs.close()
    for _ in range(3):
        sender.put("lost")
    sender.put(None)
    until(lambda: not sender.thread.is_alive())
    assert threading.active_count() < 20


@pytest.mark.process
@pytest.mark.parametrize("who", ["kill", "term", "mirror"])
def test_a_kill_of_either_end_leaves_no_warning_on_the_terminal(tmp_path, new_store, who):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), new_store(tmp_path), str(tmp_path), who]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.stderr == ""  # read to its end: until the last process of all has ended


@pytest.mark.process
def test_a_full_disk_under_mlflows_store_is_a_sentence_and_no_librarys_traceback(tmp_path, new_store):
    script = tmp_path / "full.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), new_store(tmp_path), str(tmp_path), "full"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "disk" in done.stdout or "did not take everything" in done.stdout
