"""MLflow's store where it is an SQLite file: made whole or not at all, left alone where it is of another version."""

from __future__ import annotations

import itertools
import os
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from hpsearch.dbfile import check_disk, look, remove_leftovers, revisions
from hpsearch.errors import FixSetup

TRIES = itertools.count()  # to make a store
BUSY_SECONDS = 30.0  # that a locked store is waited for
# Columns that hold paths below an experiment's folder.
LOCATIONS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def store_file(uri: str) -> Path | None:
    """The file behind a store's URI; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_store(uri: str) -> None:
    """Raise FixSetup, before touching it, for a file that the installed MLflow cannot use or would change; costs no import of MLflow."""
    path = store_file(uri)
    if path is None:
        return
    check_disk(path, "put it on a disk of this machine with --tracking-uri, use a tracking server (--tracking-uri http://host:5000)")
    if not path.exists():
        return
    another = "name another with --tracking-uri"
    try:
        found = look(path)
    except (sqlite3.Error, OSError) as error:
        raise FixSetup(f"{path} is not a readable SQLite file ({error}): move it away and run `hpsearch sync`, or {another}") from None
    if not found.tables:
        return
    if not {"experiments", "runs"} <= found.tables:
        some = ", ".join(sorted(found.tables)[:3])
        raise FixSetup(f"{path} holds other tables ({some} ...) and is no MLflow store: {another}")
    known, newest = revisions("mlflow", "store/db_migrations/versions")
    if found.revision == newest:
        return
    if found.revision is None or found.revision in known:
        upgrade = f"copy it, then run `mlflow db upgrade {shlex.quote(uri)}`"
        raise FixSetup(f"{path} was made by an older MLflow ({found.revision}, this one has {newest}): {upgrade}, or {another}")
    raise FixSetup(
        f"{path} was made by a newer MLflow ({found.revision}, this one knows {newest}): update mlflow and hpsearch, or {another}"
    )


def create_store(uri: str, wanted: Callable[[], bool] = lambda: True) -> None:
    """Make a new SQLite store aside and link it into place: a kill half-way would leave a file that never opens again.

    Once it is whole, `wanted` is asked whether there is anything to put into it, and may take its time to answer. Raises FixSetup
    where `check_store` does.
    """
    check_store(uri)
    path = store_file(uri)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    if path.exists():
        relocate_artifacts(path)
        return
    aside = path.with_name(f"{path.name}.new-{os.getpid()}")
    from mlflow import MlflowClient

    try:
        # MLflow keeps an engine for each URI, also that of a file which a full disk did not let it finish: each try has its own.
        MlflowClient(f"sqlite:///{aside}?timeout={60 + next(TRIES)}").search_experiments(max_results=1)
        if wanted():
            with suppress(FileExistsError):  # somebody else was first
                os.link(aside, path)
    finally:
        for leftover in path.parent.glob(f"{aside.name}*"):
            leftover.unlink()


def moved_artifacts(path: Path) -> dict[str, tuple[str, str]]:
    """Returns the experiments of an SQLite store whose artifacts MLflow would look for where the store was before it was moved or copied.

    MLflow stores absolute paths, FOLDER/mlruns/EXPERIMENT. A folder was left when the store has the artifacts of one of its experiments
    beside it, or when that folder is not there any more.

    Args:
        path: The store's file.

    Returns:
        By experiment number, the path that is stored and the one that it should be.
    """
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
        stored = database.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
    here = Path(os.path.realpath(path)).parent
    homes = {str(number): home for number, location in stored if (home := home_of(str(location), f"/mlruns/{number}"))}
    elsewhere = {number: home for number, home in homes.items() if os.path.realpath(home) != str(here)}
    left = {home for number, home in elsewhere.items() if (here / "mlruns" / number).is_dir() or not Path(home).is_dir()}
    ends = {number: f"/mlruns/{number}" for number, home in elsewhere.items() if home in left}
    return {number: (homes[number] + end, str(here) + end) for number, end in ends.items()}


def home_of(location: str, end: str) -> str:
    """Returns the folder in which MLflow made an experiment's artifacts, "" where it was told another place."""
    return location.removesuffix(end) if location.startswith("/") and location.endswith(end) else ""


def relocate_artifacts(path: Path) -> None:
    """Has an SQLite store that was moved or copied look for artifacts beside itself; else it would write into the folder it came from."""
    if not (moved := moved_artifacts(path)):
        return
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database, database:
        for number, (old, new) in moved.items():
            database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, number))
            for table, column in LOCATIONS:
                change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                database.execute(change, (new + "/", len(old) + 2, len(old) + 1, old + "/"))
