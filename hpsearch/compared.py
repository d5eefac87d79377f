"""What studies of several samplers come to: which of them belong together, the comparison, its page and its JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.comparison import Comparison, compare, run_of
from hpsearch.errors import FixInput, FixSetup
from hpsearch.names import check_name
from hpsearch.places import Place
from hpsearch.spec import comparable
from hpsearch.types import OBJECTIVES, ComparisonEnded, Say, Status, StoredStudy, finite_json, say_nothing
from hpsearch.verdict import verdict

if TYPE_CHECKING:
    from hpsearch.report.versus import ComparisonView

PAGE, VALUES = "comparison.html", "comparison.json"  # in the comparison's folder
FREE = ("sampler", "seed", "repeat", "threads")  # of a study's identity: what those compared may differ in
LISTED = 12  # differences that an error lists


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of one sampler's trials, over all of its studies."""

    sampler: str
    studies: int
    trials: int
    trained: int  # the rest were reused
    reused: int
    pruned: int
    failed: int
    seconds: float  # of training, as charged to the sampler
    saved: float  # of these, not trained again


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison came to."""

    name: str
    comparison: Comparison
    notes: tuple[str, ...]  # what the studies differ in, and which were left out
    verdict: tuple[str, ...]
    tallies: tuple[Tally, ...]  # in the order of the comparison's standings
    policy: Mapping[str, str]  # sampler -> what it learns from pruned trials
    studies: tuple[str, ...]
    page: str
    values: str  # file
    at: float  # when the last trial ended, seconds since the epoch (UTC)
    seconds: float | None = None  # of this session
    tracking_problem: str | None = None
    ui_command: str | None = None


def look(where: Place, names: Sequence[str], name: str | None = None, anyway: bool = False, say: Say = say_nothing) -> Compared:
    """Compare studies that are there: two or more, or those of one earlier comparison.

    Raises NotFound for unknown names, FixInput where studies differ in more than their sampler, unless `anyway`.
    """
    from hpsearch.search.catalog import study_names
    from hpsearch.search.store import opened

    say("Reading the studies", 0, 0)
    with opened(where.storage) as storage:
        known = study_names(storage)
    chosen: list[str] = []
    for given in names:
        chosen += [given] if given in known else members(known, given) or [given]
    chosen = list(dict.fromkeys(chosen))
    if len(names) == 1 and len(chosen) == 1:
        raise FixInput(
            f"there is nothing to compare '{names[0]}' with: name two studies or more, or an earlier comparison (`hpsearch list` shows "
            "what is there), or a study file to run a comparison of samplers"
        )
    title = name if name is not None else names[0] if len(names) == 1 else None
    return conclude(title, chosen, where, whole=len(names) == 1, anyway=anyway)


def is_there(where: Place, name: str) -> bool:
    """Whether the storage has a study of that name, or an earlier comparison."""
    known = names_in(where)
    return name in known or bool(members(known, name))


def names_in(where: Place) -> list[str]:
    """The names of all studies; none where there is no storage."""
    from hpsearch.search.catalog import study_names
    from hpsearch.search.store import opened

    try:
        with opened(where.storage) as storage:
            return study_names(storage)
    except FixSetup:
        return []


def members(known: Sequence[str], name: str) -> list[str]:
    """The studies of an earlier comparison, repeat by repeat."""
    found = [(int(match[1]), study) for study in known if (match := re.fullmatch(rf"{re.escape(name)}-[a-z]+-r(\d+)", study))]
    return [study for _, study in sorted(found)]


def conclude(
    name: str | None,
    names: Sequence[str],
    where: Place,
    seconds: float | None = None,
    ui: str | None = None,
    whole: bool = False,
    anyway: bool = False,
    again: bool = True,
) -> Compared:
    """The comparison of those studies, with its page and its JSON; `whole` leaves out those that are not finished.

    Page and JSON that are there are written `again`, or left alone.
    """
    from hpsearch.search.catalog import read_study
    from hpsearch.search.samplers import POLICY
    from hpsearch.search.store import opened

    with opened(where.storage) as storage:
        studies = [read_study(storage, study) for study in names]
    for study in studies:
        if not study.uid:
            raise FixInput(f"the study '{study.name}' was not made by hpsearch, so nothing says what it searched: leave it out")
    studies, notes = finished(studies, whole)
    if changes := mixed(studies):
        if not anyway:
            raise FixInput(
                f"these studies differ in more than their sampler, so a comparison says nothing about samplers:\n{lines(changes)}\n"
                "leave out those that differ, or compare them --anyway, which the verdict and the page will say"
            )
        notes.append(f"These studies differ in more than their sampler, so this is no comparison of samplers alone: {'; '.join(changes)}.")
    objective = str(studies[0].spec["objective"])
    table = numbered(studies)
    runs = [run_of(str(s.spec["sampler"]), table[pair_of(s)], [replace(r, objective=objective) for r in s.records]) for s in studies]
    found = compare(runs, objective)
    order = [standing.sampler for standing in found.standings]
    name = check_name(name if name is not None else "-vs-".join(dict.fromkeys(str(s.spec["sampler"]) for s in studies)))
    folder = where.runs(name)
    result = Compared(
        name=name,
        comparison=found,
        notes=tuple(notes),
        verdict=verdict(found),
        tallies=tuple(tally(sampler, [s for s in studies if s.spec["sampler"] == sampler]) for sampler in order),
        policy={sampler: POLICY.get(sampler, "") for sampler in order},
        studies=tuple(s.name for s in studies),
        page=str(folder / PAGE),
        values=str(folder / VALUES),
        at=max((record.ended or 0.0 for s in studies for record in s.records), default=0.0),
        seconds=seconds,
        ui_command=ui,
    )
    if again or not (folder / PAGE).exists() or not (folder / VALUES).exists():
        from hpsearch.report.page import write_comparison_page

        write_comparison_page(view(result, studies[0]), folder / PAGE)
        write_values(result)
    return result


def write_values(result: Compared) -> None:
    """The comparison as JSON, beside its page."""
    Path(result.values).write_text(json.dumps(as_json(result), indent=2, allow_nan=False) + "\n")


def told(result: Compared) -> ComparisonEnded:
    """What MLflow is told."""
    found, sign = result.comparison, OBJECTIVES[result.comparison.objective]
    scores = {"repeats": float(found.n)}
    for s in found.standings:
        scores |= {f"mean_rank.{s.sampler}": s.rank, f"final_{found.objective}.{s.sampler}": sign * s.final.mean}
    return ComparisonEnded(result.name, result.verdict, scores, result.at, (result.page, result.values))


def view(result: Compared, study: StoredStudy) -> ComparisonView:
    """What the page is told."""
    from hpsearch.report.versus import ComparisonView

    return ComparisonView(
        name=result.name,
        spec=study.spec,
        comparison=result.comparison,
        notes=result.notes,
        verdict=result.verdict,
        tallies=[asdict(row) for row in result.tallies],
        policy=result.policy,
        studies=result.studies,
        generated=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


# ---------------------------------------------------------------- what may be compared


def finished(studies: Sequence[StoredStudy], whole: bool) -> tuple[list[StoredStudy], list[str]]:
    """The studies to compare, and what to say of those that are not finished; FixInput when fewer than two are left."""
    undone = [study for study in studies if unfinished(study)]
    if not undone:
        return list(studies), []
    listed = ", ".join(f"{s.name} ({sum(r.status.ended for r in s.records)} trials)" for s in undone[:LISTED])
    listed += f" and {len(undone) - LISTED} more" * (len(undone) > LISTED)
    if not whole:
        return list(studies), [f"Not finished, and compared as they are: {listed}."]
    left = [study for study in studies if study not in undone]
    if len(left) < 2:
        raise FixInput(f"nothing to compare yet, the studies are not finished: {listed}; repeat the command that began them to go on")
    return left, [f"Left out, because they are not finished: {listed}."]


def unfinished(study: StoredStudy) -> bool:
    """Whether trials of a study did not end, or all of the budget that it names is still to come."""
    return not study.records or not all(record.status.ended for record in study.records)


def mixed(studies: Sequence[StoredStudy]) -> list[str]:
    """What the studies differ in besides sampler, seed and repeat, each difference once.

    Where the data does not say how it is divided, another seed divides it in another way; studies of one seed must agree.
    """
    from hpsearch.search.records import differences

    first, found = studies[0], dict[str, None]()
    kept = {study.name: {k: v for k, v in comparable(study.spec).items() if k not in FREE} for study in studies}
    by_seed: dict[Any, StoredStudy] = {}
    for study in studies:
        found |= dict.fromkeys(f"{line} ({first.name}, {study.name})" for line in differences(kept[first.name], kept[study.name]))
        peer = by_seed.setdefault(study.spec["seed"], study)
        for other, key, what in ((peer, "data_digest", "images, labels or splits"), (first, "weights_digest", "pretrained weights")):
            if None not in (a := study.facts.get(key), b := other.facts.get(key)) and a != b:
                found[f"{what}: {b} -> {a} ({other.name}, {study.name})"] = None
    return list(found)


def lines(changes: Sequence[str]) -> str:
    """Differences, a line each."""
    shown = [f"  {change}" for change in changes[:LISTED]]
    return "\n".join(shown + ([f"  and {len(changes) - LISTED} more"] if len(changes) > LISTED else []))


def pair_of(study: StoredStudy) -> tuple[int, int]:
    """What makes studies of two samplers a pair."""
    return int(study.spec["seed"]), int(study.spec.get("repeat", 0))


def numbered(studies: Sequence[StoredStudy]) -> dict[tuple[int, int], int]:
    """A number for each pair: the repeat or the seed, where the other one is the same in all."""
    pairs = sorted({pair_of(study) for study in studies})
    seeds, repeats = ({pair[i] for pair in pairs} for i in (0, 1))
    if len(seeds) == 1:
        return {pair: pair[1] for pair in pairs}
    return {pair: pair[0] if len(repeats) == 1 else i for i, pair in enumerate(pairs)}


# ---------------------------------------------------------------- what came of it


def tally(sampler: str, studies: Sequence[StoredStudy]) -> Tally:
    """Count one sampler's trials."""
    ended = [record for study in studies for record in study.records if record.status.ended]
    reused = [record for record in ended if record.reused]
    return Tally(
        sampler=sampler,
        studies=len(studies),
        trials=len(ended),
        trained=len(ended) - len(reused),
        reused=len(reused),
        pruned=sum(record.status is Status.PRUNED for record in ended),
        failed=sum(record.status is Status.FAILED for record in ended),
        seconds=math.fsum(record.seconds for record in ended),
        saved=math.fsum(record.seconds for record in reused),
    )


def as_json(c: Compared) -> dict[str, Any]:
    """JSON-able form: scores in the objective's own units, null for what is not finite."""
    found, sign = c.comparison, OBJECTIVES[c.comparison.objective]
    tallies = {row.sampler: asdict(row) for row in c.tallies}
    score: Callable[[float | None], float | None] = lambda cost: None if cost is None else sign * cost  # noqa: E731
    samplers = [
        {
            **tallies[s.sampler],
            "finals": [score(cost) for cost in s.finals],
            "final": asdict(s.final.times(sign)),
            "ranks": s.ranks,
            "mean_rank": s.rank,
            "area": asdict(s.area),
            "area_seconds": asdict(s.area_seconds),
            "reach": asdict(s.reach),
            "policy": c.policy[s.sampler],
        }
        for s in found.standings
    ]
    values = {
        "comparison": c.name,
        "objective": found.objective,
        "repeats": found.repeats,
        "verdict": c.verdict,
        "notes": c.notes,
        "samplers": samplers,
        "pairs": [asdict(pair) | {"real": pair.real} for pair in found.pairs],
        "friedman": asdict(found.friedman),
        "target": score(found.target),
        "studies": c.studies,
        "page": c.page,
        "seconds": c.seconds,
        "tracking_problem": c.tracking_problem,
    }
    cleaned: dict[str, Any] = finite_json(values)
    return cleaned
