"""Successive halving that pauses and continues: who goes on from a rung, who waits there, who may go on later.

Asynchronous successive halving (Li et al., 2020) with promotion: a trial that reaches a rung goes on when its loss is among the
best 1/factor of those that have reached it so far; otherwise it waits, and goes on from where it stopped once enough worse ones
have come. Rungs are shares of a trial's own planned epochs, since the number of epochs is itself searched.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from hpsearch.spec import rung_levels


class Rungs:
    """The rungs of one study. Losses are best validation losses so far [nats]; who is best is kept in order."""

    def __init__(self, first: int, factor: int) -> None:
        self.levels = rung_levels(first, factor)  # percent
        self.factor = factor
        self.losses: dict[int, dict[int, float]] = {level: {} for level in self.levels}  # level -> trial -> loss
        # Loss and trial, best first: of those that may still count on a rung, and of those of them that wait there.
        self.ranking: dict[int, list[tuple[float, int]]] = {level: [] for level in self.levels}
        self.queues: dict[int, list[tuple[float, int]]] = {level: [] for level in self.levels}
        self.waiting: dict[int, int] = {}  # trial -> level
        self.retired: set[int] = set()  # ended while they waited: a study that is extended promotes others in their place

    def arrive(self, trial: int, level: int, loss: float) -> bool:
        """Take note of a trial at a rung; whether it goes on. One that does not is waiting, once `wait` says so."""
        self.place(trial, level, loss)
        return trial not in self.retired and self.rank(level, (loss, trial)) < self.share(level)

    def place(self, trial: int, level: int, loss: float) -> None:
        """Put a trial into a rung's ranking, in place of what it had there before."""
        before = self.losses[level].get(trial)
        self.losses[level][trial] = loss
        if trial in self.retired:
            return
        if before is not None:
            self.ranking[level].remove((before, trial))
        insort(self.ranking[level], (loss, trial))

    def rank(self, level: int, place: tuple[float, int]) -> int:
        """How many are better than that loss, the earlier of equals."""
        return bisect_left(self.ranking[level], place)

    def share(self, level: int) -> int:
        """How many of a rung may go on."""
        return len(self.losses[level]) // self.factor

    def best(self, level: int) -> list[int]:
        """The trials of a rung that may go on, best first, the earlier of equals."""
        return [trial for _, trial in self.ranking[level][: self.share(level)]]

    def wait(self, trial: int) -> None:
        """The trial was stopped at the last rung it reached."""
        level = self.waiting[trial] = max(level for level in self.levels if trial in self.losses[level])
        insort(self.queues[level], (self.losses[level][trial], trial))

    def promotable(self) -> list[int]:
        """Waiting trials that may go on now, from the highest rung down."""
        out = []
        for level in reversed(self.levels):
            for place in self.queues[level]:
                if self.rank(level, place) >= self.share(level):
                    break
                out.append(place[1])
        return out

    def promote(self, trial: int) -> None:
        """The trial goes on."""
        level = self.waiting.pop(trial)
        self.queues[level].remove((self.losses[level][trial], trial))

    def retire(self, trial: int) -> None:
        """The trial ends where it waits."""
        if trial in self.waiting:
            self.promote(trial)
        if trial in self.retired:
            return
        self.retired.add(trial)
        for level in self.levels:
            if trial in self.losses[level]:
                self.ranking[level].remove((self.losses[level][trial], trial))

    def hopeless(self, budget: int) -> list[int]:
        """Waiting trials that could not go on even if all of the `budget` trials reached their rung, each with a worse loss."""
        most, found = budget // self.factor, set()
        for level in self.levels:
            for place in reversed(self.queues[level]):
                if self.rank(level, place) < most:
                    break
                found.add(place[1])
        return [trial for trial in self.waiting if trial in found] if found else []

    def recall(self, trial: int, losses: Mapping[int, float]) -> None:
        """Take note of what a trial of an earlier session reported: percent of its epochs -> loss."""
        for level in self.levels:
            if level in losses:
                self.place(trial, level, losses[level])
