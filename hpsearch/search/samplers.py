"""Samplers and pruners by name, and the policy of each towards pruned trials."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna._transform import _SearchSpaceTransform as SearchSpaceTransform
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.trial import FrozenTrial

from hpsearch.errors import FixSetup
from hpsearch.search.history import History
from hpsearch.seeds import seed_for
from hpsearch.space import Parameter, Space, searched
from hpsearch.spec import PrunerSpec
from hpsearch.types import Value

STARTUP_TRIALS = 10  # trials a model-based sampler draws at random before it models
MODELS_FROM = {"tpe": STARTUP_TRIALS, "gp": STARTUP_TRIALS, "cmaes": 2}  # complete trials; the other samplers model nothing
# Modules a sampler imports lazily, some only at its tenth trial: looked for before the first.
NEEDS: Mapping[str, tuple[str, ...]] = {"gp": ("torch", "scipy"), "cmaes": ("cmaes",), "qmc": ("scipy",)}

POLICY: Mapping[str, str] = {
    "grid": "Grid points are enumerated; results do not influence them. A pruned point counts as tried.",
    "random": "Random draws; results do not influence them.",
    "qmc": "A scrambled Sobol sequence; results do not influence it.",
    "tpe": "TPE learns from complete and from pruned trials: a pruned trial ranks below all complete ones, by how far it came and its best "
    "validation loss until then. Trials that run beside it count as bad, so that it looks elsewhere. Failed trials teach it nothing.",
    "gp": "The Gaussian process learns from complete trials only; pruned and failed trials teach it nothing, and until "
    f"{STARTUP_TRIALS} are complete it draws at random.",
    "cmaes": "CMA-ES learns from complete trials only; pruned and failed trials teach it nothing. Choices such as the batch size, without "
    "order, are drawn at random.",
}


def ask_ahead(sampler: str, workers: int) -> int:
    """How many trials are asked for before a worker is free.

    A GP's ask takes 0.2 s and more, longer than it may keep a worker waiting; one of TPE's 7 ms, which adds up where many workers are free
    at once. What is asked ahead does not know the results of that many trials fewer than run anyway.
    """
    return {"gp": 1, "tpe": workers // 16}.get(sampler, 0)


def preflight(sampler: str) -> None:
    """Raise FixSetup when a module that the sampler will need is not installed."""
    for module in NEEDS.get(sampler, ()):
        if importlib.util.find_spec(module) is None:
            raise FixSetup(f"the sampler '{sampler}' needs the package '{module}': pip install {module}")


class Patient(optuna.pruners.BasePruner):
    """Lets a trial go on while it still improves (Prechelt, 1998): asks `inner` only after `patience` reports without a better one.

    Reports are best losses so far, which never rise (negated in a study that maximises); Optuna's PatientPruner waits for a rise.
    """

    def __init__(self, inner: optuna.pruners.BasePruner | None, patience: int, warmup: int) -> None:
        self.inner, self.patience, self.warmup = inner, patience, warmup

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial stops at its last report; without `inner`, when it has not improved for long enough."""
        sign = 1 if study.direction is optuna.study.StudyDirection.MINIMIZE else -1
        reports = [sign * value for _, value in sorted(trial.intermediate_values.items())]
        if len(reports) <= self.patience or (trial.last_step or 0) < self.warmup or reports[-1] < reports[-1 - self.patience]:
            return False
        return self.inner is None or self.inner.prune(study, trial)


class Median(optuna.pruners.BasePruner):
    """Optuna's MedianPruner, which looks through all trials at every report; this one asks the study's history."""

    def __init__(self, history: History, startup: int, warmup: int) -> None:
        self.history, self.startup, self.warmup = history, startup, warmup

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the best report so far is worse than the median of complete trials at this step."""
        del study
        step = trial.last_step
        if step is None or step < self.warmup or self.history.complete < max(1, self.startup):
            return False
        median, sign = self.history.median(step), self.history.sign
        return median is not None and min(sign * value for value in trial.intermediate_values.values()) > sign * median


class Told(optuna.samplers.BaseSampler):
    """A sampler told which parameters it models jointly; it draws the others one by one, when their condition holds.

    Optuna works the joint space out of all trials at every ask. Where some trials lack a parameter this costs it its way:
    CMA-ES draws at random for good once the space has shrunk, and Sobol's sequence begins anew. `look`: the study as it is shown to it.
    """

    def __init__(
        self,
        inner: optuna.samplers.BaseSampler,
        space: Mapping[str, BaseDistribution],
        look: Callable[[optuna.Study], optuna.Study] = lambda study: study,
    ) -> None:
        self.inner, self.space, self.look = inner, dict(space), look

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What is modelled jointly."""
        del study, trial
        return self.space

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """One point of the joint space; nothing while the sampler still draws at random."""
        return self.inner.sample_relative(self.look(study), trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """One parameter by itself."""
        return self.inner.sample_independent(self.look(study), trial, param_name, param_distribution)


class CmaEsSampler(optuna.samplers.CmaEsSampler):
    """CMA-ES (Hansen and Ostermeier, 2001) whose optimizer is rebuilt from the trials at every ask.

    Optuna's sampler keeps the optimizer as a pickle among the attributes of trials, and loads it from there: whoever can write a storage
    could run code here. What is told again, generation by generation, is what Optuna told it.
    """

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Returns one point of the joint space, {} while the sampler still draws at random."""
        self.rebuilt_for = search_space, study.direction
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Returns the optimizer after the last whole generation; Optuna's reads a pickle."""
        space, direction = self.rebuilt_for
        transform = SearchSpaceTransform(space, transform_step=True, transform_0_1=True)
        random = self._cma_rng
        if any(t.system_attrs.get(self._attr_key_generation, 0) for t in completed_trials):
            self._cma_rng = LazyRandomState(0)  # Optuna draws a seed here only as long as there is no optimizer to load
        optimizer = self._init_optimizer(transform, direction)
        self._cma_rng = random
        sign = 1.0 if direction is optuna.study.StudyDirection.MINIMIZE else -1.0
        size = optimizer.population_size
        while len(told := self._get_solution_trials(completed_trials, optimizer.generation)) >= size:
            optimizer.tell([(transform.transform(t.params), sign * t.value) for t in told[:size] if t.value is not None])
            if self._get_solution_trials(completed_trials, optimizer.generation):
                optimizer = copy.deepcopy(optimizer)  # which rounds its covariance as loading it does
        return optimizer


def make_sampler(name: str, space: Space, study_seed: int, trial: int, history: History | None = None) -> optuna.samplers.BaseSampler:
    """The sampler called `name`, seeded for one ask. With the study's `history`, TPE looks at a part of a long one.

    A fresh one for every ask makes a suggestion a function of the history and the seed alone, so that an interrupted
    study goes on as it would have. Sobol points are one sequence per study: their seed is the study's.
    """
    seed = seed_for(study_seed, trial, "sampler")
    joint = joint_space(name, space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":  # multivariate (Bergstra et al., 2011; Falkner et al., 2018; Watanabe, 2023)
                tpe = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
                return Told(tpe, joint) if history is None else Told(tpe, joint, lambda study: history.glimpse(study, seed))
            case "gp":
                return Told(optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS), joint)
            case "qmc":
                sobol = optuna.samplers.QMCSampler(seed=seed_for(study_seed, 0, "qmc"), scramble=True, warn_independent_sampling=False)
                return Told(sobol, joint)
            case "cmaes":
                return Told(CmaEsSampler(seed=seed, n_startup_trials=MODELS_FROM["cmaes"], warn_independent_sampling=False), joint)
            case _:
                return optuna.samplers.RandomSampler(seed=seed)


def describe_limits(sampler: str, space: Space) -> str:
    """Returns what a sampler cannot do in a space, said before the first trial; "" where there is nothing to say."""
    varied = [p for p in searched(space) if not distribution(p).single()]
    if not varied:
        return "nothing is searched: every trial repeats the default recipe with other random numbers"
    if sampler == "cmaes" and not joint_space(sampler, space):
        return "CMA-ES models numbers, and only choices are searched here: they are drawn at random"
    return ""


def describe_random(sampler: str, counts: Mapping[str, int]) -> str:
    """Returns that a model-based sampler has drawn at random, where too few trials have ended for a model; "" where it has modelled.

    Args:
        sampler: Its name.
        counts: Trials by status. TPE models from complete and pruned ones, the others from complete ones alone.
    """
    least = MODELS_FROM.get(sampler, 0)
    told = counts.get("COMPLETE", 0) + (counts.get("PRUNED", 0) if sampler == "tpe" else 0)
    if told >= least or sum(counts.values()) < 2:
        return ""
    kind = "complete or pruned" if sampler == "tpe" else "complete"
    return f"{sampler} models from {least} {kind} trials on; {told} are, so these configurations were drawn at random"


def suggested(asked: optuna.Trial, space: Space, varied: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    """What a study's sampler proposes for a trial just asked for; `varied` are the space's `distributions`."""
    params: dict[str, Value] = {p.name: p.default for p in space if p.name not in varied}
    for p in space:  # parents first
        if p.name in varied and p.active(params):
            params[p.name] = asked._suggest(p.name, varied[p.name])
    return params


def joint_space(sampler: str, space: Space) -> dict[str, BaseDistribution]:
    """What a sampler models together: all that is always used, and for Sobol's sequence, which learns nothing, a coordinate of each.

    CMA-ES knows no choices.
    """
    varied = {p.name: distribution(p) for p in searched(space) if not p.when or sampler == "qmc"}
    open_ones = {name: dist for name, dist in varied.items() if not dist.single()}
    if sampler == "qmc":
        return open_ones
    if sampler == "cmaes":
        open_ones = {name: dist for name, dist in open_ones.items() if not isinstance(dist, CategoricalDistribution)}
    return dict(sorted(open_ones.items()))  # Optuna's order


def make_pruner(spec: PrunerSpec, history: History, name: str | None = None) -> optuna.pruners.BasePruner:
    """The pruner called for, on reports in percent of a trial's planned epochs (10, 20 .. 100)."""
    first = max(1, round(100 * spec.warmup))
    name = name or spec.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "median":
                return Median(history, spec.startup_trials, first)
            case "halving":  # inside `patient`: it stops for good; by itself, `rungs.Rungs` decides
                return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=spec.reduction_factor)
            case "hyperband":
                return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=100, reduction_factor=spec.reduction_factor)
            case "patient":
                return Patient(None if spec.around == "none" else make_pruner(spec, history, spec.around), spec.patience, first)
            case _:
                return optuna.pruners.NopPruner()


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the parameters that vary, in value or in being used at all."""
    return {p.name: distribution(p) for p in searched(space)}


def distribution(p: Parameter) -> BaseDistribution:
    """One parameter as Optuna's distribution."""
    if p.kind == "float":
        return FloatDistribution(p.low, p.high, log=p.log)
    if p.kind == "int":
        return IntDistribution(int(p.low), int(p.high), log=p.log)
    return CategoricalDistribution(p.choices)
