"""The fast way into Optuna's tables against its slow twin, Optuna's own calls, read back by Optuna."""

import math
from datetime import datetime

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search import rows

pytestmark = pytest.mark.process


DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-5, 1, log=True),
    "batch": CategoricalDistribution((8, 16, 32)),
    "epochs": IntDistribution(1, 20),
    "dropout": FloatDistribution(0, 0.5),
}


def trial(number, state, **more):
    values = {
        "number": number,
        "trial_id": -1,
        "state": state,
        "value": None,
        "datetime_start": datetime(2026, 11, 21, 12, 0, number),
        "datetime_complete": datetime(2026, 11, 21, 12, 5, number) if state.is_finished() else None,
        "params": {"lr": 3e-4, "batch": 16, "epochs": 7, "dropout": 0.25},
        "distributions": DISTRIBUTIONS,
        "user_attrs": {"hpsearch": {"curve": [{"epoch": 1, "val_loss": 0.5}]}, "note": "ü"},
        "system_attrs": {"completed_rung_0": 0.5},
        "intermediate_values": {},
    }
    return FrozenTrial(**(values | more))


ENDED = [
    trial(0, TrialState.COMPLETE, value=0.25, intermediate_values={10: 1.0, 50: 0.5, 100: 0.25}),
    trial(1, TrialState.PRUNED, value=1.5, intermediate_values={10: 1.5}),
    trial(2, TrialState.FAIL, intermediate_values={10: math.inf, 20: math.nan}),
    trial(3, TrialState.COMPLETE, value=-math.inf, user_attrs={}, system_attrs={}),
]


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path):
    server = request.param == "postgresql"
    made = RDBStorage(request.getfixturevalue("postgres").database() if server else f"sqlite:///{tmp_path}/hpsearch.db")
    yield made
    made.engine.dispose()


def plain(t):
    """A trial as text, so that NaN equals NaN."""
    fields = (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.system_attrs, t.intermediate_values)
    return repr(fields), t.datetime_start, t.datetime_complete


def test_a_trial_reads_back_as_if_optuna_had_written_it(storage):
    slow, fast = (storage.create_new_study([StudyDirection.MINIMIZE], name) for name in ("slow", "fast"))
    for ended in ENDED:
        storage.create_new_trial(slow, ended)
        begun = trial(ended.number, TrialState.RUNNING, user_attrs={"hpsearch": {"attempt": 1}}, system_attrs={})
        rows.end(storage, rows.start(storage, fast, begun, {"qmc": 3}), ended)
    found = {name: optuna.load_study(study_name=name, storage=storage).trials for name in ("slow", "fast")}
    expected = [plain(t) for t in found["slow"]]
    expected[3] = (expected[3][0].replace("{}, {}, {}", "{'hpsearch': {'attempt': 1}}, {}, {}"), *expected[3][1:])
    assert [plain(t) for t in found["fast"]] == expected
    assert storage.get_study_system_attrs(fast) == {"qmc": 3}


def test_a_running_trial_reads_back_running(storage):
    study = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    trial_id = rows.start(storage, study, trial(0, TrialState.RUNNING), {})
    (found,) = storage.get_all_trials(study)
    assert plain(found) == plain(trial(0, TrialState.RUNNING))
    rows.requeue(storage, trial_id)
    assert storage.get_trial(trial_id).state is TrialState.WAITING
    rows.reopen(storage, trial_id, trial(0, TrialState.RUNNING, user_attrs={"hpsearch": {"attempt": 2}}))
    found = storage.get_trial(trial_id)
    assert found.state is TrialState.RUNNING
    assert found.user_attrs == {"hpsearch": {"attempt": 2}, "note": "ü"}


def test_a_trial_that_another_program_added_is_noticed(storage):
    study = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    storage.create_new_trial(study)
    with pytest.raises(rows.ForeignTrial, match="holds 1 trials"):
        rows.start(storage, study, trial(0, TrialState.RUNNING), {})
    assert storage.get_n_trials(study) == 1


def test_an_end_that_fails_half_way_leaves_the_trial_as_it_was(storage):
    study = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    trial_id = rows.start(storage, study, trial(0, TrialState.RUNNING), {})
    before = plain(storage.get_trial(trial_id))
    with pytest.raises(TypeError):
        rows.end(storage, trial_id, trial(0, TrialState.COMPLETE, value=1.0, intermediate_values={10: 2.0}, user_attrs={"bad": object()}))
    assert plain(storage.get_trial(trial_id)) == before
