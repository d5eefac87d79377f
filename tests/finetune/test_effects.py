"""What each element of a recipe does to a trial on the embedded digits, beyond that it runs."""

from dataclasses import replace

import pytest
import torch

from hpsearch.finetune import data as datasets
from hpsearch.types import Job, Progress, Status, Trial
from tests.finetune import test_kernel
from tests.finetune.test_kernel import train
from tests.kernels import PARAMS


def make(folder, **values):
    """A kernel with all images to validate on: effects are small."""
    return test_kernel.make(folder, **{"split": {}, **values})


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return make(tmp_path_factory.mktemp("effects"))


def moved(kernel):
    """How far each block (the head last) lies from its beginning, relative to its norm there."""
    r = kernel.resident()
    far, norm = [0.0] * 7, [0.0] * 7
    for name, p in r.model.net.named_parameters():
        block = int(name.split(".")[1]) if name.startswith("blocks") else 6
        far[block] += (p.detach() - r.initial[name]).square().sum().item()
        norm[block] += r.initial[name].square().sum().item()
    return [(f / max(n, 1e-12)) ** 0.5 for f, n in zip(far, norm, strict=True)]


def after(kernel, number=0, **params):
    """Progress of a trial and how far its blocks have moved."""
    *progress, outcome = train(kernel, number, **params)
    assert outcome.status is Status.COMPLETE, outcome.error
    return progress, moved(kernel)


def weights(kernel):
    return torch.cat([p.detach().flatten() for p in kernel.resident().model.net.parameters() if p.ndim > 1])


def logits(kernel):
    r = kernel.resident()
    return r.packing.slots[0].logits(r.features.val(0), 0)


def rates(kernel, **params):
    return [p.metrics["learning_rate"] for p in train(kernel, **params)[:-1]]


def test_layer_decay_moves_early_blocks_less(kernel):
    _, plain = after(kernel)
    _, decayed = after(kernel, layer_decay=0.5)
    ratios = [a / b for a, b in zip(decayed, plain, strict=True)]
    assert ratios[0] < 0.2 * ratios[6]
    assert ratios[0] < ratios[3] < ratios[6]


def test_l2_sp_keeps_weights_near_the_pretrained_ones(kernel):
    values = {"optimizer": "sgd", "learning_rate": 1e-2, "epochs": 6}
    _, free = after(kernel, **values)
    _, pulled = after(kernel, **values, l2_sp=1.0)
    assert sum(pulled[:6]) < 0.9 * sum(free[:6])


def test_l1_makes_weights_small(kernel):
    values = {"learning_rate": 5e-3, "epochs": 6}
    after(kernel, **values)
    plain = weights(kernel)
    after(kernel, **values, l1=1e-2)
    sparse = weights(kernel)
    assert sparse.abs().sum() < 0.9 * plain.abs().sum()
    assert (sparse.abs() < 1e-3).sum() > 1.5 * (plain.abs() < 1e-3).sum()


def test_label_smoothing_makes_predictions_less_sure(kernel):
    def entropy(**params):
        after(kernel, epochs=8, learning_rate=3e-3, **params)
        return torch.distributions.Categorical(logits=logits(kernel)).entropy().mean()

    assert entropy(label_smoothing=0.3) > entropy() + 0.1


def test_gradual_unfreezing_frees_one_block_after_another(kernel):
    for stop_at in (1, 2, 3, 4, 5):
        session = kernel.session(Job(0, (Trial(0, {**PARAMS, "epochs": 6, "unfreeze_epochs": 2}),)))
        step = next(session)
        while not step or isinstance(step[0], Progress):
            step = session.send(frozenset({0} if step and step[0].epoch == stop_at else ()))
        free = (stop_at - 1) // 2
        assert [distance > 0 for distance in moved(kernel)] == [block >= 6 - free for block in range(7)], stop_at


def test_balanced_class_weights_find_more_of_the_rare_classes(tmp_path, monkeypatch):
    whole = datasets.embedded

    def few(*args):
        """Classes 0 to 4 keep one image each."""
        data = whole(*args)
        y = data.train.labels
        keep = torch.cat([(y == c).nonzero()[: 1 if c < 5 else None, 0] for c in range(10)])
        return replace(data, train=replace(data.train, rows=data.train.rows[keep], labels=y[keep]))

    monkeypatch.setattr(datasets, "embedded", few)
    kernel = make(tmp_path)
    values = {"epochs": 8, "learning_rate": 2e-3}
    plain, balanced = (train(kernel, **values, class_weights=kind)[-1] for kind in ("none", "balanced"))
    assert sum(balanced.per_class["recall"][:5]) > sum(plain.per_class["recall"][:5])


def test_early_stopping_saves_epochs_at_an_equal_score(kernel):
    values = {"epochs": 30, "learning_rate": 2e-2, "schedule": "constant"}
    *whole, _ = train(kernel, **values)
    *short, outcome = train(kernel, **values, early_stopping=3)
    assert outcome.status is Status.COMPLETE
    assert len(short) < len(whole)
    losses = [p.val_loss for p in whole[: len(short)]]
    assert [p.val_loss for p in short] == losses
    assert outcome.val_loss == min(losses)
    assert len(short) - outcome.epoch == 3


def test_clip_norm_bounds_the_update(kernel):
    values = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5, "epochs": 1, "warmup_epochs": 0.0}
    train(kernel, **values, clip_norm=1e-3)
    r = kernel.resident()
    far = sum((p.detach() - r.initial[name]).square().sum().item() for name, p in r.model.net.named_parameters()) ** 0.5
    assert 0 < far <= 7 * 0.5 * 1e-3 * 1.001, "7 steps of at most learning rate times clip_norm"
    train(kernel, **values)
    assert sum(moved(kernel)) > 0.1


@pytest.mark.parametrize("values", [{"mixup": 1.0}, {"cutmix": 1.0}, {"crop": 0.3}, {"rotate": 90.0}])
def test_changed_images_are_harder_to_fit(kernel, values):
    common = {"epochs": 6, "learning_rate": 3e-3}
    (plain, _), (changed, _) = after(kernel, **common), after(kernel, **common, **values)
    assert changed[-1].train_loss > plain[-1].train_loss + 0.02


def disagreement(kernel, change):
    """How far, in nats, what the network says of changed validation images lies from what it says of them as they are."""
    r = kernel.resident()
    x = r.features.scaled(r.features.pixels("val", torch.arange(200)))
    says = [r.packing.slots[0].model.suffix(r.features.behind(image, 0), 0).log_softmax(-1) for image in (x.clone(), change(x.clone()))]
    return (says[0].exp() * (says[0] - says[1])).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("values", "change"),
    [
        ({"flip": 0.5}, lambda x: x.flip(-1)),
        ({"colour": 0.8}, lambda x: (x * 0.4).clamp(0, 1)),
        ({"randaugment": 8.0}, lambda x: x.roll(2, -1)),
    ],
    ids=["flip", "colour", "randaugment"],
)
def test_what_images_are_changed_by_in_training_changes_less_of_what_is_said_of_them(kernel, values, change):
    usual = {"learning_rate": 3e-3, "epochs": 12}
    found = []
    for given in ({}, values):
        after(kernel, **usual, **given)
        kernel.resident().model.eval()
        with torch.no_grad():
            found.append(disagreement(kernel, change))
    assert found[1] < 0.8 * found[0]


def test_augmentation_leaves_validation_images_as_they_are(kernel):
    features = kernel.resident().features
    every = torch.arange(features.val(0).images)
    before = features.val(0).read(every).clone()
    train(kernel, epochs=1, rotate=90.0, colour=0.5, crop=0.3)
    assert torch.equal(features.val(0).read(every), before)


def test_warm_up_lowers_the_first_learning_rates(kernel):
    cold, warm = (rates(kernel, schedule="constant", warmup_epochs=n) for n in (0.0, 2.0))
    assert cold == pytest.approx([1e-3] * 4)
    assert warm[0] < 0.6e-3
    assert warm[2:] == pytest.approx([1e-3] * 2)


def test_each_schedule_has_a_curve_of_its_own(kernel):
    found = {s: rates(kernel, schedule=s, epochs=6, warmup_epochs=0.0) for s in ("constant", "cosine", "onecycle", "cyclical", "step")}
    assert len({tuple(curve) for curve in found.values()}) == 5
    assert found["cosine"] == sorted(found["cosine"], reverse=True)
    assert found["cosine"][-1] < 0.1 * found["cosine"][0]
    assert found["onecycle"][0] < max(found["onecycle"]) > found["onecycle"][-1]
