"""How a new study begins: with the best configurations of an earlier one, with recipes that are known to be good, or neither."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import RDBStorage

from hpsearch.errors import FixInput, NotFound
from hpsearch.portfolio import ESSENTIAL, family, recipes_for
from hpsearch.recipes import has_effect
from hpsearch.search.catalog import read_study
from hpsearch.search.records import HEADSTART, RECORD
from hpsearch.search.samplers import distributions, make_sampler, suggested
from hpsearch.search.store import opened
from hpsearch.seeds import repeat_seed, seed_for
from hpsearch.space import Space, bind_blocks, default_params
from hpsearch.spec import StudySpec
from hpsearch.types import OBJECTIVES, Params, Say, Status, StoredStudy, Value, point_key
from hpsearch.warm import Remark, fit, sentences


@dataclass(frozen=True, slots=True)
class Source:
    """What a warm start begins with."""

    study: str
    configurations: tuple[Params, ...]  # whole, best first, none twice


@dataclass(frozen=True, slots=True)
class HeadStart:
    """The trials that come right after the default recipe, and what there is to say about them."""

    trials: tuple[tuple[str, Params], ...] = ()  # origin and configuration
    remarks: tuple[str, ...] = ()


NOTHING = HeadStart()


# ---------------------------------------------------------------- the earlier study


def find_source(url: str, spec: StudySpec) -> Source | None:
    """What the study's warm start begins with, if it has one and no trial yet; creates nothing.

    Raises FixInput, NotFound or FixSetup when there is nothing to begin with.
    """
    wanted, name = spec.warm_start, spec.study_name()
    if wanted is None:
        return None
    if wanted.study == name:
        raise FixInput(f"a study cannot begin with its own trials, and this one is called '{name}' too: choose another --name")
    with opened(url) as storage:
        return None if trials_in(storage, name) else best_of(read_study(storage, wanted.study), spec.objective, wanted.top)


def best_of(stored: StoredStudy, objective: str, top: int) -> Source:
    """The best complete trials of a study, ranked by its own objective; FixInput or NotFound when it has none to offer."""
    theirs = stored.spec.get("objective")
    if theirs not in OBJECTIVES:
        raise FixInput(f"the study '{stored.name}' was not made by hpsearch, so nothing says what its trials are: begin with another one")
    if theirs != objective:
        raise FixInput(
            f"'{stored.name}' was a search for {theirs} and this is one for {objective}, so its best trials are best at something else: "
            f"give this study --objective {theirs}, or begin with a study of {objective}"
        )
    ranked = sorted((r.cost, r.number, r.params) for r in stored.records if r.status is Status.COMPLETE and r.cost < float("inf"))
    if not ranked:
        raise NotFound(
            f"no trial of '{stored.name}' is complete, so there is nothing to begin with: run it on, or begin with another study "
            "(`hpsearch list` shows them)"
        )
    found = {point_key(given): given for given in (whole(stored, params) for _, _, params in ranked)}
    return Source(stored.name, tuple(found.values())[:top])


def whole(stored: StoredStudy, params: Params) -> Params:
    """A trial's configuration with its model and what its study fixed, without what has no effect; all blocks are called so."""
    given = {"model": stored.spec.get("model"), **stored.spec.get("recipe", {}), **params}
    given = {name: value for name, value in given.items() if has_effect(name, given)}
    return given | ({"frozen_layers": "all"} if given.get("frozen_layers") == stored.facts.get("blocks") else {})


def trials_in(storage: RDBStorage, name: str) -> int:
    """How many trials a study has; none when there is no such study."""
    try:
        return storage.get_n_trials(storage.get_study_id_from_name(name))
    except KeyError:
        return 0


# ---------------------------------------------------------------- the study's own trials


def begin(storage: RDBStorage, spec: StudySpec, source: Source | None, blocks: int, say: Say) -> HeadStart:
    """How the study, whose space is bound, begins; tells `say` about it. Nothing when it has begun already."""
    trials = trials_in(storage, spec.study_name())
    if trials:
        asked = [f"Warm start from {spec.warm_start.study}"] if spec.warm_start else []
        for what in (*asked, *(["Portfolio"] if spec.portfolio else [])):
            say(f"{what}: ignored, this study has {trials:,} trial{'s' * (trials > 1)} already and keeps the ones it began with", 0, 0)
        return NOTHING
    found = head_start(spec, source, blocks)
    for line in found.remarks:
        say(line, 0, 0)
    return found


def head_start(spec: StudySpec, source: Source | None, blocks: int) -> HeadStart:
    """The trials that open a new study, each configuration once, and what there is to say about them."""
    space, fixed = spec.parameters(), spec.fixed()
    lead: dict[tuple[tuple[str, object], ...], tuple[str, Params]] = {point_key(default_params(space)): ("default", {})}
    lines: list[str] = []
    if source is not None:
        fits = [fitted(given, space, fixed, blocks) for given in source.configurations]
        new = add(lead, "warm", (params for params, _ in fits))
        lines.append(f"Warm start from {source.study}: {warm_words(len(fits), new)}")
        lines += [f"Warm start: {sentence}" for sentence in sentences([remark for _, remarks in fits for remark in remarks])]
    if spec.portfolio:
        kind = " and ".join(sorted({family(model) for model in spec.models}))
        fits = [fitted(recipe.settings, space, fixed, blocks) for recipe in recipes_for(spec.models)]
        sound = [params for params, remarks in fits if not any(essential(remark) for remark in remarks)]
        new = add(lead, "portfolio", sound)
        lines.append(f"Portfolio: {portfolio_words(kind, len(fits), len(sound), new)}")
    trials = tuple(lead.values())[1:]
    if len(trials) >= spec.trials:
        lines.append(
            f"{'Warm start' if source else 'Portfolio'}: the budget of {spec.trials} trials leaves room for {spec.trials - 1} of these"
        )
    return HeadStart(trials, tuple(lines))


def fitted(given: Mapping[str, Any], space: Space, fixed: Params, blocks: int) -> tuple[dict[str, Value], tuple[Remark, ...]]:
    """A configuration of the space, and what could not be taken; another model, and what the study fixes alike, need no word."""
    names = {p.name for p in space}
    fixed = {**fixed, "model": given.get("model")}
    bound = {name: bind_blocks(value, blocks) if name == "frozen_layers" else value for name, value in given.items()}
    return fit({name: value for name, value in bound.items() if name in names or fixed.get(name) != value}, space)


def add(lead: dict[Any, tuple[str, Params]], origin: str, configurations: Iterable[Params]) -> int:
    """Put those configurations behind the others that are not among them; how many were."""
    before = len(lead)
    for params in configurations:
        lead.setdefault(point_key(params), (origin, params))
    return len(lead) - before


def essential(remark: Remark) -> bool:
    """Whether a recipe would be another one without this value."""
    return remark.name in ESSENTIAL and (remark.kind == "outside" or remark.name != "learning_rate")


def initial(spec: StudySpec, n: int) -> HeadStart:
    """The `n` trials that every sampler of a comparison begins with in one repeat: the default recipe, and random configurations.

    They depend on seed, repeat and space alone. A space of few points has fewer.
    """
    space, seed = spec.parameters(), repeat_seed(spec.seed, spec.repeat)
    lead: dict[Any, tuple[str, Params]] = {point_key(default_params(space)): ("default", {})}
    for draw in range(20 * n):
        if len(lead) < n:
            add(lead, "initial", [drawn(space, seed_for(seed, draw, "initial"))])
    return HeadStart(tuple(lead.values())[1:])


def drawn(space: Space, seed: int) -> Params:
    """One random configuration."""
    asked = optuna.create_study(sampler=make_sampler("random", space, seed, 0)).ask()
    return suggested(asked, space, distributions(space))


# ---------------------------------------------------------------- in words


def warm_words(offered: int, new: int) -> str:
    """What became of the earlier study's best trials."""
    best = "its best trial" if offered == 1 else f"its {offered} best trials"
    if not new:
        return f"{best} come{'s' * (offered == 1)} to the default recipe here, or to one that opens the study already"
    if new < offered:
        return f"{best} come to {new} new configuration{'s' * (new > 1)} here, which open{'s' * (new == 1)} this study"
    return f"{best} open{'s' * (new == 1)} this study"


def portfolio_words(kind: str, offered: int, sound: int, new: int) -> str:
    """How many recipes open the study, and why not all."""
    text = f"{new or 'none'} of {offered} recipes for {kind} open{'s' * (new <= 1)} this study"
    reasons = [f"{offered - sound} need{'s' * (offered - sound == 1)} another learning rate, optimizer or depth than it has"] * (
        offered > sound
    )
    reasons += [f"{sound - new} {'are' if sound - new > 1 else 'is'} there already"] * (sound > new)
    return f"{text} ({'; '.join(reasons)})" if reasons else text


# ---------------------------------------------------------------- kept with the study


def began_with(storage: RDBStorage, name: str) -> HeadStart | None:
    """How a study began; None when it has not, or another program made it."""
    if not trials_in(storage, name):
        return None
    about = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(RECORD)
    return None if about is None else kept_in(about)


def keep(storage: RDBStorage, study_id: int, found: HeadStart) -> HeadStart:
    """Store how a study begins, unless it has begun; what is stored."""
    about = storage.get_study_user_attrs(study_id)[RECORD]
    if found != NOTHING and not storage.get_n_trials(study_id):
        about = about | {HEADSTART: {"trials": [[origin, dict(params)] for origin, params in found.trials], "remarks": list(found.remarks)}}
        storage.set_study_user_attr(study_id, RECORD, about)
    return kept_in(about)


def kept_in(about: Mapping[str, Any]) -> HeadStart:
    """How a study began, from its record."""
    kept = about.get(HEADSTART, {"trials": [], "remarks": []})
    return HeadStart(tuple((origin, params) for origin, params in kept["trials"]), tuple(kept["remarks"]))
