"""The storage made again from what a study left in its folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from hpsearch.errors import FixInput
from hpsearch.keeping import STUDY, read_results
from hpsearch.search.headstart import kept_in
from hpsearch.search.records import RECORD, RUN, kept_study, run_values
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.spec import parse_spec


def rebuild_study(storage: RDBStorage, folder: Path) -> tuple[str, int, int]:
    """Enter a study that the storage does not have, with all results in its folder: its name, its trials, its runs beside the search.

    FixInput when the folder does not say what study it was, or the storage has one of that name.
    """
    kept = kept_study(folder)
    if kept is None:
        raise FixInput(f"{folder} holds no {STUDY}: it was not made by this version of hpsearch, and nothing can be rebuilt from it")
    name, about = str(kept["name"]), kept["user_attrs"][RECORD]
    if name in {study.study_name for study in storage.get_all_studies()}:
        raise FixInput(f"the storage has a study '{name}': run it to complete it from its folder, or name a new --storage")
    study_id = storage.create_new_study([StudyDirection[direction] for direction in kept["directions"]], name)
    results = read_results(folder, about["uid"])
    runs = {f"{RUN}{record.name}": run_values(record) for record in results.values() if record.setup is not None}
    for key, value in {**runs, **kept["user_attrs"]}.items():
        storage.set_study_user_attr(study_id, key, value)
    for key, value in kept["system_attrs"].items():
        storage.set_study_system_attr(study_id, key, value)
    with closing(OptunaSearcher(parse_spec(about["spec"]), storage, kept_in(about), folder=folder)) as searcher:
        trials = sum(record.status.ended for record in searcher.records())
    return name, trials, sum(key.startswith(RUN) for key in {**runs, **kept["user_attrs"]})
