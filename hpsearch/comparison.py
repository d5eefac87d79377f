"""Samplers compared: from runs to a `Comparison`. Costs throughout: less is better (`TrialRecord.cost`). `verdict` puts it into words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from hpsearch.errors import FixInput
from hpsearch.statistics import (
    ALPHA,
    Estimate,
    Friedman,
    Shift,
    best_so_far,
    bootstrap_mean,
    differences,
    first_reached,
    friedman,
    holm,
    pseudo_median,
    quantiles,
    ranks,
    regret,
    repeats_needed,
    signed_rank,
    step_mean,
    step_values,
    unbiased,
)
from hpsearch.types import Status, TrialRecord

POINTS = 200  # of time at which curves over seconds are read
LEAST_FOR_EFFECT = 4  # repeats below which the size of an effect is anybody's guess


@dataclass(frozen=True, slots=True)
class Run:
    """One study of one sampler, its trials in order of ending.

    Trials that were pruned count as trials and as time, never as a best value: they were cut short.
    """

    sampler: str
    repeat: int  # runs of one repeat share seed and first trials; they are compared with one another
    costs: tuple[float, ...]  # infinite where a trial has none
    seconds: tuple[float, ...]  # of training, summed over the trials that have ended by then
    pruned: tuple[bool, ...]

    @property
    def curve(self) -> tuple[float, ...]:
        """The best cost after each trial."""
        return best_so_far(self.costs, [not pruned for pruned in self.pruned])

    @property
    def final(self) -> float:
        """The best cost in the end, infinite without one."""
        return self.curve[-1] if self.costs else math.inf

    @property
    def numbers(self) -> range:
        """How many trials have ended at each point of the curve."""
        return range(1, len(self.costs) + 1)


@dataclass(frozen=True, slots=True)
class Band:
    """The best cost so far of one sampler's runs at common points of a grid: median and quartiles.

    Not means: costs are skewed, a run may have no value yet (infinite), and quantiles mean the same on any scale, such as accuracy's.
    A run that has ended keeps what it has found.
    """

    sampler: str
    at: tuple[float, ...]  # trials, or seconds of training
    median: tuple[float, ...]  # infinite while half of the runs have no value
    low: tuple[float, ...]  # first quartile
    high: tuple[float, ...]  # third quartile
    reached: tuple[float, ...]  # share of the runs that have reached the target


@dataclass(frozen=True, slots=True)
class Reach:
    """How soon one sampler's runs reach the target; infinite where a run never does, and in the median where half of them do not."""

    share: float  # of the runs that reach it at all
    median_trials: float
    median_seconds: float
    trials: tuple[float, ...]  # of each repeat
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """What one sampler came to, a value a repeat."""

    sampler: str
    finals: tuple[float, ...]  # best cost in the end
    final: Estimate
    ranks: tuple[float, ...]  # of the final cost among the samplers; 1 is best
    rank: float  # their mean
    areas: tuple[float, ...]  # mean regret over the trials: 0 is the best cost known, 1 where runs begin; see `areas`
    areas_seconds: tuple[float, ...]  # mean regret over the seconds
    area: Estimate
    area_seconds: Estimate
    reach: Reach


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samplers, repeat by repeat: costs of the worse less those of the better, which is the better in this sample at least."""

    better: str
    worse: str
    n: int
    wins: int  # repeats in which the better is better
    ties: int
    shift: Shift  # in units of cost
    p: float
    holm: float  # p corrected for the number of pairs
    rank_biserial: float
    d_z: float
    needed: int | None  # repeats that would tell them apart; None beyond statistics.MOST_REPEATS, and where nothing can be said

    @property
    def real(self) -> bool:
        """Whether the difference is more than noise."""
        return self.holm < ALPHA


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a report says about samplers; standings from the best mean rank on."""

    objective: str  # one of OBJECTIVES, whose sign turns costs into scores
    repeats: tuple[int, ...]  # that every sampler has run
    left_out: int  # runs of other repeats
    trials: tuple[int, int]  # the least and the most of a run
    best: float  # least cost known
    target: float  # cost
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]  # by p
    friedman: Friedman
    by_trials: tuple[Band, ...]
    by_seconds: tuple[Band, ...]
    runs: tuple[Run, ...]

    @property
    def n(self) -> int:
        """Repeats."""
        return len(self.repeats)


# ---------------------------------------------------------------- runs


def run_of(sampler: str, repeat: int, records: Iterable[TrialRecord]) -> Run:
    """The run that a study's records tell of: its trials that have ended, without runs beside the search."""
    trials = [r for r in records if r.status.ended and r.setup is None]
    trials.sort(key=lambda r: (math.inf if r.ended is None else r.ended, r.number))
    spent, seconds = 0.0, []
    for r in trials:
        spent += max(0.0, r.seconds) if math.isfinite(r.seconds) else 0.0
        seconds.append(spent)
    costs = tuple(math.inf if r.status is Status.FAILED else r.cost for r in trials)
    return Run(sampler, repeat, costs, tuple(seconds), tuple(r.status is Status.PRUNED for r in trials))


def compare(runs: Iterable[Run], objective: str = "val_loss", target: float | None = None) -> Comparison:
    """Compare samplers over the repeats that all of them have run.

    `target` (a cost): by default what the median run of the weakest sampler ends with, so that half of each sampler's runs reach it.
    Raises FixInput where there is nothing to compare.
    """
    table, left_out = paired(runs)
    names, repeats = list(table), tuple(run.repeat for run in next(iter(table.values())))
    finals = {name: tuple(run.final for run in table[name]) for name in names}
    if target is None:
        target = max(float(quantiles([[value] for value in finals[name]], 0.5)[0]) for name in names)
    rows = list(zip(*finals.values(), strict=True))
    places = dict(zip(names, zip(*ranks(rows), strict=True), strict=True))
    names.sort(key=lambda name: math.fsum(places[name]))  # stable: the given order among equals
    chosen = tuple(run for name in names for run in table[name])
    by_trials, by_seconds = areas(chosen)
    standings = []
    for at, name in enumerate(names):
        own = slice(at * len(repeats), (at + 1) * len(repeats))
        standings.append(
            Standing(
                sampler=name,
                finals=finals[name],
                final=bootstrap_mean(finals[name]),
                ranks=places[name],
                rank=math.fsum(places[name]) / len(repeats),
                areas=by_trials[own],
                areas_seconds=by_seconds[own],
                area=bootstrap_mean(by_trials[own]),
                area_seconds=bootstrap_mean(by_seconds[own]),
                reach=reach(table[name], target),
            )
        )
    counts = [len(run.costs) for run in chosen]
    most, longest = max(counts), max(run.seconds[-1] for run in chosen if run.costs)
    return Comparison(
        objective=objective,
        repeats=repeats,
        left_out=left_out,
        trials=(min(counts), most),
        best=min(run.final for run in chosen),
        target=target,
        standings=tuple(standings),
        pairs=pairs({name: finals[name] for name in names}),
        friedman=friedman(rows),
        by_trials=tuple(band(table[name], [run.numbers for run in table[name]], range(1, most + 1), target) for name in names),
        by_seconds=tuple(
            band(table[name], [run.seconds for run in table[name]], [longest * i / POINTS for i in range(POINTS + 1)], target)
            for name in names
        ),
        runs=chosen,
    )


def paired(runs: Iterable[Run]) -> tuple[dict[str, tuple[Run, ...]], int]:
    """Each sampler's runs of the repeats that all samplers have, in order of repeat; and how many runs that leaves out."""
    table: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.repeat in table.setdefault(run.sampler, {}):
            raise FixInput(f"two runs of sampler {run.sampler} are repeat {run.repeat}: leave one out")
        table[run.sampler][run.repeat] = run
    if len(table) < 2:
        raise FixInput(f"a comparison takes runs of at least two samplers, here {'is one' if table else 'are none'}: add a sampler")
    shared = sorted(set.intersection(*(set(own) for own in table.values())))
    if not shared:
        raise FixInput("no repeat was run by every sampler: give them the same seeds")
    if not any(table[name][repeat].costs for name in table for repeat in shared):
        raise FixInput("no trial has ended in any of the runs: nothing to compare yet")
    left = sum(len(own) for own in table.values()) - len(shared) * len(table)
    return {name: tuple(own[repeat] for repeat in shared) for name, own in table.items()}, left


def areas(runs: Sequence[Run]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean regret of each run over the trials, and over the seconds of training: the area under its anytime curve.

    Regret 0 is the least cost of all runs and 1 the median of what they begin with, usually the default recipe (not the worst cost known,
    which one diverged trial would decide). Until a run has a value its regret is that of the worst beginning. All are read to the end of
    the longest; a run that has ended keeps what it has found. nan where no run has a value.
    """
    first = [next((cost for cost in run.curve if math.isfinite(cost)), math.inf) for run in runs]
    known = [cost for cost in first if math.isfinite(cost)]
    if not known:
        return (math.nan,) * len(runs), (math.nan,) * len(runs)
    best = min(run.final for run in runs)
    scale = float(quantiles([[cost] for cost in known], 0.5)[0]) - best
    if scale <= 0:
        scale = max(known) - best or 1.0  # no run improved on its beginning, or most did not
    before = (max(known) - best) / scale
    most, longest = max(len(run.costs) for run in runs), max(run.seconds[-1] for run in runs if run.costs)
    curves = [regret(run.curve, best, scale, before) for run in runs]
    by_trials = tuple(step_mean(run.numbers, curve, 1, most + 1, before) for run, curve in zip(runs, curves, strict=True))
    by_seconds = tuple(step_mean(run.seconds, curve, 0.0, longest, before) for run, curve in zip(runs, curves, strict=True))
    return by_trials, by_seconds


def reach(runs: Sequence[Run], target: float) -> Reach:
    """How soon runs reach a target cost; one that nothing can fail to reach is none."""
    if not math.isfinite(target):
        never = (math.inf,) * len(runs)
        return Reach(0.0, math.inf, math.inf, never, never)
    trials = tuple(first_reached(run.numbers, run.curve, target) for run in runs)
    seconds = tuple(first_reached(run.seconds, run.curve, target) for run in runs)
    middles = quantiles([list(pair) for pair in zip(trials, seconds, strict=True)], 0.5)
    return Reach(sum(map(math.isfinite, trials)) / len(runs), float(middles[0]), float(middles[1]), trials, seconds)


def band(runs: Sequence[Run], times: Sequence[Sequence[float]], grid: Sequence[float], target: float) -> Band:
    """Median, quartiles and the share that has reached the target, of runs of one sampler at the points of a grid."""
    rows = [step_values(time, run.curve, grid) for time, run in zip(times, runs, strict=True)]
    low, median, high = (tuple(float(value) for value in quantiles(rows, share)) for share in (0.25, 0.5, 0.75))
    reached = tuple(sum(row[i] <= target < math.inf for row in rows) / len(rows) for i in range(len(grid)))
    return Band(runs[0].sampler, tuple(float(x) for x in grid), median, low, high, reached)


def pairs(finals: Mapping[str, Sequence[float]]) -> tuple[Pair, ...]:
    """Every two samplers tested against one another, corrected for the number of pairs, the surest difference first.

    The repeats that the undecided would take are counted at the level that Holm's correction asks of the first of them.
    """
    tested = []
    for a, b in combinations(finals, 2):
        lead = differences(finals[b], finals[a])
        test = signed_rank(lead)
        if (test.rank_biserial or pseudo_median(lead).median) < 0:
            a, b, lead = b, a, tuple(-value for value in lead)
            test = signed_rank(lead)
        tested.append((a, b, lead, test))
    corrected = holm([test.p for *_, test in tested])
    level = ALPHA / max(1, sum(p >= ALPHA for p in corrected))
    found = []
    for (a, b, lead, test), p in zip(tested, corrected, strict=True):
        needed = None if p < ALPHA or test.n < LEAST_FOR_EFFECT else repeats_needed(round(abs(unbiased(test.d_z, test.n)), 2), level)
        found.append(
            Pair(
                better=a,
                worse=b,
                n=test.n,
                wins=sum(value > 0 for value in lead),
                ties=test.zeros,
                shift=pseudo_median(lead),
                p=test.p,
                holm=p,
                rank_biserial=test.rank_biserial,
                d_z=test.d_z,
                needed=None if needed is None else max(needed, test.n + 1),
            )
        )
    return tuple(sorted(found, key=lambda pair: pair.p))
