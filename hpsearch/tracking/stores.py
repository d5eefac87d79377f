"""MLflow's store where it is an SQLite file: made whole or not at all, left alone where it is of another version."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpsearch.dbfile import check_disk, look, remove_leftovers, revisions
from hpsearch.errors import FixSetup


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
        return
    aside = path.with_name(f"{path.name}.new-{os.getpid()}")
    from mlflow import MlflowClient

    try:
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        if wanted():
            with suppress(FileExistsError):  # somebody else was first
                os.link(aside, path)
    finally:
        for leftover in path.parent.glob(f"{aside.name}*"):
            leftover.unlink()
