"""The benchmarks' arms run, and give numbers; how fast they are is measured elsewhere."""

import math
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import arms, by_hand, ours, replay, scaling, tasks
from benchmarks.curve import Curve
from hpsearch.types import Outcome, Progress, Status
from tests.support.commands import Command

DIGITS = tasks.Setting("digits", {}, 6)
REPLAYED = ("by_hand", "tuned", "plain", "features", "hpsearch")


@pytest.fixture(scope="module", autouse=True)
def threads():
    """Arms set their number of threads, in this process too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Arms start in milliseconds, and are over before their memory would be looked at; a person starts them cold."""
    monkeypatch.setattr(arms, "EVERY", 0.02)
    monkeypatch.setattr(arms, "subprocess", SimpleNamespace(Popen=Command, TimeoutExpired=subprocess.TimeoutExpired, run=subprocess.run))


def listed():
    """A trial with nothing frozen, and one that trains its head alone."""
    return [DIGITS.default() | {"epochs": 2, "batch_size": 32, "frozen_layers": k} for k in (0, 6)]


@pytest.mark.parametrize("name", REPLAYED)
def test_every_arm_trains_the_list(name, empty_mlflow):
    ways = [{"threads": 1, "precision": "fp32"}]
    result = arms.run(name, DIGITS.task(trials=listed(), variants=ways), (empty_mlflow, 1.0))
    assert 0 < result["seconds"] < result["cold"]
    assert result["memory_mb"] > 100
    for key in ("each", "best", "final"):
        assert len(result[key]) == 2
        assert all(math.isfinite(value) for value in result[key])
    assert all(b <= f for b, f in zip(result["best"], result["final"], strict=True))


@pytest.mark.parametrize("name", ["median", "top_k", "halving"])
def test_every_search_finds_a_winner_within_its_wall(name, empty_mlflow):
    task = DIGITS.task(wall=2.0, epoch_seconds=0.2, variants=[{"threads": 1, "precision": "fp32"}])
    result = arms.run(name, task, (empty_mlflow, 1.0))
    assert result["started"] >= 1
    assert result["losses"]
    assert all(at <= 2 and math.isfinite(loss) for at, _, loss in result["losses"])
    assert set(result["winner"]) >= set(DIGITS.default())


def test_winners_are_scored_on_the_test_split(tmp_path):
    judged = arms.arm("judge")(tmp_path, DIGITS.task(trials=[DIGITS.default() | {"epochs": 5}], seeds=[0, 1]))
    assert judged["images"] == 1346
    assert [score["seed"] for score in judged["scores"]] == [0, 1]
    assert all(0.5 < score["test_accuracy"] <= 1 and math.isfinite(score["test_loss"]) for score in judged["scores"])


@pytest.mark.process
def test_a_folder_of_rendered_digits_is_read_alike_by_hand_and_by_hpsearch(tmp_path):
    shufflenet = {"model": "shufflenet_v2_x0_5", "blocks": 3, "per_class": {"train": 4, "val": 2, "test": 2}}
    setting = replay.ready(tasks.rendered(32, tmp_path / "glyphs-32", **shufflenet), tmp_path)
    params = setting.default() | {"epochs": 1, "frozen_layers": 1}
    glued, tuned = by_hand.Glued(setting.task()), by_hand.Tuned(setting.task())
    assert [len(split) for split in (tuned.data.train, tuned.data.val, tuned.data.test)] == [40, 20, 20]
    x, y = next(iter(glued.loaders_of(20)[1]))
    assert sums(x, y) == sums(tuned.x_val, tuned.y_val)
    for trainer in (glued, tuned):
        assert math.isfinite(next(trainer.epochs(params))["val_loss"])


def sums(images, labels):
    """What tells images apart, in whatever order they come."""
    return sorted((label, round(image.sum().item(), 1)) for image, label in zip(images, labels.tolist(), strict=True))


class Turns:
    """A kernel whose sessions say at every step that it is another one's turn."""

    def __init__(self):
        self.order = []

    def session(self, job):
        (trial,) = job.trials
        for epoch in (1, 2):
            self.order.append(trial.number)
            yield ()
            yield (Progress(trial.number, epoch, 2, 1 / epoch, 1.0, {}, 0.0),)
        if trial.number == 2:
            yield (Outcome(trial.number, Status.FAILED, error="broken"),)
        else:
            yield (Outcome(trial.number, Status.COMPLETE, val_loss=0.5),)


def test_sessions_take_turns_in_as_many_slots_as_there_are():
    alone, shared = Turns(), Turns()
    trials = [{}, {}, {}]
    _, best, final, errors = ours.by_turns(alone, trials, 1)
    assert alone.order == [0, 0, 1, 1, 2, 2]
    assert best[:2] == [0.5, 0.5]
    assert math.isnan(best[2])
    assert (final, errors) == ([0.5] * 3, ["broken"])
    ours.by_turns(shared, trials, 2)
    assert shared.order == [0, 1, 0, 1, 2, 2]


def test_what_comes_after_the_wall_does_not_count():
    curve = Curve(1.0, epoch_seconds=0.6)
    curve.start(0, {"a": 1})
    assert not curve.epoch(0, 2.0)
    assert curve.epoch(0, 1.0)
    curve.end(0)
    curve.start(1, {"a": 2})
    assert curve.result() | {"losses": []} == {"losses": [], "started": 1, "finished": 0, "epochs": 1, "winner": {"a": 1}}


def test_the_list_has_every_cut_and_lies_in_the_space():
    trials = DIGITS.trials(list(range(7)), 2)
    assert sorted(t["frozen_layers"] for t in trials) == [k for k in range(7) for _ in range(2)]
    assert all(p.contains(t[p.name]) for t in trials for p in DIGITS.space)
    assert trials == DIGITS.trials(list(range(7)), 2)


@pytest.mark.parametrize(("sampler", "pruner"), [("random", "halving"), ("tpe", "median")])
def test_simulated_workers_take_as_long_as_the_orchestrator_is_busy(sampler, pruner):
    began = time.monotonic()
    found = scaling.simulated(8, 60, sampler, pruner, 5.0, False)
    assert time.monotonic() - began < 60 * 5.0 * 4 / 8  # four epochs of each trial, by a clock that waits
    assert 60 < found["messages"] <= 60 * (scaling.EPOCHS + 1)
    assert 0 < found["busy"] < 1
    assert found["cost_ms"][60] > 0
    assert found["storage_mb"] > 0


@pytest.mark.process
def test_sleeping_workers_and_ray_train_the_same_epochs():
    pytest.importorskip("ray", reason="Ray Tune is compared with where it is installed: pip install 'ray[tune]'")
    for kind in ("processes", "ray"):
        arm = (kind, 2, 8, "random", "none", 0.05, False)
        found = scaling.apart(arm)
        assert 0 < found["busy"] < 1
        assert found["hourly"] == pytest.approx(3600 * 2 * found["busy"] / (0.05 * scaling.EPOCHS))
        assert found["workers_mb"] > 0
        assert len(scaling.row(arm, found)) == len(scaling.HEAD)
