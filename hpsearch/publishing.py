"""The verbs that bring a study into MLflow afterwards: its runs from the storage, its model into the registry."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch import tracking
from hpsearch.actions import mirror_stored
from hpsearch.compared import conclude, members, told
from hpsearch.errors import FixInput, FixSetup
from hpsearch.places import Place, read, show
from hpsearch.startup import hold
from hpsearch.types import OBJECTIVES, Say, StoredStudy, say_nothing

if TYPE_CHECKING:
    from hpsearch.tracking.registry import Registered


@dataclass(frozen=True, slots=True)
class Synced:
    """What the mirror holds now."""

    study: str
    trials: int
    beside: int  # runs beside the search


def sync(where: Place, name: str | None, say: Say = say_nothing) -> Synced:
    """Rebuild or complete the mirror of a study, or of all studies of a comparison, from the storage; twice changes nothing.

    Raises NotFound without the study, WaitOrStop while it is run, FixInput for one that is not hpsearch's, FixSetup when MLflow
    cannot be written.
    """
    assert where.tracking is not None
    studies = chosen(where, name)
    title = name or studies[0].name
    folder = where.runs(title)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for stored in studies:
            locks.enter_context(hold(where.runs(stored.name), where.storage, stored.name))
        say(f"Bringing {title} into MLflow", 0, 0)
        mirror = tracking.MlflowTracker(where.tracking, folder)
        try:
            for stored in studies:
                mirror_stored(mirror, stored, where)
            if name not in {stored.name for stored in studies}:
                with suppress(FixInput):  # too little of the comparison is there
                    mirror.record(told(conclude(title, [stored.name for stored in studies], where, whole=True, again=False)))
            mirror.close(patience=None)
        except BaseException:
            mirror.abandon()
            raise
    if mirror.problem:
        raise FixSetup(f"MLflow could not be written ({mirror.problem}): the whole story is in {folder / 'tracking.log'}")
    ended = sum(r.status.ended for stored in studies for r in stored.records)
    return Synced(title, ended, sum(r.status.ended for stored in studies for r in stored.runs))


def chosen(where: Place, name: str | None) -> list[StoredStudy]:
    """The study of that name, or the studies of that comparison."""
    from hpsearch.search.catalog import study_names
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        known = study_names(storage)
        names: list[str] = members(known, name) if name is not None and name not in known else []
        studies = [read(storage, each) for each in names] or [read(storage, name)]
    for stored in studies:
        if not stored.uid:
            raise FixInput(f"the study '{stored.name}' in this storage was not made by hpsearch, so there is nothing to bring into MLflow")
    return studies


def register(where: Place, name: str, folder: Path, study: str, trial: int, say: Say = say_nothing) -> Registered:
    """Put an exported model into MLflow's registry as the next version of `name`, linked to its trial's run.

    The mirror is completed first where it lacks the run. Raises FixSetup when MLflow refuses, and what `sync` does.
    """
    assert where.tracking is not None
    tracking.quiet_environment()
    from hpsearch.tracking import registry

    stored = show(where, study)
    say("Loading MLflow", 0, 0)
    run = found(where.tracking, stored, trial)
    if not run:
        sync(where, study, say)
        run = found(where.tracking, stored, trial)
    record = next(r for r in stored.records if r.number == trial)
    scores = {"val_loss": record.val_loss, **{key: record.metrics.get(key) for key in OBJECTIVES if key != "val_loss"}}
    opened = next((o for o in reversed(stored.openings) if o["trial"] == trial), None)
    if opened is not None:
        judged = next(j for j in opened["judged"] if j["name"] == record.name)
        scores |= {"test_loss": judged["loss"], **{f"test_{key}": judged["metrics"].get(key) for key in OBJECTIVES if key != "val_loss"}}
    say("Tracing the network", 0, 0)
    from hpsearch.finetune.traced import trace

    with tempfile.TemporaryDirectory() as aside:
        graph = Path(aside) / "model.pt2"
        untraced = trace(folder, graph)
        numbers = {key: value for key, value in scores.items() if value is not None}
        made = registry.register(where.tracking, name, folder, None if untraced else graph, run, numbers, say)
    return replace(made, untraced=untraced)


def found(uri: str, stored: StoredStudy, trial: int) -> str:
    """The trial's run in MLflow; "" without one. FixSetup when MLflow does not answer."""
    from hpsearch.tracking.registry import find_run

    tracking.create_store(uri)
    try:
        return find_run(uri, stored.uid, trial)
    except Exception as error:  # of MLflow, of its database, of the network
        raise FixSetup(f"MLflow does not answer: {tracking.masked(str(error).partition(chr(10))[0], uri)}") from error
