"""What a check of the installation asks a storage: whether it is whole, and which trials claim to run in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpsearch.search import rows
from hpsearch.search.store import sqlite_path

BUSY_SECONDS = 5.0


def damage(url: str) -> str:
    """What SQLite finds wrong with the storage's file; "" where nothing is, and for a server, which looks after itself."""
    path = sqlite_path(url)
    if path is None:
        return ""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as db:
            found = [str(line) for (line,) in db.execute("PRAGMA integrity_check(5)")]
    except sqlite3.Error as error:
        return str(error)
    return "" if found == ["ok"] else "; ".join(found)


def put_back(storage: RDBStorage, name: str) -> None:
    """Mark the trials that claim to run as waiting, for the next session. The caller holds the study's lock."""
    for trial in storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False, states=(TrialState.RUNNING,)):
        rows.requeue(storage, trial._trial_id)
