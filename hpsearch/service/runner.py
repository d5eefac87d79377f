"""What keeps the queue going: starts the processes of studies while there is room, and notices those that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hpsearch.control import Control
from hpsearch.devices import visible
from hpsearch.finetune.roots import VARIABLE, roots_in_words
from hpsearch.machine import born
from hpsearch.places import Place
from hpsearch.protocols import GRACE
from hpsearch.search.queue import Entry, Queue
from hpsearch.service.asgi import silent
from hpsearch.service.child import UNTRACKED

LOG = "service.log"  # of a study, in its folder
LARGE = 1 << 20  # bytes of a log; then the next session begins a new one, and the one before is kept
TURN = 0.5  # seconds between looks
TIDY = 20.0  # seconds after which the storage's log is carried into its file
TAIL = 2000  # bytes of a log's end
LEAVE = 7.0  # seconds beyond those that trials get, for workers and storage to close


class Runner:
    """Starts queued studies, at most `slots` at once on this machine. One thread; every turn begins from what the queue says."""

    def __init__(self, queue: Queue, where: Place, slots: int = 0, roots: Sequence[Path] = (), log: Callable[[str], None] = silent) -> None:
        self.queue, self.where, self.log = queue, where, log
        self.roots = roots  # folders that data may lie in; none: anywhere
        self.slots = slots or max(1, len(visible()))
        self.asked: dict[int, int] = {}  # row -> trials that its session knows of
        self.started: dict[int, tuple[subprocess.Popen[bytes], int, float | None]] = {}  # row -> process, slot, last start
        self.wake, self.ending = threading.Event(), threading.Event()
        self.problem = ""  # why the last turn failed
        self.turned = self.tidied = time.monotonic()
        self.thread = threading.Thread(target=self.run, name="runner", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.queue.adopt()
        self.thread.start()

    def run(self) -> None:
        """Turn after turn; a storage that does not answer is tried again."""
        while not self.ending.is_set():
            try:
                self.turn()
                if time.monotonic() - self.tidied > TIDY:
                    self.queue.tidy()
                    self.tidied = time.monotonic()
                self.problem, self.turned = "", time.monotonic()
            except Exception as error:  # whatever it is, studies wait and nothing is lost
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.wake.wait(TURN)
            self.wake.clear()

    def turn(self) -> None:
        """Look once."""
        mine = self.queue.running()
        for entry in [entry for entry in mine if entry.damage]:
            self.set_aside(entry)
            mine.remove(entry)
        for entry in mine:
            if not alive(entry):
                self.queue.lost(entry, f"its process was lost: {self.tail(entry.study)}")
            elif entry.wanted:
                Control(self.where.runs(entry.study)).pause()  # again and again: its session may only just begin
            if self.asked.get(entry.id) != entry.trials and not entry.compares:
                # asked for by another server, or by one that was killed before it could say so
                Control(self.where.runs(entry.study)).extend(entry.trials)
                self.asked[entry.id] = entry.trials
        self.reap()
        live = [entry for entry in mine if alive(entry)]
        known = {entry.id for entry in live}
        starting = {number: slot for number, (_, slot, _) in self.started.items() if number not in known}
        free = sorted({*range(self.slots)} - {entry.slot or 0 for entry in live} - {*starting.values()})
        for slot in free[: max(0, self.slots - len(live) - len(starting))]:
            while (number := self.queue.next([*self.started])) is not None:
                entry = self.queue.entry(number)
                if not entry.damage:
                    self.launch(entry, slot)
                    break
                self.set_aside(entry)
            if number is None:
                return

    def set_aside(self, entry: Entry) -> None:
        """Ends a row that cannot be used, and says so; the others go on."""
        self.queue.set_aside(entry)
        self.log(entry.note)

    def reap(self) -> None:
        """Forget processes that have ended; one that never came to its row counts as lost."""
        for number, (process, _, before) in list(self.started.items()):
            code = process.poll()
            if code is None:
                continue
            del self.started[number]
            entry = self.queue.entry(number)
            if code and entry.state == "queued" and entry.started == before:  # by no clock: it may have been set back
                self.queue.lost(entry, f"its process ended with code {code}: {self.tail(entry.study)}")

    def launch(self, entry: Entry, slot: int) -> None:
        """Start a study's process, in a group of its own: what ends the server leaves it alone."""
        folder = self.where.runs(entry.study)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "hpsearch.service.child", str(entry.id), str(slot), str(self.slots)]
        environment = {key: value for key, value in os.environ.items() if key != "HPSEARCH_TOKEN"} | {"OPTUNA_STORAGE": self.where.storage}
        environment |= {"MLFLOW_TRACKING_URI": self.where.tracking} if self.where.tracking else {UNTRACKED: "1"}
        environment |= {VARIABLE: roots_in_words(self.roots)} if self.roots else {}
        with suppress(OSError):
            if (folder / LOG).stat().st_size > LARGE:
                os.replace(folder / LOG, folder / f"{LOG}.1")
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.where.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started[entry.id] = (process, slot, entry.started)
        self.asked[entry.id] = entry.trials

    def tail(self, study: str) -> str:
        """The last line of a study's log."""
        with suppress(OSError):
            lines = read_tail(self.where.runs(study) / LOG).strip().splitlines()
            return lines[-1][:300] if lines else "its log is empty"
        return "it has no log"

    def stop(self) -> None:
        """End neatly: running studies leave their trials' states and are queued again, for the next server."""
        self.ending.set()
        self.wake.set()
        self.thread.join()
        mine = [entry for entry in self.queue.running() if alive(entry)]
        pids = {entry.pid for entry in mine if entry.pid} | {process.pid for process, *_ in self.started.values() if process.poll() is None}
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + GRACE + LEAVE
        while time.monotonic() < give_up and any(born(pid) for pid in pids):
            for process, *_ in self.started.values():
                process.poll()
            time.sleep(0.05)


def alive(entry: Entry) -> bool:
    """Whether the process that claimed a row on this machine still lives."""
    began = born(entry.pid) if entry.pid else 0.0
    return bool(began) and began == entry.born


def read_tail(path: Path, size: int = TAIL) -> str:
    """The end of a text file."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size).decode("utf-8", "replace")
