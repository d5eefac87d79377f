"""The storage made again from what a study left in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from hpsearch.keeping import read_results
from hpsearch.search.headstart import kept_in
from hpsearch.search.records import RECORD, RUN, run_values
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.spec import parse_spec


def rebuild_study(storage: RDBStorage, folder: Path, kept: Mapping[str, Any]) -> tuple[str, int, int]:
    """Enter a study that the storage does not have, with all results in its folder: its name, its trials, its runs beside the search.

    `kept` is what `kept_study` says of the folder.
    """
    name, about = str(kept["name"]), kept["user_attrs"][RECORD]
    study_id = storage.create_new_study([StudyDirection[direction] for direction in kept["directions"]], name)
    results = read_results(folder, about["uid"])
    runs = {f"{RUN}{record.name}": run_values(record) for record in results.values() if record.setup is not None}
    attributes = {**runs, **kept["user_attrs"]}
    for key, value in attributes.items():
        storage.set_study_user_attr(study_id, key, value)
    for key, value in kept["system_attrs"].items():
        storage.set_study_system_attr(study_id, key, value)
    with closing(OptunaSearcher(parse_spec(about["spec"]), storage, kept_in(about), folder=folder)) as searcher:
        trials = sum(record.status.ended for record in searcher.records())
    return name, trials, sum(key.startswith(RUN) for key in attributes)
