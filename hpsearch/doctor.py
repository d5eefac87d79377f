"""The verb that looks at everything hpsearch stands on, and at what killed sessions left behind; repairs the latter on request.

Each check is a function of a `Clinic`; what it has to say are `Finding`s.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from hpsearch import leftovers, tracking
from hpsearch.dbfile import damage, mounted
from hpsearch.devices import visible
from hpsearch.errors import FixSetup, HpsearchError, WaitOrStop
from hpsearch.keeping import unusable_results
from hpsearch.machine import kill_group, study_lock, survivors, total_memory, usable_cores
from hpsearch.places import Place, comparison_of
from hpsearch.runtime.leftover_files import clear_export, left_by_exports
from hpsearch.startup import lock_folders
from hpsearch.types import Say, Status, StoredStudy, say_nothing

if TYPE_CHECKING:
    from hpsearch.search.lease import Lease

BUSY_SECONDS = 5.0  # that a locked database is waited for
LOW_SPACE = 1e9  # bytes; below it a study may come to a halt
IMPORTANT = ("torch", "torchvision", "optuna", "mlflow")
SHOWN = 3  # files that are named

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has to say."""

    name: str
    level: Level
    text: str
    remedy: str = ""
    fixed: bool = False


@dataclass
class Clinic:
    """What the checks look at."""

    where: Place
    fix: bool
    studies: dict[str, StoredStudy] = field(default_factory=dict)  # by name, those of the storage; none while it cannot be read
    leases: dict[str, str] = field(default_factory=dict)  # of a database server: who holds which study or comparison

    def folders(self, study: str) -> list[Path]:
        """Where the study's lock and files may be: its folder here, and the one beside its storage."""
        return list(dict.fromkeys(lock_folders(self.where.runs(study), self.where.storage, study)))

    def running(self, stored: StoredStudy) -> bool:
        """Whether a process runs the study, or the comparison that it belongs to."""
        names = [name for name in (stored.name, comparison_of(stored)) if name]
        return any(name in self.leases for name in names) or any(
            leftovers.locked(folder) for name in names for folder in self.folders(name)
        )

    def idle(self) -> list[StoredStudy]:
        """The studies that nobody runs."""
        return [stored for stored in self.studies.values() if not self.running(stored)]

    def idle_names(self) -> list[str]:
        """The same by name, and the comparisons that they belong to, which have folders and workers of their own."""
        return list(dict.fromkeys(name for stored in self.idle() for name in (stored.name, comparison_of(stored)) if name))


Check: TypeAlias = Callable[[Clinic], Iterator[Finding]]


def examine(where: Place, fix: bool = False, say: Say = say_nothing) -> list[Finding]:
    """Everything, in order; `fix` repairs what was left behind. A check that breaks is a finding of its own."""
    clinic, found = Clinic(where, fix), list[Finding]()
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        say(f"Looking at {name}", 0, 0)
        try:
            found += check(clinic)
        except (HpsearchError, OSError) as error:
            found.append(Finding(name, "problem", str(error)))
    return found


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is wrong, or everything that was is repaired."""
    return all(finding.level == "ok" or finding.fixed for finding in findings)


# ---------------------------------------------------------------- the machine


def device(clinic: Clinic) -> Iterator[Finding]:
    """What trials would train on."""
    del clinic
    try:
        from hpsearch.finetune.devices import devices
    except ImportError as error:
        yield Finding("device", "problem", f"torch cannot be loaded: {error}", "install hpsearch again: `make clean run`")
        return
    for found in devices():
        memory = f", {size(found.free)} of {size(found.total)} free" if found.total else ""
        text = f"{found.name}, {found.precision}{memory}"
        if found.total and found.free < 0.1 * found.total:
            yield Finding("device", "warning", text, "other processes hold its memory: `nvidia-smi` names them")
        else:
            yield Finding("device", "ok", text)
    gpu = bool(visible())
    if gpu and not any(found.total for found in devices()):
        yield Finding("device", "warning", "there is a GPU, and torch cannot use it", "look at its driver, and at CUDA_VISIBLE_DEVICES")


def cores(clinic: Clinic) -> Iterator[Finding]:
    """Cores and memory that hpsearch may use, and what the environment says of threads."""
    del clinic
    usable, here = usable_cores(), os.cpu_count() or 1
    text = f"{usable} of {here} cores, {size(total_memory())} of memory"
    given = os.environ.get("OMP_NUM_THREADS")
    if given is not None and given.isdigit() and int(given) > usable:
        yield Finding("cores", "warning", f"{text}; OMP_NUM_THREADS={given}", "set OMP_NUM_THREADS to the number of cores or less")
    else:
        yield Finding("cores", "ok", text)


def libraries(clinic: Clinic) -> Iterator[Finding]:
    """Versions, and whether hpsearch supports them."""
    del clinic
    from packaging.requirements import Requirement

    shown = [f"Python {sys.version.split()[0]}"]
    for line in requires("hpsearch") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("libraries", "problem", f"{requirement.name} is not installed", f"pip install '{line}'")
            continue
        shown += [f"{requirement.name} {installed}"] if requirement.name in IMPORTANT else []
        if not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement.name} {installed} is not supported: {requirement.specifier}"
            yield Finding("libraries", "problem", text, f"pip install '{line}'")
    yield Finding("libraries", "ok", ", ".join(shown))


# ---------------------------------------------------------------- places


def folders(clinic: Clinic) -> Iterator[Finding]:
    """The working folder and what hpsearch makes there."""
    yield place_finding("folder", clinic.where.folder, "run hpsearch where you may write")
    runs = clinic.where.folder / "hpsearch-runs"
    for folder in [runs, *sorted(path for path in runs.glob("*") if path.is_dir())] if runs.is_dir() else []:
        if not os.access(folder, os.W_OK | os.X_OK):
            yield Finding("folder", "problem", f"{folder} cannot be written", f"chmod u+rwx {shlex.quote(str(folder))}, or ask its owner")


def cache(clinic: Clinic) -> Iterator[Finding]:
    """Where decoded images and weights are kept, and what was half written there."""
    from hpsearch.finetune.shelf import sweep
    from hpsearch.finetune.sources import cache_folder

    root = cache_folder()
    there = next(path for path in (root, *root.parents) if path.exists())
    yield place_finding("cache", there, "set HPSEARCH_CACHE to a folder that can be written")
    half = [path for path in (root / "images").glob("*.tmp") if not leftovers.taken(root / "locks" / f"{path.stem}.lock")]
    if half:
        if clinic.fix:
            sweep(root)
        yield Finding("cache", "warning", f"half decoded: {names(half)}", "--fix deletes them", clinic.fix)


def place_finding(name: str, folder: Path, remedy: str) -> Finding:
    """Whether a folder can be written, has room, and lies on this machine."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"{folder} cannot be written", remedy)
    free, kind = shutil.disk_usage(folder).free, mounted(folder)
    text = f"{folder}: {size(free)} free" + (f", on {kind}" if kind else "")
    if free < LOW_SPACE:
        return Finding(name, "problem", text, "make room: a study that cannot write waits, and then stops")
    if kind:
        return Finding(name, "warning", text, "SQLite is not safe on network file systems: --storage on a local disk, or PostgreSQL")
    return Finding(name, "ok", text)


def storage(clinic: Clinic) -> Iterator[Finding]:
    """Whether the storage is there, whole, and can be read."""
    from hpsearch.names import is_name
    from hpsearch.search.catalog import read_study, study_names
    from hpsearch.search.lease import holders
    from hpsearch.search.records import LEFT_OUT
    from hpsearch.search.store import REMEDY, opened, shown, sqlite_path

    url = clinic.where.storage
    path = sqlite_path(url)
    if path is not None and not path.exists():
        yield Finding("storage", "ok", f"{path} is not there yet: the first study makes it")
        return
    if path is not None and (found := damage(path, BUSY_SECONDS)):
        yield Finding("storage", "problem", f"{path} is damaged: {found}", REMEDY)
        return
    try:
        with opened(url) as store:
            studies = {name: read_study(store, name) for name in study_names(store)}
            clinic.leases = {name: holder.who for name, holder in holders(store).items()} if path is None else {}
    except FixSetup as error:
        yield Finding("storage", "problem", str(error))
        return
    clinic.studies = {name: stored for name, stored in studies.items() if stored.uid and is_name(name)}
    trials = sum(len(stored.records) for stored in studies.values())
    yield Finding("storage", "ok", f"{path or shown(url)}: {len(studies):,} studies, {trials:,} trials")
    for name, stored in studies.items():
        bad = [record for record in stored.records if record.remark.startswith(LEFT_OUT)]
        said = [f"trial {record.number} of '{name}': {record.remark}" for record in bad[:SHOWN]]
        said += [f"'{name}': {remark}" for remark in stored.headstart if not stored.uid]
        for text in said:
            yield Finding("storage", "warning", text, "delete the study from a copy of the storage, and `hpsearch rebuild` it there")


def mlflow(clinic: Clinic) -> Iterator[Finding]:
    """Whether MLflow answers, and whether it believes that something runs which does not."""
    uri = clinic.where.tracking
    assert uri is not None
    shown = tracking.masked(uri, uri)
    if found := tracking.problem_of(uri):
        remedy = "studies run without it and `hpsearch sync` catches up; start the server, or name another with --tracking-uri"
        yield Finding("mlflow", "problem", f"{shown} cannot be used: {found}", remedy)
        return
    yield Finding("mlflow", "ok", f"{shown} can be used")
    if (store := tracking.store_file(uri)) is not None and store.is_file() and (moved := tracking.moved_artifacts(store)):
        old, new = (str(Path(path).parents[1]) for path in next(iter(moved.values())))
        if clinic.fix:
            tracking.relocate_artifacts(store)
        text = f"the folder was moved or copied from {old} to {new}; MLflow still looks for artifacts there"
        yield Finding("mlflow", "warning", text, "the next run, or --fix, has it look here", clinic.fix)
    tracking.quiet_environment()
    try:
        stuck = tracking.unfinished(uri, {stored.uid: stored.name for stored in clinic.idle() if stored.uid})
    except Exception as error:  # MLflow's own, of many kinds
        yield Finding("mlflow", "problem", f"{shown} does not tell its runs: {tracking.masked(str(error).partition(chr(10))[0], uri)}")
        return
    for name in stuck:
        remedy = f"`hpsearch sync {shlex.quote(name)}` brings it up to date"
        yield Finding("mlflow", "warning", f"runs of '{name}' seem to be running, and nobody runs it", remedy)


# ---------------------------------------------------------------- what was left behind


def running_trials(clinic: Clinic) -> Iterator[Finding]:
    """Studies that are run, and trials that claim to run and do not."""
    from hpsearch.search.checkup import put_back
    from hpsearch.search.store import open_storage

    for name, stored in clinic.studies.items():
        if clinic.running(stored):
            yield Finding("studies", "ok", f"'{name}' is being run" + (f" by {clinic.leases[name]}" if name in clinic.leases else ""))
            continue
        found = [record.number for record in stored.records if record.status is Status.RUNNING]
        if not found:
            continue
        if clinic.fix:
            store = open_storage(clinic.where.storage, create=True)  # for writing, as a session opens it
            try:
                with held(clinic, name) as lease:
                    lease.guard(store)
                    put_back(store, name)
            finally:
                store.engine.dispose()
        claim = f"trial {found[0]} claims" if len(found) == 1 else f"trials {', '.join(map(str, found[:10]))} claim"
        text = f"'{name}' was cut off: {claim} to run; its next session takes up what was cut off"
        yield Finding("studies", "warning", text, "--fix marks it as waiting", clinic.fix)


def workers(clinic: Clinic) -> Iterator[Finding]:
    """Worker processes whose orchestrator is gone."""
    for name in clinic.idle_names():
        for folder in clinic.folders(name):
            for pid in filter(None, survivors(folder)):
                if clinic.fix:
                    kill_group(pid)
                text = f"process {pid} is a worker of '{name}', which nobody runs"
                yield Finding("workers", "warning", text, "it ends by itself within seconds; --fix ends it now", clinic.fix)


def files(clinic: Clinic) -> Iterator[Finding]:
    """Files that no trial needs, in folders of studies that nobody runs."""
    for stored in clinic.idle():
        with ExitStack() as stack:
            if clinic.fix:
                try:
                    stack.enter_context(held(clinic, stored.name))
                except WaitOrStop:
                    continue  # somebody has just begun
            for folder in filter(Path.is_dir, clinic.folders(stored.name)):
                bad = unusable_results(folder, stored.uid)
                if bad:
                    more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
                    text = f"'{stored.name}', results that cannot be used: {'; '.join(bad[:SHOWN])}{more}"
                    yield Finding("results", "warning", text, "bring back copies of these files, or move them away")
                for what, found in (
                    ("half written", leftovers.half_written(folder)),
                    ("states that no trial goes on from", leftovers.stale_states(folder, stored)),
                    ("weights that no trial refers to", leftovers.stray_weights(folder, stored)),
                ):
                    if found:
                        yield removal(f"'{stored.name}', {what}: {names(found)}", found, clinic.fix)


def locks(clinic: Clinic) -> Iterator[Finding]:
    """Notes of who runs a study, left by processes that were killed."""
    for name in clinic.idle_names():
        found = [folder / "holder" for folder in clinic.folders(name) if (folder / "holder").exists()]
        if found:
            yield removal(f"'{name}' was left by {found[0].read_text() or 'an unknown process'}", found, clinic.fix)


def stores(clinic: Clinic) -> Iterator[Finding]:
    """Databases that were begun and never finished."""
    from hpsearch.search.store import sqlite_path

    files = [sqlite_path(clinic.where.storage), tracking.store_file(clinic.where.tracking or "")]
    if found := leftovers.half_made(path for path in files if path is not None):
        yield removal(f"half made: {names(found)}", found, clinic.fix)


def exports(clinic: Clinic) -> Iterator[Finding]:
    """Folders that killed exports left in the working folder."""
    if found := left_by_exports(clinic.where.folder):
        for path in found if clinic.fix else ():
            clear_export(path)
        remedy = "--fix deletes them, or puts an earlier export back"
        yield Finding("leftovers", "warning", f"of exports that were killed: {names(found)}", remedy, clinic.fix)


def removal(text: str, paths: list[Path], fix: bool) -> Finding:
    """A finding about files that may go; deletes them on request."""
    for path in paths if fix else ():
        path.unlink(missing_ok=True)
    plural = "it" if len(paths) == 1 else "them"
    return Finding("leftovers", "warning", text, f"--fix deletes {plural}", fix)


@contextmanager
def held(clinic: Clinic, study: str) -> Iterator[Lease]:
    """Hold a study while it is repaired; WaitOrStop when somebody runs it."""
    from hpsearch.search.lease import leased

    folders = [folder for folder in clinic.folders(study) if folder.is_dir()]
    with study_lock(folders, study), leased(clinic.where.storage, study) as lease:
        yield lease


def names(paths: list[Path]) -> str:
    """Some of the files, and how many more there are."""
    more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
    return ", ".join(path.name for path in paths[:SHOWN]) + more


def size(number: float) -> str:
    """Bytes as a person reads them."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.0f} MB"


# Files after trials: repairing a study gives its lock back, and with it the note of who held it.
CHECKS: tuple[Check, ...] = (
    device,
    cores,
    libraries,
    folders,
    cache,
    storage,
    locks,
    running_trials,
    workers,
    files,
    stores,
    exports,
    mlflow,
)
