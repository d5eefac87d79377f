"""Admission to a GPU that several processes use: nothing is promised twice, and nobody waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpsearch.finetune import sharing
from hpsearch.finetune.sharing import DeviceShare
from tests.support.commands import Command
from tests.waiting import until

TOTAL = 1000


class Device:
    """A GPU of 1,000 bytes, and what each process holds of it."""

    def __init__(self, folder):
        self.folder, self.held = Path(folder), {}

    def memory(self):
        return (TOTAL - sum(self.held.values())) / sharing.MARGIN, TOTAL / sharing.MARGIN

    def come(self, study):
        self.held[study] = 0
        return DeviceShare("gpu", study, self.memory, lambda: self.held[study], self.folder)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_alone_everything_is_granted_even_what_does_not_fit(device):
    a = device.come("a")
    assert a.ask(100, 0) == ""
    assert a.ask(10 * TOTAL, 1) != "", "beside its own trial it waits"
    a.leave(0, 0)
    assert a.ask(10 * TOTAL, 0) == ""


def test_what_was_promised_and_is_not_taken_yet_is_not_given_to_another(device):
    a, b = device.come("a"), device.come("b")
    assert a.ask(700, 0) == ""
    assert "a (process" in b.ask(400, 0)
    assert b.ask(300, 0) == ""
    device.held["a"] = 700
    assert "GiB" in b.ask(100, 1)


def test_memory_that_a_stranger_holds_counts(device):
    a, b = device.come("a"), device.come("b")
    a.ask(100, 0)
    device.held["a program that knows nothing of us"] = 850
    assert b.ask(100, 0) != ""


def test_who_trains_gives_way_to_who_waits(device):
    a, b = device.come("a"), device.come("b")
    assert [a.ask(450, n) for n in (0, 1)] == ["", ""]
    assert b.ask(450, 0) != ""
    a.leave(0, 1)
    assert "b (process" in a.ask(0, 1), "its slot's memory goes to b"
    a.leave(450, 1)
    assert b.ask(450, 0) == ""
    assert a.ask(0, 1) == "", "nobody waits any more"


def test_when_nobody_trains_nobody_waits(device):
    a, b = device.come("a"), device.come("b")
    device.held |= {"a": 600, "b": 300}
    assert a.ask(500, 0) == ""
    assert b.ask(500, 0) != ""
    a.leave(500, 0)
    assert b.ask(500, 0) == ""


def test_a_process_waits_at_the_door_for_what_it_will_keep(device, monkeypatch):
    a, b = device.come("a"), device.come("b")
    a.enter(800)
    said = []
    monkeypatch.setattr(sharing, "pulse", lambda why: (said.append(why), a.close()))
    monkeypatch.setattr(sharing, "LOOK", 0.0)
    b.enter(400)
    assert len(said) == 1
    assert "a (process" in said[0]
    assert b.mine.promised == 400


HOLDER = """
import sys, time
from pathlib import Path
from hpsearch.finetune.sharing import DeviceShare
share = DeviceShare("gpu", "other", lambda: (1000, 1000), lambda: 0, Path(sys.argv[1]))
print(repr(share.ask(900, 0)), flush=True)
time.sleep(60)
"""


@pytest.mark.process
def test_the_claim_of_a_process_that_is_killed_goes_with_it(device):
    with Command([sys.executable, "-c", HOLDER, str(device.folder)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "''\n"
            mine = device.come("mine")
            assert f"other (process {other.pid})" in mine.ask(200, 0)
        finally:
            other.kill()
    until(lambda: mine.ask(200, 0) == "")
    assert [p.name.split("-")[1] for p in device.folder.glob("gpu-*")] == [str(os.getpid())]


def test_a_claim_that_cannot_be_read_stops_nobody(device):
    a = device.come("a")
    for name in ("gpu-1-1", "gpu-2-2"):
        (device.folder / name).write_bytes(b"\xff{")
    assert a.ask(10, 0) == ""
    assert len(list(device.folder.glob("gpu-*"))) == 1


class Crowd(RuleBasedStateMachine):
    """Processes that come, ask, take what they were promised, and leave."""

    @initialize(tmp=st.none())
    def begin(self, tmp):
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.device = Device(self.place.name)
        self.shares, self.needs, self.forced = {}, {}, False

    @precondition(lambda self: len(self.shares) < 4)
    @rule(kept=st.integers(0, 200))
    def come(self, kept):
        name = f"s{len(self.device.held)}"
        share = self.device.come(name)
        others = share.others()
        if kept <= share.left(others) or not others:
            share.enter(kept)
            self.shares[name], self.needs[name] = share, []
        else:
            share.close()

    @precondition(lambda self: self.shares)
    @rule(data=st.data(), more=st.integers(0, 1500))
    def ask(self, data, more):
        name = data.draw(st.sampled_from(sorted(self.shares)))
        share, busy = self.shares[name], len(self.needs[name])
        others = share.others()
        fits = more <= share.left(others)
        why = share.ask(more, busy)
        if not why:
            assert fits or not busy, "beside its own trials nothing is granted that does not fit"
            assert fits or not any(o.busy for o in others), "nor beside those of others"
            self.forced |= not fits
            self.needs[name].append(more)
        else:
            assert busy or any(o.busy for o in others), "somebody always trains"

    @precondition(lambda self: any(self.needs.values()))
    @rule(data=st.data())
    def end(self, data):
        name = data.draw(st.sampled_from(sorted(n for n, needs in self.needs.items() if needs)))
        less = self.needs[name].pop()
        share = self.shares[name]
        share.leave(less, len(self.needs[name]))
        self.device.held[name] = min(self.device.held[name], share.mine.promised)

    @precondition(lambda self: self.shares)
    @rule(data=st.data(), share=st.floats(0, 1))
    def take(self, data, share):
        name = data.draw(st.sampled_from(sorted(self.shares)))
        self.device.held[name] = int(share * self.shares[name].mine.promised)

    @invariant()
    def never_more_than_there_is(self):
        if getattr(self, "shares", None) and not self.forced:
            assert sum(share.mine.promised for share in self.shares.values()) <= TOTAL or len(self.shares) == 1

    def teardown(self):
        for share in getattr(self, "shares", {}).values():
            share.close()
        if hasattr(self, "place"):
            self.place.cleanup()


TestCrowd = settings(max_examples=40, stateful_step_count=30, deadline=None)(Crowd).TestCase
