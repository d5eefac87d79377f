"""Memory that runs out: the batch keeps its size, the trial its result."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.finetune import heads, memory
from hpsearch.types import Status
from tests.finetune.test_kernel import make, train


class Small:
    """A model on a device that cannot hold more than `limit` images at once."""

    def __init__(self, monkeypatch, kernel, limit):
        model = kernel.resident().model
        self.largest, suffix = 0, type(model).suffix

        def bounded(this, x, k):
            if len(x) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.largest = max(self.largest, len(x))
            return suffix(this, x, k)

        monkeypatch.setattr(type(model), "suffix", bounded)


@pytest.mark.parametrize(("k", "tolerance"), [(6, 1e-5), (4, None)])
def test_a_batch_that_does_not_fit_is_trained_in_parts_and_keeps_its_size(tmp_path, monkeypatch, k, tolerance):
    params = {"batch_size": 32, "frozen_layers": k, "dropout": 0.0, "epochs": 3, "learning_rate": 3e-3}
    monkeypatch.setattr(heads, "fits", lambda recipe, model: False)  # heads by themselves are trained another way
    whole = train(make(tmp_path), **params)
    kernel = make(tmp_path)
    small = Small(monkeypatch, kernel, 7)
    parts = train(kernel, **params)
    assert small.largest <= 7
    assert parts[-1].status is Status.COMPLETE
    assert parts[-1].effective["batch_size"] == whole[-1].effective["batch_size"] == 25
    if tolerance:  # nothing but the head is trained: no BatchNorm, so the gradients are the same but for rounding
        assert [p.val_loss for p in parts[:-1]] == pytest.approx([p.val_loss for p in whole[:-1]], rel=tolerance)
    assert {(shape.frozen, shape.images): parts for shape, parts in kernel.parts.known.items()} == {(k, 25): 4}
    again = train(kernel, **params)  # known by now: no attempt fails
    assert [p.val_loss for p in again[:-1]] == [p.val_loss for p in parts[:-1]]


def test_random_numbers_are_those_of_a_first_attempt(tmp_path, monkeypatch):
    """Dropout draws again what it drew for the attempt that failed."""
    monkeypatch.setattr(heads, "fits", lambda recipe, model: False)
    params = {"batch_size": 8, "frozen_layers": 6, "dropout": 0.5, "epochs": 2}
    expected = train(make(tmp_path), **params)
    kernel = make(tmp_path)
    model, failed = kernel.resident().model, []
    suffix = type(model).suffix

    def fails_once(this, x, k):
        logits = suffix(this, x, k)
        if this.training and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    monkeypatch.setattr(type(model), "suffix", fails_once)
    monkeypatch.setattr(memory, "SMALLEST", 1)
    found = train(kernel, **params)
    assert failed
    assert kernel.parts.known
    assert found[-1].status is Status.COMPLETE
    assert found[0].val_loss == pytest.approx(expected[0].val_loss, rel=0.05)


def test_what_does_not_fit_at_all_fails_the_trial_and_not_the_worker(tmp_path, monkeypatch):
    kernel = make(tmp_path)
    with monkeypatch.context() as patch:
        Small(patch, kernel, 1)
        outcome = train(kernel, batch_size=8)[-1]
    assert outcome.status is Status.FAILED
    assert "out of memory, even with the batch of 8 images trained in" in outcome.error
    assert train(kernel, batch_size=8)[-1].status is Status.COMPLETE


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def wrong():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        memory.attempt(wrong)
    assert memory.ran_out(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."))


def test_a_huge_allocation_is_a_lack_of_memory():
    assert memory.attempt(lambda: torch.empty(2**60, dtype=torch.uint8)) is None


@given(peaks=st.lists(st.integers(0, 10**10), min_size=2))
def test_a_forecast_is_the_second_dry_run_and_made_once(peaks):
    forecast, runs = memory.Forecast(), iter(peaks)
    for _ in range(2):
        assert forecast.bytes("shape", lambda: next(runs)) == peaks[1], "the first is for the libraries"


def test_a_forecast_beside_others_that_left_no_room_is_made_again():
    forecast, runs = memory.Forecast(), iter([memory.NEVER, memory.NEVER, 5, 7])
    assert [forecast.bytes("shape", lambda: next(runs)) for _ in range(3)] == [memory.NEVER, 7, 7]
