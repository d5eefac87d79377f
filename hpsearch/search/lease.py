"""Who runs a study that is kept on a database server: a row with a number that grows with every change of hands.

The holder says every few seconds that it lives, by the server's clock. Whoever finds it silent for long enough takes the study over and
makes the number one more; every transaction of a session looks first whether the number is still its own, and holds the row until it is
through. So one that was frozen, or cut off, and comes back writes nothing (fencing tokens: Kleppmann, How to do distributed locking, 2016).
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import BigInteger, Column, Double, MetaData, String, Table, event, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from hpsearch.errors import WaitOrStop
from hpsearch.machine import born, system_id
from hpsearch.search.server import make_engine, making, open_server, steady

SECONDS = 30.0  # of silence after which another session may take a study over
BEAT = 5.0  # seconds between two signs of life

LEASES = Table(
    "hpsearch_leases",
    MetaData(),
    Column("study", String(512), primary_key=True),
    Column("fence", BigInteger, nullable=False),  # grows with every change of hands
    Column("token", String(32), nullable=False),  # of the session that holds the study
    Column("holder", String(512), nullable=False),  # for people: host, process, since
    Column("system", String(256), nullable=False),  # where the numbers of processes mean the same
    Column("process", BigInteger, nullable=False),
    Column("began", Double, nullable=False),  # the process, by its system's clock [s]
    Column("beat", Double, nullable=False),  # last sign of life, by the server's clock [s]
    Column("expires", Double, nullable=False),  # by the same clock; 0: the study was let go
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a study."""

    who: str
    silent: float  # seconds since its last sign of life


class Lease:
    """A study in an SQLite file: the locks of its folders are enough."""

    def guard(self, storage: RDBStorage) -> None:
        """Have every transaction of this storage look first whether the study is still this session's."""

    def check(self) -> None:
        """Raise WaitOrStop when another session has taken the study over."""

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class ServerLease(Lease):
    """A study on a server, held from `take` to the end of the context, however often the server restarts."""

    def __init__(self, url: str, study: str) -> None:
        self.study, self.engine, self.token = study, make_engine(url), uuid.uuid4().hex
        self.fence = -1
        self.lost = ""  # who has taken the study over
        self.looked = awake()  # when `check` was called last
        self.guarded: list[sqlalchemy.Engine] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.beat, name="lease", daemon=True)

    def take(self) -> None:
        """Take the study, or raise WaitOrStop, which says who holds it."""
        process, since = os.getpid(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        mine: dict[str, str | int | float] = {"token": self.token, "holder": f"{os.uname().nodename}, process {process}, since {since}"}
        mine |= {"system": system_id(), "process": process, "began": born(process)}
        with self.engine.begin() as db:
            with suppress(IntegrityError), db.begin_nested():
                free = {"fence": 0, "token": "", "holder": "", "system": "", "process": 0, "began": 0.0, "beat": 0.0, "expires": 0.0}
                if db.execute(select(LEASES.c.fence).where(self.row())).first() is None:
                    db.execute(insert(LEASES).values(study=self.study, **free))
            found = db.execute(select(LEASES).where(self.row()).with_for_update()).one()
            now = float(db.execute(select(clock(db))).scalar_one())
            if found.token != self.token and found.expires > now and not ended(found):
                raise WaitOrStop(held_by(self.study, Holder(found.holder, now - found.beat), found.expires - found.beat))
            self.fence = found.fence + 1
            db.execute(update(LEASES).where(self.row()).values(fence=self.fence, beat=now, expires=now + SECONDS, **mine))

    def row(self) -> sqlalchemy.ColumnElement[bool]:
        """The study's row."""
        return LEASES.c.study == self.study

    def mine(self) -> sqlalchemy.ColumnElement[bool]:
        """The same, as long as it is this session's."""
        return self.row() & (LEASES.c.fence == self.fence) & (LEASES.c.token == self.token)

    def beat(self) -> None:
        """The thread: a sign of life every few seconds; sooner while the server does not answer."""
        pause = BEAT
        while not self.over.wait(pause) and not self.lost:
            pause = min(1.0, BEAT)
            with suppress(SQLAlchemyError):
                self.renew()
                pause = BEAT

    def renew(self) -> None:
        """Say that this session lives, or note who has the study now."""
        with self.engine.begin() as db:
            now = clock(db)
            if db.execute(update(LEASES).where(self.mine()).values(beat=now, expires=now + SECONDS)).rowcount != 1:
                self.note(db)

    def note(self, db: sqlalchemy.Connection) -> None:
        """Remember who has taken the study over."""
        found = db.execute(select(LEASES.c.holder).where(self.row())).scalar_one_or_none()
        who = f"was taken over by {found}" if found else "is no longer this session's: its row in hpsearch_leases is another, or gone"
        self.lost = f"the study '{self.study}' {who}; this session writes nothing more. Leave it to that one, or stop it and run this again"

    def verify(self, db: sqlalchemy.Connection) -> None:
        """Before a transaction does anything: hold the row, so that nobody takes the study over before it is through."""
        fence = db.execute(select(LEASES.c.fence).where(self.row()).with_for_update(read=True)).scalar_one_or_none()
        if fence != self.fence:
            self.note(db)
            raise WaitOrStop(self.lost)

    def guard(self, storage: RDBStorage) -> None:
        """Have every transaction of this storage look first whether the study is still this session's."""
        event.listen(storage.engine, "begin", self.verify)
        self.guarded.append(storage.engine)

    def check(self) -> None:
        """Raise WaitOrStop when another session has taken the study over; to be called often: after a pause, the server is asked."""
        before, self.looked = self.looked, awake()
        if self.looked - before > SECONDS / 2 and not self.lost:  # this process was frozen, or its machine slept
            with suppress(SQLAlchemyError):
                self.renew()
        if self.lost:
            raise WaitOrStop(self.lost)

    def __enter__(self) -> ServerLease:
        try:
            if not steady(lambda: sqlalchemy.inspect(self.engine).has_table(LEASES.name)):
                with making(self.engine):
                    LEASES.metadata.create_all(self.engine)
            steady(self.take)
        except BaseException:
            self.engine.dispose()
            raise
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        self.thread.join()
        for engine in self.guarded:
            event.remove(engine, "begin", self.verify)
        with suppress(SQLAlchemyError), self.engine.begin() as db:  # else it runs out
            db.execute(update(LEASES).where(self.mine()).values(expires=0.0))
        self.engine.dispose()


@contextmanager
def leased(url: str, study: str) -> Iterator[Lease]:
    """Hold a study in its storage, whatever that is; WaitOrStop when another session does, FixSetup for a server that cannot be used."""
    if sqlalchemy.make_url(url).get_backend_name() == "sqlite":
        yield Lease()
        return
    shown = sqlalchemy.make_url(url).difference_update_query(["password"]).render_as_string(hide_password=True)
    open_server(url, True, shown).engine.dispose()  # the tables are there
    with ServerLease(url, study) as lease:
        yield lease


def holders(storage: RDBStorage) -> dict[str, Holder]:
    """Who holds which study of a server; nobody where there are no leases yet."""
    if not sqlalchemy.inspect(storage.engine).has_table(LEASES.name):
        return {}
    with storage.engine.connect() as db:
        now = float(db.execute(select(clock(db))).scalar_one())
        rows = db.execute(select(LEASES).where(LEASES.c.expires > now)).all()
    return {row.study: Holder(row.holder, now - row.beat) for row in rows if not ended(row)}


def ended(row: Any) -> bool:
    """Whether a row's holder was a process of this very system, and has ended."""
    return bool(row.system == system_id() and born(row.process) != row.began)


def clock(db: sqlalchemy.Connection) -> sqlalchemy.ColumnElement[Any]:
    """Seconds by the server's clock."""
    if db.dialect.name == "postgresql":
        return sqlalchemy.cast(sqlalchemy.extract("epoch", func.clock_timestamp()), Double)
    return sqlalchemy.type_coerce(func.unix_timestamp(sqlalchemy.text("sysdate(6)")), Double)


def awake() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def held_by(study: str, holder: Holder, lasts: float) -> str:
    """Who holds a study, and what to do."""
    return (
        f"the study '{study}' is being run by {holder.who}, last heard of {holder.silent:.0f} s ago: wait for it, stop it, or choose "
        f"another --name. If that machine is gone, the same command takes over {lasts:.0f} s after it was last heard of"
    )
