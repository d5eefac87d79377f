"""The study's storage: Optuna's own tables, in a file that its tools open; written behind, by one thread.

An ask or a tell in SQLite takes 10 to 200 ms; in memory under 1 ms, TPE's modelling apart. So the loop works on a copy
in memory and this module carries every change to the storage, in order, off the training path.
"""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from hpsearch.dbfile import check_disk, look, remove_leftovers, revisions
from hpsearch.errors import FixInput, FixSetup, WaitOrStop
from hpsearch.keeping import RESULTS
from hpsearch.search.server import open_server, passing

optuna.logging.set_verbosity(optuna.logging.WARNING)

REMEDY = "`hpsearch rebuild` makes a new one from the results in hpsearch-runs; or name another with --storage, or restore it from a copy"
BUSY = 60.0  # seconds that SQLite waits for whoever holds a file
RETRY_SECONDS = 300.0  # how long a locked storage is waited for, while training goes on
AWAY_SECONDS = 5.0  # after which a person is told that a server does not answer
FULL_SECONDS = 30.0  # how long a full disk is waited for at the end; while the study goes on, as long as it takes
WAITS = ": the study waits; free some space and it goes on"
SCARCE = 1 << 20  # free bytes below which SQLite's errors are put down to the disk, whatever they say


def storage_url(given: str | None, folder: Path) -> str:
    """The URL of the storage: a given URL or file name, else `hpsearch.db` in `folder`."""
    if given is not None and ("://" in given or given == ":memory:"):
        return given if "://" in given else f"sqlite:///{given}"
    try:  # as `os.path` does it, a link to itself is no error
        file = os.path.realpath(folder / "hpsearch.db" if given is None else given)
    except ValueError:  # a null byte
        raise FixInput(f"--storage {given!r} cannot be a file's name; use another") from None
    return sqlalchemy.URL.create("sqlite", database=file).render_as_string()  # a folder may be called 'what?'


def sqlite_path(url: str) -> Path | None:
    """The file behind an SQLite URL; None for a server. FixInput when it is no URL, or a storage in memory."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise FixInput("--storage is not a storage URL; use a file name, sqlite:///file.db or postgresql+psycopg://host/name") from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or ":memory:" in parsed.database:
        raise FixInput("a storage in memory would be lost at the end; name a file, such as sqlite:///hpsearch.db")
    return Path(parsed.database)


def same_database(url: str, other: str) -> bool:
    """Whether two URLs name one database of a server."""
    try:
        a, b = sqlalchemy.make_url(url), sqlalchemy.make_url(other)
    except (ArgumentError, ValueError):  # MLflow's may be an address
        return False
    same = (a.get_backend_name(), a.host, a.port, a.database) == (b.get_backend_name(), b.host, b.port, b.database)
    return same and a.get_backend_name() != "sqlite" and a.query == b.query


def shown(url: str) -> str:
    """The URL without its password, for messages and records."""
    parsed = sqlalchemy.make_url(url)
    return parsed.difference_update_query(["password"]).render_as_string(hide_password=True)


def open_storage(url: str, create: bool = False) -> RDBStorage:
    """Optuna's storage at `url`; tables are made only with `create`.

    Raises FixSetup, before touching it, when the file is not Optuna's, is damaged, or its folder cannot be written.
    """
    path = check_storage(url, create)
    if path is None:
        return open_server(url, create, shown(url))
    try:
        with creation_lock(path if create else None):
            if create:
                make_sqlite(path)
                write_ahead(path)
            storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY}}, skip_table_creation=not create)
    except (SQLAlchemyError, sqlite3.Error, RuntimeError, ImportError, optuna.exceptions.OptunaError) as error:
        raise FixSetup(f"the storage {shown(url)} cannot be opened: {str(error).splitlines()[0]}") from None
    if create:
        event.listen(storage.engine, "connect", set_pragmas)
        event.listen(storage.engine, "begin", begin_immediate)
        storage.engine.dispose()
    return storage


def open_existing(url: str) -> RDBStorage | None:
    """Optuna's storage at `url`, to be written; None for a file that is still to be made. Raises as `open_storage` does."""
    path = check_storage(url, create=True)
    return None if path is not None and not path.exists() else open_storage(url, create=True)


@contextmanager
def opened(url: str) -> Iterator[RDBStorage]:
    """An existing storage for reading; its connections are closed afterwards."""
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def check_storage(url: str, create: bool = False) -> Path | None:
    """Raise FixInput or FixSetup where `open_storage` would, as far as a look tells; the file, None for a server."""
    path = sqlite_path(url)
    if path is not None:
        check_disk(
            path, "put it on a disk of this machine with --storage, use a database server (--storage postgresql+psycopg://host/name)"
        )
        check_sqlite(path, create)
    return path


@contextmanager
def creation_lock(path: Path | None) -> Iterator[None]:
    """One process at a time creates tables: two at once kill each other (optuna #4621)."""
    if path is None:
        yield
        return
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=60)
    except Timeout:
        raise FixSetup(f"another process has been creating {path} for a minute; if none is, remove {path}.lock") from None
    except OSError as error:
        raise FixSetup(f"{path}.lock cannot be written ({error.strerror}): repair its folder or use --storage") from None
    try:
        yield
    finally:
        lock.release()


def check_sqlite(path: Path, create: bool) -> None:
    """Raise FixSetup unless `path` is an Optuna file, or can become one."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            raise FixSetup(f"there is no storage {path}: run a study first, or name another with --storage") from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            probe = path.parent / f".{path.name}.probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise FixSetup(f"the folder {path.parent} cannot be written ({error.strerror}): go elsewhere or use --storage") from None
        return
    except (OSError, ValueError) as error:
        raise FixSetup(f"{path} cannot be opened ({getattr(error, 'strerror', error)}): name another with --storage") from None
    if not regular:  # SQLite would wait for ever at a named pipe
        raise FixSetup(f"{path} is not a file: name another with --storage")
    try:
        found = look(path)
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)) as db:
            optunas = db.execute("SELECT 1 FROM pragma_table_info('studies') WHERE name = 'study_id'").fetchone() is not None
            damage = db.execute("PRAGMA quick_check(1)").fetchone()[0] if optunas else "ok"
    except (sqlite3.Error, OSError) as error:
        if not os.access(path.parent, os.W_OK):  # SQLite keeps a log beside the file, also to read it
            raise FixSetup(f"the folder {path.parent} cannot be written: repair it, or copy {path.name} elsewhere") from None
        raise FixSetup(f"{path} is not a readable SQLite file ({error}): {REMEDY}") from None
    tables = found.tables
    if "experiments" in tables and "runs" in tables:
        raise FixSetup(f"{path} is MLflow's file; Optuna and MLflow refuse to share one: name another with --storage")
    if tables and not optunas:
        raise FixSetup(
            f"{path} holds other tables ({', '.join(sorted(tables)[:3])} ...) and no Optuna study: name another file with --storage"
        )
    if optunas and damage != "ok":
        raise FixSetup(f"{path} is damaged ({damage.splitlines()[0]}): {REMEDY}")
    if optunas:
        check_version(path, found.revision)
    if not tables and any(path.parent.glob(f"hpsearch-runs/*/{RESULTS}/*")):
        raise FixSetup(f"{path} is empty, and yet studies have left results in {path.parent / 'hpsearch-runs'}: {REMEDY}")
    if not tables and not create:
        raise FixSetup(f"{path} holds no study yet: run one first, or name another with --storage")


def check_version(path: Path, revision: str | None) -> None:
    """Raise FixSetup for a storage whose tables the installed Optuna does not understand: opening it could change them."""
    known, newest = revisions("optuna", "storages/_rdb/alembic/versions")
    if revision == newest:
        return
    if revision is None or revision in known:
        url = shown(sqlalchemy.URL.create("sqlite", database=str(path.resolve())).render_as_string())
        made = f"an older Optuna ({revision or 'before 0.9'}, this one has {newest})"
        raise FixSetup(f"{path} was made by {made}: copy it, then run `optuna storage upgrade --storage {shlex.quote(url)}`")
    raise FixSetup(f"{path} was made by a newer Optuna ({revision}, this one has {newest}): update optuna and hpsearch")


def make_sqlite(path: Path) -> None:
    """Make a new storage aside and move it into place: it is there as a whole or not at all. To be called under `creation_lock`."""
    remove_leftovers(path, (".new-", ".probe-"))
    if path.exists() and path.stat().st_size:
        return
    aside = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        storage = RDBStorage(sqlalchemy.URL.create("sqlite", database=str(aside)).render_as_string())
        storage.engine.dispose()
        write_ahead(aside)
        os.replace(aside, path)
    finally:
        for leftover in path.parent.glob(f"{aside.name}*"):
            leftover.unlink()


def write_ahead(path: Path) -> None:
    """Have readers never block the writer (WAL), from now on and for everybody. To be called under `creation_lock`."""
    give_up = time.monotonic() + BUSY
    with closing(sqlite3.connect(path, timeout=BUSY)) as db:
        while db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                if db.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                    return  # the file system has no shared memory, and the file stays as it was
            except sqlite3.OperationalError as error:  # SQLite does not wait for this lock
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > give_up:
                    raise
                time.sleep(0.05)


def set_pragmas(connection: Any, record: object) -> None:
    """A committed row is on the disk."""
    del record
    connection.isolation_level = None  # begin_immediate issues BEGIN itself
    connection.execute("PRAGMA synchronous=FULL")


def begin_immediate(connection: sqlalchemy.Connection) -> None:
    """Take the write lock first: a read that turns into a write fails under concurrency (optuna #4994)."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Writer:
    """Executes writes one after the other on its own thread; waits for a while for a storage that is locked, full, or whose server is away.

    A write may be executed again when nobody knows whether it was stored: each is such that this changes nothing.
    """

    def __init__(self, storage: RDBStorage | None = None) -> None:
        """`storage` is the one that is written, to look at its disk."""
        self.path = sqlite_path(storage.url) if storage is not None else None
        self.server = shown(storage.url) if storage is not None and self.path is None else ""
        self.since: float | None = None  # when the write began that is under way
        self.full = ""  # what a person should do about the disk, while it is full
        self.closing: float | None = None  # since when nothing more comes
        self.waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.run, name="storage-writer", daemon=True)
        self.thread.start()

    def put(self, write: Callable[[], None]) -> None:
        """Queue a write; raises FixSetup when an earlier one failed for good."""
        self.check()
        self.waiting.put(write)

    def away(self) -> str:
        """What a person should know of a server that has not taken a write for a while; "" otherwise."""
        since = self.since
        if not self.server or since is None or time.monotonic() - since < AWAY_SECONDS:
            return ""
        return f"{self.server} does not answer: training goes on, and the server is waited for, {RETRY_SECONDS / 60:.0f} minutes at most"

    def check(self) -> None:
        """Raise FixSetup when a write failed for good, WaitOrStop when the study is another session's by now."""
        if isinstance(self.error, WaitOrStop):
            raise self.error
        if self.error is not None:
            reason = str(self.error).splitlines()[0]
            raise FixSetup(f"the storage cannot be written: {reason}. What was stored before is kept; repair it and repeat the command")

    def close(self) -> None:
        """Finish what is queued; raises FixSetup when something could not be written."""
        self.closing = time.monotonic()
        self.waiting.put(None)
        self.thread.join()
        self.check()

    def run(self) -> None:
        """The thread: nothing after a failed write is written, so that the storage stays a prefix of the truth."""
        while (write := self.waiting.get()) is not None:
            if self.error is None:
                self.since = time.monotonic()
                try:
                    self.attempt(write)
                except Exception as error:  # told to the loop by check()
                    self.error = error
                self.since = None

    def attempt(self, write: Callable[[], None]) -> None:
        """One write, repeated while the database is locked or its server away, at most RETRY_SECONDS, or the disk full."""
        give_up = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                write()
            except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
                if not isinstance(error, OperationalError | optuna.exceptions.StorageInternalError) and not passing(error):
                    raise
                self.full, now = full_disk(self.path, error), time.monotonic()
                if self.full and self.closing is not None and now - self.closing > FULL_SECONDS:
                    raise FixSetup(self.full.removesuffix(WAITS)) from error
                if not self.full and now > give_up:
                    raise
                time.sleep(0.5)
            else:
                self.full = ""
                return


def full_disk(path: Path | None, error: BaseException) -> str:
    """What to say where `error` came of a full disk; "" where it did not."""
    if path is None:
        return ""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return ""
    if "is full" not in f"{error} {error.__cause__}" and free >= SCARCE:
        return ""
    return f"the disk of {path} is full ({free / 1e6:.1f} MB left){WAITS}"
