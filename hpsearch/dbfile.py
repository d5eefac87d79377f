"""An SQLite file before anybody opens it for writing: what is in it, which version of it, and on what kind of disk it is."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hpsearch.errors import FixSetup

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "9p", "fuse.sshfs"}
NETWORK |= {"fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs", "fuse.blobfuse2"}
NETWORK |= {"ocfs2", "gfs2", "pvfs2", "orangefs", "moosefs", "fuse.mfs", "davfs", "fuse.davfs2", "acfs"}
ALLOW = "HPSEARCH_SQLITE_ON_NETWORK"


@dataclass(frozen=True, slots=True)
class Look:
    """What an SQLite file holds."""

    tables: frozenset[str]
    revision: str | None  # of its schema, as alembic keeps it; None where there is none


def look(path: Path, patience: float = 20.0) -> Look:
    """Look into a file without changing it; sqlite3.Error or OSError when it cannot be read, or is locked for `patience` seconds."""
    roll_back(path, patience)
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=patience)) as db:
        tables = frozenset(name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
        row = db.execute("SELECT version_num FROM alembic_version").fetchone() if "alembic_version" in tables else None
    return Look(tables, row[0] if row else None)


def roll_back(path: Path, patience: float) -> None:
    """Has SQLite undo what a killed process had half written: its journal lies beside the file, and no reader can read past it."""
    if path.with_name(f"{path.name}-journal").exists() and os.access(path, os.W_OK):
        with closing(sqlite3.connect(path, timeout=patience)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()


def damage(path: Path, patience: float) -> str:
    """What SQLite finds wrong with a file when it reads all of it; "" where nothing is. `patience`: seconds that it waits for a lock."""
    try:
        roll_back(path, patience)
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=patience)) as db:
            found = [str(line) for (line,) in db.execute("PRAGMA integrity_check(5)")]
    except sqlite3.Error as error:
        return str(error)
    return "" if found == ["ok"] else "; ".join(found)


def revisions(package: str, folder: str) -> tuple[frozenset[str], str]:
    """All revisions of a schema that an installed package knows, and the newest; read from its files, since importing takes seconds."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    texts = [file.read_text() for file in (Path(spec.origin).parent / folder).glob("*.py")]
    known = {found[1] for text in texts if (found := re.search(r"^revision\b[^=\n]*= *[\"']([^\"']+)", text, re.MULTILINE))}
    before = {found[1] for text in texts if (found := re.search(r"^down_revision\b[^=\n]*= *[\"']([^\"']+)", text, re.MULTILINE))}
    (newest,) = known - before
    return frozenset(known), newest


def remove_leftovers(path: Path, marks: tuple[str, ...] = (".new-",)) -> None:
    """Remove what processes that were killed while they made `path` have left beside it; their numbers follow the mark."""
    for mark in marks:
        for leftover in path.parent.glob(f"*{path.name}{mark}*"):
            found = re.fullmatch(r"(\d+).*", leftover.name.partition(f"{path.name}{mark}")[2])
            if found and not alive(int(found[1])):
                with suppress(OSError):
                    leftover.unlink()


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def mounted(path: Path) -> str | None:
    """The kind of network file system that a file or folder is on; None for a disk of this machine, and where that is not known."""
    try:
        return network_type(Path(os.path.realpath(path)), Path("/proc/mounts").read_text())
    except OSError:
        return None


def network_type(path: Path, mounts: str) -> str | None:
    """The kind of network file system that holds `path`, given the text of /proc/mounts; None for a disk of this machine."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[1])  # a space is \040
        if Path(point) in (path, *path.parents) and len(Path(point).parts) >= best:  # a later mount hides an earlier one
            best, kind = len(Path(point).parts), fields[2]
    return kind if kind in NETWORK else None


def check_disk(path: Path, advice: str) -> None:
    """Raise FixSetup for an SQLite file on a network file system, whose locks cannot be trusted, unless the user insists."""
    if os.environ.get(ALLOW, "") in ("1", "true"):
        return
    if (kind := mounted(path)) is not None:
        raise FixSetup(
            f"{path} is on a network file system ({kind}), where SQLite files get damaged: {advice}, or set {ALLOW}=1 if one machine alone "
            "uses it and its locks are known to work"
        )
