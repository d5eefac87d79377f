"""The contract of `protocols.Tracker`: whatever comes, in the order it comes, `record` returns and `close` ends."""

import io

import pytest
from rich.console import Console

from hpsearch.terminal import Lines, LiveTable
from hpsearch.tracking import MlflowTracker, NoTracker
from hpsearch.types import StudyEnded
from tests.events import study_events


@pytest.fixture(params=["nothing", "lines", "table", "mlflow", "mlflow without a server"])
def tracker(request, tmp_path, new_store):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    match request.param:
        case "nothing":
            return NoTracker()
        case "lines":
            return Lines(console)
        case "table":
            return LiveTable(console)
        case "mlflow":
            return MlflowTracker(new_store(tmp_path), tmp_path)
        case _:
            return MlflowTracker("http://127.0.0.1:9", tmp_path)


def test_a_whole_study_and_its_end_are_taken(tracker):
    for event in study_events():
        tracker.record(event)
    tracker.close()


def test_a_study_that_ends_before_its_first_trial_is_taken(tracker):
    first, *_ = study_events()
    tracker.record(first)
    tracker.record(StudyEnded("interrupted", None, None))
    tracker.close()
