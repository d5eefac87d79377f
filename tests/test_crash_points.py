"""Kill -9 once at every place that the code names, then the same command again: nothing is lost, doubled or left behind.

Random kills do not find moments of a few milliseconds. The places are read from the source, so that none is forgotten.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.session import MUTANTS
from tests.storm import Toll, begin, complete, examine, grid, ledgered, prepare
from tests.support.commands import Command, run_command
from tests.test_main_job import hpsearch
from tests.waiting import until

pytestmark = pytest.mark.process


PACKAGE = Path(__file__).parents[1] / "hpsearch"
POINTS = {
    name: path.relative_to(PACKAGE).parts[0]
    for path in sorted(PACKAGE.rglob("*.py"))
    for name in re.findall(r'crash_point\("([a-z-]+)"\)', path.read_text())
}
TRAINED = sorted(name for name, room in POINTS.items() if room == "finetune")  # passed by the real kernel alone
AROUND = sorted(set(POINTS) - set(TRAINED))
SMALL = {"trials": 10, "space": grid(10), "sampler": "grid", "sleep": 0.02, "workers": 2, "mlflow": True}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A folder with empty stores, to be copied."""
    folder = tmp_path_factory.mktemp("stores")
    prepare(folder)
    return folder


@pytest.fixture
def place(tmp_path, empty):
    for file in empty.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def crashed_once(place, point, without="", **more):
    """Sessions until one ends by itself, the first of which is killed at `point`; what it cost."""
    hit, toll = place / "hit", Toll(kills={})
    asked = SMALL | {"mlflow": point in BESIDE} | more
    for _ in range(5):
        session = begin(place, asked, "" if hit.exists() else f"{point}@{hit}", without)
        told = complete(place)
        code = session.wait(timeout=60)
        if hit.exists() and code == 0:
            break
        assert code <= 0, (place / "log").read_text()
    assert hit.exists(), f"nothing passed {point}"
    if point in BESIDE:  # the mirror died, not the session: the next one completes it
        assert begin(place, asked, without=without).wait(timeout=60) == 0
    toll.kills = {"worker" if point in INSIDE else "orchestrator": 1}
    examine(place, toll, told, 10)
    return toll


INSIDE = ("result-aside", "result-written", "result-kept", "before-message")  # workers
BESIDE = {name for name, room in POINTS.items() if room == "tracking"}
HALFWAY = {"result-taken"}  # passed only by a session that finds a result which the storage was not told of


@pytest.mark.parametrize("point", [name for name in AROUND if name not in HALFWAY])
def test_a_kill_at_each_place_loses_nothing(place, point):
    toll = crashed_once(place, point)
    assert toll.clean, toll.line()


def test_a_kill_while_results_are_taken_loses_nothing(place):
    first = begin(place, SMALL, f"before-tell@{place / 'first'}")
    assert first.wait(timeout=120) < 0
    toll = crashed_once(place, "result-taken")
    assert toll.clean, toll.line()


@pytest.mark.parametrize("point", TRAINED)
def test_a_kill_while_weights_are_written_loses_nothing(tmp_path, point, monkeypatch):
    asked = ["run", "--trials", "4", "--workers", "1", "--set", "space.epochs=2", "--no-tracking"]
    monkeypatch.setenv("HPSEARCH_CRASH_AT", f"{point}@{tmp_path / 'hit'}")
    done = hpsearch(tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hit").exists()
    assert "was killed by signal 9 while training" in done.stdout
    study = tmp_path / "hpsearch-runs" / "digits-tpe"
    assert len(list(study.glob("*.safetensors"))) == 1
    assert not list(study.glob("*.state"))
    trials = [line for line in done.stdout.splitlines() if re.match(r"\[\d/4\] trial", line)]
    assert len(trials) == 4
    assert not any("failed" in line for line in trials)


# Each safeguard is taken away where its loss shows at once; what stays green over that measures nothing.
NOTICED = {
    "adoption": "before-tell",
    "requeue": "before-row-end",
    "states": "before-row-end",
    "waiting": "after-submit",
    "reconciling": "before-run-end",
}


@pytest.mark.parametrize("without", NOTICED)
def test_without_a_safeguard_the_same_kill_is_noticed(place, without):
    slow = {"waiting": {"first": 7.5}, "states": {"sleep": 0.3, "first": 1.0}, "requeue": {"sleep": 0.1, "first": 2.0}}.get(without, {})
    try:
        toll = crashed_once(place, NOTICED[without], without, **slow)
    except (AssertionError, subprocess.TimeoutExpired):
        return  # it comes to no end
    assert not toll.clean, toll.line()


WRITING = """
import sys
from pathlib import Path
import tests.session
from hpsearch import keeping
keeping.write_durably(Path(sys.argv[1]), '{"whole": true}')
"""


@pytest.mark.parametrize("without", ["", "rename"], ids=["as it is", "without"])
def test_half_a_result_is_never_where_it_is_read(tmp_path, without):
    file = tmp_path / "results" / "trial-0000.json"
    environment = os.environ | {"HPSEARCH_CRASH_AT": "result-aside", "SESSION_WITHOUT": without}
    done = run_command([sys.executable, "-c", WRITING, str(file)], cwd=PACKAGE.parent, env=environment)
    assert done.returncode < 0
    assert file.exists() == bool(without)
    if without:
        assert not file.read_text().endswith("}")


def test_without_the_lock_a_second_orchestrator_is_noticed(place):
    asked = SMALL | {"sleep": 2.0, "mlflow": False}  # longer than the second waits for workers that it takes for orphans: 25 s
    first = begin(place, asked, without="lock")
    until(lambda: ledgered(place))
    second = begin(place, asked, without="lock")
    until(lambda: first.poll() or second.poll())
    for session in (first, second):
        session.kill()
        session.wait()
    words = (place / "log").read_text()
    assert "is being run by" not in words, "the lock is the first to notice"
    assert "still worked on by process" in words or "were expected" in words


OPENING = """
import sys, time
from pathlib import Path
import tests.session
from hpsearch.search.records import open_study
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
storage, place, mine = open_storage(sys.argv[1], create=True), Path(sys.argv[2]), sys.argv[3]
(place / f"ready-{mine}").touch()
while len(list(place.glob("ready-*"))) < 4:
    time.sleep(0.001)
for i in range(30):
    open_study(storage, parse_spec({"name": f"{mine}-{i}"}))
"""


@pytest.mark.parametrize("without", ["", "immediate"], ids=["as it is", "without"])
def test_many_studies_are_opened_at_once_in_one_storage(place, without):
    command = [sys.executable, "-c", OPENING, f"sqlite:///{place}/hpsearch.db", str(place)]
    how = {"cwd": PACKAGE.parent, "env": os.environ | {"SESSION_WITHOUT": without}, "stderr": subprocess.PIPE, "text": True}
    all_of_them = [Command([*command, f"p{i}"], **how) for i in range(4)]
    words = [process.communicate(timeout=120)[1] for process in all_of_them]
    assert any(process.returncode != 0 for process in all_of_them) == bool(without), words


def test_every_safeguard_has_a_case():
    on_a_server = {"lease", "fence", "lookup"}  # tests/test_hosts.py, tests/search/test_server.py
    assert set(NOTICED) | {"lock", "immediate", "rename"} | on_a_server == set(MUTANTS)
