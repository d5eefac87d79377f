"""A comparison of samplers as blocks of a page: what it says, each sampler, each pair, each run, who learns what from pruned trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpsearch.report.blocks import Cell, Grid, csv_link
from hpsearch.report.comparison import pair_table, raw
from hpsearch.report.objective import objective
from hpsearch.report.proof import Statements
from hpsearch.report.tables import frame
from hpsearch.report.words import NONE, Card, between, bounds, duration, number, score, several
from hpsearch.verdict import ahead, basis, cautions, p_value, real, to_target, too_few, undecided

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpsearch.comparison import Comparison, Standing


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """Everything a page may say about a comparison; gathered by the caller, who owns the storage."""

    name: str
    spec: Mapping[str, Any]  # of one of the studies; their sampler and repeat differ
    comparison: Comparison
    notes: tuple[str, ...]  # what makes it less than a comparison of samplers
    verdict: tuple[str, ...]
    tallies: Sequence[Mapping[str, Any]]  # one a sampler: trials, trained, reused, pruned, failed, seconds, saved
    policy: Mapping[str, str]  # sampler -> what it learns from pruned trials
    studies: tuple[str, ...]
    generated: str  # UTC


def headline(c: Comparison) -> str:
    """The verdict in a sentence or two."""
    return too_few(c.n, len(c.standings)) or ahead(c)


def said(view: ComparisonView) -> Statements:
    """The whole verdict, below what makes it less than a comparison of samplers."""
    c = view.comparison
    few = too_few(c.n, len(c.standings))
    parts = {
        "compared": [basis(c), *cautions(c)],
        "found": [few] if few else [ahead(c), *real(c)],
        "undecided": undecided(c),
        "target": to_target(c),
    }
    return Statements(tuple((about, " ".join(texts)) for about, texts in parts.items() if texts), view.notes)


def policies(view: ComparisonView) -> Statements:
    """What each sampler learns from pruned trials."""
    common = "A pruned trial counts as a trial and as time, never as a best value: it was cut short."
    return Statements((("pruned trials", common), *view.policy.items()))


def cards(view: ComparisonView) -> list[Card]:
    """The header's key numbers."""
    c, goal = view.comparison, objective({"objective": view.comparison.objective})
    total = {key: sum(row[key] for row in view.tallies) for key in ("trials", "trained", "reused", "pruned", "failed", "seconds", "saved")}
    first = c.standings[0]
    shares = ", ".join(f"{total[key]:,} {key}" for key in ("trained", "reused", "pruned", "failed") if total[key])
    best, ahead_of = score(goal, raw(goal, c.best)), sum(pair.real for pair in c.pairs if pair.better == first.sampler)
    sure = f"better than {several(ahead_of, 'other')}, by test" if ahead_of else "no more than noise"
    return [
        Card("Repeats", f"{c.n:,}", f"of each of {several(len(c.standings), 'sampler')}"),
        Card("Best mean rank", f"{first.rank:.2f}", f"{first.sampler}: {sure}"),
        Card(f"Best {goal.label} of all", best, "over all runs"),
        Card("Trials", f"{total['trials']:,}", shares),
        Card("Training time", duration(total["seconds"] - total["saved"]), "of what was trained, sum over trials"),
        Card("Saved by reuse", duration(total["saved"]), "trials that another sampler had trained"),
    ]


def chips(view: ComparisonView) -> list[tuple[str, str]]:
    """What was compared on, in a line."""
    spec = view.spec
    shown = [(key, str(spec[key])) for key in ("model", "data") if spec.get(key) is not None]
    goal = objective({"objective": view.comparison.objective})
    pruner = spec.get("pruner") or {}
    return [*shown, ("objective", goal.label), ("pruner", str(pruner.get("name"))), ("seed", str(spec.get("seed")))]


# ---------------------------------------------------------------- tables


def samplers(view: ComparisonView) -> Grid:
    """One row a sampler, the best mean rank first."""
    c, goal = view.comparison, objective({"objective": view.comparison.objective})
    rows, values = [], []
    fates = ("trained", "reused", "pruned", *(["failed"] if any(row["failed"] for row in view.tallies) else []))
    for s, row in zip(c.standings, view.tallies, strict=True):
        final = s.final.times(goal.sign)
        ends = bounds(goal, final)
        middle = s.reach.median_trials
        counts = [row[key] for key in fates]
        rows.append(
            (
                "",
                (
                    Cell(s.sampler, s.sampler, "name"),
                    figure(score(goal, final.mean, unit=False), final.mean),
                    Cell(between(goal, *ends) if ends else NONE, "", "num"),
                    figure(f"{s.rank:.2f}", s.rank),
                    figure(number(round(s.area.mean, 3)), s.area.mean),
                    figure(f"{middle:g}" if math.isfinite(middle) else "never", middle if math.isfinite(middle) else 1e9),
                    *(figure(f"{n:,}", n) for n in counts),
                    figure(duration(row["seconds"]), row["seconds"]),
                ),
            )
        )
        values.append((s.sampler, raw(goal, s.final.mean), *(ends or (None, None)), s.rank, s.area.mean, middle, *counts, row["seconds"]))
    found = (f"final value ({'nats' if goal.is_loss else '%'})", "95 % interval", "mean rank", "mean regret", "trials to target")
    columns = tuple((head, "num") for head in (*found, *fates, "training"))
    names = ["sampler", "final", "low", "high", "mean_rank", "mean_regret", "median_trials_to_target"]
    table = frame(values, [*names, *fates, "seconds"])
    note = "Mean regret: 0 is the best value known, 1 where runs begin. Training: seconds as charged, reused trials at what they took."
    return Grid("Each sampler", (("sampler", "text"), *columns), tuple(rows), *link(view, "samplers", table), note=note)


def pair_grid(view: ComparisonView) -> Grid:
    """One row a pair, the surest first."""
    c, goal = view.comparison, objective({"objective": view.comparison.objective})
    unit, digits = ("nats", 4) if goal.is_loss else ("points", 2)
    rows = []
    for p in c.pairs:
        shift = p.shift
        low, high = (math.nan if end is None else goal.factor * end for end in (shift.low, shift.high))
        ends = f"[{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(high - low) else NONE
        amount = goal.factor * shift.median
        needed = f"{p.needed:,}" if p.needed is not None else NONE
        rows.append(
            (
                "best" if p.real else "",
                (
                    Cell(p.better, p.better, "name"),
                    Cell(p.worse, p.worse, "name"),
                    figure(f"{amount:.{digits}f}" if math.isfinite(amount) else NONE, amount if math.isfinite(amount) else 1e9),
                    Cell(ends, "", "num"),
                    figure(f"{p.wins} of {p.n}" + (f", {p.ties} equal" if p.ties else ""), p.wins),
                    figure(p_value(p.p).removeprefix("p ").removeprefix("= "), p.p),
                    figure(p_value(p.holm).removeprefix("p ").removeprefix("= "), p.holm),
                    figure(f"{p.d_z:.2f}" if math.isfinite(p.d_z) else NONE, p.d_z if math.isfinite(p.d_z) else -1e9),
                    figure(needed, p.needed or 1e9),
                    Cell("real" if p.real else "within the noise", "", "name"),
                ),
            )
        )
    heads = [("better", "text"), ("than", "text")]
    heads += [(head, "num") for head in (f"by ({unit})", "95 % interval", "in repeats", "p", "p, Holm", "effect d_z", "repeats needed")]
    note = "Wilcoxon's signed-rank test over paired repeats; the difference is the pseudo-median (Hodges and Lehmann)."
    pairs = link(view, "pairs", pair_table(c))
    return Grid("Each pair", (*heads, ("difference", "text")), tuple(rows), *pairs, note=note)


def runs(view: ComparisonView) -> Grid:
    """One row a study."""
    c, goal = view.comparison, objective({"objective": view.comparison.objective})
    rows, values = [], []
    by_name: Mapping[str, Standing] = {s.sampler: s for s in c.standings}
    for run in c.runs:
        standing = by_name[run.sampler]
        rank = standing.ranks[c.repeats.index(run.repeat)]
        final, spent = raw(goal, run.final), run.seconds[-1] if run.seconds else 0.0
        pruned = sum(run.pruned)
        rows.append(
            (
                "",
                (
                    Cell(run.sampler, run.sampler, "name"),
                    figure(str(run.repeat), run.repeat),
                    figure(score(goal, final, unit=False), final if final is not None else 1e9),
                    figure(f"{rank:g}", rank),
                    figure(f"{len(run.costs):,}", len(run.costs)),
                    figure(f"{pruned:,}", pruned),
                    figure(duration(spent), spent),
                ),
            )
        )
        values.append((run.sampler, run.repeat, final, rank, len(run.costs), pruned, spent))
    unit = "nats" if goal.is_loss else "%"
    heads = ("repeat", f"final value ({unit})", "rank", "trials", "pruned", "training")
    table = frame(values, ["sampler", "repeat", goal.name, "rank", "trials", "pruned", "seconds"])
    title = f"Each of {several(len(rows), 'run')}"
    return Grid(title, (("sampler", "text"), *((head, "num") for head in heads)), tuple(rows), *link(view, "runs", table), sortable=True)


def figure(text: str, value: float) -> Cell:
    """A number, sorted by its value."""
    return Cell(text, float(value), "num")


def link(view: ComparisonView, name: str, table: Any) -> tuple[str, str]:
    """A table's CSV."""
    return csv_link(view, name, table)


VERSUS: Mapping[str, Callable[[ComparisonView], Grid | Statements]] = {
    "verdict": said,
    "samplers": samplers,
    "pair_table": pair_grid,
    "runs": runs,
    "policies": policies,
}
"""What besides figures a page about samplers can show."""
