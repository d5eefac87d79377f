"""The contract of `protocols.Searcher`, over every sampler and pruner, against the real storage."""

import math
import shutil
import sqlite3
from dataclasses import replace

import optuna
import pytest

from hpsearch.errors import ChooseAnotherName
from hpsearch.search.catalog import importance, read_study
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.space import default_params, grid_points, grid_size
from hpsearch.spec import PRUNERS, SAMPLERS, parse_spec
from hpsearch.types import Facts, Outcome, Progress, Status, best_record
from tests.kernels import loss_at

SMALL = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True, "grid": [1e-3, 1e-2]},
    "epochs": [2, 4],
    "dropout": {"low": 0, "high": 0.5, "grid": 2},
}
SMALL |= {"batch_size": 8, "weight_decay": 0.01, "frozen_layers": {"low": 0, "high": 6}}


CRAFT = {
    **SMALL,
    "epochs": {"choices": [2, 4], "default": 4},
    "optimizer": {"choices": ["adamw", "sgd"], "default": "sgd"},
    "momentum": {"low": 0.5, "high": 0.99, "grid": [0.5, 0.9]},
    "schedule": ["cosine", "step"],
    "mixup": {"low": 0.0, "high": 0.4, "grid": 2, "when": {"optimizer": ["adamw"], "schedule": ["cosine"]}},
    "flip": {"value": 0.5, "when": {"epochs": [4]}},
}


def study(sampler="random", pruner="none", space=None, **more):
    return parse_spec({"name": "s", "sampler": sampler, "pruner": pruner, "space": SMALL if space is None else space, **more})


SERVED = {}  # the storages of folders that stand for a database on a server
ANYWHERE = pytest.mark.parametrize("folder", ["sqlite", "postgresql"], indirect=True)


def url(folder):
    return SERVED.get(folder) or f"sqlite:///{folder}/hpsearch.db"


@pytest.fixture(scope="module")
def empty_database(request):
    """The same on a server: how to make another one."""
    postgres = request.getfixturevalue("postgres")
    made = postgres.database()
    open_storage(made, create=True).engine.dispose()
    return lambda: postgres.database(made.rpartition("/")[2])


@pytest.fixture
def folder(request, tmp_path, empty_storage):
    """A folder with an empty storage, and another below it; `ANYWHERE`: on a server too."""
    if getattr(request, "param", "sqlite") == "postgresql":
        make = request.getfixturevalue("empty_database")
        SERVED.update({place: make() for place in (tmp_path, tmp_path / "whole")})
        return tmp_path
    for place in (tmp_path, tmp_path / "whole"):
        place.mkdir(exist_ok=True)
        shutil.copy(empty_storage, place / "hpsearch.db")
    return tmp_path


def searcher(folder, spec):
    return OptunaSearcher(spec, open_storage(url(folder), create=True))


def train(s, trial):
    """Run one trial on tabulated curves; its record."""
    best = None
    for epoch in range(1, trial.params["epochs"] + 1):
        loss = loss_at(trial.params, epoch)
        best = loss if best is None else min(best, loss)
        if s.report(Progress(trial.number, epoch, trial.params["epochs"], loss, loss, {"accuracy": 0.5}, 0.1)):
            return s.tell(Outcome(trial.number, Status.PRUNED, best, epoch, 0.1, {"accuracy": 0.5}, trial.params))
    return s.tell(Outcome(trial.number, Status.COMPLETE, best, epoch, 0.1, {"accuracy": 0.5}, trial.params))


def run(s, n):
    """Ask and train until `n` trials in all, one open at a time; their parameters."""
    out = []
    while s.remaining(n):
        trials = s.ask(1)
        if not trials:
            break
        out.append(train(s, trials[0]))
    return out


def timeless(record):
    return replace(record, started=None, ended=None, seconds=0.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_lie_in_the_space_and_begin_with_the_default_recipe(folder, sampler):
    spec = study(sampler)
    s = searcher(folder, spec)
    records = run(s, 16)
    s.close()
    assert records[0].params == default_params(spec.parameters())
    assert records[0].origin == "default"
    assert [r.number for r in records] == list(range(16))
    for record in records:
        assert all(p.contains(record.params[p.name]) for p in spec.parameters())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_storage_holds_what_the_searcher_remembers(folder, sampler):
    s = searcher(folder, study(sampler, "median"))
    run(s, 14)
    s.close()
    stored = read_study(open_storage(url(folder)), "s").records
    assert stored == tuple(s.records())
    assert {r.status for r in stored} <= {Status.COMPLETE, Status.PRUNED}
    assert all(r.curve for r in stored)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "cmaes"])
def test_an_interrupted_study_proposes_what_the_uninterrupted_one_would_have(folder, sampler):
    whole = searcher(folder / "whole", study(sampler))
    expected = [timeless(r) for r in run(whole, 16)]
    whole.close()
    found = []
    for n in (3, 4, 12, 16):  # four sessions, the last trial of each cut off
        s = searcher(folder, study(sampler))
        found += run(s, n)
        s.ask(1)
        s.close()
    assert [replace(timeless(r), attempt=1) for r in found] == expected


NO_NUMBERS = (math.nan, math.inf, -math.inf, float("1e400"), None, "1.5", "nan", True, [0.1])


@pytest.mark.parametrize("objective", ["val_loss", "accuracy"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_result_that_is_no_number_is_a_failure_and_never_the_best(folder, sampler, objective):
    s = searcher(folder, study(sampler, objective=objective))
    honest = run(s, 3)
    for value in NO_NUMBERS:
        (trial,) = s.ask(1)
        metrics = {"accuracy": value if objective == "accuracy" else 0.9}
        loss = value if objective == "val_loss" else 0.1
        told = s.tell(Outcome(trial.number, Status.COMPLETE, loss, 1, 0.1, metrics, trial.params))
        assert told.status is Status.FAILED
        assert told.error.startswith("diverged: ")
        assert repr(value) in told.error
    later = run(s, 16)  # the sampler goes on, whatever it was told
    s.close()
    records = read_study(open_storage(url(folder)), "s").records
    assert [r.status for r in records[3 : 3 + len(NO_NUMBERS)]] == [Status.FAILED] * len(NO_NUMBERS)
    assert all(r.score is None for r in records if r.status is Status.FAILED)
    assert best_record(records).number in {r.number for r in (*honest, *later)}
    theirs = optuna.load_study(study_name="s", storage=url(folder))
    assert {t.number for t in theirs.trials if t.state is optuna.trial.TrialState.FAIL} == {r.number for r in records if r.error}
    assert theirs.best_trial.number == best_record(records).number


@pytest.mark.parametrize("value", [math.nan, -math.inf, "1.5"])
def test_a_pruned_trial_whose_result_is_no_number_failed(folder, value):
    s = searcher(folder, study())
    (trial,) = s.ask(1)
    assert s.tell(Outcome(trial.number, Status.PRUNED, value, 1, 0.1, {}, trial.params)).status is Status.FAILED
    s.close()


# ---------------------------------------------------------------- conditions


def check_conditions(params, space):
    """Everything that is used is there, in its range, and nothing else."""
    assert set(params) == {p.name for p in space if p.active(params)}
    assert all(p.contains(params[p.name]) for p in space if p.name in params)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_trial_holds_what_it_uses_and_nothing_else(folder, sampler):
    spec = study(sampler, space=CRAFT)
    s = searcher(folder, spec)
    records = run(s, 24)
    s.close()
    assert records[0].params == default_params(spec.parameters())
    assert ("momentum" in records[0].params, "mixup" in records[0].params) == (True, False)
    for record in records:
        check_conditions(record.params, spec.parameters())
    assert {r.params["optimizer"] for r in records} == {"adamw", "sgd"}
    assert {"mixup" in r.params for r in records} == {True, False}
    assert read_study(open_storage(url(folder)), "s").records == tuple(s.records())
    for trial in optuna.load_study(study_name="s", storage=url(folder)).trials:  # Optuna's own tools see the same
        assert trial.params.keys() == trial.distributions.keys() <= records[trial.number].params.keys()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_study_of_conditions_goes_on_as_it_would_have(folder, sampler):
    whole = searcher(folder / "whole", study(sampler, space=CRAFT))
    expected = [timeless(r) for r in run(whole, 20)]
    whole.close()
    found = []
    for n in (3, 12, 20):
        s = searcher(folder, study(sampler, space=CRAFT))
        found += run(s, n)
        if sampler != "cmaes":  # it models by generations of complete trials, and a trial cut off is none
            s.ask(1)
        s.close()
    assert [replace(timeless(r), attempt=1) for r in found] == expected


@pytest.mark.process
@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_conditions_do_not_stop_a_sampler_from_learning(folder, sampler):
    """The default recipe uses momentum, later trials do not: to Optuna the common space shrinks, and CMA-ES would give up."""
    s = searcher(folder, study(sampler, space=CRAFT))
    records = run(s, 60)
    s.close()
    late = [r.params for r in records[40:]]
    near = sum(abs(p["frozen_layers"] - 3) <= 1 for p in late)  # three values of seven: 8.6 of 20 by chance
    assert near >= 14


def test_a_grid_under_conditions_gives_each_configuration_once(folder):
    spec = study("grid", space=CRAFT, trials=1000)
    s = searcher(folder, spec)
    assert s.size(1000) == grid_size(spec.parameters()) + (default_params(spec.parameters()) not in list(grid_points(spec.parameters())))
    first = run(s, 40)
    s.close()
    s = searcher(folder, spec)
    records = [*first, *run(s, 1000)]
    assert s.ask(1) == ()
    s.close()
    points = {tuple(sorted(r.params.items())) for r in records}
    assert len(points) == len(records) == s.size(1000)
    for record in records:
        check_conditions(record.params, spec.parameters())


@pytest.mark.process
@ANYWHERE
def test_importance_counts_conditional_parameters(folder):
    s = searcher(folder, study("random", space=CRAFT))
    run(s, 40)
    s.close()
    shares, _ = importance(open_storage(url(folder)), "s")
    assert {"momentum", "mixup", "optimizer"} <= dict(shares).keys()


# ---------------------------------------------------------------- the recipe


@pytest.mark.process
@ANYWHERE
def test_what_the_recipe_fixes_of_the_core_is_in_every_trial_and_read_back(folder):
    space = {name: value for name, value in SMALL.items() if name not in ("epochs", "dropout")} | {"batch_size": [8]}
    s = searcher(folder, study(space=space, recipe={"epochs": 2, "dropout": 0.2, "mixup": 0.3}))
    records = run(s, 3)
    s.close()
    assert all((r.params["epochs"], r.params["dropout"], r.params["batch_size"]) == (2, 0.2, 8) for r in records)
    assert all("mixup" not in r.params for r in records)
    assert read_study(open_storage(url(folder)), "s").records == tuple(s.records())


def test_a_study_from_before_there_was_a_recipe_goes_on_and_one_of_another_recipe_is_refused(folder):
    s = searcher(folder, study())
    run(s, 2)
    s.close()
    storage = open_storage(url(folder), create=True)
    about = storage.get_study_user_attrs(s.study_id)["hpsearch"]
    about["spec"].pop("recipe")  # as it was stored then
    storage.set_study_user_attr(s.study_id, "hpsearch", about)
    assert len(read_study(storage, "s").records) == 2
    with pytest.raises(ChooseAnotherName, match=r"recipe: None -> \{'flip': 0.5\}"):
        searcher(folder, study(recipe={"flip": 0.5}))
    again = searcher(folder, study(recipe={"optimizer": "adamw"}))  # the default
    assert len(run(again, 4)) == 2
    again.close()
    assert read_study(storage, "s").spec["recipe"]["optimizer"] == "adamw"


@pytest.mark.process
@ANYWHERE
def test_cma_es_continues_too(folder):
    # Apart, because it needs complete trials before it models and keeps its state in the trials' attributes.
    whole = searcher(folder / "whole", study("cmaes"))
    expected = [r.params for r in run(whole, 20)]
    whole.close()
    found = []
    for n in (7, 20):
        s = searcher(folder, study("cmaes"))
        found += [r.params for r in run(s, n)]
        s.close()
    assert found == expected


@pytest.mark.process
@ANYWHERE
def test_the_grid_gives_each_point_once_then_nothing(folder):
    spec = study("grid", trials=1000)
    s = searcher(folder, spec)
    records = run(s, 1000)
    assert s.ask(1) == ()
    s.close()
    points = [tuple(sorted(r.params.items())) for r in records]
    assert len(points) == len(set(points))
    grid = {tuple(sorted(r.params.items())) for r in records if r.origin == "grid"}
    default = tuple(sorted(default_params(spec.parameters()).items()))
    assert len(grid | {default}) == len(points)
    assert grid_size(spec.parameters()) - len(grid) in (0, 1)  # 1 when the default recipe is a grid point


@pytest.mark.process
@ANYWHERE
def test_grid_points_open_at_once_are_never_repeated_across_a_restart(folder):
    first = searcher(folder, study("grid", trials=1000))
    opened = first.ask(5)
    for trial in opened[:2]:
        train(first, trial)
    first.close()
    second = searcher(folder, study("grid", trials=1000))
    again = second.ask(3)
    assert [t.number for t in again] == [2, 3, 4]
    assert [t.params for t in again] == [t.params for t in opened[2:]]
    assert {t.attempt for t in again} == {2}
    for trial in again:
        train(second, trial)
    rest = run(second, 1000)
    second.close()
    points = [tuple(sorted(t.params.items())) for t in (*opened, *rest)]
    assert len(points) == len(set(points))
    assert len(points) >= grid_size(study("grid").parameters())


@pytest.mark.parametrize("pruner", PRUNERS)
def test_no_trial_is_pruned_before_the_warm_up_or_after_its_last_epoch(folder, pruner):
    spec = study("random", {"name": pruner, "warmup": 0.5, "startup_trials": 2, "patience": 0}, space={"epochs": {"low": 4, "high": 20}})
    s = searcher(folder, spec)
    records = run(s, 40)
    s.close()
    pruned = [r for r in records if r.status is Status.PRUNED]
    assert all(0.5 <= len(r.curve) / r.params["epochs"] < 1 for r in pruned)
    assert bool(pruned) == (pruner != "none")
    assert records[0].status is Status.COMPLETE  # the default recipe is the yardstick: never cut short


def test_median_pruning_stops_what_is_worse_at_equal_progress_and_not_what_is_better(folder):
    s = searcher(folder, study("random", {"name": "median", "startup_trials": 3, "warmup": 0.3}))

    def feed(trial, epochs, level):
        for epoch in range(1, epochs + 1):
            if s.report(Progress(trial.number, epoch, epochs, level, level, {}, 0.1)):
                s.tell(Outcome(trial.number, Status.PRUNED, level, epoch))
                return epoch
        s.tell(Outcome(trial.number, Status.COMPLETE, level, epochs))
        return None

    for level in (1.0, 2.0, 3.0):
        assert feed(s.ask(1)[0], 4, level) is None
    # Other lengths: the 40th of 100 epochs is compared with the second of four.
    assert feed(s.ask(1)[0], 100, 2.5) == 30
    assert feed(s.ask(1)[0], 100, 1.5) is None
    s.close()


@pytest.mark.parametrize("pruner", PRUNERS)
def test_pruning_goes_by_the_loss_in_either_direction(folder, pruner):
    """A study of accuracy stops the same trials at the same epochs as one of the loss: both are pruned on the loss."""
    fates = []
    for place, objective in ((folder, "val_loss"), (folder / "whole", "accuracy")):
        s = searcher(place, study("random", pruner, {**SMALL, "epochs": 10}, objective=objective))
        run(s, 25)
        fates.append([(r.status, len(r.curve)) for r in s.records()])
        s.close()
    assert fates[0] == fates[1]
    if pruner not in ("none", "patient"):  # these curves improve at every report
        assert {status for status, _ in fates[0]} == {Status.PRUNED, Status.COMPLETE}


@pytest.mark.process
@ANYWHERE
def test_an_objective_of_which_more_is_better_is_maximised_and_read_back(folder):
    s = searcher(folder, study("tpe", "median", objective="accuracy"))
    while s.remaining(12):
        (trial,) = s.ask(1)
        shares = {"accuracy": 1 - trial.params["dropout"]}
        stop = any(s.report(Progress(trial.number, e, 4, loss_at(trial.params, e), 0.1, shares, 0.1)) for e in range(1, 5))
        s.tell(Outcome(trial.number, Status.PRUNED if stop else Status.COMPLETE, loss_at(trial.params, 4), 4, 0.1, shares, trial.params))
    s.close()
    loaded = optuna.load_study(study_name="s", storage=url(folder))
    assert loaded.direction == optuna.study.StudyDirection.MAXIMIZE
    records = read_study(open_storage(url(folder)), "s").records
    assert best_record(records).score == loaded.best_value == max(r.score for r in records if r.status is Status.COMPLETE)
    for record, trial in zip(records, loaded.trials, strict=True):
        assert record.val_loss == pytest.approx(loss_at(record.params, 4))
        assert trial.value == (record.score if record.status is Status.COMPLETE else None)


@pytest.mark.parametrize("around", ["none", "median"])
def test_patience_spares_what_improves_and_stops_what_does_not(folder, around):
    s = searcher(folder, study("random", {"name": "patient", "around": around, "patience": 2, "warmup": 0.1, "startup_trials": 1}))
    s.tell(Outcome(s.ask(1)[0].number, Status.FAILED))

    def feed(losses):
        """Epoch at which a trial of ten epochs with these losses is stopped."""
        (trial,) = s.ask(1)
        for epoch, loss in enumerate(losses, 1):
            if s.report(Progress(trial.number, epoch, 10, loss, loss, {}, 0.1)):
                s.tell(Outcome(trial.number, Status.PRUNED, min(losses), epoch))
                return epoch
        s.tell(Outcome(trial.number, Status.COMPLETE, min(losses), 10))
        return None

    assert feed([1.0 - 0.01 * e for e in range(10)]) is None
    assert feed([2.0, 2.1, 2.2, 2.3] + [2.4] * 6) == 3
    assert feed([5.0 - 0.1 * e for e in range(10)]) is None  # worse than the median, but improving
    s.close()


def test_optunas_own_tools_read_the_file(folder):
    s = searcher(folder, study("tpe", "median"))
    run(s, 12)
    s.close()
    with sqlite3.connect(folder / "hpsearch.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()
    loaded = optuna.load_study(study_name="s", storage=url(folder))
    assert len(loaded.trials) == 12
    complete = [r for r in s.records() if r.status is Status.COMPLETE]
    assert loaded.best_value == min(r.val_loss for r in complete)
    for trial in loaded.trials:
        assert set(trial.intermediate_values) <= {10, 20, 30, 40, 50, 60, 70, 80, 90, 100}
        assert trial.params.keys() == {"learning_rate", "epochs", "dropout", "frozen_layers"}


@pytest.mark.process
@ANYWHERE
def test_interrupted_trials_do_not_pretend_to_run(folder):
    s = searcher(folder, study())
    s.ask(3)
    s.close()
    loaded = optuna.load_study(study_name="s", storage=url(folder))
    assert {t.state for t in loaded.trials} == {optuna.trial.TrialState.WAITING}


@pytest.mark.process
@ANYWHERE
def test_a_failed_trial_is_kept_with_its_reason_and_is_never_the_best(folder):
    s = searcher(folder, study())
    (trial,) = s.ask(1)
    s.tell(Outcome(trial.number, Status.FAILED, error="diverged: validation loss is nan"))
    run(s, 3)
    s.close()
    records = read_study(open_storage(url(folder)), "s").records
    assert records[0].status is Status.FAILED
    assert records[0].error == "diverged: validation loss is nan"
    assert best_record(records).number != 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"space": {**SMALL, "dropout": 0.3}}, "space.dropout"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"sampler": "tpe"}, "sampler: random -> tpe"),
        ({"pruner": "median"}, "pruner.name: none -> median"),
        ({"data": "other"}, "data: digits -> other"),
    ],
)
def test_a_study_of_the_same_name_that_differs_is_refused_and_left_as_it_was(folder, change, named):
    s = searcher(folder, study())
    run(s, 2)
    s.close()
    before = read_study(open_storage(url(folder)), "s")
    values = {"name": "s", "sampler": "random", "pruner": "none", "space": SMALL, **change}
    with pytest.raises(ChooseAnotherName, match=named):
        searcher(folder, parse_spec(values))
    assert read_study(open_storage(url(folder)), "s") == before


@pytest.mark.process
@ANYWHERE
def test_budget_timeout_and_workers_may_change_between_sessions(folder):
    s = searcher(folder, study(trials=2))
    run(s, 2)
    s.close()
    again = searcher(folder, study(trials=5, timeout=60, workers=1))
    assert again.remaining(5) == 3
    again.close()


@pytest.mark.process
@ANYWHERE
def test_facts_are_kept_with_the_study(folder):
    s = searcher(folder, study())
    s.remember(Facts({"device": "cpu", "blocks": 6}))
    s.close()
    facts = dict(read_study(open_storage(url(folder)), "s").facts)
    (session,) = facts.pop("sessions")
    assert facts == {"device": "cpu", "blocks": 6}
    assert session["device"] == "cpu"


def test_importance_ranks_what_matters_first_and_waits_for_ten_trials(folder):
    s = searcher(folder, study(space={"epochs": 2, "dropout": 0.1, "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True}}))
    run(s, 8)
    s.close()
    storage = open_storage(url(folder))
    assert importance(storage, "s")[0] == ()
    s = searcher(folder, study(space={"epochs": 2, "dropout": 0.1, "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True}}))
    run(s, 80)
    s.close()
    ranks = dict(importance(open_storage(url(folder)), "s")[0])
    assert sum(ranks.values()) == pytest.approx(1)
    assert max(ranks, key=ranks.get) in ("learning_rate", "frozen_layers")
    assert ranks["weight_decay"] < 0.2


def test_importance_counts_what_the_pruner_stopped(folder):
    """Without pruned trials, the bad learning rates that were all stopped would be missing, and with them what makes the rate matter.

    The loss of these trials depends on the learning rate and next to nothing else, so its true importance is almost 1.
    """
    pruner = {"name": "median", "startup_trials": 3, "warmup": 0.0}
    space = {"epochs": 4, "frozen_layers": 3, "dropout": {"low": 0.1, "high": 0.3}}
    s = searcher(folder, study("random", space=space, pruner=pruner))
    records = run(s, 60)
    s.close()
    pruned = sum(r.status is Status.PRUNED for r in records)
    assert pruned > 30
    shares, method = importance(open_storage(url(folder)), "s")
    assert f"over {60 - pruned} complete trials, and {pruned} pruned" in method
    alone = optuna.importance.get_param_importances(  # of complete trials, as Optuna has it
        optuna.load_study(study_name="s", storage=url(folder)), evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    assert dict(shares)["learning_rate"] > max(0.9, alone["learning_rate"])


@pytest.mark.process
@ANYWHERE
def test_nothing_claims_to_run_when_a_session_ends_not_even_what_was_lost_and_not_handed_out_again(folder):
    s = searcher(folder, study("random"))
    trials = s.ask(3)
    again = s.retry(trials[1].number)
    assert (again.number, again.attempt, again.losses) == (trials[1].number, 2, 1)
    s.close()
    states = {t.number: t.state.name for t in optuna.load_study(study_name="s", storage=url(folder)).trials}
    assert states == dict.fromkeys(range(3), "WAITING")


@pytest.mark.process
@ANYWHERE
def test_a_trial_asked_again_is_the_same_trial(folder):
    s = searcher(folder, study("tpe"))
    run(s, 3)
    (open_trial,) = s.ask(1)
    s.close()
    s = searcher(folder, study("tpe"))
    assert s.ask(1) == (replace(open_trial, attempt=2),)
    s.close()
