"""Several processes on one GPU: none takes memory that another was promised, and nobody waits for ever.

Studies that run side by side know nothing of each other. Each of their workers keeps a claim in a folder of the machine: a file that it
holds locked while it lives, with what it may come to take. Before a trial begins its worker looks, while it holds the device's lock, at the
memory that is free now, less what others were promised and do not hold yet.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpsearch.machine import pulse

LOOK = 0.5  # seconds between looks, while a worker waits
MARGIN = 0.9  # of what is free may be promised: libraries want some, and it frays


@dataclass(frozen=True, slots=True)
class Claim:
    """One process on the device, as the others see it; bytes."""

    pid: int
    study: str
    promised: int = 0  # that it may take in all
    held: int = 0  # that its allocator has
    busy: int = 0  # trials that it trains
    waits: bool = False  # for memory

    @property
    def coming(self) -> int:
        """What it was promised and does not hold yet."""
        return max(0, self.promised - self.held)


class DeviceShare:
    """This process's share of one device. `memory` gives its free bytes and all, `held` those that this process's allocator has."""

    def __init__(
        self, device: str, study: str, memory: Callable[[], tuple[float, float]], held: Callable[[], int], folder: Path | None = None
    ) -> None:
        self.folder = folder or Path(tempfile.gettempdir()) / "hpsearch-devices"
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # it is another user's
            self.folder.chmod(0o1777)
        self.device, self.memory, self.held = device, memory, held
        self.mine = Claim(os.getpid(), study)
        self.path = self.folder / f"{device}-{os.getpid()}-{id(self):x}"
        with self.alone():
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.note()

    # ---------------------------------------------------------------- asking

    def enter(self, kept: int) -> None:
        """Be promised what this process keeps while it lives, beside what it has; waits, telling so, while others have too much."""
        while True:
            with self.alone():
                others = self.others()
                if kept <= self.left(others) or not others:
                    self.note(promised=max(self.mine.promised, self.held()) + kept)
                    return
            pulse(self.words(kept, others))
            time.sleep(LOOK)

    def ask(self, more: int, busy: int) -> str:
        """Be promised `more` bytes for a trial, beside `busy` trials of this process: "", or why it has to wait.

        A process that trains gives way to one that waits. One that does not train waits while others do; when nobody does it goes on
        all the same: what does not fit is trained in parts.
        """
        with self.alone():
            others = self.others()
            waiting, training = [o for o in others if o.waits], [o for o in others if o.busy]
            short = more > self.left(others)
            if (busy and (waiting or short)) or (short and training):
                self.note(waits=not busy)
                return self.words(more, waiting or training)
            self.note(promised=self.mine.promised + more, busy=busy + 1, waits=False)
            return ""

    def left(self, others: list[Claim]) -> float:
        """Bytes that nobody holds or was promised.

        What others hold is as they said last, and they may have given some back since: so all promises have to fit as well.
        """
        self.mine = replace(self.mine, held=self.held())
        free, total = self.memory()
        everybody = [self.mine, *others]
        return min(MARGIN * free - sum(claim.coming for claim in everybody), MARGIN * total - sum(claim.promised for claim in everybody))

    def words(self, more: int, others: list[Claim]) -> str:
        """What is waited for, as a person should read it."""
        named = ", ".join(f"{other.study} (process {other.pid})" for other in others)
        return f"Waiting for {more / 2**30:.1f} GiB of the GPU, on which {named or 'other trials of this study'} trains too"

    def leave(self, less: int, busy: int) -> None:
        """Give back a promise of `less` bytes; `busy` trials go on."""
        with self.alone():
            self.note(promised=max(0, self.mine.promised - less), busy=busy)

    # ---------------------------------------------------------------- files

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process decides about this device."""
        file = os.open(self.folder / f"{self.device}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):
                os.fchmod(file, 0o666)
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def others(self) -> list[Claim]:
        """The claims of processes that live; those of the dead are removed."""
        found = []
        for path in sorted(self.folder.glob(f"{self.device}-*")):
            if path == self.path:
                continue
            with suppress(OSError, ValueError, TypeError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    found.append(Claim(**json.load(file)))
                else:
                    path.unlink()
        return found

    def note(self, **changes: Any) -> None:
        """Change this process's claim, and tell the others; in place, since the lock is on the file itself."""
        self.mine = replace(self.mine, held=self.held(), **changes)
        text = json.dumps(asdict(self.mine)).encode()
        os.pwrite(self.file, text.ljust(max(len(text), os.fstat(self.file).st_size)), 0)

    def close(self) -> None:
        """Give everything back."""
        with suppress(OSError):
            self.path.unlink()
        os.close(self.file)
