"""What a check of the installation mends in a storage: trials that claim to run."""

from __future__ import annotations

from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpsearch.search import rows


def put_back(storage: RDBStorage, name: str) -> None:
    """Mark the trials that claim to run as waiting, for the next session. The caller holds the study's lock."""
    for trial in storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False, states=(TrialState.RUNNING,)):
        rows.requeue(storage, trial._trial_id)
