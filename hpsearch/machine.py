"""What a session takes from its machine: processor cores, the study's lock, and signals."""

from __future__ import annotations

import errno
import fcntl
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from hpsearch.errors import FixInput, FixSetup, Interrupted, WaitOrStop

SAFE_PATH = "PYTHONSAFEPATH"  # environment variable of Python: no interpreter has its working folder on its import path
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOP_SECONDS = 0.7  # the loop asks five times a second
SAME_PRESS = 0.5  # seconds within which a second signal is an echo of the first: `timeout` sends to child and group


def ignore_signals() -> None:
    """For helper processes: a signal to the whole group is the orchestrator's to answer."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def shielded() -> Iterator[None]:
    """Start processes here: signals wait until the new process has come to `ignore_signals`, however early they are sent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def safe_import_path() -> Iterator[None]:
    """Keeps the working folder off the import path of interpreters that are started inside: it may hold a stranger's `random.py`."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


listeners: list[Callable[[str], None]] = []
"""Who watches this process, if it is a worker."""


def pulse(why: str = "") -> None:
    """Say that long work gets on, or `why` it waits, which a person should know."""
    for hear in listeners:
        hear(why)


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group (containers)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def total_memory() -> int:
    """Bytes of memory of this machine, or of its control group (containers)."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def system_id() -> str:
    """Where numbers of processes mean the same: host, boot, container."""
    parts = [os.uname().nodename]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def born(process: int) -> float:
    """When a process of this system began: something that no later one of its number has; 0 when there is none, or it has ended."""
    with suppress(OSError, IndexError, ValueError):  # in ticks since the boot, which no clock that is set changes
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return 0.0 if state == "Z" else float(fields[18])
    with suppress(psutil.Error):
        return psutil.Process(process).create_time()
    return 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a machine has to do at the moment."""

    cores: int
    busy: float  # share of all cores, since it was asked before
    memory: int  # bytes
    memory_used: int
    gpus: tuple[GpuLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """A GPU at the moment."""

    index: int
    name: str
    busy: float  # share of the time
    memory: int  # bytes
    memory_used: int


def load() -> Load:
    """What this machine has to do."""
    memory = psutil.virtual_memory()
    busy = psutil.cpu_percent() / 100
    return Load(usable_cores(), busy, int(memory.total), int(memory.total - memory.available), gpu_loads())


def gpu_loads() -> tuple[GpuLoad, ...]:
    """What its GPUs have to do, as nvidia-smi tells; none where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        asked = [program, "--query-gpu=index,name,utilization.gpu,memory.total,memory.used", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in told.splitlines():
        parts = [part.strip() for part in line.split(",")]
        with suppress(ValueError):
            index, name, busy, total, used = parts
            share = float(busy) / 100 if busy[:1].isdigit() else 0.0  # "[N/A]" where a GPU is shared out
            found.append(GpuLoad(int(index), name, share, int(total) << 20, int(used) << 20))
    return tuple(found)


def listenable(host: str, port: int) -> int:
    """The port itself, or a free one for 0; FixInput for an address that is none of this machine's, FixSetup for a port in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise FixInput(f"--host {host} --port {port}: there is no such address ({error})") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise FixInput(f"--host {host} --port {port} cannot be listened on: {error.strerror}") from None
    with suppress(psutil.Error, OSError):
        for found in psutil.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                holder = f"process {found.pid} ({psutil.Process(found.pid).name()})"
                raise FixSetup(f"port {port} is in use by {holder}: end it, or take --port 0")
    raise FixSetup(f"port {port} is in use: end what listens there, or take --port 0 for a free one")


@contextmanager
def study_lock(folders: list[Path], name: str) -> Iterator[None]:
    """Hold the study in each folder (its own, and the one beside its storage): one process at a time runs it.

    Raises WaitOrStop, which says who does, and FixSetup when a folder cannot be written.
    """
    held: list[FileLock] = []
    try:
        for folder in dict.fromkeys(folders):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(folder / "lock")
                lock.acquire(timeout=0)
            except Timeout:
                holder = (folder / "holder").read_text() if (folder / "holder").exists() else "another process"
                raise WaitOrStop(f"the study '{name}' is being run by {holder}: wait for it, stop it, or choose another --name") from None
            except OSError as error:
                raise FixSetup(f"the folder {folder} cannot be written ({error.strerror}): run hpsearch where you may write") from None
            held.append(lock)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            (folder / "holder").write_text(f"{os.uname().nodename}, process {os.getpid()}, since {since}")
        yield
    finally:
        for lock in held:
            Path(lock.lock_file).with_name("holder").unlink(missing_ok=True)
            lock.release()


# ---------------------------------------------------------------- workers that outlive who started them


@contextmanager
def claim(path: Path | None, patience: float) -> Iterator[None]:
    """Hold a lock file that says which process lives here; the system lets go of it however the process ends.

    WaitOrStop when another one does not let go of it within `patience` seconds. None: there is no folder.
    """
    if path is None:
        yield
        return
    with path.open("a+") as file:
        if not lock(file.fileno(), patience):
            raise WaitOrStop(f"{path.parent} is still worked on by process {owner(path) or 'unknown'}: end it, or wait for it")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock(descriptor: int, patience: float) -> bool:
    """Lock an open file within `patience` seconds."""
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)


def owner(path: Path) -> int | None:
    """The process that wrote its number into a lock file."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def survivors(folder: Path) -> list[int]:
    """Workers of an earlier session that still live, by process number (0: not known)."""
    found = []
    for path in sorted(folder.glob("worker-*.lock")):
        with suppress(OSError), path.open("a+") as file:
            if not lock(file.fileno(), 0.0):
                found.append(owner(path) or 0)
    return found


def outlive(folder: Path, grace: float) -> None:
    """Wait for workers of a session that was killed, which finish their epoch within `grace` seconds; end those that do not."""
    give_up = time.monotonic() + grace + 2.0
    while left := survivors(folder):
        if time.monotonic() > give_up:
            for pid in filter(None, left):
                kill_group(pid)
        time.sleep(0.05)


def kill_group(pid: int) -> None:
    """End the process group that a process leads, if it does: itself and all that it started."""
    if pid > 0:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def end_with_parent(grace: float) -> None:
    """Have this process and what it started killed `grace` seconds after its parent is gone, whatever it does then."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        time.sleep(grace)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """The first SIGINT, SIGTERM or SIGHUP asks the loop to stop, the second breaks it off at once with Interrupted.

    Yields the question the loop asks: the signal's number, or None. A second signal raises where the loop asks, and
    only when it is not asking, in the handler: what a handler raises inside a destructor is lost. Signals ignored before
    (nohup) stay ignored; after a signal all are, since the process is about to end and its exit code is the first one's.
    """
    seen: list[tuple[int, float]] = []
    asked = -math.inf

    def question() -> int | None:
        nonlocal asked
        asked = time.monotonic()
        if len(seen) > 1:
            break_off()
        return seen[0][0] if seen else None

    def break_off() -> None:
        raise Interrupted("stopped at once; the same command goes on with the study", seen[-1][0])

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if seen and time.monotonic() - seen[0][1] < SAME_PRESS:
            return
        seen.append((number, time.monotonic()))
        if len(seen) > 1:
            if time.monotonic() - asked > LOOP_SECONDS:
                break_off()
            return
        with suppress(OSError, RuntimeError, ValueError):  # the terminal may be gone, or in the middle of a line
            sys.stderr.write("\nStopping within seconds. Once more stops at once.\n")

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield question
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if seen else handler)
