"""Reading studies back: lists, records, importances. Never writes."""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection

from hpsearch.errors import NotFound, nearest
from hpsearch.recipes import told
from hpsearch.search.records import HEADSTART, check_layout, fixed_of, openings_of, record_of, runs_of, study_record
from hpsearch.types import MAXIMIZED, SEVERAL, VALUE, Status, StoredStudy


def study_names(storage: RDBStorage) -> list[str]:
    """Names of all studies, sorted."""
    return sorted(study.study_name for study in storage.get_all_studies())


def read_study(storage: RDBStorage, name: str) -> StoredStudy:
    """A study with its trials; NotFound, with the nearest name, when there is none of that name."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except (KeyError, UnicodeEncodeError):  # the latter for bytes of the command line that are no text
        known = study_names(storage)
        raise NotFound(f"no study {told(name)}: {nearest(name, known) if known else 'the storage is empty'}") from None
    attributes = storage.get_study_user_attrs(study_id)
    stored = study_record(attributes)
    check_layout(name, stored)
    spec = stored["spec"] if "spec" in stored else {"objective": foreign_objective(storage.get_study_directions(study_id))}
    fixed = fixed_of(spec)
    trials = sorted(storage.get_all_trials(study_id, deepcopy=False), key=lambda t: t.number)
    objective = spec.get("objective", "val_loss")
    records, openings = tuple(record_of(t, fixed, objective) for t in trials), openings_of(attributes)
    remarks = tuple(stored.get(HEADSTART, {}).get("remarks", ()))
    runs = runs_of(attributes, objective)
    return StoredStudy(name, spec, stored.get("facts", {}), records, runs, openings, remarks, stored.get("uid", ""))


def foreign_objective(directions: list[StudyDirection]) -> str:
    """Returns what a study of another program optimises, one of SIGNS."""
    if len(directions) > 1:
        return SEVERAL
    return MAXIMIZED if directions[0] is StudyDirection.MAXIMIZE else VALUE


def importance(storage: RDBStorage, name: str) -> tuple[tuple[tuple[str, float], ...], str]:
    """How much each hyperparameter matters, largest first, summing to 1, and the name of the method.

    PED-ANOVA (Watanabe et al., 2023) over complete and pruned trials, these with the best score they had come to: what the pruner
    stopped is most of what is known of bad values. Empty when fewer than ten trials are complete.
    """
    stored = read_study(storage, name)
    fates = {fate: [r for r in stored.records if r.status is fate and math.isfinite(r.cost)] for fate in (Status.COMPLETE, Status.PRUNED)}
    pruned = f", and {len(fates[Status.PRUNED]):,} pruned with the best they had come to" if fates[Status.PRUNED] else " alone"
    method = f"PED-ANOVA over {len(fates[Status.COMPLETE]):,} complete trials{pruned}"
    if len(fates[Status.COMPLETE]) < 10:
        return (), method
    costs = {r.number: r.cost for records in fates.values() for r in records}
    study = optuna.create_study(storage=InMemoryStorage())
    for trial in storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False):
        if trial.number in costs:
            study.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=costs[trial.number]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # all losses equal: every importance is 0, as the figure shows
        values = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return tuple(values.items()), method
