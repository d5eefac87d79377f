"""The queue of studies: one table beside Optuna's, changed by conditional updates, so that any process may die at any moment.

A row is `queued` until the study's own process claims it. Nobody else says that a study runs, and nothing but the row has to survive:
a server that starts finds what is queued, what runs, and what ran in a process that is gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from hpsearch.core.text import cleaned
from hpsearch.errors import ChooseAnotherName, FixInput, NotFound, WaitOrStop
from hpsearch.names import NAME
from hpsearch.search.store import begin_immediate, open_storage, set_pragmas, sqlite_path

ACTIVE = ("queued", "running", "paused")  # one row a study at most
STATES = (*ACTIVE, "done", "failed", "cancelled")
LOSSES = 5  # of a study's process, in a row; then the study has failed
COMPARE = "compare"  # key beside those of a study: samplers are to be compared on it, and how
DAY = 86400.0  # seconds whose use counts for fair shares
LONGEST_WAIT = 2.0**LOSSES  # seconds that a row is asked to wait at most; what is to wait longer was written before a clock was set back

META = MetaData()
QUEUE = Table(
    "hpsearch_queue",
    META,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("study", String(64), nullable=False, index=True),
    Column("key", String(200), unique=True),  # of whoever submitted it, so that twice is once
    Column("digest", String(64), nullable=False, default=""),  # of what was submitted under that key
    Column("values", Text, nullable=False),  # the study as it was submitted, JSON
    Column("trials", Integer, nullable=False),
    Column("priority", Integer, nullable=False, default=0),  # larger ones first
    Column("home", Text, nullable=False, default=""),  # where it is run: the folder of its server, whose paths its study has
    Column("share", String(64), nullable=False, default=""),  # for whom: equal shares among equal priorities
    Column("state", String(16), nullable=False),
    Column("wanted", String(16)),  # what a running study is to become: paused or cancelled
    Column("losses", Integer, nullable=False, default=0),  # of its process, in a row
    Column("pid", Integer),
    Column("born", Float),  # when that process started: numbers are used again
    Column("slot", Integer),  # which part of the machine it has
    Column("submitted", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("seconds", Float, nullable=False, default=0.0),  # of running, in all sessions that have ended
    Column("not_before", Float, nullable=False, default=0.0),
    Column("note", Text, nullable=False, default=""),  # how it ended, for a person
)
Index(
    "hpsearch_queue_active",
    QUEUE.c.study,
    unique=True,
    sqlite_where=QUEUE.c.state.in_(ACTIVE),
    postgresql_where=QUEUE.c.state.in_(ACTIVE),
)
Index("hpsearch_queue_state", QUEUE.c.state)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the queue; as the columns say."""

    id: int
    study: str
    key: str | None
    digest: str
    values: Mapping[str, Any]
    trials: int
    priority: int
    home: str
    share: str
    state: str
    wanted: str | None
    losses: int
    pid: int | None
    born: float | None
    slot: int | None
    submitted: float
    started: float | None
    ended: float | None
    seconds: float
    not_before: float
    note: str
    damage: str = ""  # no column: why the row cannot be used; its values are then empty, and its state is failed

    @property
    def compares(self) -> bool:
        """Whether it is a comparison of samplers, not one study."""
        return COMPARE in self.values


COLUMNS = [QUEUE.c[field.name] for field in fields(Entry) if field.name != "damage"]
WHOLE = ("id", "trials", "priority", "losses")  # columns that hold integers
MAYBE_WHOLE = ("pid", "slot")
TIMES = ("submitted", "seconds", "not_before")  # numbers
MAYBE_TIMES = ("born", "started", "ended")
TEXTS = ("study", "digest", "home", "share", "state", "note")
MAYBE_TEXTS = ("key", "wanted")


class Queue:
    """The queue in the database of a storage; safe to use from several threads and processes."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        """Make storage and table where they are missing. Raises as `open_storage` does. `folder`: the server's."""
        open_storage(url, create=True).engine.dispose()
        file, place = sqlite_path(url), os.path.realpath(folder) if folder else ""
        self.home = place if file is not None else f"{socket.gethostname()}:{place}"  # a file is of one machine
        self.engine = create_engine(url, connect_args={"timeout": 60} if file else {}, pool_pre_ping=file is None)
        self.reader = self.engine
        if file is not None:
            event.listen(self.engine, "connect", set_pragmas)
            event.listen(self.engine, "connect", leave_checkpoints)
            event.listen(self.engine, "begin", begin_immediate)
            self.reader = create_engine(url, connect_args={"timeout": 60})
        self.writing = threading.Lock()  # threads of one process queue up here rather than at SQLite's, which has them sleep
        try:
            META.create_all(self.engine)
        except (OperationalError, ProgrammingError, IntegrityError):  # two servers at once: one of them has made it
            if not inspect(self.engine).has_table(QUEUE.name):
                raise

    def tidy(self) -> None:
        """Carry SQLite's log into its file, which a submission would otherwise wait for every now and then."""
        if self.engine.dialect.name == "sqlite":
            with self.reader.connect() as db:
                db.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        self.reader.dispose()

    # ------------------------------------------------------------ looking

    def latest(self, study: str) -> Entry:
        """The newest row of a study; NotFound without one."""
        entries = self.rows(QUEUE.c.study == study, newest=True, limit=1)
        if not entries:
            raise NotFound(f"no study '{study}' was submitted here")
        return entries[0]

    def entry(self, number: int) -> Entry:
        """The row of that number."""
        return self.rows(QUEUE.c.id == number)[0]

    def all_latest(self) -> list[Entry]:
        """The newest row of every study, newest first."""
        newest = select(func.max(QUEUE.c.id)).group_by(QUEUE.c.study)
        return self.rows(QUEUE.c.id.in_(newest), newest=True)

    def running(self) -> list[Entry]:
        """What runs in this home."""
        return self.rows(QUEUE.c.state == "running", QUEUE.c.home == self.home)

    def adopt(self) -> None:
        """Take over what belongs to a folder that is there no more: it was renamed."""
        if self.engine.dialect.name != "sqlite":
            return
        with self.writing, self.engine.begin() as db:
            homes = {row[0] for row in db.execute(select(QUEUE.c.home).where(QUEUE.c.state.in_(ACTIVE)).distinct())}
            gone = [home for home in homes if not os.path.isdir(home)]
            db.execute(update(QUEUE).where(QUEUE.c.home.in_(gone)).values(home=self.home))

    def counts(self) -> dict[str, int]:
        """How many rows are in each state."""
        with self.reader.connect() as db:
            found = db.execute(select(QUEUE.c.state, func.count()).group_by(QUEUE.c.state)).all()
        return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in found}

    def rows(self, *where: Any, newest: bool = False, limit: int | None = None) -> list[Entry]:
        """Rows as entries, in order of submission."""
        asked = select(*COLUMNS).where(*where).order_by(QUEUE.c.id.desc() if newest else QUEUE.c.id).limit(limit)
        with self.reader.connect() as db:
            return [entry_of(row) for row in db.execute(asked).mappings()]

    def next(self, taken: Sequence[int] = ()) -> int | None:
        """The row to start now: the highest priority; of equal ones the share that runs least, then used least in a day; the oldest."""
        now = time.time()
        due = ~QUEUE.c.not_before.between(now, now + LONGEST_WAIT)  # text is due too, and then set aside
        with self.reader.connect() as db:
            waiting = db.execute(
                select(QUEUE.c.id, QUEUE.c.priority, QUEUE.c.share).where(
                    QUEUE.c.state == "queued", QUEUE.c.home == self.home, due, QUEUE.c.id.not_in(list(taken))
                )
            ).all()
            if not waiting:
                return None
            if damaged := [row.id for row in waiting if not isinstance(row.priority, int)]:
                return int(damaged[0])  # whoever reads it sees what is wrong with it
            runs = select(QUEUE.c.share, func.count()).where((QUEUE.c.state == "running") | QUEUE.c.id.in_(list(taken)))
            running: dict[str, int] = {row[0]: row[1] for row in db.execute(runs.group_by(QUEUE.c.share))}
            uses = select(QUEUE.c.share, func.sum(QUEUE.c.seconds)).where(QUEUE.c.ended.between(now - DAY, now))
            used: dict[str, float] = {row[0]: row[1] for row in db.execute(uses.group_by(QUEUE.c.share))}
        best = min(waiting, key=lambda row: (-row.priority, running.get(row.share, 0), used.get(row.share, 0.0), row.id))
        return int(best.id)

    # ------------------------------------------------------------ what a person asks for

    def add(
        self,
        study: str,
        values: Mapping[str, Any],
        trials: int,
        priority: int = 0,
        share: str = "",
        key: str | None = None,
        digest: str = "",
    ) -> tuple[Entry, bool]:
        """Submit a study: its row, and whether it is new.

        The same key again gives the first row; FixInput when it came with something else. ChooseAnotherName while a study of that name
        is queued, running or paused.
        """
        row: dict[str, Any] = {
            "study": study,
            "key": key,
            "digest": digest,
            "values": json.dumps(dict(values)),
            "trials": trials,
            "home": self.home,
        }
        row |= {"priority": priority, "share": share, "state": "queued", "submitted": time.time()}
        try:
            with self.writing, self.engine.begin() as db:
                made = db.execute(insert(QUEUE).values(**row)).inserted_primary_key
                assert made is not None
                return found(db, made[0]), True
        except IntegrityError:
            pass
        if key is not None and (earlier := self.rows(QUEUE.c.key == key)):
            if earlier[0].digest != digest:
                raise FixInput(f"the idempotency key was used for another submission (study '{earlier[0].study}'): take a new one")
            return earlier[0], False
        raise ChooseAnotherName(f"a study '{study}' is queued, running or paused already: choose another name, or cancel that one")

    def want(self, study: str, wanted: str) -> Entry:
        """Have a study paused or cancelled: at once when it does not run. WaitOrStop when it has ended."""
        with self.writing, self.engine.begin() as db:
            entry = self.locked(db, study)
            if entry.state == "running":
                change(db, entry.id, wanted=wanted)
            elif entry.state in ("queued", "paused"):
                change(db, entry.id, state=wanted, wanted=None)
            elif entry.state != wanted:
                raise WaitOrStop(f"the study '{study}' has ended ({entry.state}): there is nothing to be {wanted}")
            return found(db, entry.id)

    def resume(self, study: str) -> Entry:
        """Have a study go on, whatever it has come to."""
        with self.writing, self.engine.begin() as db:
            entry = self.locked(db, study)
            if entry.state == "running":
                change(db, entry.id, wanted=None)
            elif entry.state != "queued":
                change(db, entry.id, state="queued", wanted=None, losses=0, not_before=0.0, note="", ended=None)
            return found(db, entry.id)

    def revise(self, study: str, trials: int | None, priority: int | None) -> Entry:
        """Another number of trials (more only), another priority; a study that is done goes on when it is to come to more trials."""
        with self.writing, self.engine.begin() as db:
            entry = self.locked(db, study)
            if trials is not None and trials < entry.trials:
                raise FixInput(f"trials: the study '{study}' has a budget of {entry.trials:,}, which can only be raised; got {trials:,}")
            if trials is not None and trials > entry.trials:
                change(db, entry.id, trials=trials)
                if entry.state == "done":
                    change(db, entry.id, state="queued", losses=0, not_before=0.0, note="", ended=None)
            if priority is not None:
                change(db, entry.id, priority=priority)
            return found(db, entry.id)

    def locked(self, db: Connection, study: str) -> Entry:
        """The newest row of a study, which nobody else changes until the transaction ends."""
        asked = select(*COLUMNS).where(QUEUE.c.study == study).order_by(QUEUE.c.id.desc()).limit(1)
        row = db.execute(asked.with_for_update()).mappings().first()
        if row is None:
            raise NotFound(f"no study '{study}' was submitted here")
        return entry_of(row)

    # ------------------------------------------------------------ what becomes of it

    def claim(self, number: int, pid: int, born: float, slot: int) -> bool:
        """Take a queued row for this process; False when another one has, or it is queued no more."""
        taken = {
            "state": "running",
            "pid": pid,
            "born": born,
            "slot": slot,
            "started": time.time(),
            "ended": None,
            "note": "",
        }
        with self.writing, self.engine.begin() as db:
            return bool(db.execute(update(QUEUE).where(QUEUE.c.id == number, QUEUE.c.state == "queued").values(**taken)).rowcount)

    def conclude(self, number: int, pid: int, state: str, note: str = "", trials: int = 0, wait: float = 0.0) -> str:
        """The process that claimed a row tells how its session ended; the state that comes of it.

        `interrupted` becomes what was wanted, or queued; `done` becomes queued when more than its `trials` are asked for meanwhile.
        """
        with self.writing, self.engine.begin() as db:
            row = db.execute(select(*COLUMNS).where(QUEUE.c.id == number).with_for_update()).mappings().one()
            entry, now = entry_of(row), time.time()
            if entry.state != "running" or entry.pid != pid:
                return entry.state
            if state == "interrupted":
                state = entry.wanted or "queued"
            elif state == "done" and entry.trials > trials:
                state = "queued"
            ran = max(0.0, now - (entry.started or now))  # a clock may have been set back
            gone = {"pid": None, "born": None, "slot": None, "losses": 0, "wanted": None}
            change(db, number, state=state, note=cleaned(note), ended=now, seconds=entry.seconds + ran, not_before=now + wait, **gone)
            return state

    def lost(self, entry: Entry, note: str) -> str:
        """The process of a running row is gone without a word: the state that comes of it."""
        now, losses = time.time(), entry.losses + 1
        state = entry.wanted or ("failed" if losses >= LOSSES else "queued")
        values: dict[str, Any] = {
            "state": state,
            "wanted": None,
            "losses": losses,
            "pid": None,
            "born": None,
            "slot": None,
            "note": cleaned(note),
        }
        ran = max(0.0, now - (entry.started or now))
        values |= {"ended": now, "seconds": entry.seconds + ran, "not_before": now + 2.0 ** (losses - 1) - 1}
        mine = [QUEUE.c.id == entry.id, QUEUE.c.state == entry.state]
        mine += [QUEUE.c.pid == entry.pid] if entry.pid is not None else []
        with self.writing, self.engine.begin() as db:
            db.execute(update(QUEUE).where(*mine).values(**values))
        return state

    def set_aside(self, entry: Entry) -> None:
        """Ends a row that cannot be used, with the reason for whoever looks; what it holds stays, and may be resumed once repaired."""
        with self.writing, self.engine.begin() as db:
            change(db, entry.id, state="failed", wanted=None, pid=None, born=None, slot=None, note=entry.note, ended=time.time())


def leave_checkpoints(connection: Any, record: object) -> None:
    """Commits of this connection never carry the log into the file: `tidy` does."""
    del record
    connection.execute("PRAGMA wal_autocheckpoint=0")


def entry_of(row: Mapping[Any, Any]) -> Entry:
    """Returns a row as an entry; of one that cannot be used, what can be said of it, and why."""
    given, damage = dict(row), damage_of(row)
    if not damage:
        return Entry(**{**given, "values": json.loads(given["values"])})
    blank = dict.fromkeys(WHOLE, 0) | dict.fromkeys(TIMES, 0.0) | dict.fromkeys(TEXTS, "")
    usable = {key: value for key, value in given.items() if not fault_in(key, value)}
    nothing: dict[str, Any] = dict.fromkeys((*MAYBE_WHOLE, *MAYBE_TIMES, *MAYBE_TEXTS))
    note = f"row {given['id']} of the queue cannot be used and is set aside: {damage}; submit the study again"
    return Entry(**{**blank, **nothing, **usable, "values": {}, "state": "failed", "note": note, "damage": damage})


def damage_of(row: Mapping[Any, Any]) -> str:
    """Returns why a row cannot be used; "" for one that can. SQLite lets any program put anything into any column."""
    wrong = next((fault for key, value in row.items() if (fault := fault_in(str(key), value))), "")
    if wrong:
        return wrong
    if not NAME.fullmatch(row["study"]):
        return f"no study can be called {row['study'][:80]!r}"
    if row["state"] not in STATES:
        return f"its state {row['state'][:80]!r} is not one of {', '.join(STATES)}"
    try:
        values = json.loads(row["values"])
    except (ValueError, RecursionError) as error:
        return f"its study is no JSON ({type(error).__name__}: {error})"
    if not isinstance(values, dict):
        return f"its study is no mapping but {'nothing' if values is None else f'a {type(values).__name__}'}"
    if COMPARE in values and not is_comparison(values[COMPARE]):
        return "what it asks to be compared is not what a comparison asks for"
    return ""


def is_comparison(asked: Any) -> bool:
    """Whether a value under COMPARE is one that `Queue.add` is given."""
    if not isinstance(asked, dict) or not {"samplers", "repeats", "initial"} <= {*asked} <= {"samplers", "repeats", "initial", "seconds"}:
        return False
    samplers, numbers = asked["samplers"], (asked["repeats"], asked["initial"])
    texts = isinstance(samplers, list) and all(isinstance(sampler, str) for sampler in samplers)
    return texts and all(isinstance(number, int) for number in numbers) and isinstance(asked.get("seconds"), int | float | None)


def fault_in(key: str, value: Any) -> str:
    """Returns what is wrong with the type of a column's value; "" for nothing."""
    kinds: tuple[tuple[tuple[str, ...], Any, str], ...] = (
        (WHOLE, int, "a whole number"),
        (MAYBE_WHOLE, int | None, "a whole number"),
        (TIMES, int | float, "a number"),
        (MAYBE_TIMES, int | float | None, "a number"),
        ((*TEXTS, "values"), str, "text"),
        (MAYBE_TEXTS, str | None, "text"),
    )
    for names, kind, words in kinds:
        if key in names and not isinstance(value, kind):
            return f"its {key} is {str(value)[:80]!r}, not {words}"
    return ""


def found(db: Connection, number: int) -> Entry:
    """A row inside a transaction."""
    return entry_of(db.execute(select(*COLUMNS).where(QUEUE.c.id == number)).mappings().one())


def change(db: Connection, number: int, **values: Any) -> None:
    """Change a row."""
    db.execute(update(QUEUE).where(QUEUE.c.id == number).values(**values))
