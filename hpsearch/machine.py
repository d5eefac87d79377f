"""What a session takes from its machine: processor cores, the study's lock, and signals."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from hpsearch.errors import FixInput, FixSetup, Interrupted, WaitOrStop

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


def crew(workers: int | str, threads: int, cores: int | None = None) -> int:
    """How many workers of `threads` threads to start; "auto" is one per core, or one for a GPU.

    Raises FixInput when they need more than the cores: two processes then spin at each other's barriers.
    """
    cores = cores or usable_cores()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpu = not hidden and any(Path("/dev").glob("nvidia[0-9]*"))
    count = workers if isinstance(workers, int) else 1 if gpu else max(1, cores // threads)
    if count * threads > cores:
        raise FixInput(
            f"{count} workers of {threads} thread(s) need more than this machine's {cores} cores, which can make each of them "
            f"a hundred times slower: use --workers {max(1, cores // threads)} or fewer"
        )
    return count


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
            lock.release()


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
