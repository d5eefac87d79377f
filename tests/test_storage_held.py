"""A storage that cannot be written for a while: its disk is full, or another program holds it. Real disks and programs."""

import errno
import math
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from hpsearch.errors import FixSetup
from hpsearch.search import store
from hpsearch.search.store import Writer, open_storage
from hpsearch.types import EpochDone, Notice, Status, TrialEnded, TrialStarted
from tests.kernels import loss_at
from tests.support.commands import Command
from tests.test_orchestrator import session, stored
from tests.waiting import Memory

pytestmark = pytest.mark.process


LOCK = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root may mount a disk here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place):
    """Leave no byte on the disk; the file that took them."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def whole(records, n):
    """Whether all trials are there with what the kernel says of them."""
    assert [r.number for r in records] == list(range(n))
    assert {r.status for r in records} <= {Status.COMPLETE, Status.PRUNED}
    for record in records:
        for row in record.curve:
            assert math.isclose(row["val_loss"], loss_at(record.params, int(row["epoch"])))
        assert record.val_loss == min(row["val_loss"] for row in record.curve)


def test_a_full_disk_is_said_and_waited_for_and_no_trial_begins_meanwhile(disk):
    memory, begun, filler = Memory(), [], []

    def stop():
        """The loop calls it at every turn: it fills the disk after two trials, and frees it once the study has waited for 2 s."""
        if not filler and len(memory.of(TrialEnded)) >= 2:
            filler.append(fill(disk))
        if not begun and memory.of(Notice):
            begun.append((time.monotonic(), len(memory.of(TrialStarted))))
        if len(begun) == 1 and time.monotonic() - begun[0][0] > 2:
            begun.append((time.monotonic(), len(memory.of(TrialStarted))))
            filler[0].unlink()

    url = f"sqlite:///{disk}/hpsearch.db"
    reason, _ = session(url, stop=stop, memory=memory)
    assert reason == "budget"
    notices = [e.text for e in memory.of(Notice)]
    assert len(notices) == 2, notices
    assert notices[0].startswith(f"the disk of {disk}/hpsearch.db is full (0.0 MB left)")
    assert notices[1] == "The storage can be written again: the study goes on"
    assert begun[0][1] == begun[1][1]
    whole(stored(url), 8)
    with closing(sqlite3.connect(disk / "hpsearch.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_disk_that_stays_full_at_the_end_is_told_with_its_place(disk, monkeypatch):
    monkeypatch.setattr(store, "FULL_SECONDS", 1.0)
    storage = open_storage(f"sqlite:///{disk}/hpsearch.db", create=True)
    writer = Writer(storage)
    fill(disk)
    writer.put(lambda: storage.create_new_study([store.optuna.study.StudyDirection.MINIMIZE], "x" * 400))
    with pytest.raises(FixSetup, match=rf"the disk of {disk}/hpsearch.db is full"):
        writer.close()
    storage.engine.dispose()


def test_training_goes_on_while_another_program_holds_the_storage(tmp_path):
    url = f"sqlite:///{tmp_path}/hpsearch.db"
    open_storage(url, create=True).engine.dispose()
    holders, during, memory = [], [], Memory()

    def stop():
        if not holders and memory.of(TrialEnded):
            holders.append(Command([sys.executable, "-c", LOCK, str(tmp_path / "hpsearch.db"), "25"], stdout=subprocess.PIPE))
            assert holders[0].stdout.readline()
            during.append(len(memory.of(EpochDone)))
        elif holders and holders[0].poll() is None:
            during.append(len(memory.of(EpochDone)))

    reason, _ = session(url, stop=stop, memory=memory)
    holders[0].communicate()
    assert reason == "budget"
    assert during[-1] - during[0] > 5, "epochs were trained while the storage was held"
    assert not memory.of(Notice)
    whole(stored(url), 8)


def test_a_study_in_a_folder_that_cannot_be_written_is_refused_before_its_first_trial(disk):
    open_storage(f"sqlite:///{disk}/hpsearch.db", create=True).engine.dispose()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        with pytest.raises(FixSetup, match="cannot be"):
            open_storage(f"sqlite:///{disk}/hpsearch.db", create=True)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
