"""The wall clock may jump (a time server, summer time, a sleeping laptop): durations and limits do not notice."""

import ast
import itertools
import time

import pytest

from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.resources import PACKAGE
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
from hpsearch.types import EpochDone, Job, Progress, Status, Trial
from tests.kernels import PARAMS
from tests.test_orchestrator import session, stored

HOUR = 3600.0


@pytest.fixture
def url(tmp_path):
    open_storage(f"sqlite:///{tmp_path}/hpsearch.db", create=True).engine.dispose()
    return f"sqlite:///{tmp_path}/hpsearch.db"


@pytest.fixture
def jumping(monkeypatch):
    """A wall clock that goes an hour forth, then two back, each time that it is looked at."""
    real, offsets = time.time, itertools.cycle((0.0, HOUR, -HOUR))
    monkeypatch.setattr(time, "time", lambda: real() + next(offsets))


def test_a_study_under_a_jumping_clock_spends_its_budget_and_knows_how_long_things_took(url, jumping):
    begun = time.monotonic()
    reason, memory = session(url, config={"sleep": 0.01}, budget=6, timeout=HOUR / 4, pruner="none")
    records = stored(url)
    wall = time.monotonic() - begun
    assert reason == "budget"
    assert [r.status for r in records] == [Status.COMPLETE] * 6
    for r in records:
        times = [row["seconds"] for row in r.curve]
        assert times == sorted(times)
        assert times[0] >= 0.01
        assert r.seconds == times[-1] <= wall
    assert len(memory.of(EpochDone)) == sum(len(r.curve) for r in records)


def test_a_time_limit_is_one_of_the_time_that_passed(url, jumping):
    reason, _ = session(url, config={"sleep": 0.05}, budget=500, timeout=0.5)
    assert reason == "timeout"
    assert 1 <= len(stored(url)) < 50


def test_a_budget_of_seconds_counts_training_and_not_the_clock(url, jumping):
    from hpsearch.search.searcher import OptunaSearcher

    session(url, config={"sleep": 0.01}, budget=4)
    spec = parse_spec({"name": "s", "sampler": "random", "trials": 8})
    searcher = OptunaSearcher(spec, open_storage(url), seconds=HOUR / 4)
    try:
        assert 0 < searcher.spent < HOUR / 4
        assert searcher.remaining(8) == 4
    finally:
        searcher.close()


def test_the_kernel_s_seconds_are_those_that_passed(tmp_path, jumping):
    config = parse_spec({}).resolved() | {"folder": str(tmp_path), "threads": 1, "device": "cpu", "precision": "fp32"}
    begun = time.monotonic()
    items = [item for step in FineTuneKernel(config).session(Job(0, (Trial(0, PARAMS),))) for item in step]
    progress = [item for item in items if isinstance(item, Progress)]
    times = [p.seconds for p in progress]
    assert times == sorted(times)
    assert 0 < times[0] <= items[-1].seconds <= time.monotonic() - begun
    assert all(p.images_per_second > 0 for p in progress)


def clock_arithmetic(source):
    """Lines that subtract, add or compare what the wall clock says."""

    def asks(node):
        return any(
            isinstance(n, ast.Call) and ast.unparse(n.func) in ("time.time", "datetime.now", "datetime.utcnow") for n in ast.walk(node)
        )

    for node in ast.walk(ast.parse(source)):
        sums = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)) and (asks(node.left) or asks(node.right))
        compares = isinstance(node, ast.Compare) and asks(node)
        if sums or compares:
            yield node.lineno


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_duration_is_made_of_wall_clock_times(path):
    assert list(clock_arithmetic(path.read_text())) == []


@pytest.mark.parametrize("line", ["x = time.time() - begun", "late = time.time() > limit", "until = time.time() + 5", "datetime.now() - t"])
def test_the_reader_of_clocks_sees_them(line):
    assert list(clock_arithmetic(line)) == [1]
