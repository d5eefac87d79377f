"""What a comparison of samplers comes to, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpsearch.comparison import LEAST_FOR_EFFECT, Comparison, Pair
from hpsearch.statistics import ALPHA, MOST_REPEATS, Shift, least_pairs
from hpsearch.types import OBJECTIVES


def verdict(c: Comparison) -> tuple[str, ...]:
    """What can be said, in sentences: which differences are real, which are within the noise, and what telling them apart would take.

    No sampler is ever named a winner that the tests do not bear out, and none from one repeat.
    """
    few = too_few(c.n, len(c.standings))
    return (basis(c), *cautions(c), *([few] if few else [ahead(c), *real(c)]), *undecided(c), *to_target(c))


def basis(c: Comparison) -> str:
    """What was compared, and how."""
    low, high = c.trials
    trials = f"{high}" if low == high else f"{low} to {high}"
    what = f"{len(c.standings)} samplers, {several(c.n, 'repeat')} each, {trials} trial{'' if high == 1 else 's'} a run"
    if c.n == 1:
        return f"{what}, by the {label(c.objective)} that runs end with."
    how = "Wilcoxon's signed-rank test" + (f" with Holm's correction for {len(c.pairs)} pairs" if len(c.pairs) > 1 else "")
    return f"{what}, compared repeat by repeat by the {label(c.objective)} that runs end with ({how})."


def cautions(c: Comparison) -> list[str]:
    """What makes the comparison less than fair."""
    found = []
    if c.left_out:
        found.append(f"{several(c.left_out, 'run')} left out: not every sampler has run that repeat.")
    if c.trials[0] < c.trials[1]:
        found.append("Runs differ in their number of trials: one that has ended keeps what it found.")
    without = {s.sampler: sum(map(math.isinf, s.finals)) for s in c.standings}
    worst = "the worst result there is"
    return found + [f"{s} ended without any value in {k} of {several(c.n, 'repeat')}: {worst}." for s, k in without.items() if k]


def too_few(n: int, samplers: int = 2) -> str:
    """Why so few repeats show nothing, whatever they are; nothing where they might."""
    comparisons = math.comb(samplers, 2)
    least = least_pairs(comparisons=comparisons)
    if n >= least:
        return ""
    if n == 1:
        why = "One repeat says nothing about which sampler is better: another seed may turn their order round."
    elif n < least_pairs():
        why = f"{n} repeats cannot reach p < {ALPHA}, whatever they show: the least p of {n} pairs is {2 / 2**n:.3g}."
    else:
        why = f"{n} repeats cannot tell any of {samplers} samplers apart: with {comparisons} pairs the least corrected p is "
        why += f"{min(1.0, comparisons * 2 / 2**n):.2g}."
    also = f" ({least_pairs()} for two samplers)" if least > least_pairs() else ""
    return f"{why} It takes at least {least} repeats{also}; no winner is named."


def ahead(c: Comparison) -> str:
    """Who is beaten by nobody, and who is."""
    names = [s.sampler for s in c.standings]
    beaten = {pair.worse for pair in c.pairs if pair.real}
    best, rest = [name for name in names if name not in beaten], [name for name in names if name in beaten]
    if not rest:
        return "No difference between samplers is more than noise."
    if not best:
        return "Each sampler is worse than another, in a circle: none is the best."
    if len(best) == 1 and sum(pair.real for pair in c.pairs if pair.better == best[0]) == len(rest):
        return f"{best[0]} is better than {'every other sampler' if len(rest) > 1 else rest[0]}."
    return f"{listed(rest)} {'is' if len(rest) == 1 else 'are'} worse than another sampler; nothing here beats {listed(best)}."


def real(c: Comparison) -> list[str]:
    """Each difference that is more than noise."""
    return [
        f"{pair.better} ends better than {pair.worse} by {amount(c.objective, pair.shift.median)}{between(c.objective, pair.shift)}, "
        f"in {pair.wins} of {pair.n} repeats ({p_value(pair.holm)})."
        for pair in c.pairs
        if pair.real
    ]


def undecided(c: Comparison) -> list[str]:
    """The differences within the noise, and how many repeats would show them."""
    rest = [pair for pair in c.pairs if not pair.real]
    if c.n == 1 or not rest:
        return []
    if c.n < LEAST_FOR_EFFECT:
        return [f"How many repeats the differences seen would take can be said from {LEAST_FOR_EFFECT} repeats on."]
    parts = [
        f"{pair.better} and {pair.worse} (apart by {amount(c.objective, pair.shift.median)}, {p_value(pair.holm)}; {takes(pair)})"
        for pair in rest
    ]
    known = [pair.needed for pair in rest if pair.needed is not None]
    found = [f"Within the noise: {', '.join(parts)}."]
    if len(rest) > 1 and known:
        which = "all of these" if len(known) == len(rest) else f"{len(known)} of these {len(rest)}"
        if_so = "with a chance of 80 % each, if what was seen is the true difference"
        found.append(f"About {rounded(max(known))} repeats would tell {which} apart, {if_so}.")
    if known:
        found.append("Settle on the number of repeats before looking again: whoever looks after each one finds differences that are none.")
    return found


def takes(pair: Pair) -> str:
    """How many repeats would tell two samplers apart."""
    if pair.ties == pair.n:
        return "equal in every repeat"
    if math.isnan(pair.d_z):
        return "how many repeats it takes cannot be said"
    return f"more than {MOST_REPEATS:,} repeats" if pair.needed is None else f"about {rounded(pair.needed)} repeats"


def to_target(c: Comparison) -> list[str]:
    """How soon each sampler gets to the target: a description, not a test."""
    if c.n == 1 or not math.isfinite(c.target):
        return []
    parts = []
    for s in c.standings:
        when = f", the median after {s.reach.median_trials:g} trials" if math.isfinite(s.reach.median_trials) else ""
        parts.append(f"{s.sampler} in {sum(map(math.isfinite, s.reach.trials))} of {c.n}{when}")
    return [f"To reach {shown(c.objective, c.target)}: {'; '.join(parts)}."]


def label(objective: str) -> str:
    """An objective in words."""
    return "validation loss" if objective == "val_loss" else objective.replace("_", " ")


def shown(objective: str, cost: float) -> str:
    """A cost as the score that it stands for."""
    score = OBJECTIVES[objective] * cost
    return f"{score:.4g} nats" if objective == "val_loss" else f"{100 * score:.1f} %"


def amount(objective: str, cost: float) -> str:
    """A difference of costs with its unit."""
    if not math.isfinite(cost):
        return "no finite amount"
    return f"{cost:.2g} nats" if objective == "val_loss" else f"{100 * cost:.2g} points"


def between(objective: str, shift: Shift) -> str:
    """The interval of a difference."""
    if shift.low is None or shift.high is None or not math.isfinite(shift.low) or not math.isfinite(shift.high):
        return ""
    factor = 1 if objective == "val_loss" else 100
    return f" (95 % interval {factor * shift.low:.2g} to {factor * shift.high:.2g})"


def p_value(p: float) -> str:
    """A p-value in words."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def rounded(n: int) -> int:
    """A number of repeats to two digits, upwards: the effect behind it is not known better."""
    step: int = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step


def several(n: int, what: str) -> str:
    """A count with its noun."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def listed(names: Sequence[str]) -> str:
    """Names in a row."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
