"""Successive halving that pauses and continues: who goes on from a rung, who waits there, who may go on later.

Asynchronous successive halving (Li et al., 2020) with promotion: a trial that reaches a rung goes on when its loss is among the
best 1/factor of those that have reached it so far; otherwise it waits, and goes on from where it stopped once enough worse ones
have come. Rungs are shares of a trial's own planned epochs, since the number of epochs is itself searched.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpsearch.spec import rung_levels


class Rungs:
    """The rungs of one study. Losses are best validation losses so far [nats]."""

    def __init__(self, first: int, factor: int) -> None:
        self.levels = rung_levels(first, factor)  # percent
        self.factor = factor
        self.losses: dict[int, dict[int, float]] = {level: {} for level in self.levels}  # level -> trial -> loss
        self.waiting: dict[int, int] = {}  # trial -> level
        self.retired: set[int] = set()  # ended while they waited: a study that is extended promotes others in their place

    def arrive(self, trial: int, level: int, loss: float) -> bool:
        """Take note of a trial at a rung; whether it goes on. One that does not is waiting, once `wait` says so."""
        self.losses[level][trial] = loss
        return trial in self.best(level)

    def best(self, level: int) -> list[int]:
        """The trials of a rung that may go on, best first, the earlier of equals."""
        return self.ranking(level)[: len(self.losses[level]) // self.factor]

    def ranking(self, level: int) -> list[int]:
        """The trials that have reached a rung and may still count on it, best first."""
        reached = self.losses[level]
        return sorted((trial for trial in reached if trial not in self.retired), key=lambda trial: (reached[trial], trial))

    def wait(self, trial: int) -> None:
        """The trial was stopped at the last rung it reached."""
        self.waiting[trial] = max(level for level in self.levels if trial in self.losses[level])

    def promotable(self) -> list[int]:
        """Waiting trials that may go on now, from the highest rung down."""
        return [trial for level in reversed(self.levels) for trial in self.best(level) if self.waiting.get(trial) == level]

    def promote(self, trial: int) -> None:
        """The trial goes on."""
        del self.waiting[trial]

    def retire(self, trial: int) -> None:
        """The trial ends where it waits."""
        self.waiting.pop(trial, None)
        self.retired.add(trial)

    def hopeless(self, budget: int) -> list[int]:
        """Waiting trials that could not go on even if all of the `budget` trials reached their rung, each with a worse loss."""
        most = budget // self.factor
        ranks = {level: self.ranking(level) for level in self.levels}
        return [trial for trial, level in self.waiting.items() if ranks[level].index(trial) >= most]

    def recall(self, trial: int, losses: Mapping[int, float]) -> None:
        """Take note of what a trial of an earlier session reported: percent of its epochs -> loss."""
        for level in self.levels:
            if level in losses:
                self.losses[level][trial] = losses[level]
