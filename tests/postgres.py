"""A real PostgreSQL server of its own: a cluster in a folder, on a free port, ended by whoever made it."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

MISSING = "no PostgreSQL server is installed here: `apt-get install postgresql` (it need not run)"
# Nothing here loses power, and a recovery that flushes a thousand files to the disk takes a minute on a busy one.
FAST = ("-c fsync=off", "-c shared_buffers=16MB", "-c max_connections=60", "-c max_wal_size=256MB", "-c checkpoint_timeout=1h")


def binaries():
    """Where initdb and pg_ctl are; None where there is no server."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


def free_port():
    """Below those that the system hands out: whoever calls one of these while nobody listens there may be put through to himself."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class Postgres:
    """Started with trust; `user` with a password is made on request."""

    def __init__(self):
        self.bin = binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="hpsearch-pg-"))
        self.data = self.folder / "data"
        self.port = free_port()
        self.how = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to be run by root
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.how = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.call("initdb", "-D", self.data, "-U", "hpsearch", "--auth=trust", "--no-locale", "-E", "UTF8")
        self.databases = 0

    def call(self, program, *arguments, check=True):
        return subprocess.run(
            [self.bin / program, *map(str, arguments)],
            check=check,
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=120,
            **self.how,
        )

    def options(self):
        return " ".join((f"-p {self.port}", f"-k {self.folder}", "-c listen_addresses=127.0.0.1", *FAST))

    def control(self, verb, *more):
        """pg_ctl; its output is a file, since the server would inherit a pipe."""
        with (self.folder / "control").open("w") as log:
            command = [self.bin / "pg_ctl", verb, "-w", "-D", self.data, "-l", self.folder / "log", *more]
            subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log, cwd=self.folder, timeout=120, **self.how)

    def start(self):
        self.control("start", "-o", self.options())
        return self

    def restart(self):
        """As after a loss of power: connections are cut, and the server recovers from its log."""
        self.control("restart", "-m", "immediate", "-o", self.options())

    def stop(self, mode="immediate"):
        self.control("stop", "-m", mode)

    def freeze(self, number=signal.SIGSTOP):
        os.kill(int((self.data / "postmaster.pid").read_text().splitlines()[0]), number)

    def sql(self, *statements, database="postgres"):
        """What the server says, a line each."""
        done = self.call(
            "psql",
            "-h",
            "127.0.0.1",
            "-p",
            self.port,
            "-U",
            "hpsearch",
            "-d",
            database,
            "-AtX",
            "-v",
            "ON_ERROR_STOP=1",
            *(part for statement in statements for part in ("-c", statement)),
        )
        return done.stdout.splitlines()

    def url(self, database, user="hpsearch", port=None):
        return f"postgresql+psycopg://{user}@127.0.0.1:{port or self.port}/{database}"

    def database(self, template="template0"):
        """The URL of a new database, a copy of another."""
        self.databases += 1
        name = f"d{self.databases}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def close(self):
        for _ in range(2):
            try:
                self.stop()
                break
            except subprocess.CalledProcessError:
                time.sleep(0.5)
        shutil.rmtree(self.folder, ignore_errors=True)
