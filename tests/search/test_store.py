from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from hpsearch.errors import FixInput, FixSetup
from hpsearch.search import store
from hpsearch.search.store import Writer, open_storage, shown, sqlite_path, storage_url
from tests.support.commands import Command


def url_of(path):
    return storage_url(str(path), Path.cwd())


def make_tables(path, *tables):
    with closing(sqlite3.connect(path)) as db:
        for table in tables:
            db.execute(f"CREATE TABLE {table} (id INTEGER)")
        db.commit()


def closed(storage):
    storage.engine.dispose()


# ---------------------------------------------------------------- where it is


def test_without_a_name_it_is_a_file_in_the_working_folder(tmp_path):
    assert sqlite_path(storage_url(None, tmp_path)) == tmp_path.resolve() / "hpsearch.db"


@pytest.mark.parametrize("given", ["a.db", "deep/a.db", "a%20b.db", "a?b.db", "é ü.db", "a#b&c.db"])
def test_a_file_name_becomes_the_url_of_that_very_file(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert sqlite_path(storage_url(given, tmp_path)) == tmp_path.resolve() / given


@pytest.mark.parametrize("given", ["sqlite:///a.db", "postgresql+psycopg://u@h/d"])
def test_a_url_stays_as_it_is(tmp_path, given):
    assert storage_url(given, tmp_path) == given


def test_a_server_has_no_file():
    assert sqlite_path("postgresql+psycopg://u@h/d") is None


@pytest.mark.parametrize("given", [":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"])
def test_a_storage_in_memory_is_refused(tmp_path, given):
    with pytest.raises(FixInput, match=r"in memory would be lost at the end; name a file, such as sqlite:///hpsearch.db"):
        open_storage(storage_url(given, tmp_path), create=True)


@pytest.mark.parametrize("given", ["not a url", "://x", "postgresql://u:secret@h:port/d"])
def test_what_is_no_url_is_refused_without_its_password(given):
    with pytest.raises(FixInput, match=r"--storage is not a storage URL; use a file name, sqlite:///file.db or") as caught:
        open_storage(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["foo://u:secret@h/d", "mysql+nothing://u:secret@h/d", "oracle://u:secret@h/d", "postgres://u:secret@h/d"]
)
@pytest.mark.parametrize("create", [True, False])
def test_an_unknown_kind_of_database_is_refused_without_its_password(given, create):
    with pytest.raises(FixInput, match=r"postgresql\+psycopg://") as caught:
        open_storage(given, create=create)
    assert "secret" not in str(caught.value)


def test_a_url_is_shown_without_its_password():
    assert shown("postgresql+psycopg://u:secret@h:5/d") == "postgresql+psycopg://u:***@h:5/d"


# ---------------------------------------------------------------- opening


def test_a_new_storage_holds_optunas_tables_and_is_opened_again(tmp_path):
    url = url_of(tmp_path / "new" / "s.db")
    first = open_storage(url, create=True)
    study = first.create_new_study([StudyDirection.MINIMIZE], "one")
    closed(first)
    again = open_storage(url)
    assert again.get_study_id_from_name("one") == study
    closed(again)


def test_readers_never_block_the_writer(tmp_path):
    closed(open_storage(url_of(tmp_path / "s.db"), create=True))
    writing = open_storage(url_of(tmp_path / "s.db"), create=True)
    writing.create_new_study([StudyDirection.MINIMIZE], "one")
    with closing(sqlite3.connect(tmp_path / "s.db", timeout=0)) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM studies").fetchone() == (1,)
        writing.create_new_study([StudyDirection.MINIMIZE], "two")
        assert reader.execute("SELECT count(*) FROM studies").fetchone() == (1,)
    closed(writing)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello " * 1000, "is not a readable SQLite file .*name another with --storage, or restore it"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "is not a readable SQLite file"),
    ],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content, message, create):
    (tmp_path / "s.db").write_bytes(content)
    with pytest.raises(FixSetup, match=message):
        open_storage(url_of(tmp_path / "s.db"), create=create)
    assert (tmp_path / "s.db").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (("experiments", "runs"), "is MLflow's file; Optuna and MLflow refuse to share one: name another with --storage"),
        (("customers", "orders"), r"holds other tables \(customers, orders ...\) and no Optuna study: name another file"),
    ],
)
def test_somebody_elses_database_is_refused_and_left_alone(tmp_path, tables, message, create):
    make_tables(tmp_path / "s.db", *tables)
    before = (tmp_path / "s.db").read_bytes()
    with pytest.raises(FixSetup, match=message):
        open_storage(url_of(tmp_path / "s.db"), create=create)
    assert (tmp_path / "s.db").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


def test_a_database_whose_studies_are_not_optunas_is_refused(tmp_path):
    make_tables(tmp_path / "s.db", "studies")
    for create in (False, True):
        with pytest.raises(FixSetup, match=r"holds other tables \(studies ...\) and no Optuna study"):
            open_storage(url_of(tmp_path / "s.db"), create=create)


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_is_no_storage(tmp_path, create):
    with pytest.raises(FixSetup, match="is not a file: name another"):
        open_storage(url_of(tmp_path), create=create)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FixSetup, match=r"the folder .*file cannot be written \(.*\): go elsewhere or use --storage"):
        open_storage(url_of(tmp_path / "file" / "s.db"), create=True)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_lock_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "s.db.lock").mkdir()
    with pytest.raises(FixSetup, match=r"s.db.lock cannot be written"):
        open_storage(url_of(tmp_path / "s.db"), create=True)


def test_readers_of_a_missing_file_are_told_to_run_first_and_make_nothing(tmp_path):
    with pytest.raises(FixSetup, match=r"there is no storage .*s.db: run a study first, or name another with --storage"):
        open_storage(url_of(tmp_path / "s.db"))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_becomes_a_storage_for_writers_only(tmp_path):
    (tmp_path / "s.db").touch()
    with pytest.raises(FixSetup, match="holds no study yet: run one first"):
        open_storage(url_of(tmp_path / "s.db"))
    closed(open_storage(url_of(tmp_path / "s.db"), create=True))
    closed(open_storage(url_of(tmp_path / "s.db")))


CREATE = """
import sys, time
from pathlib import Path
from optuna.study import StudyDirection
from hpsearch.search.store import open_storage, storage_url
folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / f"{name}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
storage = open_storage(storage_url(None, folder), create=True)
storage.create_new_study([StudyDirection.MINIMIZE], name)
"""


@pytest.mark.process
def test_two_processes_that_create_one_storage_at_once_both_succeed(tmp_path):
    command = [sys.executable, "-c", CREATE, str(tmp_path)]
    names = ["one", "two"]
    processes = [Command([*command, name], stderr=subprocess.PIPE, text=True, env=dict(os.environ)) for name in names]
    while not all((tmp_path / f"{name}.ready").exists() for name in names) and all(p.poll() is None for p in processes):
        time.sleep(0.02)
    (tmp_path / "go").touch()
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    storage = open_storage(storage_url(None, tmp_path))
    assert sorted(study.study_name for study in storage.get_all_studies()) == names
    closed(storage)


# ---------------------------------------------------------------- the writer


def locked():
    raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))


def test_writes_keep_their_order():
    writer, written = Writer(), []
    for i in range(500):
        writer.put(lambda i=i: written.append(i))
    writer.close()
    assert written == list(range(500))


def test_put_returns_before_the_write_is_made():
    writer, go, written = Writer(), threading.Event(), []
    writer.put(lambda: (go.wait(), written.append(1)))
    assert written == []
    go.set()
    writer.close()
    assert written == [1]


def test_a_storage_locked_for_a_second_is_waited_out_while_put_returns_at_once(tmp_path):
    storage = open_storage(url_of(tmp_path / "s.db"), create=True)
    writer = Writer()
    with closing(sqlite3.connect(tmp_path / "s.db", check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        for name in ("one", "two"):
            writer.put(lambda name=name: storage.create_new_study([StudyDirection.MINIMIZE], name))
        time.sleep(1)
        assert other.execute("SELECT count(*) FROM studies").fetchone() == (0,)
        writer.check()
        other.rollback()
        writer.close()
    assert [study.study_name for study in storage.get_all_studies()] == ["one", "two"]
    closed(storage)


def test_a_write_that_finds_the_database_locked_is_repeated():
    writer, tries = Writer(), []

    def write():
        tries.append(1)
        if len(tries) < 3:
            locked()

    writer.put(write)
    writer.put(lambda: tries.append("next"))
    writer.close()
    assert tries == [1, 1, 1, "next"]


@pytest.mark.parametrize(
    "permanent",
    [ValueError("disk on fire\nsecond line"), FixSetup("disk on fire"), sqlalchemy.exc.IntegrityError("disk on fire", {}, None)],
)
def test_a_permanent_failure_is_reported_and_nothing_later_is_written(permanent):
    writer, written = Writer(), []

    def fail():
        raise permanent

    writer.put(lambda: written.append("before"))
    writer.put(fail)
    writer.waiting.put(lambda: written.append("after"))
    with pytest.raises(FixSetup, match=r"cannot be written: .*disk on fire|cannot be written: \(builtins") as caught:
        writer.close()
    assert "second line" not in str(caught.value)
    assert "What was stored before is kept; repair it and repeat the command" in str(caught.value)
    assert written == ["before"]
    with pytest.raises(FixSetup):
        writer.check()
    with pytest.raises(FixSetup):
        writer.put(lambda: written.append("later"))
    assert written == ["before"]


def test_a_lock_that_outlasts_the_patience_is_permanent(monkeypatch):
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.0)
    writer = Writer()
    writer.put(locked)
    with pytest.raises(FixSetup, match="database is locked"):
        writer.close()


def test_closing_an_idle_writer_ends_its_thread():
    writer = Writer()
    writer.close()
    assert not writer.thread.is_alive()


# ---------------------------------------------------------------- other versions, damage, first starts


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "UPDATE alembic_version SET version_num = 'v3.0.0.c'",
            r"older Optuna \(v3.0.0.c, .*copy it, then run `optuna storage upgrade --sto",
        ),
        ("DROP TABLE alembic_version", r"older Optuna \(before 0.9, this one has v3.2.0.a\): copy it, then"),
        ("UPDATE alembic_version SET version_num = 'v9.0.0.a'", r"newer Optuna \(v9.0.0.a, this one has .*: update optuna and hpsearch"),
    ],
)
def test_a_storage_of_another_optuna_is_refused_and_left_alone(tmp_path, change, message, create):
    path = tmp_path / "s.db"
    closed(open_storage(url_of(path), create=True))
    with closing(sqlite3.connect(path)) as db:
        db.execute(change)
        db.commit()
        db.execute("PRAGMA journal_mode=DELETE")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(FixSetup, match=message):
        open_storage(url_of(path), create=create)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def filled(path):
    """A storage of a few pages, and its bytes."""
    storage = open_storage(url_of(path), create=True)
    study = storage.create_new_study([StudyDirection.MINIMIZE], "one")
    for i in range(50):
        storage.set_study_user_attr(study, f"key {i}", "x" * 1000)
    closed(storage)
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_storage_is_refused_with_the_remedy(tmp_path, damage, create):
    path = tmp_path / "s.db"
    content = filled(path)
    if damage == "flipped":
        page = content.index(b"x" * 1000) // 4096
        content[page * 4096 : page * 4096 + 200] = bytes(byte ^ 0xFF for byte in content[page * 4096 : page * 4096 + 200])
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    path.write_bytes(content)
    (tmp_path / "hpsearch-runs" / "one" / "results").mkdir(parents=True)
    (tmp_path / "hpsearch-runs" / "one" / "results" / "trial-0000.json").touch()
    with pytest.raises(FixSetup, match=r"(is damaged|is not a readable SQLite file|is empty, and yet) .*`hpsearch rebuild`"):
        open_storage(url_of(path), create=create)
    assert path.read_bytes() == content


MAKE = """
import sys
from pathlib import Path
from hpsearch.search.store import open_storage, storage_url
print("ready", flush=True)
sys.stdin.readline()
open_storage(storage_url(None, Path(sys.argv[1])), create=True)
print("made", flush=True)
"""


def maker(folder):
    """A process that has loaded everything and waits to make a storage."""
    process = Command([sys.executable, "-c", MAKE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


KILLS = int(os.environ.get("HPSEARCH_TEST_KILLS", "12"))


@pytest.mark.process
def test_a_kill_at_any_moment_of_the_first_start_leaves_a_usable_storage_or_none(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = maker(tmp_path / "whole")
    begun = time.monotonic()
    whole.communicate("go\n")
    took, draws = time.monotonic() - begun, random.Random(0)
    for i in range(KILLS):
        folder = tmp_path / str(i)
        folder.mkdir()
        process = maker(folder)
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(draws.uniform(0, took))
        process.kill()
        process.communicate()
        storage = open_storage(storage_url(None, folder), create=True)
        storage.create_new_study([StudyDirection.MINIMIZE], "one")
        closed(storage)
        assert {p.name for p in folder.iterdir()} <= {"hpsearch.db", "hpsearch.db.lock", "hpsearch.db-wal", "hpsearch.db-shm"}


@pytest.mark.process
def test_eight_processes_that_open_a_new_storage_at_once_all_live(tmp_path):
    makers = [maker(tmp_path) for _ in range(8)]
    for process in makers:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in makers] == ["made\n"] * 8
    assert [process.returncode for process in makers] == [0] * 8


def test_a_file_that_may_not_be_changed_is_no_reason_to_wait(tmp_path, monkeypatch):
    path = tmp_path / "hpsearch.db"
    RDBStorage(f"sqlite:///{path}").engine.dispose()
    connect = sqlite3.connect
    monkeypatch.setattr(store.sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options))
    monkeypatch.setattr(store.time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.write_ahead(path)


def test_a_storage_of_optunas_own_is_turned_to_a_log_that_readers_do_not_block(tmp_path):
    path = tmp_path / "hpsearch.db"
    RDBStorage(f"sqlite:///{path}").engine.dispose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    open_storage(f"sqlite:///{path}", create=True).engine.dispose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
