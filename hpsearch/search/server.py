"""A storage on a database server: how it is opened, what is wrong when it cannot be, and how a restart of it is waited out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from hpsearch.errors import FixInput, FixSetup

T = TypeVar("T")

ABSENT = 3.0  # seconds that a server which is not there is waited for when it is opened: it may be restarting
STARTING = 15.0  # the same for one that says that it is not ready yet
PATIENCE = 60.0  # seconds that one that answered once is waited for, in what is not written behind
IDLE = 20  # seconds after which the server ends a transaction in which nobody does anything: who holds it may be frozen
LOCKED = 30  # seconds that a row which somebody else holds is waited for
KEY = 7_705_721_842_226_171  # of the lock under which tables are made; any would do
EXTRAS = {"psycopg": "hpsearch[postgresql]"}
OPTIONS: dict[str, dict[str, int]] = {  # a connection whose other end is gone is noticed within half a minute
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    },
    "mysql": {"connect_timeout": 10},
}
SETTINGS = {  # of a connection: IDLE, LOCKED
    "postgresql": ("SET idle_in_transaction_session_timeout = '{}s'", "SET lock_timeout = '{}s'"),
    "mysql": ("SET SESSION wait_timeout = {}", "SET SESSION innodb_lock_wait_timeout = {}"),
}
REMEDIES = {  # words of a refusal that waiting does not change, and what to do about it
    "password": "the user and its password are those of the URL, of PGUSER and PGPASSWORD, or of ~/.pgpass",
    "authentication": "the user and its password are those of the URL, of PGUSER and PGPASSWORD, or of ~/.pgpass",
    "Access denied": "look at user and password",
    "pg_hba": "the server's pg_hba.conf has to let this machine in",
    "role": "the user has to be made first (CREATE ROLE), or another named in the URL",
    "does not exist": "make it first (createdb), or name another database",
    "Unknown database": "make it first, or name another database",
    "permission denied": "the user needs CREATE on the schema to make the tables, afterwards SELECT, INSERT, UPDATE and DELETE on them",
    "resolve": "look at the host's name",
    "Name or service": "look at the host's name",
    "invalid": "look at the URL",
}


def options(url: str) -> dict[str, Any]:
    """How SQLAlchemy is to connect; what the URL says itself is left to it."""
    parsed = sqlalchemy.make_url(url)
    given = OPTIONS.get(parsed.get_backend_name(), {})
    return {"pool_pre_ping": True, "connect_args": {key: value for key, value in given.items() if key not in parsed.query}}


def check_driver(url: str) -> None:
    """Raise FixInput for a kind of database that is not supported, FixSetup where what talks to it is not installed."""
    parsed = sqlalchemy.make_url(url)
    backend, shown = parsed.get_backend_name(), parsed.drivername
    if backend == "postgres":
        raise FixInput("--storage postgres://...: SQLAlchemy calls it postgresql+psycopg://")
    try:
        dialect = parsed.get_dialect()
    except (NoSuchModuleError, ArgumentError):
        dialect = None
    if dialect is None or backend not in SETTINGS:
        raise FixInput(f"--storage {shown}://...: a study is kept in SQLite (a file name), postgresql+psycopg:// or mysql+pymysql://")
    try:
        dialect.import_dbapi()
    except ImportError as error:
        missing = getattr(error, "name", None) or dialect.driver
        other = "; or write postgresql+psycopg://" if missing == "psycopg2" and find_spec("psycopg") else ""
        raise FixSetup(f"the storage needs the package {missing}: pip install '{EXTRAS.get(missing, missing)}'{other}") from None


def make_engine(url: str) -> sqlalchemy.Engine:
    """Few connections to the server, for what is beside Optuna's own."""
    engine = sqlalchemy.create_engine(url, pool_size=1, max_overflow=1, **options(url))
    settle(engine)
    return engine


def settle(engine: sqlalchemy.Engine) -> None:
    """Have the server let go of locks whose holder is frozen or cut off, in every connection from now on."""
    patterns = SETTINGS[engine.dialect.name if engine.dialect.name != "mariadb" else "mysql"]

    def tell(connection: Any, record: object) -> None:
        del record
        with connection.cursor() as cursor:
            for pattern, seconds in zip(patterns, (IDLE, LOCKED), strict=True):
                cursor.execute(pattern.format(seconds))
        connection.commit()

    event.listen(engine, "connect", tell)
    engine.dispose()


def passing(error: BaseException) -> bool:
    """Whether an error comes of a server that restarts, is away, or of a lock that somebody holds, and not of what was asked of it."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        return passing(error.__cause__)
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is not None and not error.connection_invalidated:
        return state[:2] in ("08", "40", "53", "55", "57") or state == "25P03"
    return error.connection_invalidated or isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)


def steady(act: Callable[[], T]) -> T:
    """Do something that may be done twice; again while the server restarts."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except Exception as error:
            if not passing(error) or time.monotonic() > give_up:
                raise
        time.sleep(0.2)


class ServerStorage(RDBStorage):
    """Optuna's storage, which does again what a restart of its server cut short: `AGAIN` names what may be done twice."""

    def create_new_study(self, directions: Any, study_name: str | None = None) -> int:
        """As Optuna's; whether a commit that was cut short has happened is looked up. The caller holds the name."""
        attempts: list[int] = []

        def make() -> int:
            attempts.append(1)
            try:
                return super(ServerStorage, self).create_new_study(directions, study_name)
            except optuna.exceptions.DuplicatedStudyError:
                if len(attempts) == 1 or study_name is None:
                    raise
                return self.get_study_id_from_name(study_name)

        return steady(make)


AGAIN = (
    "get_study_id_from_name",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_all_trials",
    "get_n_trials",
    "set_study_user_attr",
    "set_study_system_attr",
)


def repeated(method: Callable[..., T]) -> Callable[..., T]:
    """A method that is called again while the server restarts."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> T:
        return steady(lambda: method(*args, **kwargs))

    return call


for _name in AGAIN:
    setattr(ServerStorage, _name, repeated(getattr(RDBStorage, _name)))


def open_server(url: str, create: bool, shown: str) -> RDBStorage:
    """Optuna's storage on a server; its tables are made only with `create`. FixInput or FixSetup where that cannot be."""
    check_driver(url)
    try:
        engine = make_engine(url)
    except (SQLAlchemyError, ValueError, TypeError) as error:
        raise FixSetup(refusal(shown, error)) from None
    try:
        await_server(engine, shown)
        whole = steady(lambda: check_tables(engine, create, shown))
        template = url.replace("{", "{{").replace("}", "}}")  # Optuna fills in what is between braces
        with unlocked() if whole else making(engine):
            storage = steady(lambda: ServerStorage(template, engine_kwargs=options(url), skip_table_creation=whole))
    except (SQLAlchemyError, RuntimeError, optuna.exceptions.OptunaError) as error:
        raise FixSetup(refusal(shown, error)) from None
    finally:
        engine.dispose()
    settle(storage.engine)
    return storage


def await_server(engine: sqlalchemy.Engine, shown: str) -> None:
    """Wait for the server's answer, for seconds; FixSetup without one, at once where waiting does not help."""
    begun = time.monotonic()
    while True:
        try:
            with engine.connect():
                return
        except DBAPIError as error:
            text = str(error.orig)
            patience = ABSENT if any(words in text for words in ("refused", "No such file", "timeout")) else STARTING
            if any(words in text for words in REMEDIES) or time.monotonic() - begun > patience:
                raise FixSetup(refusal(shown, error)) from None
        time.sleep(0.2)


def refusal(shown: str, error: BaseException) -> str:
    """What the server said, and what to do about it; of several addresses of a host, what the last one said."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ else error
    said = [line.strip() for line in str(getattr(cause, "orig", None) or cause).splitlines() if line.strip()]
    text = next((line for line in said if "failed:" in line or "FATAL" in line), said[0] if said else type(cause).__name__)
    remedy = next((remedy for words, remedy in REMEDIES.items() if words in text), "look whether the server runs there, and at the URL")
    return f"the storage {shown} cannot be opened: {text.removesuffix('.')}: {remedy}"


def check_tables(engine: sqlalchemy.Engine, create: bool, shown: str) -> bool:
    """Whether all of Optuna's tables are there. Raises FixSetup unless they are, or can be made."""
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    if set(BaseModel.metadata.tables) <= tables and "alembic_version" in tables:
        return True
    if "studies" in tables and create:
        return False
    if {"experiments", "runs"} <= tables:
        raise FixSetup(f"{shown} is MLflow's database; Optuna and MLflow refuse to share one: make another database and name it")
    if "alembic_version" in tables:
        raise FixSetup(
            f"{shown} is the database of another program, which keeps its version where Optuna does: make another one and name it"
        )
    if not create:
        raise FixSetup(f"{shown} holds no study yet: run one first, or name another with --storage")
    return False


@contextmanager
def making(engine: sqlalchemy.Engine) -> Iterator[None]:
    """One process at a time makes tables: two at once kill each other. The lock is that of a transaction, which ends if this is frozen."""
    with engine.connect() as db:
        if engine.dialect.name == "postgresql":
            db.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": KEY})
        else:
            db.execute(sqlalchemy.text("SELECT GET_LOCK(:key, 60)"), {"key": str(KEY)})  # let go of with the connection
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):
                db.rollback()
            db.invalidate()


@contextmanager
def unlocked() -> Iterator[None]:
    """Nothing is made."""
    yield
