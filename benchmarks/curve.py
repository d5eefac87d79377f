"""What a search has found, and when."""

import time
from typing import Any


class Curve:
    """Validation losses within `wall` seconds from the first trial's start; what comes later does not count."""

    def __init__(self, wall: float) -> None:
        self.wall, self.begun = wall, 0.0
        self.params: dict[int, dict[str, Any]] = {}
        self.losses: list[tuple[float, int, float]] = []  # seconds, trial, validation loss of an epoch
        self.finished: set[int] = set()

    def seconds(self) -> float:
        """Since the first trial began."""
        return time.time() - self.begun if self.begun else 0.0

    def start(self, number: int, params: dict[str, Any], at: float | None = None) -> None:
        """A trial begins, for the first time or again."""
        self.begun = self.begun or at or time.time()
        if self.seconds() <= self.wall:
            self.params.setdefault(number, dict(params))

    def epoch(self, number: int, loss: float) -> bool:
        """An epoch of a trial is over; whether time is up."""
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
