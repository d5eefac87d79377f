"""What ended trials came to, kept in order as they end, so that neither sampler nor pruner need look at all of them."""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Container
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

BEST = 25  # trials that TPE models as good, at most: Optuna's own limit
MODELLED = 400  # trials of a longer history that TPE models beside the best


class History:
    """A study's complete trials: which are best, and what was reported at each step. `sign`: 1 where less is better, else -1."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.complete = 0
        self.best: list[tuple[float, int]] = []  # cost and number of the BEST best, the earlier of equals first
        self.reports: dict[int, list[float]] = {}  # step -> reports of complete trials, ascending

    def note(self, trial: FrozenTrial) -> None:
        """Take a trial that has ended into account."""
        if trial.state is not TrialState.COMPLETE or trial.value is None:
            return
        self.complete += 1
        insort(self.best, (self.sign * trial.value, trial.number))
        del self.best[BEST:]
        for step, value in trial.intermediate_values.items():
            insort(self.reports.setdefault(step, []), value)

    def median(self, step: int) -> float | None:
        """Of the reports of complete trials at a step, as numpy has it; None without one."""
        reports = self.reports.get(step)
        if not reports:
            return None
        low, high = reports[(len(reports) - 1) // 2], reports[len(reports) // 2]
        return high - (high - low) * 0.5

    def glimpse(self, study: optuna.Study, seed: int) -> optuna.Study:
        """The study as a model is to see it: one of many trials with its best ones and a random sample of all.

        The sample holds every kind of trial, old and new, ended and running, in the share that the whole has.
        """
        trials = study.get_trials(deepcopy=False)
        if len(trials) <= MODELLED + 1:  # the last one is being asked for
            return study
        chosen = {number for _, number in self.best}.union(random.Random(seed).sample(range(len(trials)), MODELLED))
        return Glimpse(study, [trials[number] for number in sorted(chosen)])  # type: ignore[return-value]


class Glimpse:
    """A study that shows some of its trials only."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self.study, self.trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def _get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> list[FrozenTrial]:
        del deepcopy, use_cache  # samplers change no trial
        return [trial for trial in self.trials if states is None or trial.state in states]
