"""Commands as a person starts them, in milliseconds: see `fork_server` for what is real about them.

`Command` takes the place of `subprocess.Popen`. Where the start itself is what is tried (what is imported, hash seeds, options of the
interpreter), tests use `subprocess`.
"""

from __future__ import annotations

import multiprocessing.popen_fork
import multiprocessing.util
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from tests.support.fork_server import INSTANT, TWINS, heritage, send

ROOT = Path(__file__).parents[2]
HPSEARCH = str(Path(sys.executable).parent / "hpsearch")
BEGINNING = dict(os.environ)  # before any test has changed it
SHARED = "HPSEARCH_TESTS"  # environment variable: a folder that all test processes of a run share, and after a ":" whose it is


def shared_folder() -> tuple[Path, int]:
    """The folder that all test processes of a run share, and the process that made it."""
    folder, _, owner = os.environ[SHARED].rpartition(":")
    return Path(folder), int(owner)


def start_server() -> Path:
    """Starts the server that all test processes of a run share, if nobody has; its socket, which is there once it has loaded."""
    folder, owner = shared_folder()
    path = folder / "fork-server"
    with FileLock(f"{path}.lock"):
        if not Path(f"{path}.log").exists():
            environment = BEGINNING | {"MLFLOW_LOGGING_LEVEL": "WARNING"}  # read at import; the mirror sets it before
            command = [sys.executable, "-m", "tests.support.fork_server", str(path), str(owner)]
            with open(f"{path}.log", "wb") as log:
                how = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
                server = subprocess.Popen(command, cwd=ROOT, env=environment, **how)
            server._child_created = False  # type: ignore[attr-defined]  # it outlives this process
    return path


def server_socket() -> str:
    """The socket of the server, once it listens."""
    path = start_server()
    give_up = time.monotonic() + 120
    while not path.exists():
        said = Path(f"{path}.log").read_text()
        assert "Error" not in said, said
        assert time.monotonic() < give_up, said
        time.sleep(0.02)
    return str(path)


class ForkedProcess:
    """A process that the server forked for this one, which is not its parent: the server tells how it ended."""

    def __init__(self, arguments: list[str], descriptors: dict[int, int], **more):
        asked = {
            "arguments": [os.fsdecode(word) for word in arguments],
            "descriptors": list(descriptors),
            "cwd": os.getcwd(),
            "env": dict(os.environ),
            "new_session": False,
            "twins": 0,
            **heritage(),
            **more,
        }
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server_socket())
        send(self.connection, asked, list(descriptors.values()))
        (self.pid,) = INSTANT.unpack(self.connection.recv(INSTANT.size))

    def wait(self, flags: int) -> tuple[int, int]:
        """The process and its exit status, as `os.waitpid` gives them; zeros while it runs and the flags say not to wait."""
        if flags & os.WNOHANG and not select.select([self.connection], [], [], 0)[0]:
            return 0, 0
        status = self.connection.recv(INSTANT.size)
        self.connection.close()
        return self.pid, INSTANT.unpack(status)[0] if status else 0xFF00


class Command(subprocess.Popen):
    """A process that is forked from the server; what it is given and what it has are as of `subprocess.Popen`.

    `twins`: how many of the interpreters that it starts are to be forked as well.
    """

    def __init__(self, args, *, twins=TWINS, **options):
        self.twins = twins
        super().__init__(args, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
        _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_, new_session, _ = more
        assert executable is None
        assert preexec_fn is None
        assert not pass_fds
        arguments = list(map(os.fspath, args))
        if arguments[0] != sys.executable:
            arguments = [sys.executable, *arguments]
        own = {number: given if given != -1 else number for number, given in ((0, p2cread), (1, c2pwrite), (2, errwrite))}
        changes = {"env": dict(env)} if env is not None else {}
        try:
            self.forked = ForkedProcess(
                arguments, own, cwd=os.path.abspath(os.fspath(cwd or ".")), new_session=bool(new_session), twins=self.twins, **changes
            )
            self.pid = self.forked.pid
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags):
        return self.forked.wait(wait_flags)

    def _internal_poll(self, _deadstate=None, **_):
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                number, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if number:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run_command(arguments, timeout=300, check=False, **options) -> subprocess.CompletedProcess:
    """Runs a command to its end; what it printed is captured as text."""
    with Command(arguments, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def run_hpsearch(folder, *words, code=0, storage=None) -> subprocess.CompletedProcess:
    """Runs `hpsearch` in a folder, with the storage of that URL; it has to end with that exit code, and without a traceback."""
    environment = os.environ | ({"OPTUNA_STORAGE": storage} if storage else {})
    done = run_command([HPSEARCH, *map(str, words)], cwd=folder, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def fork_what_multiprocessing_spawns() -> None:
    """Has the server fork the interpreters that multiprocessing would start for this process, the mirror of MLflow above all."""
    spawn, poll = multiprocessing.util.spawnv_passfds, multiprocessing.popen_fork.Popen.poll
    forked: dict[int, ForkedProcess] = {}

    def spawnv_passfds(path, arguments, passed):
        words = [os.fsdecode(word) for word in arguments]
        if not any("spawn_main" in word for word in words):
            return spawn(path, arguments, passed)
        started = ForkedProcess(words, {number: number for number in (0, 1, 2, *passed)})
        forked[started.pid] = started
        return started.pid

    def poll_forked(self, flag=os.WNOHANG):
        if self.returncode is None and self.pid in forked:
            number, status = forked[self.pid].wait(flag)
            if number:
                del forked[self.pid]
                self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode
        return poll(self, flag)

    multiprocessing.util.spawnv_passfds = spawnv_passfds
    multiprocessing.popen_fork.Popen.poll = poll_forked
