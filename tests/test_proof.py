"""What a study proves: which runs it takes, and what is read out of them."""

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.proof import FACTORS, STEPS, again, arms, best_trials, outstanding, proof_of, repetitions, wanted, winner_of
from hpsearch.spec import parse_spec
from hpsearch.statistics import mean_interval
from hpsearch.types import Judged, Status, StoredStudy, TrialRecord
from tests.kernels import PARAMS

FACTS = {"blocks": 6, "test_images": 40, "class_counts": {"train": [5, 3, 2], "val": [10, 6, 4], "test": [20, 10, 10]}}


def trained(trial, epochs=None, noise=0.0, status=Status.COMPLETE):
    """A run of a trial by a law of its own: best at learning rate 3e-3; scratch is worse, frozen layers a little."""
    params, setup = trial.params, trial.setup
    distance = (math.log10(params["learning_rate"]) - math.log10(3e-3)) ** 2
    loss = 0.3 + distance + 0.02 * params["frozen_layers"] + (0.5 if setup and setup.scratch else 0.0) + noise
    rows = []
    for epoch in range(1, params["epochs"] + 1):
        now = loss + 1 / epoch - 1 / params["epochs"]
        rows.append({"epoch": epoch, "val_loss": now, "train_loss": now, "accuracy": math.exp(-now), "seconds": 0.5 * epoch})
    return TrialRecord(
        number=trial.number,
        status=status,
        params=params,
        origin=trial.origin,
        attempt=1,
        val_loss=loss if status is Status.COMPLETE else None,
        best_epoch=params["epochs"],
        seconds=rows[-1]["seconds"],
        started=0.0,
        ended=1.0,
        metrics={"accuracy": math.exp(-loss), "f1": math.exp(-loss)},
        effective={},
        curve=rows,
        checkpoint=None,
        error=None if status is Status.COMPLETE else "out of luck",
        setup=setup,
    )


class Searched:
    """A trial of the search, as `trained` takes it."""

    def __init__(self, number, **params):
        self.number, self.params, self.setup = number, {**PARAMS, **params}, None
        self.origin = "default" if number == 0 else "sampled"


def study(**asked):
    spec = parse_spec(asked).resolved()
    rates = (1e-3, 3e-3, 2e-3, 3e-2, 3e-3)
    records = [trained(Searched(i, learning_rate=rate, epochs=4 + i)) for i, rate in enumerate(rates)]
    records[1] = replace(records[1], val_loss=0.29)  # lucky: selected for it
    records.append(trained(Searched(5, learning_rate=3e-3, epochs=5)))  # trial 1's configuration once more
    return StoredStudy("s", spec, FACTS, tuple(records))


def noise(trial):
    """Trial 1's configuration is bad on fresh seeds."""
    return 0.2 if trial.setup.trial == 1 else 0.01 * (trial.setup.seed or trial.setup.fold or 0) % 0.05


def proven(study, fails=()):
    """The study with everything run that it asks for, and the stages it took."""
    stages = []
    while (stage := outstanding(study))[1]:
        stages.append(stage)
        status = {trial.setup.name: Status.FAILED if trial.setup.name in fails else Status.COMPLETE for trial in stage[1]}
        runs = [trained(trial, noise=noise(trial), status=status[trial.setup.name]) for trial in stage[1]]
        study = replace(study, runs=(*study.runs, *runs))
        assert len(stages) < 10
    return study, stages


def test_a_study_that_asks_for_nothing_gets_nothing():
    plain = study()
    assert not wanted(plain)
    assert outstanding(plain) == ("", ())
    assert winner_of(plain).number == 1
    proof = proof_of(plain)
    assert (proof.rows, proof.gains, proof.candidates, proof.confirmed) == ((), (), (), False)


def test_the_best_distinct_configurations_are_trained_again_on_the_same_fresh_seeds():
    whole, stages = proven(study(confirm="3x4"))
    ((title, trials),) = stages
    assert title == "Confirming the best configurations"
    assert [r.number for r in best_trials(whole, 3)] == [1, 4, 2], "trial 5 is trial 1 again"
    assert len(trials) == 12
    assert len({t.setup.name for t in trials}) == 12
    assert sorted(t.number for t in trials) == list(range(-12, 0))
    seeds = [{t.setup.seed for t in trials if t.setup.trial == number} for number in (1, 4, 2)]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(seeds[0]) == 4
    assert whole.spec["seed"] not in seeds[0]


def test_who_was_lucky_in_the_search_does_not_win():
    whole, _ = proven(study(confirm="3x4"))
    proof = proof_of(whole)
    assert proof.confirmed
    assert [c.trial for c in proof.candidates] == [4, 2, 1]
    assert winner_of(whole).number == proof.winner == 4
    first, second, lucky = proof.candidates
    assert first.behind is None
    assert second.behind.low > 0, "paired, the noise that both share is gone"
    assert lucky.selected == 0.29
    runs = [r for r in whole.runs if r.setup.trial == 4]
    assert first.scores["val_loss"] == mean_interval([r.val_loss for r in runs])


def test_while_confirmations_are_missing_the_best_trial_stands():
    whole, _ = proven(study(confirm="3x4"))
    half = replace(whole, runs=whole.runs[:7])
    assert winner_of(half).number == 1
    assert not proof_of(half).confirmed
    _, missing = outstanding(half)
    assert [t.setup.name for t in missing] == [r.setup.name for r in whole.runs[7:]]
    assert {t.number for t in missing}.isdisjoint(r.number for r in half.runs)


def test_folds_are_run_one_after_the_other():
    whole, stages = proven(study(cv="2x5"))
    folds = [t.setup.fold for t in stages[0][1]]
    assert folds == sorted(folds) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {t.setup.folds for t in stages[0][1]} == {5}
    assert all(t.setup.seed is None for t in stages[0][1])
    runs = [r for r in whole.runs if r.setup.trial == 4]
    narrow = mean_interval([r.val_loss for r in runs])
    wide = proof_of(whole).candidates[0].scores["val_loss"]
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt((1 / 5 + 1 / 4) * 5)), "training sets overlap"


def test_references_train_as_long_as_the_winner_each_at_the_best_of_three_rates():
    whole, stages = proven(study(references=True))
    ((title, trials),) = stages
    best = winner_of(whole)
    assert title == "Training references"
    assert len(trials) == 9
    assert {t.params["epochs"] for t in trials} == {best.params["epochs"]}
    for kind in ("scratch", "probe", "default"):
        rates = [t.params["learning_rate"] for t in trials if t.setup.name.startswith(kind)]
        assert rates == pytest.approx([PARAMS["learning_rate"] * factor for factor in FACTORS])
    assert {t.params["frozen_layers"] for t in trials if t.setup.name.startswith("probe")} == {6}
    assert {t.setup.scratch for t in trials if t.setup.name.startswith("scratch")} == {True}
    rows = {row.name: row for row in proof_of(whole).rows}
    assert list(rows) == ["majority", "scratch", "probe", "default", "tuned", "best"]
    assert rows["scratch"].scores["val_loss"].mean == pytest.approx(0.8)
    assert rows["probe"].scores["val_loss"].mean == pytest.approx(0.42)
    assert rows["tuned"].scores["val_loss"].mean == pytest.approx(0.3)
    assert rows["tuned"].detail == "learning rate 0.003, best of 0.001, 0.003, 0.01"
    assert rows["best"].scores["val_loss"].mean == 0.29


def test_with_a_confirmation_references_run_on_the_same_seeds():
    whole, stages = proven(study(references=True, confirm="2x3"))
    assert [title for title, _ in stages] == ["Confirming the best configurations", "Training references", "Repeating references"]
    assert [len(trials) for _, trials in stages] == [6, 9, 8]
    seeds = {r.seed for r in repetitions(whole.spec)}
    for kind, runs in arms(whole).items():
        assert {run.setup.seed for run in runs.values()} == seeds, kind
    for row in proof_of(whole).rows[1:]:
        assert row.scores["accuracy"].n == 3
        assert row.seconds.n == 3


def test_gains_are_paired_and_positive_where_the_second_is_better():
    whole, _ = proven(study(references=True, confirm="2x3"))
    groups = arms(whole)
    found = {gain.what: gain for gain in proof_of(whole).gains}
    assert list(found) == list(STEPS)
    for what, (before, after) in STEPS.items():
        differences = [groups[before][name].val_loss - groups[after][name].val_loss for name in groups[before]]
        assert found[what].points["val_loss"] == mean_interval(differences)
        shares = [groups[after][name].metrics["accuracy"] - groups[before][name].metrics["accuracy"] for name in groups[before]]
        assert found[what].points["accuracy"] == mean_interval(shares)
    assert found["pretraining"].points["val_loss"].mean == pytest.approx(0.5)
    assert found["the search"].cost == sum(r.seconds for r in whole.records)


def test_time_to_be_as_good_is_read_off_the_curve():
    whole, _ = proven(study(references=True))
    gain = next(g for g in proof_of(whole).gains if g.what == "pretraining")
    scratch, tuned = (next(iter(arms(whole)[kind].values())) for kind in ("scratch", "tuned"))
    expected = next(row["seconds"] for row in tuned.curve if row["val_loss"] <= scratch.val_loss)
    assert gain.reached == expected < gain.until == scratch.seconds
    slower = next(g for g in proof_of(proven(study(references=True))[0]).gains if g.what == "the search")
    assert slower.reached is not None


def test_the_majority_class_is_what_the_counts_say():
    row = next(row for row in proof_of(proven(study(references=True))[0]).rows if row.name == "majority")
    assert row.scores["accuracy"].mean == 0.5
    assert row.scores["balanced_accuracy"].mean == pytest.approx(1 / 3)
    expected = -(10 * math.log(6 / 13) + 6 * math.log(4 / 13) + 4 * math.log(3 / 13)) / 20
    assert row.scores["val_loss"].mean == pytest.approx(expected)
    old = replace(study(references=True), facts={"blocks": 6})  # a study from before counts were kept
    assert "majority" not in [row.name for row in proof_of(proven(old)[0]).rows]


def test_a_study_from_scratch_has_no_pretraining_to_measure():
    whole, stages = proven(study(references=True, weights="none"))
    assert not any(t.setup.scratch for t in stages[0][1])
    proof = proof_of(whole)
    assert "pretraining" not in [gain.what for gain in proof.gains]
    assert "from scratch" in proof.notes[0]


def test_a_run_that_failed_is_not_tried_for_ever_and_is_told():
    name = "confirm-0004-seed-2"
    whole, _ = proven(study(confirm="2x3"), fails=(name,))
    proof = proof_of(whole)
    assert [c.trial for c in proof.candidates] == [1, 4], "who failed stands behind"
    assert proof.candidates[1].failed == 1
    assert proof.candidates[1].scores["val_loss"].n == 2
    assert proof.notes == (f"{name}: out of luck",)


def test_a_longer_search_confirms_only_what_is_new():
    whole, _ = proven(study(confirm="2x3"))
    better = trained(Searched(6, learning_rate=2.9e-3, epochs=9))
    more = replace(whole, records=(*whole.records, replace(better, val_loss=0.1)))
    assert winner_of(more).number == 6, "not confirmed, so the best stands"
    _, missing = outstanding(more)
    assert {t.setup.trial for t in missing} == {6}
    assert len(missing) == 3


def test_the_winner_again_is_the_trial_itself():
    record = study().records[4]
    trial = again(record)
    assert (trial.setup.name, trial.setup.like, trial.setup.seed, trial.params) == ("again-0004", 4, None, record.params)


def judged(name, accuracy):
    return asdict(Judged(name, 40, 0.5, {"accuracy": accuracy, "f1": accuracy}, {"recall": (1.0,)}, ((1,),)))


def test_what_was_seen_of_the_test_images_belongs_to_the_winner_it_was_seen_for():
    whole, _ = proven(study(references=True, confirm="2x2"))
    names = [name for row in proof_of(whole).rows for name in row.runs]
    opening = {"at": 1.0, "trial": 4, "judged": [judged("trial-0004", 0.8), *(judged(name, 0.7) for name in names)]}
    proof = proof_of(replace(whole, openings=(opening,)))
    assert proof.test.metrics["accuracy"] == 0.8
    assert all(row.test["accuracy"].mean == 0.7 for row in proof.rows if row.runs)
    assert len(proof.openings) == 1
    other = proof_of(replace(whole, openings=({**opening, "trial": 2},)))
    assert other.test is None
    assert not any(row.test for row in other.rows)


@settings(max_examples=40, deadline=None)
@given(
    asked=st.fixed_dictionaries(
        {"references": st.booleans()},
        optional={"confirm": st.sampled_from(["1x2", "2x3", "5x2"]), "objective": st.sampled_from(["val_loss", "accuracy", "f1"])},
    ),
    cut=st.integers(0, 40),
    order=st.randoms(use_true_random=False),
)
def test_whatever_was_done_before_the_same_runs_are_made_once(asked, cut, order):
    begun = study(**asked)
    if asked.get("objective"):
        begun = replace(begun, records=tuple(replace(r, objective=asked["objective"]) for r in begun.records))
    whole, _ = proven(begun)
    runs = list(whole.runs)
    order.shuffle(runs)
    again, _ = proven(replace(begun, runs=tuple(runs[:cut])))
    assert {r.setup.name for r in again.runs} >= {r.setup.name for r in whole.runs}
    assert len({r.setup.name for r in again.runs}) == len({r.number for r in again.runs}) == len(again.runs)
    assert proof_of(again).winner == proof_of(whole).winner
    assert proof_of(again).rows == proof_of(whole).rows
