"""Several trials on one device give what each gives by itself, and a step serves trials of other hyperparameters."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hpsearch.finetune import heads
from hpsearch.finetune.context import DeviceContext, Draws
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.slot import balanced
from hpsearch.types import Job, Outcome, Progress, Status, Trial
from tests.finetune.test_kernel import make, timeless, train
from tests.kernels import PARAMS

OTHERS = {  # one changed value each
    "learning_rate": 3e-3,
    "weight_decay": 0.5,
    "dropout": 0.5,
    "optimizer": "sgd",
    "momentum": 0.5,
    "schedule": "constant",
    "warmup_epochs": 2.0,
    "label_smoothing": 0.2,
    "class_weights": "balanced",
    "l1": 1e-2,
    "l2_sp": 0.1,
    "clip_norm": 0.1,
    "layer_decay": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
    "crop": 0.5,
    "flip": 0.5,
    "rotate": 20.0,
    "colour": 0.5,
    "randaugment": 5.0,
}


def together(kernel, trials, stop_at=()):
    """All items of several trials, their sessions advanced by turns; trials in `stop_at` {trial: epoch} are stopped there."""
    live = {trial.number: kernel.session(Job(trial.number, (trial,))) for trial in trials}
    answers, items = dict.fromkeys(live), []
    while live:
        for number, session in list(live.items()):
            try:
                step = session.send(answers[number])
            except StopIteration:
                del live[number]
                continue
            items += step
            answers[number] = frozenset(i.trial for i in step if isinstance(i, Progress) and dict(stop_at).get(i.trial) == i.epoch)
    return items


def of(items, number):
    return [replace(timeless(i), images_per_second=None) if isinstance(i, Progress) else i for i in items if i.trial == number]


@pytest.mark.parametrize("k", [0, 3])
def test_slots_give_what_solo_trials_give_to_the_last_bit(tmp_path, k):
    solo, slots = make(tmp_path / "a"), make(tmp_path / "b", trials_per_device=3)
    values = [{}, {"learning_rate": 5e-3, "dropout": 0.4, "epochs": 3}, {"batch_size": 16, "weight_decay": 0.3, "frozen_layers": 2}]
    trials = [Trial(n, {**PARAMS, "frozen_layers": k, **v}) for n, v in enumerate([*values, {"epochs": 2}])]  # one more than slots
    found = together(slots, trials, stop_at={1: 2}.items())
    numbers = [i.trial for i in found]
    assert numbers.index(1) < len(numbers) - 1 - numbers[::-1].index(0), "they did not take turns"
    for trial in trials:
        alone = together(solo, [trial], stop_at={1: 2}.items())
        ours = of(found, trial.number)
        assert ours[:-1] == of(alone, trial.number)[:-1]
        assert ours[-1].status is alone[-1].status is (Status.PRUNED if trial.number == 1 else Status.COMPLETE)
        if ours[-1].checkpoint:
            a, b = load_file(ours[-1].checkpoint), load_file(alone[-1].checkpoint)
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", OTHERS)
def test_every_hyperparameter_reaches_the_trainer_inside_a_shared_step(tmp_path, name):
    """Two trials of one kernel by turns, which differ in one value: each as by itself, and not the same."""
    usual = {**PARAMS, "epochs": 2} | ({"optimizer": "sgd"} if name == "momentum" else {})
    trials = [Trial(0, usual), Trial(0, {**usual, name: OTHERS[name]})]
    split = {"split": {"train_per_class": None, "val": 1500, "test": 0}} if name == "class_weights" else {}
    found = together(make(tmp_path, trials_per_device=2, **split), [replace(t, number=n) for n, t in enumerate(trials)])
    solo = make(tmp_path / "solo", **split)
    for n in (0, 1):
        alone = train(solo, number=n, **trials[n].params)
        assert [i.val_loss for i in of(found, n)] == [i.val_loss for i in alone]
        assert of(found, n)[-1].effective == alone[-1].effective
    same_seed = train(solo, number=0, **trials[1].params)
    assert [i.val_loss for i in of(found, 0)] != [i.val_loss for i in same_seed]
    assert same_seed[-1].effective[name] == pytest.approx(OTHERS[name])


# ---------------------------------------------------------------- heads by themselves


def general(monkeypatch):
    """No head is trained by itself."""
    monkeypatch.setattr(heads, "fits", lambda recipe, model: False)


@pytest.mark.parametrize(
    "values", [{}, {"label_smoothing": 0.1, "class_weights": "balanced"}, {"weight_decay": 1.0, "batch_size": 32, "learning_rate": 2e-2}]
)
def test_a_head_by_itself_learns_what_the_general_step_would_teach_it(tmp_path, monkeypatch, values):
    params = {"frozen_layers": 6, "epochs": 5, "dropout": 0.0, **values}
    kernel = make(tmp_path)
    assert heads.fits(Recipe.of({**PARAMS, **params}), kernel.resident().model)
    fast = train(kernel, **params)
    general(monkeypatch)
    slow = train(make(tmp_path / "slow"), **params)
    assert [p.val_loss for p in fast[:-1]] == pytest.approx([p.val_loss for p in slow[:-1]], rel=1e-4)
    assert [p.train_loss for p in fast[:-1]] == pytest.approx([p.train_loss for p in slow[:-1]], rel=1e-4)
    assert fast[-1].effective == slow[-1].effective
    a, b = load_file(fast[-1].checkpoint), load_file(slow[-1].checkpoint)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_heads_together_learn_what_each_learns_alone(tmp_path, monkeypatch):
    calls = []
    step = heads.step
    monkeypatch.setattr(heads, "step", lambda x, *rest: (calls.append(x.shape), step(x, *rest))[1])
    kernel = make(tmp_path, trials_per_device=3)
    values = [{}, {"batch_size": 16, "learning_rate": 1e-2}, {"epochs": 2, "dropout": 0.5, "weight_decay": 0.5}, {"epochs": 6}]
    trials = [Trial(n, {**PARAMS, "frozen_layers": 6, **v}) for n, v in enumerate(values)]
    found = together(kernel, trials)
    assert {len(shape) for shape in calls} == {2, 3}
    assert max(shape[0] for shape in calls if len(shape) == 3) == 3
    for trial in trials:
        alone = train(make(tmp_path / "solo"), number=trial.number, **trial.params)
        ours = of(found, trial.number)
        assert [p.val_loss for p in ours[:-1]] == pytest.approx([p.val_loss for p in alone[:-1]], rel=1e-5)
        assert ours[-1].status is Status.COMPLETE


def test_what_a_head_by_itself_cannot_do_goes_the_general_way(tmp_path):
    model = make(tmp_path).resident().model
    base = {**PARAMS, "frozen_layers": 6}
    for values in ({"frozen_layers": 5}, {"optimizer": "sgd"}, {"l1": 0.1}, {"clip_norm": 1.0}, {"mixup": 0.2}, {"cutmix": 0.2}):
        assert not heads.fits(Recipe.of(base | values), model), values


# ---------------------------------------------------------------- random numbers


def test_owners_of_random_numbers_do_not_disturb_one_another():
    draws, found = Draws(torch.device("cpu")), {0: [], 1: []}
    for owner in (0, 1):
        draws.give(owner)
        draws.seed(owner)
    for owner in (0, 1, 1, 0, 0, 1):
        draws.give(owner)
        found[owner].append(torch.rand(3))
        with draws.aside(7):
            torch.rand(5)
    for owner in (0, 1):
        expected = torch.rand(9, generator=torch.Generator().manual_seed(owner))
        assert torch.equal(torch.cat(found[owner]), expected)


def test_balanced_weights_make_classes_count_the_same():
    weights = balanced(torch.tensor([0, 0, 0, 2]), 3)
    assert weights.tolist() == pytest.approx([4 / 9, 0.0, 4 / 3])


# ---------------------------------------------------------------- views


def test_views_are_shared_by_trials_and_fresh_ones_are_not(tmp_path):
    kernel = make(tmp_path, augment_views=2, split={})
    params = {"frozen_layers": 4, "epochs": 4, "rotate": 15.0, "dropout": 0.0}
    train(kernel, 0, **params)
    features = kernel.resident().features
    assert sorted(view for k, name, strengths, view in features.kept if strengths) == [0, 1]
    first, second = (features.train(4, (1.0, 0.0, 15.0, 0.0, 0.0), view, 2).read(torch.arange(50)) for view in (0, 1))
    assert not torch.equal(first, second)
    again = make(tmp_path / "again", augment_views=2, split={}).resident().features.train(4, (1.0, 0.0, 15.0, 0.0, 0.0), 2, 2)
    assert torch.equal(again.read(torch.arange(50)), first), "view 2 of 2 is view 0, whoever computes it"
    fresh = make(tmp_path / "fresh", augment_views=0, split={})
    assert train(fresh, 0, **params)[-1].status is Status.COMPLETE
    assert not any(strengths for _, _, strengths, _ in fresh.resident().features.kept)
    small = make(tmp_path / "small", memory=features.size(4) * 500, split={})  # the images as they are fit, two views and they do not
    assert not small.resident().features.train(4, (1.0, 0.0, 15.0, 0.0, 0.0), 0, 8).kept


# ---------------------------------------------------------------- precision, and memory given back


def test_bf16_is_close_to_fp32_and_says_so(tmp_path):
    exact, coarse = make(tmp_path / "a", precision="fp32"), make(tmp_path / "b", precision="bf16")
    assert exact.facts().values["precision"] == "fp32"
    assert coarse.facts().values["precision"] == "bf16"
    a, b = (train(kernel, epochs=4, learning_rate=3e-3) for kernel in (exact, coarse))
    assert [p.val_loss for p in a] != [p.val_loss for p in b]
    assert b[-1].val_loss == pytest.approx(a[-1].val_loss, abs=0.1)
    assert DeviceContext("cpu").bf16 == bool(torch.cpu._is_avx512_bf16_supported())


def test_memory_that_a_trial_keeps_wears_the_worker_out(tmp_path, monkeypatch):
    kernel, kept = make(tmp_path), []
    monkeypatch.setattr(DeviceContext, "allocated", lambda self: 2**27 * len(kept) + kernel.resident().features.bytes())

    def trial(leaks):
        for step in kernel.session(Job(0, (Trial(0, {**PARAMS, "epochs": 1}),))):
            kept.extend([1] * (leaks and any(isinstance(i, Outcome) for i in step)))
        return kernel.worn()

    assert [trial(leaks) for leaks in (False, True, True, False, True, True)] == [""] * 6, "first uses are no leak"
    assert trial(True) == "384 MiB on the device were not given back by 3 trials"


def test_a_device_that_failed_wears_the_worker_out(tmp_path, monkeypatch):
    kernel = make(tmp_path)
    slot = kernel.resident().packing.slots[0]

    def lost(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(slot, "step", lost)
        outcome = train(kernel)[-1]
    assert (outcome.status, "illegal memory" in outcome.error) == (Status.FAILED, True)
    assert kernel.worn().startswith("the device failed: CUDA error")
