"""The storage made again from what a study left in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from hpsearch.core.text import printable
from hpsearch.errors import ChooseAnotherName, FixSetup
from hpsearch.keeping import RESULTS, STUDY, read_result, read_results, unusable_results
from hpsearch.search.headstart import kept_in
from hpsearch.search.records import OPENINGS, RECORD, RUN, differences, kept_study, run_values
from hpsearch.search.rows import count
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.spec import StudySpec, comparable, parse_spec
from hpsearch.types import Say


def rebuild_study(storage: RDBStorage, folder: Path, kept: Mapping[str, Any]) -> tuple[str, int, int, tuple[str, ...]]:
    """Enter a study that the storage does not have, with all results in its folder: its name, its trials, its runs beside the search.

    Last come the results that are left out, each with the reason; their files stay.

    `kept` is what `kept_study` says of the folder.
    """
    about = kept["user_attrs"][RECORD]
    spec = parse_spec(about["spec"])  # before anything is entered
    if spec.study_name() != kept["name"]:
        raise FixSetup(f"{folder / STUDY} names '{printable(kept['name'])}' and describes '{spec.study_name()}': bring back the right file")
    runs = enter_study(storage, folder, kept)
    with closing(OptunaSearcher(spec, storage, kept_in(about), folder=folder)) as searcher:
        trials = sum(record.status.ended for record in searcher.records())
        found = read_results(folder, about["uid"])
        strange = [name for name, record in found.items() if record.setup is None and not searcher.fits(record)]
    misfits = (f"{name}.json: its configuration is none of the study's space, or its objective is another" for name in strange)
    return str(kept["name"]), trials, runs, (*unusable_results(folder, about["uid"]), *misfits)


def enter_study(storage: RDBStorage, folder: Path, kept: Mapping[str, Any]) -> int:
    """Enters a study that the storage does not have, without its trials, which `OptunaSearcher` takes over from their results.

    Returns:
        The number of runs beside the search.
    """
    study_id = storage.create_new_study([StudyDirection[direction] for direction in kept["directions"]], str(kept["name"]))
    results = read_results(folder, kept["user_attrs"][RECORD]["uid"])
    runs = {f"{RUN}{record.name}": run_values(record) for record in results.values() if record.setup is not None}
    attributes = {**runs, **kept["user_attrs"]}
    for key, value in attributes.items():
        storage.set_study_user_attr(study_id, key, value)
    for key, value in kept["system_attrs"].items():
        storage.set_study_system_attr(study_id, key, value)
    return sum(key.startswith(RUN) for key in attributes)


def take_over_results(storage: RDBStorage, spec: StudySpec, folder: Path, say: Say) -> None:
    """Lets the storage know what a study has left in its folder; nothing is ever trained over results.

    The storage may have been deleted, or restored from a copy that was made before the study, or while it ran. Trials that are missing at
    the end of a known study are left to `OptunaSearcher`.

    Args:
        storage: Where the study is to be known.
        spec: The study as it is asked for now.
        folder: The study's own.
        say: Hears how many results were taken over, if any were.

    Raises:
        ChooseAnotherName: The results are those of another study of this name.
        FixSetup: What describes them is damaged.
    """
    name, kept = spec.study_name(), kept_study(folder)
    files = list((folder / RESULTS).glob("*.json"))
    study_id = find_study(storage, name)
    known = storage.get_study_user_attrs(study_id).get(RECORD, {}).get("uid", "") if study_id is not None else ""
    trials = count(storage, study_id) if study_id is not None else 0
    if kept is not None and study_id is not None and trials and kept["user_attrs"][RECORD]["uid"] == known:
        add_missing(storage, study_id, kept, folder)
        return
    if not files:
        return
    remedy = f"choose another --name, or move {folder} away"
    if kept is None:
        if known and read_results(folder, known):
            return  # the study's own, which lost their index
        unknown = f"{folder} holds {len(files):,} results that the storage does not know"
        raise ChooseAnotherName(f"{unknown}, and {STUDY}, which says what they belong to, is not there: {remedy}")
    changes = differences(comparable(kept["user_attrs"][RECORD]["spec"]), spec.identity())
    if trials:
        changes = ["the storage has a study of this name with trials of its own"]
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise ChooseAnotherName(
            f"{folder} holds {len(files):,} results of another study called '{name}', which the storage does not know:\n{listed}\n"
            f"nothing is trained over them: {remedy}; `hpsearch rebuild` enters them into a storage that has no study of that name"
        )
    if study_id is not None:
        storage.delete_study(study_id)  # it is empty
    try:
        enter_study(storage, folder, kept)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FixSetup(f"{folder / STUDY} is damaged ({error}): {remedy}") from None
    say(f"Study: {len(files):,} results in {folder} were not known to the storage, and are taken over", 0, 0)


def find_study(storage: RDBStorage, name: str) -> int | None:
    """Returns a study's id, None when the storage does not have it."""
    try:
        return int(storage.get_study_id_from_name(name))
    except KeyError:
        return None


def add_missing(storage: RDBStorage, study_id: int, kept: Mapping[str, Any], folder: Path) -> None:
    """Enters what an older copy of the storage does not know of a study beside its trials: runs beside the search, looks at the test."""
    stored = storage.get_study_user_attrs(study_id)
    names = [path.stem for path in (folder / RESULTS).glob("*.json") if not path.stem.startswith("trial-")]
    found = [read_result(folder, name, stored[RECORD]["uid"]) for name in names if f"{RUN}{name}" not in stored]
    missing = {f"{RUN}{record.name}": run_values(record) for record in found if record is not None and record.setup is not None}
    if len(kept["user_attrs"].get(OPENINGS, [])) > len(stored.get(OPENINGS, [])):
        missing[OPENINGS] = kept["user_attrs"][OPENINGS]
    for key, value in missing.items():
        storage.set_study_user_attr(study_id, key, value)
