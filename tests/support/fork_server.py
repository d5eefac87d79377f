"""Starts commands in milliseconds: a process that has the package and its libraries loaded, and forks itself for each of them.

    python -m tests.support.fork_server SOCKET PID

listens at SOCKET until process PID has ended. A command that it starts is a real process: its own number, signals, working
folder, environment, files, exit code; kill -9 ends it and nothing else. It differs from one that the system starts in that no
library has to be loaded again, which takes torch and MLflow four seconds of processor time, and in these: the hash seed and what
libraries read of the environment at import (`OMP_NUM_THREADS`) are the server's.

A study starts two more interpreters through multiprocessing, its own fork server and the mirror of MLflow, and the service one for
each study. Each command therefore has idle twins, forked when it was born, which become such a process in place of an interpreter
that starts from nothing. They are children of the command, as those would be. A command that wants more of them than it has gets
real interpreters.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import multiprocessing.util
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import setproctitle

ROOT = Path(__file__).parents[2]
TWINS = 2  # interpreters that multiprocessing starts for a study: its fork server, and the mirror
MARK = "HPSEARCH_PLACE"  # environment variable by which tests find all processes of a session; shown in their titles, too
HIGH = 512  # received descriptors are moved above this, out of the way of those that have a number to take
SIGNALS = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
INSTANT = struct.Struct("i")  # an exit status, or a process number
PRELOADED = (
    *("alembic", "cmaes", "fastapi", "greenlet", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "numpy"),
    *("optuna", "optuna._gp.gp", "optuna.samplers", "pandas", "plotly.graph_objects", "plotly.io", "psutil", "psycopg", "pyarrow"),
    *("rich.console", "rich.live", "rich.table", "safetensors.torch", "scipy.optimize", "scipy.stats", "sklearn.metrics"),
    *("sklearn.model_selection", "sqlalchemy.dialects.sqlite", "torch", "torchvision", "uvicorn"),
)


def load_libraries() -> None:
    """Imports the package and what it stands on; what differs from session to session is not kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            importlib.import_module(name)
        for path in sorted((ROOT / "hpsearch").rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not name.endswith(("__main__", ".standalone", ".served", ".preload", ".actor")):
                importlib.import_module(name)


def receive(connection: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """A message and the descriptors that came with it; None when the other side has closed."""
    descriptors = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(64 * descriptors.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    while head and len(head) < 4:
        head += connection.recv(4 - len(head))
    if not head:
        return None
    (size,) = struct.unpack("i", head)
    body = b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    return json.loads(body), list(descriptors)


def send(connection: socket.socket, message: dict[str, object], descriptors: Sequence[int]) -> None:
    """Sends a message with descriptors; see `receive`."""
    body = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("i", len(body))], list(descriptors))
    connection.sendall(body)


def serve(path: str, owner: int) -> None:
    """Starts what is asked for, until the owner ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # whoever sees it can connect
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        selector.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
        while True:
            for key, _ in selector.select():
                if key.data == "owner":
                    for number in running:
                        os.kill(number, signal.SIGKILL)
                    return
                if key.fileobj is wake:
                    with suppress(BlockingIOError):
                        wake.recv(4096)
                    report_ends(running)
                elif key.fileobj is listener:
                    connection, _ = listener.accept()
                    asked = receive(connection)
                    if asked is None:
                        connection.close()
                        continue
                    running[start(*asked, connection)] = connection


def report_ends(running: dict[int, socket.socket]) -> None:
    """Sends the exit status of every process that has ended to whoever asked for it."""
    while running:
        with suppress(ChildProcessError):
            number, status = os.waitpid(-1, os.WNOHANG)
            if number == 0:
                return
            connection = running.pop(number, None)
            if connection is not None:
                with suppress(OSError):
                    connection.sendall(INSTANT.pack(status))
                connection.close()
            continue
        return


def start(asked: dict[str, object], descriptors: list[int], connection: socket.socket) -> int:
    """Forks a process for what is asked; its number.

    The process never returns from here: objects of the server that would be freed close descriptors that are no longer theirs.
    """
    number = os.fork()
    if number:
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(INSTANT.pack(number))
        return number
    signal.set_wakeup_fd(-1)
    become(asked, descriptors)
    return 0  # never


def become(asked: dict[str, object], descriptors: list[int]) -> None:
    """Turns this process into the one that is asked for; ends with it."""
    code = 1
    try:
        if asked["new_session"]:
            os.setsid()
        settle(dict(zip(asked["descriptors"], descriptors, strict=True)), asked)  # type: ignore[call-overload]
        offer_twins(int(asked["twins"]))  # type: ignore[call-overload]
        take_title(asked)  # after them, lest a twin is taken for this process
        code = run_to_end(asked)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def settle(descriptors: dict[int, int], asked: dict[str, object]) -> None:
    """Takes the descriptors, working folder, environment and signals of a new process; closes everything else."""
    import fcntl

    high = {target: fcntl.fcntl(source, fcntl.F_DUPFD, HIGH) for target, source in descriptors.items()}
    os.closerange(3, HIGH)
    for target, source in high.items():
        os.dup2(source, target)  # inherited, as after an exec
        os.close(source)
    os.chdir(str(asked["cwd"]))
    os.environ.clear()
    os.environ.update(asked["env"])  # type: ignore[call-overload]
    tempfile.tempdir = None
    if group := os.environ.get("HPSEARCH_SUITE_GROUP"):  # benchmarks/suite_costs.py counts it where it was asked for
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    ignored, blocked = set(asked["ignored"]), set(asked["blocked"])  # type: ignore[call-overload]
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())  # type: ignore[union-attr]


def take_title(asked: dict[str, object]) -> None:
    """Shows this process under the command that it runs."""
    mark = [f"{MARK}={os.environ[MARK]}"] if MARK in os.environ else []
    title = " ".join([*map(str, asked["arguments"]), *mark])  # type: ignore[call-overload]
    setproctitle.setproctitle(title.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def heritage() -> dict[str, list[int]]:
    """The signals that a process started here would ignore, and those that it would not receive."""
    ignored = [int(number) for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN and number != signal.SIGPIPE]
    return {"ignored": ignored, "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]}


class Twin:
    """A child that waits until it is told which interpreter to be."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.number = os.fork()
        if self.number:
            theirs.close()
            os.set_inheritable(self.ours.fileno(), False)
            return
        self.ours.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        setproctitle.setproctitle("idle twin")
        asked = receive(theirs)
        if asked is None:
            os._exit(0)
        become(*asked)

    def start(self, arguments: list[str], descriptors: dict[int, int], **more: object) -> int:
        """Has the child be the interpreter that these arguments start, with these descriptors; its number."""
        message = {"arguments": arguments, "descriptors": list(descriptors), "cwd": os.getcwd(), "env": dict(os.environ), "twins": 0}
        send(self.ours, message | {"new_session": False} | heritage() | more, list(descriptors.values()))
        self.ours.close()
        return self.number


def offer_twins(count: int) -> None:
    """From now on, interpreters that multiprocessing or the service would start are twins of this process, as long as there are any."""
    twins = [Twin() for _ in range(count)]
    spawn, execute = multiprocessing.util.spawnv_passfds, subprocess._fork_exec  # type: ignore[attr-defined]

    def spawnv_passfds(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
        words = [os.fsdecode(word) for word in arguments]
        if not twins or any("resource_tracker" in word for word in words):
            return int(spawn(path, arguments, passed))
        return twins.pop(0).start(words, {number: number for number in (0, 1, 2, *passed)})

    def fork_exec(arguments, executables, close, keep, cwd, env, *more):  # type: ignore[no-untyped-def]
        words = [os.fsdecode(word) for word in arguments]
        module = words[words.index("-m") + 1] if words[0] == sys.executable and "-m" in words[:3] else ""
        if not twins or not module.startswith(("hpsearch.", "uvicorn")):
            return execute(arguments, executables, close, keep, cwd, env, *more)
        descriptors = {number: given if given != -1 else number for number, given in ((0, more[0]), (1, more[3]), (2, more[5]))}
        changes = {"new_session": bool(more[9]), "twins": TWINS}
        if cwd is not None:
            changes["cwd"] = os.fsdecode(cwd)
        if env is not None:
            changes["env"] = dict(os.fsdecode(entry).split("=", 1) for entry in env)
        return twins.pop(0).start(words, descriptors, **changes)

    multiprocessing.util.spawnv_passfds = spawnv_passfds
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]


def run(asked: dict[str, object]) -> None:
    """Does what `python ARGUMENTS` does."""
    arguments = [str(word) for word in asked["arguments"]]  # type: ignore[call-overload]
    rest = arguments[1:]
    safe = "-P" in rest or bool(os.environ.get("PYTHONSAFEPATH"))  # no working folder on the import path
    while rest and rest[0].startswith("-") and rest[0] not in ("-c", "-m"):
        rest = rest[2 if rest[0] in ("-W", "-X") else 1 :]  # what they change is the server's
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [entry for entry in more if entry]
    if rest[0] == "-c":
        sys.argv, sys.path[:1] = ["-c", *rest[2:]], [] if safe else [""]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[1], "<string>", "exec"), vars(module))
    elif rest[0] == "-m":
        sys.argv, sys.path[:1] = ["-m", *rest[2:]], [] if safe else [os.getcwd()]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:1] = rest, [] if safe else [str(Path(rest[0]).parent)]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        module.__file__ = rest[0]
        exec(compile(Path(rest[0]).read_bytes(), rest[0], "exec"), vars(module))


def run_to_end(asked: dict[str, object]) -> int:
    """Runs what is asked and ends as an interpreter does; the exit code."""
    code, interrupted = 0, False
    try:
        run(asked)
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        traceback.print_exc()
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code & 0xFF


def main() -> None:
    """Listens until its owner has ended."""
    path, owner = sys.argv[1], int(sys.argv[2])
    setproctitle.setproctitle(f"fork server of the tests {path}")  # it finds its place only as long as the environment is untouched
    load_libraries()
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")} - {"jemalloc_bg_thd"}  # it knows about forks
    assert len(threads) == 1, f"a library has started threads, which would be missing in every fork: {threads}"
    gc.collect()
    gc.freeze()
    serve(path, owner)


if __name__ == "__main__":
    main()
