"""`hpsearch rebuild`: the storage is gone, and comes back from what the trials left, as it was."""

import json
import shutil

import pytest

from hpsearch.search.catalog import read_study
from hpsearch.search.store import opened
from hpsearch.types import Status
from tests.test_docs import ROOT, blocks
from tests.test_main_job import hpsearch

pytestmark = pytest.mark.process


RUN = ("run", "--trials", "5", "--confirm", "1x2", "--set", "space.epochs=3", "--name", "small", "--no-tracking", "--workers", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a study that has confirmations and an opened test split."""
    folder = tmp_path_factory.mktemp("whole")
    done = hpsearch(folder, *RUN)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def lost(whole, tmp_path):
    """The same without its storage; and the study as it was."""
    before = stored(whole)
    shutil.copytree(whole / "hpsearch-runs", tmp_path / "hpsearch-runs")
    return tmp_path, before


def stored(folder, name="small"):
    with opened(f"sqlite:///{folder}/hpsearch.db") as storage:
        return read_study(storage, name)


def plain(record):
    """A record without what depends on where it is, or on when it was told."""
    left_out = ("setup", "checkpoint", "ended", "started")
    return json.loads(json.dumps({key: getattr(record, key) for key in record.__slots__ if key not in left_out}))


def test_everything_comes_back(lost):
    folder, before = lost
    done = hpsearch(folder, "rebuild")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small: 5 trials and 2 runs beside the search are in the storage again\n")
    after = stored(folder)
    assert [plain(r) for r in after.records] == [plain(r) for r in before.records]
    assert [plain(r) for r in after.runs] == [plain(r) for r in before.runs]
    assert (after.spec, after.facts, after.openings, after.headstart, after.uid) == (
        before.spec,
        before.facts,
        before.openings,
        before.headstart,
        before.uid,
    )


def test_the_study_goes_on_from_there_and_trains_only_what_is_lost(lost):
    folder, before = lost
    (folder / "hpsearch-runs" / "small" / "results" / "trial-0002.json").unlink()
    assert hpsearch(folder, "rebuild", "small").returncode == 0
    halfway = stored(folder).records
    assert [r.number for r in halfway if not r.status.ended] == [2]
    assert halfway[2].status is Status.WAITING
    done = hpsearch(folder, *RUN)
    assert done.returncode == 0, done.stderr
    again = stored(folder).records
    assert [r.number for r in again] == list(range(5))
    assert [plain(r) for r in again if r.number != 2] == [plain(r) for r in before.records if r.number != 2]
    assert (again[2].val_loss, again[2].params) == (before.records[2].val_loss, before.records[2].params), "the sampler knows its history"
    refused = hpsearch(folder, "rebuild")
    assert refused.returncode == 2
    assert "there is nothing to rebuild" in refused.stderr


def test_the_commands_of_the_page_run_in_their_order(lost, empty_mlflow):
    folder, before = lost
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    lines = [line.split(" #")[0].split() for line in "\n".join(blocks(ROOT / "docs" / "reliability.md", "sh")).splitlines() if line]
    assert [line[:2] for line in lines] == [["hpsearch", "rebuild"], ["hpsearch", "sync"], ["hpsearch", "doctor"]]
    for _, *arguments in lines:
        done = hpsearch(folder, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [plain(r) for r in stored(folder).records] == [plain(r) for r in before.records]


def test_results_of_nobody_are_no_study(tmp_path):
    (tmp_path / "hpsearch-runs" / "odd" / "results").mkdir(parents=True)
    for command in (("rebuild",), ("rebuild", "odd"), ("rebuild", "other")):
        done = hpsearch(tmp_path, *command)
        assert done.returncode == 2, done.stderr
        assert "to rebuild from" in done.stderr
    assert not (tmp_path / "hpsearch.db").exists()
