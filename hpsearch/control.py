"""What is asked of a study while it runs: each request a file in its folder, taken away by the session that has carried it out.

A file needs no server and no database, and outlives whoever asked and whoever is asked: the terminal and the service use the same.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpsearch.types import Asked, Event, StudyEnded, TrialEnded

FOLDER = "asked"
OFTEN = 0.1  # seconds within which the folder is not looked at again


class Control:
    """The requests to one study. As a tracker it hears what has been carried out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.looked, self.found = 0.0, Asked()

    # ------------------------------------------------------------ asking

    def pause(self) -> None:
        """Have the session stop neatly, as a signal does."""
        self.ask("pause")

    def stop(self, trial: int) -> None:
        """Have a trial end at its next epoch."""
        self.ask(f"stop-{trial:d}")

    def extend(self, trials: int) -> None:
        """Have the study come to `trials` in all, if it would come to fewer."""
        self.ask(f"trials-{trials:d}")

    def ask(self, name: str) -> None:
        """Leave a request: a file that is empty, so that two who ask for the same at once do not meet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).touch()

    # ------------------------------------------------------------ being asked

    def begin(self) -> None:
        """A session begins: an earlier request to pause is over."""
        self.take("pause")
        self.looked = 0.0

    def fresh(self) -> None:
        """The study has no trial yet: requests to stop some were meant for another one of its name."""
        for path in self.folder.glob("stop-*"):
            self.take(path.name)

    def asked(self) -> Asked:
        """What is asked now."""
        now = time.monotonic()
        if now - self.looked < OFTEN:
            return self.found
        names = [path.name for path in self.folder.glob("*")] if self.folder.exists() else []
        self.looked, self.found = now, Asked("pause" in names, numbers(names, "stop"), max(numbers(names, "trials"), default=0))
        return self.found

    def or_pause(self, signalled: Callable[[], int | None]) -> Callable[[], int | None]:
        """The signal that came, or SIGINT once a pause is asked for."""
        return lambda: signalled() or (signal.SIGINT if self.asked().pause else None)

    def record(self, event: Event) -> None:
        """Take away what has been carried out."""
        if isinstance(event, TrialEnded) and event.record.number in self.found.stop:
            self.take(f"stop-{event.record.number}")
        if isinstance(event, StudyEnded) and event.reason in ("budget", "exhausted"):
            for path in self.folder.glob("*"):
                self.take(path.name)

    def take(self, name: str) -> None:
        """Take a request away."""
        with suppress(OSError):
            (self.folder / name).unlink()

    def close(self) -> None:
        """Nothing is open."""


def numbers(names: list[str], kind: str) -> frozenset[int]:
    """The numbers in requests of a kind."""
    found = (name.removeprefix(f"{kind}-") for name in names if name.startswith(f"{kind}-"))
    return frozenset(int(number) for number in found if number.isascii() and number.isdigit())
