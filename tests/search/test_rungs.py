"""Who goes on from a rung, and when: successive halving that pauses and continues."""

import random

from hypothesis import given
from hypothesis import strategies as st

from hpsearch.search.rungs import Rungs


def test_rungs_are_tenths_of_a_trials_epochs():
    assert Rungs(30, 3).levels == [30, 90]
    assert Rungs(10, 3).levels == [10, 30, 90]
    assert Rungs(25, 2).levels == [30, 60]
    assert Rungs(0, 4).levels == [10, 40]
    assert Rungs(100, 3).levels == []


def test_a_trial_waits_until_enough_worse_ones_have_come_and_then_goes_on():
    rungs = Rungs(30, 3)
    assert not rungs.arrive(0, 30, 0.5)  # one of one: a third of it is nobody
    rungs.wait(0)
    assert not rungs.arrive(1, 30, 0.9)
    rungs.wait(1)
    assert rungs.promotable() == []
    assert not rungs.arrive(2, 30, 0.7)  # now the best of three may go on: trial 0
    rungs.wait(2)
    assert rungs.promotable() == [0]
    rungs.promote(0)
    assert rungs.promotable() == []
    assert rungs.arrive(3, 30, 0.1) is True  # the best of four goes on at once


def test_the_highest_rung_comes_first_and_the_earlier_of_equals():
    rungs = Rungs(10, 2)  # 10, 20, 40, 80
    for trial in range(4):
        rungs.arrive(trial, 10, 0.5)
        rungs.wait(trial)
    assert rungs.promotable() == [0, 1]
    for trial in (0, 1):
        rungs.promote(trial)
        rungs.arrive(trial, 20, 0.4)
        rungs.wait(trial)
    for trial in (4, 5):
        rungs.arrive(trial, 10, 0.1)
        rungs.wait(trial)
    assert rungs.promotable() == [0, 4, 5]


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(3, 60))
def test_any_study_promotes_at_most_its_share_and_ends_only_what_could_never_go_on(seed, factor, budget):
    """Simulated to the end, with several trials open at once: nobody passes a rung whom the final ranking would not let pass."""
    rng = random.Random(seed)
    rungs = Rungs(10, factor)
    quality = [rng.random() for _ in range(budget)]
    fresh, running, hopeless, passed = list(range(budget)), {}, set(), {level: [] for level in rungs.levels}
    while fresh or running or rungs.promotable():
        if rungs.promotable() and rng.random() < 0.7:
            trial = rungs.promotable()[0]
            level = rungs.waiting[trial]
            rungs.promote(trial)
            passed[level].append(trial)
            running[trial] = rungs.levels.index(level) + 1
        elif fresh and len(running) < 4:
            running[fresh.pop(0)] = 0
        elif running:
            trial = rng.choice(list(running))
            at = running.pop(trial)
            while at < len(rungs.levels) and rungs.arrive(trial, rungs.levels[at], quality[trial] / (at + 1)):
                passed[rungs.levels[at]].append(trial)
                at += 1
            if at < len(rungs.levels):
                rungs.wait(trial)
            now = rungs.hopeless(budget)
            assert not set(now) & set(rungs.promotable())
            for trial in now:
                rungs.retire(trial)
                hopeless.add(trial)
    for level in rungs.levels:
        reached = len(rungs.losses[level])
        assert len(set(passed[level])) == len(passed[level])
        assert set(rungs.best(level)) <= set(passed[level])  # the promise kept: whoever belongs to the best went on
        truly = sorted(rungs.losses[level], key=lambda t: (rungs.losses[level][t], t))[: reached // factor]
        assert not hopeless & set(truly)


def test_a_trial_that_ended_while_it_waited_makes_room_for_others():
    rungs = Rungs(50, 2)
    for trial, loss in enumerate((0.1, 0.2, 0.3)):
        rungs.arrive(trial, 50, loss)
        rungs.wait(trial)
    rungs.promote(0)
    for trial in (1, 2):
        rungs.retire(trial)
    for trial, loss in ((3, 0.4), (4, 0.5), (5, 0.6)):
        rungs.arrive(trial, 50, loss)
        rungs.wait(trial)
    assert rungs.promotable() == [3, 4]  # three of six may pass; one has


class Plain:
    """The same rules, worked out anew from all losses at every question."""

    def __init__(self, rungs):
        self.rungs = rungs

    def best(self, level):
        reached = self.rungs.losses[level]
        return sorted(reached.keys() - self.rungs.retired, key=lambda trial: (reached[trial], trial))

    def promotable(self):
        share = {level: self.best(level)[: len(self.rungs.losses[level]) // self.rungs.factor] for level in self.rungs.levels}
        return [trial for level in reversed(self.rungs.levels) for trial in share[level] if self.rungs.waiting.get(trial) == level]

    def hopeless(self, budget):
        return [trial for trial, level in self.rungs.waiting.items() if self.best(level).index(trial) >= budget // self.rungs.factor]


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_what_is_kept_in_order_is_what_sorting_gives(seed, factor):
    rng = random.Random(seed)
    rungs, reached = Rungs(10, factor), {}
    plain = Plain(rungs)
    for trial in range(40):
        reached[trial] = 0
        for at in (trial, *rungs.promotable()[:1]):
            if at in rungs.waiting:
                rungs.promote(at)
                reached[at] += 1
            while reached[at] < len(rungs.levels):
                level, loss = rungs.levels[reached[at]], rng.randrange(6) / 10  # many equal ones
                goes_on = rungs.arrive(at, level, loss)
                assert goes_on == (at in plain.best(level)[: len(rungs.losses[level]) // factor])
                if not goes_on:
                    rungs.wait(at)
                    break
                reached[at] += 1
        if rng.random() < 0.2 and rungs.waiting:
            rungs.retire(rng.choice(list(rungs.waiting)))
        assert rungs.promotable() == plain.promotable()
        assert rungs.hopeless(20) == plain.hopeless(20)
