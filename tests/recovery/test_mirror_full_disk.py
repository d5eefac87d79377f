"""A disk that is full when MLflow's process starts: it makes its store as soon as there is room, in the same session."""

import pytest
from mlflow import MlflowClient

from hpsearch.tracking import MlflowTracker
from tests.events import RECORDS, study_events, trial_events
from tests.test_storage_held import disk as disk
from tests.test_storage_held import fill
from tests.waiting import until

pytestmark = pytest.mark.process


def test_a_mirror_whose_first_start_met_a_full_disk_recovers_in_the_session(disk, tmp_path):
    uri, filler = f"sqlite:///{disk}/mlflow.db", fill(disk)
    first, *_, last = study_events()
    tracker = MlflowTracker(uri, tmp_path)
    tracker.record(first)
    for event in trial_events(RECORDS[0]):
        tracker.record(event)
    until(lambda: tracker.failures.value > 0, 60)
    filler.unlink()
    for record in RECORDS[1:]:
        for event in trial_events(record):
            tracker.record(event)
    tracker.record(last)
    tracker.close()
    assert tracker.problem == ""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(first.study).experiment_id])
    assert sorted(run.data.tags["hpsearch.trial"] for run in runs if "hpsearch.trial" in run.data.tags) == ["0", "1", "2", "3"]
