"""What a trial does to the weights: that every hyperparameter reaches the trainer, and that frozen means frozen."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from hpsearch.finetune import metrics, state
from hpsearch.finetune.kernel import FineTuneKernel, epoch_batches
from hpsearch.spec import parse_spec
from hpsearch.types import Job, Outcome, Progress, Status, Trial
from tests.kernels import PARAMS

SPLIT = {"val": 100, "test": 100}  # of the digits; with 401 images to validate on, that is most of what a trial computes


def make(folder, memory=None, **values):
    folder.mkdir(exist_ok=True)
    values.setdefault("split", SPLIT)
    own = {key: values.pop(key) for key in ("precision", "trials_per_device", "augment_views", "state_seconds") if key in values}
    config = parse_spec(values).resolved() | {"folder": str(folder), "threads": 1, "device": "cpu", "memory": memory, "precision": "fp32"}
    return FineTuneKernel(config | own)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return make(tmp_path_factory.mktemp("weights"))


def train(kernel, number=0, **params):
    """All items of one trial's session."""
    return [item for step in kernel.session(Job(0, (Trial(number, {**PARAMS, **params}),))) for item in step]


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 2e-3), ("batch_size", 16), ("epochs", 5), ("weight_decay", 0.5), ("dropout", 0.4), ("frozen_layers", 2)],
)
def test_every_hyperparameter_reaches_the_trainer(kernel, name, value):
    base, changed = train(kernel), train(kernel, **{name: value})
    assert [p.val_loss for p in base[:-1]] != [p.val_loss for p in changed[:-1]]
    used = {"batch_size": 13}.get(name, value)  # 50 images in four batches of 12 or 13
    assert changed[-1].effective[name] == pytest.approx(used)
    assert base[-1].effective == pytest.approx(PARAMS)


@pytest.mark.parametrize("k", [0, 3, 6])
def test_frozen_blocks_are_bit_identical_afterwards_and_the_others_moved(kernel, k):
    train(kernel, frozen_layers=k, learning_rate=1e-2)
    r = kernel.resident()
    for name, now in r.model.net.state_dict().items():
        block = int(name.split(".")[1]) if name.startswith("blocks") else 6
        assert torch.equal(now, r.initial[name]) == (block < k), name


@pytest.mark.parametrize("k", [0, 1, 4, 6])
def test_kept_activations_train_exactly_as_computing_them_each_step(kernel, k, tmp_path):
    kept, passing = train(kernel, frozen_layers=k), train(make(tmp_path, memory=1), frozen_layers=k)
    for a, b in zip(kept[:-1], passing[:-1], strict=True):
        if k == 0:  # normalising is element by element
            assert a.val_loss == b.val_loss
        # The prefix sees other batch sizes, which may change the order of sums in a convolution: fp32 rounding, nothing more.
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)


def test_a_deeper_cut_computed_from_a_shallower_one_is_the_same_to_the_last_bit(tmp_path):
    """So that a trial does not depend on which trials this worker has seen before."""
    for values in ({}, {"model": "shufflenet_v2_x0_5", "weights": "none", "preprocess": {"size": 32}}):
        cold, warm = make(tmp_path, **values).resident(), make(tmp_path, **values).resident()
        for k in (1, 3, 6):
            cold.features.kept.clear()
            for name in ("train", "val"):
                found, expected = (getattr(r.features, name)(k) for r in (warm, cold))
                assert found.kept
                every = torch.arange(found.images)
                assert torch.equal(found.read(every), expected.read(every)), (values, k, name)
        assert sorted({k for k, *_ in warm.features.kept}) == [1, 3, 6]


def test_activations_that_do_not_fit_together_take_turns(tmp_path):
    features = make(tmp_path).resident().features
    sizes = {}
    for k in (0, 3, 6, 4):
        features.kept.clear()
        assert features.train(k).kept
        assert features.val(k).kept
        sizes[k] = sum(t.nbytes for t in features.kept.values())
    features.kept.clear()
    features.budget = sizes[3] + sizes[6]
    for k in (6, 3, 6, 3):
        features.train(k), features.val(k)
    assert [key[:2] for key in features.kept] == [(6, "train"), (6, "val"), (3, "train"), (3, "val")]
    features.val(6)  # used again: now the last to go
    features.train(4)
    assert (6, "val") in [key[:2] for key in features.kept]
    assert (6, "train") not in [key[:2] for key in features.kept]
    assert sum(t.nbytes for t in features.kept.values()) <= features.budget
    features.budget = sizes[6]
    assert not features.train(3).kept
    assert features.train(6).kept


def test_the_kept_weights_give_the_score(kernel):
    *_, outcome = train(kernel, number=7, learning_rate=3e-2, epochs=6, frozen_layers=2)
    r = kernel.resident()
    state = load_file(outcome.checkpoint)
    assert state.keys() == r.initial.keys()
    assert all(torch.equal(t, r.initial[name]) for name, t in state.items() if name.startswith(("blocks.0", "blocks.1")))
    r.model.restore(state)
    scores, matrix = metrics.evaluate(r.packing.slots[0].logits(r.features.val(0), 0), r.y_val)
    assert scores["loss"] == pytest.approx(outcome.val_loss, rel=1e-5)
    assert scores["accuracy"] == outcome.metrics["accuracy"]
    assert outcome.per_class == metrics.per_class(matrix)
    assert sum(outcome.per_class["images"]) == len(r.data.val)
    with safe_open(outcome.checkpoint, "pt") as file:
        about = json.loads(file.metadata()["hpsearch"])
    assert about["epoch"] == outcome.epoch
    assert about["classes"] == list("0123456789")
    assert about["params"]["learning_rate"] == 3e-2
    assert about["preprocessing"]["size"] == 16


@pytest.mark.parametrize("objective", ["accuracy", "f1", "top5"])
def test_the_kept_epoch_is_the_one_that_the_objective_likes_best(tmp_path, objective):
    *progress, outcome = train(make(tmp_path, objective=objective), learning_rate=2e-2, epochs=8)
    best = min(progress, key=lambda p: (-p.metrics[objective], p.val_loss))
    assert outcome.epoch == best.epoch
    assert dict(outcome.metrics) == dict(best.metrics)


@pytest.mark.parametrize(("k", "pauses"), [(0, [2]), (3, [1, 4]), (6, [3])])
def test_a_trial_that_was_paused_goes_on_as_if_it_had_not_been(tmp_path, k, pauses):
    """Slow twin: uninterrupted, and stopped at some epochs and continued, each time by another worker that has trained others."""
    params = {**PARAMS, "epochs": 6, "dropout": 0.3, "frozen_layers": k, "learning_rate": 5e-3}
    whole = train(make(tmp_path / "a", pruner="halving"), number=4, **params)
    told, state = {}, None
    for stop_at in [*pauses, None]:
        worker = make(tmp_path / "b", pruner="halving")
        train(worker, number=9, learning_rate=2e-2, epochs=1)
        session = worker.session(Job(0, (Trial(4, params, resume=state),)))
        step = next(session)
        while not step or isinstance(step[0], Progress):
            for p in step:
                assert told.setdefault(p.epoch, timeless(replace(p, again=False))) == timeless(replace(p, again=False))
            step = session.send(frozenset({4} if step and step[0].epoch == stop_at else ()))
        (outcome,) = step
        state = outcome.state
        assert (outcome.status, state is None) == ((Status.COMPLETE, True) if stop_at is None else (Status.PRUNED, False))
    assert list(told.values()) == [timeless(p) for p in whole[:-1]]
    a, b = (load_file(o.checkpoint) for o in (whole[-1], outcome))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (outcome.val_loss, outcome.epoch, outcome.effective) == (whole[-1].val_loss, whole[-1].epoch, whole[-1].effective)


@given(
    k=st.sampled_from([0, 3, 6]),
    kills=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    how=st.sampled_from(["killed", "told to stop"]),
    recipe=st.fixed_dictionaries(
        {},
        optional={
            "optimizer": st.sampled_from(["sgd", "adamw"]),
            "schedule": st.sampled_from(["cosine", "onecycle", "step"]),
            "mixup": st.just(0.4),
            "flip": st.just(0.5),
            "unfreeze_epochs": st.just(2),
            "early_stopping": st.just(2),
            "l2_sp": st.just(1e-3),
        },
    ),
)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_a_trial_is_cut_off_it_comes_to_the_same_bits(tmp_path, k, kills, how, recipe):
    """By a kill, after which a new worker finds what was saved last, or by a request; every parameter, every epoch."""
    params = {**PARAMS, "epochs": 6, "dropout": 0.2, "frozen_layers": k, **recipe}
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    for name in "ab":
        (place / name).mkdir()
    whole = train(make(place / "a"), number=4, **params)
    state, told, outcome = None, {}, None
    for stop_at in [*sorted(kills), None]:
        worker = make(place / "b", state_seconds=0.0)
        session = worker.session(Job(0, (Trial(4, params, study="s", resume=state),)))
        step = next(session)
        while outcome is None:
            for p in (p for p in step if isinstance(p, Progress)):
                assert told.setdefault(p.epoch, timeless(replace(p, again=False))) == timeless(replace(p, again=False))
            if step and isinstance(step[0], Outcome):
                outcome = step[0] if step[0].status is Status.COMPLETE else None
                state = step[0].state
                break
            reached = bool(step) and stop_at is not None and step[0].epoch >= stop_at
            if reached and how == "killed":
                session.close()
                state = str(place / "b" / "trial-0004.state")
                break
            if reached:
                worker.keep()
            step = session.send(frozenset({4} if reached else ()))
        if outcome is not None:
            break
    assert list(told.values()) == [timeless(p) for p in whole[:-1]]
    a, b = (load_file(o.checkpoint) for o in (whole[-1], outcome))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (outcome.val_loss, outcome.epoch, outcome.effective) == (whole[-1].val_loss, whole[-1].epoch, whole[-1].effective)


def timeless(progress):
    return replace(progress, seconds=0.0, images_per_second=None)


def test_a_loss_that_is_no_number_fails_the_trial_with_its_reason(kernel):
    outcome = train(kernel, learning_rate=1e3)[-1]
    if outcome.status is not Status.FAILED:  # BatchNorm tames even this: break the loss itself
        pytest.fail("a learning rate of 1000 did not diverge; the test needs another way")
    assert "diverged" in outcome.error
    assert "1e+03" in outcome.error
    assert train(kernel)[-1].status is Status.COMPLETE


def test_pretraining_matters(kernel, tmp_path):
    pretrained = train(kernel, epochs=8, learning_rate=3e-3)[-1]
    scratch = train(make(tmp_path, weights="none"), epochs=8, learning_rate=3e-3)[-1]
    assert pretrained.metrics["accuracy"] > scratch.metrics["accuracy"] + 0.1


def test_no_file_is_left_half_written(kernel, monkeypatch, tmp_path):
    def dies(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    broken = make(tmp_path)
    monkeypatch.setattr(state, "save_file", dies)
    outcome = train(broken)[-1]
    assert outcome.status is Status.FAILED
    assert "No space left" in outcome.error
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("images", "batch", "steps"), [(50, 8, 7), (50, 50, 1), (50, 64, 1), (50, 7, 8), (3, 2, 1), (5, 1, 2), (1, 8, 1), (51, 2, 25)]
)
def test_batches_differ_by_at_most_one_image(images, batch, steps):
    assert epoch_batches(images, batch) == steps
    sizes = [len(t) for t in torch.arange(images).tensor_split(steps)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, images)
    assert max(sizes) <= max(3, batch)


def test_the_learning_rate_ends_low_and_seconds_grow(kernel):
    *progress, outcome = train(kernel, epochs=6)
    rates = [p.metrics["learning_rate"] for p in progress]
    assert rates[0] == pytest.approx(PARAMS["learning_rate"] * 7 / 8, rel=1e-5)  # the last of seven warm-up steps
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 1e-4
    assert all(p.images_per_second > 0 for p in progress)
    seconds = [p.seconds for p in progress]
    assert seconds == sorted(seconds)
    assert isinstance(outcome, Outcome)
    assert isinstance(progress[0], Progress)
    assert math.isfinite(outcome.seconds)
