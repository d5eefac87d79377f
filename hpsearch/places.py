"""Where a study's things are, and a study read from there."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch import tracking
from hpsearch.errors import FixInput, FixSetup, NotFound
from hpsearch.names import check_name
from hpsearch.proof import winner_of
from hpsearch.types import SEVERAL, StoredStudy, TrialRecord

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study's things are."""

    folder: Path  # working folder
    storage: str  # URL of Optuna's storage
    tracking: str | None  # URI of MLflow's store; None when tracking is off

    def runs(self, study: str) -> Path:
        """The study's own folder: report, resolved spec, best weights, lock. FixInput for a name that could lead elsewhere.

        Others may have put a study of such a name into the storage.
        """
        return self.folder / "hpsearch-runs" / check_name(study)


def place(folder: Path, storage: str | None = None, tracking_uri: str | None = None, track: bool = True) -> Place:
    """Resolve where things are; raises FixInput or FixSetup."""
    from hpsearch.search.store import same_database, sqlite_path, storage_url

    url = storage_url(storage or os.environ.get("OPTUNA_STORAGE"), folder)
    uri = tracking.tracking_uri(tracking_uri, folder) if track else None
    if uri is not None and (file := sqlite_path(url)) is not None and uri == f"sqlite:///{os.path.realpath(file)}":
        raise FixSetup(f"storage and tracking name the same file {file}; Optuna and MLflow refuse to share one")
    if uri is not None and same_database(url, uri):
        raise FixSetup("storage and tracking name the same database; Optuna and MLflow refuse to share one: make another one for either")
    return Place(folder, url, uri)


def winning(stored: StoredStudy) -> TrialRecord:
    """A study's winner; NotFound when no trial is complete."""
    record = winner_of(stored)
    if record is None and stored.spec.get("objective") == SEVERAL:
        raise FixInput(f"'{stored.name}' has several objectives, so no trial of it is the best; `hpsearch show` lists them")
    if record is None:
        raise NotFound(f"no trial of '{stored.name}' is complete yet: run it on, or look at `hpsearch show {stored.name}`")
    return record


def comparison_of(stored: StoredStudy) -> str:
    """The comparison that a study belongs to, whose name its experiment in MLflow has; "" for none."""
    name, sampler, repeat = stored.name, stored.spec.get("sampler"), int(stored.spec.get("repeat", 0))
    end = f"-{sampler}-r{repeat}"
    return name.removesuffix(end) if repeat and name.endswith(end) else ""


def ui_command(where: Place) -> str:
    """The plain command that opens MLflow's page on this store, or the address of a server; without credentials."""
    uri = tracking.masked(where.tracking or "", where.tracking or "")
    return uri.replace("***@", "") if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def read(storage: RDBStorage, name: str | None) -> StoredStudy:
    """A stored study; without a name, the only one there is."""
    from hpsearch.search.catalog import read_study, study_names

    if name is None:
        names = study_names(storage)
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise NotFound(f"say which study; there {'is' if len(names) < 2 else 'are'}: {listed}")
        name = names[0]
    return read_study(storage, name)


def show(where: Place, name: str | None) -> StoredStudy:
    """One study with its trials."""
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        return read(storage, name)
