"""What a search has found, and when."""

import time
from typing import Any


class Curve:
    """Validation losses within `wall` seconds from the first trial's start; what comes later does not count.

    With `epoch_seconds` each epoch takes that long, whatever the machine takes: for tests.
    """

    def __init__(self, wall: float, epoch_seconds: float | None = None) -> None:
        self.wall = wall
        self.epoch_seconds = epoch_seconds
        self.begun = 0.0
        self.epochs = 0  # all that were heard of
        self.params: dict[int, dict[str, Any]] = {}
        self.losses: list[tuple[float, int, float]] = []  # seconds, trial, validation loss of an epoch
        self.finished: set[int] = set()

    def seconds(self) -> float:
        """Since the first trial began."""
        if self.epoch_seconds is not None:
            return self.epochs * self.epoch_seconds
        return time.time() - self.begun if self.begun else 0.0

    def start(self, number: int, params: dict[str, Any], at: float | None = None) -> None:
        """A trial begins, for the first time or again."""
        self.begun = self.begun or at or time.time()
        if self.seconds() <= self.wall:
            self.params.setdefault(number, dict(params))

    def epoch(self, number: int, loss: float) -> bool:
        """An epoch of a trial is over; whether time is up."""
        self.epochs += 1
        over = self.seconds() > self.wall
        if not over:
            self.losses.append((self.seconds(), number, loss))
        return over

    def end(self, number: int) -> None:
        """A trial has trained all its epochs."""
        if self.seconds() <= self.wall:
            self.finished.add(number)

    def result(self) -> dict[str, Any]:
        """JSON-able; the winner is the trial of the best epoch."""
        winner = min(self.losses, key=lambda row: row[2])[1] if self.losses else None
        return {
            "losses": self.losses,
            "started": len(self.params),
            "finished": len(self.finished),
            "epochs": len(self.losses),
            "winner": None if winner is None else self.params[winner],
        }
