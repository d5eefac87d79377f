"""Where SQLite files may lie, and what killed processes leave beside them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.dbfile import damage, look, network_type, remove_leftovers, revisions
from tests.support.commands import run_command

MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/ann/fast xfs rw 0 0
//nas/data /mnt/my\\040data cifs rw 0 0
user@host: /mnt/far fuse.sshfs rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/tmp /tmp/over nfs rw 0 0
tmpfs /tmp/over tmpfs rw 0 0
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/a.db", None),
        ("/home/bob/a.db", "nfs4"),
        ("/home/ann/fast/a.db", None),
        ("/home2/a.db", None),
        ("/mnt/my data/deep/a.db", "cifs"),
        ("/mnt/far/a.db", "fuse.sshfs"),
        ("/tmp/a.db", None),
        ("/tmp/over/a.db", None),
    ],
)
def test_a_network_file_system_is_recognised(path, kind):
    assert network_type(Path(path), MOUNTS) == kind


@pytest.mark.process
def test_only_what_dead_processes_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [f"a.db.new-{dead.pid}", f"a.db.new-{dead.pid}-journal"]
    kept = ["a.db", "a.db-wal", f"a.db.new-{os.getpid()}", "a.db.new-x", f"b.db.new-{dead.pid}"]
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a.db")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(("package", "folder"), [("optuna", "storages/_rdb/alembic/versions"), ("mlflow", "store/db_migrations/versions")])
def test_the_revisions_of_a_package_have_one_newest(package, folder):
    known, newest = revisions(package, folder)
    assert newest in known
    assert len(known) > 5


@pytest.mark.process
def test_a_file_whose_writer_was_killed_in_the_middle_is_looked_at_as_it_was_before(tmp_path):
    path = tmp_path / "store.db"
    code = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE t (x)")
db.execute("INSERT INTO t VALUES (1)")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("CREATE TABLE half (x)")
db.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 1000)
os.kill(os.getpid(), 9)
"""
    run_command([sys.executable, "-c", code, str(path)])
    assert path.with_name("store.db-journal").stat().st_size > 0
    assert look(path).tables == {"t"}
    assert damage(path, 1.0) == ""
