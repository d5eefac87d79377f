"""Trials that other programs put into a study of ours: enqueued ones are trained, results are learned from, where they fit its space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.records import RECORD
from hpsearch.space import Space
from hpsearch.types import Params, Value

ENQUEUED = "enqueued"  # the origin of a trial that another program asked for
ADDED = "added"  # of one that another program trained


def is_foreign(trial: FrozenTrial) -> bool:
    """Whether another program made the trial."""
    return not isinstance(trial.user_attrs.get(RECORD), dict)


def params_of_enqueued(trial: FrozenTrial, space: Space, varied: Mapping[str, BaseDistribution]) -> Params | str:
    """Returns the configuration that `study.enqueue_trial` asked for, or why it cannot be trained.

    What it leaves open is as in the default recipe.
    """
    asked: dict[str, Any] = {**trial.params, **as_mapping(trial.system_attrs.get("fixed_params"))}
    params: dict[str, Value] = {}
    for p in space:
        if not p.active(params):
            continue
        value = asked.pop(p.name, p.default)
        if p.name not in varied and value != p.default:
            return f"{p.name} is {value!r}, and the study fixes it to {p.default!r}"
        if p.name in varied and not contains(varied[p.name], value):
            return f"{p.name} is {value!r}, outside the study's space"
        params[p.name] = value
    if asked:
        return f"the study has no {', '.join(sorted(asked))}"
    return params


def is_comparable(trial: FrozenTrial, space: Space, varied: Mapping[str, BaseDistribution]) -> bool:
    """Whether a result of another program says something about a configuration of this space: it has all of it, and within its bounds."""
    params: dict[str, Value] = {}
    for p in space:
        if p.active(params):
            if p.name not in trial.params and p.name in varied:
                return False
            params[p.name] = trial.params.get(p.name, p.default)
            if p.name in varied and not contains(varied[p.name], params[p.name]):
                return False
    return True


def enter(trial: FrozenTrial, space: Space, varied: Mapping[str, BaseDistribution]) -> None:
    """Makes an ended trial of another program one that samplers can learn from: within the study's space, or as good as failed."""
    if not is_comparable(trial, space, varied) or (trial.state is TrialState.COMPLETE and len(trial.values or ()) != 1):
        trial.state, trial.values, trial.params, trial.distributions = TrialState.FAIL, None, {}, {}
        return
    trial.params = {name: value for name, value in trial.params.items() if name in varied}
    trial.distributions = {name: varied[name] for name in trial.params}


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def as_mapping(value: object) -> Mapping[str, Any]:
    """Returns a mapping, an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}
