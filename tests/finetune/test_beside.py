"""Runs beside the search: from scratch, with another seed, or again as a trial was."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hpsearch.types import Job, Progress, Setup, Status, Trial
from tests.finetune.test_kernel import make
from tests.kernels import PARAMS


@pytest.fixture
def kernel(tmp_path):
    return make(tmp_path)


def run(kernel, setup, number=-1, origin="reference", **params):
    trial = Trial(number, {**PARAMS, "epochs": 3, **params}, origin=origin, setup=setup)
    *progress, outcome = [item for step in kernel.session(Job(0, (trial,))) for item in step]
    return progress, outcome


def losses(progress):
    return [(p.train_loss, p.val_loss) for p in progress if isinstance(p, Progress)]


@pytest.mark.parametrize("frozen", [0, 4])
def test_a_run_like_a_trial_is_that_trial_again_to_the_last_bit(kernel, frozen):
    first, ended = run(kernel, None, number=7, frozen_layers=frozen)
    a = load_file(ended.checkpoint)
    again, outcome = run(kernel, Setup("again-0007", like=7), origin="winner", frozen_layers=frozen)
    assert losses(first) == losses(again)
    assert outcome.trial == -1
    assert outcome.checkpoint == ended.checkpoint
    with safe_open(outcome.checkpoint, "pt") as file:
        assert json.loads(file.metadata()["hpsearch"])["trial"] == 7
    b = load_file(outcome.checkpoint)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("frozen", [0, 4, 6])
def test_another_seed_changes_head_and_order_and_nothing_frozen(kernel, frozen):
    one, first = run(kernel, Setup("a", like=0, seed=1), frozen_layers=frozen)
    same, _ = run(kernel, Setup("b", like=0, seed=1), frozen_layers=frozen)
    other, second = run(kernel, Setup("c", like=0, seed=2), frozen_layers=frozen)
    assert losses(one) == losses(same)
    assert losses(one) != losses(other)
    initial = kernel.resident().initial
    for name, tensor in load_file(second.checkpoint).items():
        if name.startswith("blocks") and int(name.split(".")[1]) < frozen:
            assert torch.equal(tensor, initial[name]), name
    assert first.status is second.status is Status.COMPLETE


def test_from_scratch_starts_without_what_was_learnt_before(kernel):
    pretrained, _ = run(kernel, Setup("pretrained", like=0), epochs=6)
    scratch, outcome = run(kernel, Setup("scratch", like=0, scratch=True), epochs=6)
    assert outcome.status is Status.COMPLETE, outcome.error
    assert scratch[-1].val_loss > pretrained[-1].val_loss + 0.2, "without pretraining it should be far worse on 50 images"
    with safe_open(outcome.checkpoint, "pt") as file:
        assert json.loads(file.metadata()["hpsearch"])["trial"] == -1
    after, _ = run(kernel, Setup("pretrained-2", like=0), epochs=6)
    assert losses(after) == losses(pretrained), "the study's own trials must not notice"


def test_from_scratch_with_frozen_layers_is_refused(kernel):
    _, outcome = run(kernel, Setup("scratch", like=0, scratch=True), frozen_layers=2)
    assert outcome.status is Status.FAILED
    assert "nothing can be frozen" in outcome.error


def test_in_slots_beside_trials_of_the_search_they_are_what_they_are_alone(tmp_path):
    from tests.finetune.test_slots import of, together

    slots, solo = make(tmp_path / "a", trials_per_device=3), make(tmp_path / "b")
    trials = [
        Trial(0, {**PARAMS, "epochs": 2}),
        Trial(-1, {**PARAMS, "epochs": 2}, setup=Setup("scratch", 0, scratch=True)),
        Trial(-2, {**PARAMS, "epochs": 2, "frozen_layers": 6}, setup=Setup("probe", 0, seed=5)),
    ]
    found = together(slots, trials)
    for trial in trials:
        alone = together(solo, [trial])
        assert of(found, trial.number)[:-1] == of(alone, trial.number)[:-1]


# ---------------------------------------------------------------- repeats of a comparison


@pytest.mark.parametrize("craft", [{}, {"frozen_layers": 6}, {"frozen_layers": 2, "mixup": 0.4, "dropout": 0.3, "flip": 0.5}])
def test_in_a_repeat_a_configuration_trains_the_same_whatever_its_number(tmp_path, craft):
    kernel = make(tmp_path, recipe={k: v for k, v in craft.items() if k in ("mixup", "flip")})
    params = {**PARAMS, "epochs": 3, **{k: v for k, v in craft.items() if k not in ("mixup", "flip")}}

    def trained(number, repeat):
        (tmp_path / f"{number}-{repeat}").mkdir(exist_ok=True)
        trial = Trial(number, params, repeat=repeat, folder=str(tmp_path / f"{number}-{repeat}"))
        *progress, outcome = [item for step in kernel.session(Job(0, (trial,))) for item in step]
        assert outcome.status is Status.COMPLETE, outcome.error
        assert outcome.checkpoint == str(tmp_path / f"{number}-{repeat}" / f"trial-{number:04d}.safetensors")
        return losses(progress), load_file(outcome.checkpoint)

    first, third, other = trained(3, 1), trained(11, 1), trained(3, 2)
    assert first[0] == third[0]
    assert all(torch.equal(first[1][name], third[1][name]) for name in first[1])
    assert first[0] != other[0]
    assert trained(3, 1)[0] == first[0], "another repeat between them changes nothing"
    plain = trained(0, 0)[0]
    assert plain not in (first[0], other[0])


def test_a_winner_of_a_repeat_trained_again_is_what_it_was(kernel):
    trial = Trial(5, {**PARAMS, "epochs": 2}, repeat=2)
    *first, _ = [item for step in kernel.session(Job(0, (trial,))) for item in step]
    again = Trial(-1, {**PARAMS, "epochs": 2}, origin="winner", setup=Setup("again-0005", like=5), repeat=2)
    *second, _ = [item for step in kernel.session(Job(0, (again,))) for item in step]
    assert losses(first) == losses(second)
