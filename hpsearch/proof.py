"""What a study can prove: its best configurations trained again, its references, and what each step from one to the next bought.

Pure functions of what the storage holds. Plans are lists of runs beside the search, so an interrupted proof goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from hpsearch.seeds import seed_for
from hpsearch.statistics import Estimate, mean_interval
from hpsearch.types import (
    OBJECTIVES,
    SIGNS,
    Judged,
    Params,
    Setup,
    Status,
    StoredStudy,
    Trial,
    TrialRecord,
    Value,
    best_record,
    is_winnable,
    point_key,
    score_of,
)

FACTORS = (1.0, 3.0, 10.0)  # times the default learning rate: what is new to the data wants larger steps than what was pretrained
SCRATCH: Params = {"frozen_layers": 0, "unfreeze_epochs": 0, "layer_decay": 1.0, "l2_sp": 0.0}
LABELS = {
    "majority": "majority class",
    "scratch": "from scratch",
    "probe": "linear probe",
    "default": "default recipe",
    "tuned": "default, best rate",
    "best": "best of the search",
}
KINDS = ("scratch", "probe", "tuned")  # each at the best of three learning rates, that none has an advantage
STEPS = {"pretraining": ("scratch", "tuned"), "unfreezing": ("probe", "tuned"), "the search": ("default", "best")}


@dataclass(frozen=True, slots=True)
class Repetition:
    """One way to train a configuration again."""

    name: str  # "seed-1", "fold-1"; "" for the study's own seed and split
    seed: int | None = None
    fold: int | None = None
    folds: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration of the search, trained again."""

    trial: int
    selected: float | None  # the score that it was selected by
    scores: Mapping[str, Estimate]  # over the repetitions that completed
    runs: Sequence[str]  # names of these
    failed: int = 0
    behind: Estimate | None = None  # the first one: by how much its objective is worse, paired by repetition


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the gain table: a way to come to a model."""

    name: str  # a key of LABELS
    scores: Mapping[str, Estimate]  # on the validation images
    test: Mapping[str, Estimate]  # on the test images, where they were looked at
    seconds: Estimate | None  # of one training
    epochs: int | None
    detail: str = ""
    runs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Gain:
    """What one step bought: the difference between two rows, positive where the second is better."""

    what: str  # a key of STEPS
    before: str
    after: str
    points: Mapping[str, Estimate]  # nats for val_loss, else shares; paired by repetition
    seconds: float  # of one training, after minus before
    reached: float | None  # seconds of training until the second is as good as the first; None: never
    until: float  # seconds of training that the first took to its best epoch
    cost: float = 0.0  # seconds of training that the step took by itself: the search


@dataclass(frozen=True, slots=True)
class Proof:
    """Everything proven so far."""

    winner: int | None = None  # trial
    confirmed: bool = False
    how: str = ""  # "5 fresh seeds", "5 folds"
    candidates: Sequence[Candidate] = ()  # ranked
    rows: Sequence[Row] = ()
    gains: Sequence[Gain] = ()
    openings: Sequence[Mapping[str, Any]] = ()  # of the test split, in order
    test: Judged | None = None  # the winner's model on the test images
    notes: Sequence[str] = ()


# ---------------------------------------------------------------- plans


def wanted(study: StoredStudy) -> bool:
    """Whether the study asks for anything beside its search."""
    return bool(study.spec.get("references") or repeats(study.spec))


def repeats(spec: Mapping[str, Any]) -> Mapping[str, int] | None:
    """How many of the best are trained again, and how often."""
    found: Mapping[str, int] | None = spec.get("confirm") or spec.get("cv")
    return found


def repetitions(spec: Mapping[str, Any]) -> tuple[Repetition, ...]:
    """Fresh seeds or folds; without either, the study's own seed and split."""
    asked = repeats(spec)
    if asked is None:
        return (Repetition(""),)
    n = asked["times"]
    if spec.get("cv"):
        return tuple(Repetition(f"fold-{i + 1}-of-{n}", fold=i, folds=n) for i in range(n))
    return tuple(Repetition(f"seed-{i}", seed=seed_for(spec["seed"], i, "confirm")) for i in range(1, n + 1))


def best_trials(study: StoredStudy, top: int) -> list[TrialRecord]:
    """The complete trials of the best scores, each configuration once."""
    seen: dict[tuple[tuple[str, Value], ...], TrialRecord] = {}
    for record in sorted(filter(is_winnable, study.records), key=lambda r: (r.cost, r.number)):
        seen.setdefault(point_key(record.params), record)
    return list(seen.values())[:top]


def outstanding(study: StoredStudy) -> tuple[str, tuple[Trial, ...]]:
    """What to run next beside the search, and what that is called; empty when everything is done.

    Later runs depend on earlier ones: references train for as many epochs as the confirmed winner, and at one learning rate of
    three, found with the first repetition.
    """
    done = {r.name for r in study.runs}
    stages = (("Confirming the best configurations", confirmations), ("Training references", rates), ("Repeating references", repeated))
    for title, plan in stages:
        missing = [trial for trial in plan(study) if trial.name not in done]
        if missing:
            return title, tuple(replace(trial, number=next_number(study) - i) for i, trial in enumerate(missing))
    return "", ()


def next_number(study: StoredStudy) -> int:
    """The first free number beside the search; they go down from -1."""
    return min((r.number for r in study.runs), default=0) - 1


def confirmations(study: StoredStudy) -> list[Trial]:
    """The best configurations on every repetition; by repetition, so that what one fold needs is kept once."""
    asked = repeats(study.spec)
    if asked is None:
        return []
    best = best_trials(study, asked["top"])
    return [confirmation(record, repetition) for repetition in repetitions(study.spec) for record in best]


def confirmation(record: TrialRecord, repetition: Repetition) -> Trial:
    """A trial's configuration trained again; all of one repetition draw the same random numbers."""
    r = repetition
    setup = Setup(f"confirm-{record.number:04d}-{r.name}", 0, record.number, r.seed, fold=r.fold, folds=r.folds)
    return Trial(-1, record.params, origin="confirm", setup=setup)


def again(record: TrialRecord) -> Trial:
    """A trial once more exactly as it was, to have its weights."""
    return Trial(-1, record.params, origin="winner", setup=Setup(f"again-{record.number:04d}", record.number, record.number))


def rates(study: StoredStudy) -> list[Trial]:
    """References at the first repetition, at each learning rate."""
    best, first = winner_of(study), repetitions(study.spec)[0]
    return [trial for kind in KINDS for factor in FACTORS if (trial := reference(study, best, kind, factor, first))]


def repeated(study: StoredStudy) -> list[Trial]:
    """References at the other repetitions, each at its best learning rate."""
    best, done = winner_of(study), completed(study)
    factors = {kind: best_factor(study, best, kind, done) for kind in (*KINDS, "default")}
    found: dict[str, Trial] = {}
    for r in repetitions(study.spec)[1:]:
        for kind, factor in factors.items():
            trial = None if factor is None else reference(study, best, kind, factor, r)
            if trial is not None:
                found[trial.name] = trial  # the default rate may be the best one
    return list(found.values())


def reference(study: StoredStudy, best: TrialRecord | None, kind: str, factor: float, r: Repetition) -> Trial | None:
    """The default recipe for as many epochs as the winner, from scratch or with everything frozen; None where it says nothing new."""
    default = study.default
    if not study.spec.get("references") or best is None or default is None:
        return None
    params = {**default.params, "epochs": best.params["epochs"]}
    rate = params["learning_rate"] = float(params["learning_rate"]) * factor  # type: ignore[arg-type]
    if kind == "scratch":
        if not pretrained(study):
            return None
        params |= SCRATCH
    elif kind == "probe":
        params |= {"frozen_layers": blocks(study, params), "unfreeze_epochs": 0}
    name = "-".join(part for part in ("default" if kind == "tuned" else kind, f"{params['epochs']}-epochs", f"lr-{rate:g}", r.name) if part)
    return Trial(-1, params, origin="reference", setup=Setup(name, 0, None, r.seed, kind == "scratch", r.fold, r.folds))


def pretrained(study: StoredStudy) -> bool:
    """Whether the study starts from weights."""
    return str(study.spec.get("weights", "DEFAULT")).lower() != "none"


def blocks(study: StoredStudy, params: Params) -> int:
    """Of the model that a configuration trains."""
    models: Mapping[str, Any] = study.facts.get("models", {})
    of: Mapping[str, Any] = models.get(str(params.get("model")), study.facts)
    return int(of["blocks"])


# ---------------------------------------------------------------- results


def completed(study: StoredStudy) -> dict[str, TrialRecord]:
    """The runs beside the search that have a score, by name."""
    return {r.name: r for r in study.runs if is_winnable(r)}


def best_factor(study: StoredStudy, best: TrialRecord | None, kind: str, done: Mapping[str, TrialRecord]) -> float | None:
    """The learning rate's factor that served a reference best at the first repetition."""
    first = repetitions(study.spec)[0]
    trials = {factor: reference(study, best, kind, factor, first) for factor in (FACTORS if kind in KINDS else FACTORS[:1])}
    found = {factor: done[trial.name] for factor, trial in trials.items() if trial is not None and trial.name in done}
    return min(found, key=lambda factor: (found[factor].cost, factor)) if found else None


def ranked(study: StoredStudy) -> tuple[Candidate, ...]:
    """The confirmed configurations by the mean of their objective, those that failed somewhere last."""
    asked, done = repeats(study.spec), completed(study)
    if asked is None:
        return ()
    found, runs = [], {}
    for record in best_trials(study, asked["top"]):
        mine = runs[record.number] = confirmed(study, record, done)
        if mine:
            names = tuple(run.name for run in mine.values())
            scored = estimates(list(mine.values()), overlap(study))
            found.append(Candidate(record.number, record.score, scored, names, asked["times"] - len(mine)))
    objective = str(study.spec.get("objective", "val_loss"))
    found.sort(key=lambda c: (c.failed, OBJECTIVES[objective] * c.scores[objective].mean, c.trial))
    return tuple(replace(c, behind=behind(runs[found[0].trial], runs[c.trial], overlap(study)) if i else None) for i, c in enumerate(found))


def confirmed(study: StoredStudy, record: TrialRecord, done: Mapping[str, TrialRecord]) -> dict[str, TrialRecord]:
    """The runs of a trial's configuration that have a score, by repetition."""
    names = {r.name: confirmation(record, r).name for r in repetitions(study.spec)}
    return {repetition: done[name] for repetition, name in names.items() if name in done}


def behind(first: Mapping[str, TrialRecord], other: Mapping[str, TrialRecord], shared: float) -> Estimate | None:
    """By how much the second configuration is worse, over the repetitions that both completed."""
    costs = [run.cost - first[repetition].cost for repetition, run in other.items() if repetition in first]
    return mean_interval(costs, overlap=shared) if costs else None


def winner_of(study: StoredStudy) -> TrialRecord | None:
    """The configuration that stood up best when trained again; without confirmation, the best trial."""
    best = best_record(study.records)
    order = ranked(study)
    if best is None or not order or not complete(study):
        return best
    return next(r for r in study.records if r.number == order[0].trial)


def explain_winner(study: StoredStudy) -> str:
    """Returns by what `winner_of` chose: the mean over confirmations once they are complete, the score of the search until then."""
    objective = str(study.spec.get("objective", "val_loss"))
    if ranked(study) and complete(study):
        return f"mean {objective} over {confirmed_on(study)}"
    return f"{objective} of the search"


def confirmed_on(study: StoredStudy) -> str:
    """Returns on what the best trials are trained again, such as "5 fresh seeds"; "" where they are not."""
    asked = repeats(study.spec)
    return "" if asked is None else f"{asked['times']} {'folds' if study.spec.get('cv') else 'fresh seeds'}"


def complete(study: StoredStudy) -> bool:
    """Whether every confirmation has ended."""
    done = {r.name for r in study.runs}
    return all(trial.name in done for trial in confirmations(study))


def estimates(runs: Sequence[TrialRecord], shared: float = 0.0) -> dict[str, Estimate]:
    """Means with intervals of every score that all runs have."""
    values = [scores(run) for run in runs]
    keys = [key for key in OBJECTIVES if all(key in found for found in values)]
    return {key: mean_interval([found[key] for found in values], overlap=shared) for key in keys}


def scores(record: TrialRecord) -> dict[str, float]:
    """Every score of a run at its kept epoch."""
    found = {key: score_of(key, record.val_loss, record.metrics) for key in OBJECTIVES}
    return {key: value for key, value in found.items() if value is not None}


def overlap(study: StoredStudy) -> float:
    """Images validated on per image trained on, where folds overlap; 0 for fresh seeds on one split."""
    asked = study.spec.get("cv")
    return 1 / (asked["times"] - 1) if asked else 0.0


def arms(study: StoredStudy) -> dict[str, dict[str, TrialRecord]]:
    """The runs behind each row of the gain table, by repetition."""
    best, default, done = winner_of(study), study.default, completed(study)
    found: dict[str, dict[str, TrialRecord]] = {}
    for kind in ("scratch", "probe", "default", "tuned"):
        factor = best_factor(study, best, kind, done)
        trials = {} if factor is None else {r.name: reference(study, best, kind, factor, r) for r in repetitions(study.spec)}
        found[kind] = {name: done[trial.name] for name, trial in trials.items() if trial is not None and trial.name in done}
    if best is not None:
        found["best"] = confirmed(study, best, done) if repeats(study.spec) else {"": best}
    if default is not None and is_winnable(default) and not found["default"] and not repeats(study.spec):
        found["default"] = {"": default}
    return {kind: runs for kind, runs in found.items() if runs}


Arms: TypeAlias = Mapping[str, Mapping[str, TrialRecord]]


def rows(study: StoredStudy, groups: Arms, best: TrialRecord, judged: Mapping[str, Judged]) -> tuple[Row, ...]:
    """The gain table."""
    shared, found = overlap(study), list(majority(study))
    for kind, runs in groups.items():
        listed = list(runs.values())
        names = tuple(run.name for run in listed)
        seen = [judged[name] for name in names if name in judged]
        test = {"val_loss": [j.loss for j in seen]} | {key: [j.metrics[key] for j in seen] for key in OBJECTIVES if has(seen, key)}
        estimated = {key: mean_interval(values, overlap=shared) for key, values in test.items() if values}
        seconds = mean_interval([run.seconds for run in listed])
        epochs = int(float(str(listed[0].params["epochs"])))
        found.append(Row(kind, estimates(listed, shared), estimated, seconds, epochs, detail(study, kind, best, listed[0]), names))
    return tuple(found)


def has(judged: Sequence[Judged], key: str) -> bool:
    """Whether all of them have a metric."""
    return bool(judged) and all(key in j.metrics for j in judged)


def detail(study: StoredStudy, kind: str, best: TrialRecord, run: TrialRecord) -> str:
    """What a reader should know of a row with such runs."""
    if kind == "best":
        return f"trial {best.number}"
    if kind == "default" or study.default is None:
        return "trial 0's configuration"
    rate = float(str(study.default.params["learning_rate"]))
    tried = ", ".join(f"{rate * factor:g}" for factor in FACTORS)
    return f"learning rate {run.params['learning_rate']:g}, best of {tried}"


def majority(study: StoredStudy) -> Iterable[Row]:
    """Always the commonest training class, with the training frequencies as probabilities (plus one image each: Laplace)."""
    counts = study.facts.get("class_counts", {})
    train, val = counts.get("train"), counts.get("val")
    if not study.spec.get("references") or not train or not val or sum(val) == 0:
        return
    n, k, total = sum(val), len(val), sum(train) + len(train)
    top = max(range(k), key=lambda c: train[c])
    accuracy = val[top] / n
    loss = -math.fsum(v * math.log((t + 1) / total) for t, v in zip(train, val, strict=True)) / n
    five = sorted(range(k), key=lambda c: (-train[c], c))[:5]
    present = sum(v > 0 for v in val) or 1
    found = {
        "val_loss": loss,
        "accuracy": accuracy,
        "balanced_accuracy": (val[top] > 0) / present,
        "precision": accuracy / k,
        "recall": (val[top] > 0) / k,
        "f1": 2 * accuracy / (1 + accuracy) / k,
        **({"top5": sum(val[c] for c in five) / n} if k > 5 else {}),
    }
    yield Row("majority", {key: Estimate(value, 1) for key, value in found.items()}, {}, None, None, "no training")


def gains(study: StoredStudy, groups: Arms) -> tuple[Gain, ...]:
    """What pretraining, unfreezing and the search bought, paired by repetition."""
    found, shared = [], overlap(study)
    for what, (before, after) in STEPS.items():
        pairs = [(a, groups[after][name]) for name, a in groups.get(before, {}).items() if name in groups.get(after, {})]
        if not pairs:
            continue
        each = [{key: OBJECTIVES[key] * (scores(a)[key] - scores(b)[key]) for key in scores(a) if key in scores(b)} for a, b in pairs]
        keys = [key for key in OBJECTIVES if all(key in values for values in each)]
        points = {key: mean_interval([values[key] for values in each], overlap=shared) for key in keys}
        times = [reach(a, b) for a, b in pairs]
        reached = None if None in times else math.fsum(t for t in times if t is not None) / len(times)
        until = math.fsum(best_at(a) for a, _ in pairs) / len(pairs)
        longer = math.fsum(b.seconds - a.seconds for a, b in pairs) / len(pairs)
        cost = math.fsum(r.seconds for r in study.records) if what == "the search" else 0.0
        found.append(Gain(what, before, after, points, longer, reached, until, cost))
    return tuple(found)


def best_at(record: TrialRecord) -> float:
    """Seconds of training until a run's kept epoch."""
    return next((row["seconds"] for row in record.curve if row["epoch"] == record.best_epoch), record.seconds)


def reach(a: TrialRecord, b: TrialRecord) -> float | None:
    """Seconds of training until run b was as good as run a came to be."""
    sign = SIGNS[a.objective]
    return next((row["seconds"] for row in b.curve if a.objective in row and sign * row[a.objective] <= a.cost), None)


def proof_of(study: StoredStudy) -> Proof:
    """Everything proven so far."""
    best, order = winner_of(study), ranked(study)
    groups = arms(study) if wanted(study) else {}
    last = study.openings[-1] if study.openings else None
    judged = {j["name"]: Judged.from_json(j) for j in last["judged"]} if last and best and last["trial"] == best.number else {}
    failed = [f"{r.name}: {r.error}" for r in study.runs if r.status is Status.FAILED]
    notes = [*([] if pretrained(study) or not wanted(study) else ["The study itself starts from scratch."]), *failed]
    return Proof(
        winner=best.number if best else None,
        confirmed=bool(order) and complete(study),
        how=confirmed_on(study),
        candidates=order,
        rows=rows(study, groups, best, judged) if groups and best else (),
        gains=gains(study, groups) if best else (),
        openings=study.openings,
        test=judged.get(best.name) if best else None,
        notes=tuple(notes),
    )


def proven(study: StoredStudy) -> Proof | None:
    """Everything proven so far; None for a study that asked for nothing beside its search, and whose test images nobody saw."""
    return proof_of(study) if wanted(study) or study.openings else None
