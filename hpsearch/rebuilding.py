"""The verb that makes the storage again from what trials left in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpsearch.core.text import harmless
from hpsearch.errors import FixInput, FixSetup, HpsearchError, NotFound
from hpsearch.keeping import STUDY
from hpsearch.places import Place
from hpsearch.startup import hold
from hpsearch.types import Say, say_nothing


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A study that the storage has again."""

    study: str
    trials: int  # that have ended
    beside: int  # runs beside the search
    left_out: tuple[str, ...] = ()  # results that cannot be used, each with the reason; the files stay
    refused: str = ""  # why nothing of the study is entered


def rebuild(where: Place, name: str | None, say: Say = say_nothing) -> list[Rebuilt]:
    """Enter a study, or all studies of the folder that the storage lacks, from their results; the storage is made if need be.

    Raises NotFound where there is nothing to rebuild from, FixInput for a study that the storage has, FixSetup for a storage that
    cannot be written, WaitOrStop while a study is run. Of several studies, one that cannot be entered keeps none of the others from it: it
    has its reason in `Rebuilt.refused`.
    """
    from hpsearch.search.catalog import study_names
    from hpsearch.search.rebuild import rebuild_study
    from hpsearch.search.records import load_study
    from hpsearch.search.store import open_storage

    folders = [where.runs(name)] if name is not None else rebuildable(where.folder)
    kept, refused = {}, []
    for folder in folders:
        try:
            kept[folder] = load_study(folder)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            refused.append(Rebuilt(folder.name, 0, 0, refused=harmless(f"{folder / STUDY} cannot be used: {error}")))
    if not kept and refused:
        raise FixSetup("\n".join(row.refused for row in refused) + "\nbring back a copy, or move what cannot be used away")
    if not kept:
        wanted = f"of '{name}'" if name is not None else "of any study"
        raise NotFound(f"hpsearch-runs holds nothing {wanted} to rebuild from: it is made in the folder in which the study was run")
    storage = open_storage(where.storage, create=True)
    try:
        known = study_names(storage)
        missing = {folder: found for folder, found in kept.items() if found["name"] not in known}
        if not missing:
            raise FixInput(f"the storage has {'that study' if name else 'every study of this folder'}: there is nothing to rebuild")
        done = []
        for folder, found in missing.items():
            say(f"Reading the results in {folder.name}", 0, 0)
            try:
                with hold(folder, where.storage, folder.name) as lease:
                    lease.guard(storage)
                    done.append(Rebuilt(*rebuild_study(storage, folder, found)))
            except HpsearchError as error:
                if len(missing) == 1:
                    raise
                refused.append(Rebuilt(folder.name, 0, 0, refused=str(error)))
        return done + refused
    finally:
        storage.engine.dispose()


def rebuildable(folder: Path) -> Sequence[Path]:
    """The folders of studies that could be rebuilt."""
    return sorted(file.parent for file in (folder / "hpsearch-runs").glob(f"*/{STUDY}"))
