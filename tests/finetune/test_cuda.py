"""What only a GPU can show: captured steps, streams, measured memory. Run wherever CUDA is; docs/gpu.md keeps the list."""

import gc
import subprocess
import sys

import pytest
import torch

from hpsearch.finetune.judge import judge
from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.finetune.memory import Forecast, peak
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.slot import Slot
from hpsearch.spec import parse_spec
from hpsearch.types import Status, Trial
from tests.finetune.test_kernel import train
from tests.finetune.test_slots import OTHERS, of, together
from tests.kernels import PARAMS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make(folder, spec=(), **own):
    gc.collect()  # a kernel that is collected later may clear work spaces of this one's streams
    folder.mkdir(exist_ok=True)
    usual = {"folder": str(folder), "device": "cuda", "precision": "fp32", "trials_per_device": 1}
    return FineTuneKernel(parse_spec(dict(spec)).resolved() | usual | own)


def losses(items):
    return [i.val_loss for i in items[:-1]]


@pytest.mark.parametrize("k", [0, 3, 6])
def test_a_captured_step_trains_as_an_eager_one(tmp_path, k):
    params = {"frozen_layers": k, "epochs": 4, "dropout": 0.0}
    captured, eager = make(tmp_path / "a"), make(tmp_path / "b", graphs=False)
    assert losses(train(captured, **params)) == pytest.approx(losses(train(eager, **params)), rel=1e-3)
    assert captured.resident().packing.slots[0].programs
    assert not eager.resident().packing.slots[0].programs


def test_the_next_trial_of_a_shape_captures_nothing_and_finds_all_as_new(tmp_path):
    kernel = make(tmp_path / "a")
    first = train(kernel, number=1, dropout=0.3)
    programs = dict(kernel.resident().packing.slots[0].programs)
    train(kernel, number=2, learning_rate=1e-2, weight_decay=0.5, dropout=0.5)
    again = train(kernel, number=1, dropout=0.3)
    assert kernel.resident().packing.slots[0].programs == programs
    assert losses(again) == losses(first)


@pytest.mark.parametrize("name", OTHERS)
def test_every_hyperparameter_reaches_a_captured_step(tmp_path, name):
    usual = {**PARAMS, "epochs": 2} | ({"optimizer": "sgd"} if name == "momentum" else {})
    changed = {**usual, name: OTHERS[name]}
    spec = {"split": {"train_per_class": None, "val": 1500, "test": 0}} if name == "class_weights" else {}
    kernel, eager = make(tmp_path / "a", spec), make(tmp_path / "b", spec, graphs=False)
    base, found = train(kernel, **usual), train(kernel, **changed)
    assert losses(base) != losses(found)
    assert found[-1].effective[name] == pytest.approx(OTHERS[name])
    assert losses(found) == pytest.approx(losses(train(eager, **changed)), rel=5e-2)


def test_every_stage_of_gradual_unfreezing_is_captured(tmp_path):
    params = {"frozen_layers": 3, "unfreeze_epochs": 1, "epochs": 5, "dropout": 0.0, "l1": 1e-6}
    captured, eager = make(tmp_path / "a"), make(tmp_path / "b", graphs=False)
    assert losses(train(captured, **params)) == pytest.approx(losses(train(eager, **params)), rel=1e-2)
    assert {shape.frozen for shape in captured.resident().packing.slots[0].programs} == {3, 4, 5, 6}


@pytest.mark.parametrize("k", [0, 6])
def test_slots_on_parallel_streams_train_as_solo(tmp_path, k):
    solo, slots = make(tmp_path / "a"), make(tmp_path / "b", trials_per_device=3)
    values = [{}, {"learning_rate": 5e-3, "dropout": 0.4, "epochs": 3}, {"batch_size": 16, "weight_decay": 0.3}]
    trials = [Trial(n, {**PARAMS, "frozen_layers": k, **v}) for n, v in enumerate(values)]
    found = together(slots, trials, stop_at={1: 2}.items())
    for trial in trials:
        alone = together(solo, [trial], stop_at={1: 2}.items())
        assert losses(of(found, trial.number)) == pytest.approx(losses(of(alone, trial.number)), rel=1e-3)
        assert of(found, trial.number)[-1].status is alone[-1].status


def test_memory_comes_back_after_trials_and_captured_steps_give_theirs_back(tmp_path):
    kernel = make(tmp_path, trials_per_device=2)
    r = kernel.resident()
    for n in range(6):
        train(kernel, number=n, frozen_layers=n % 3, batch_size=(8, 16)[n % 2], epochs=1)
    assert kernel.worn() == ""
    held = torch.cuda.memory_reserved()
    for slot in r.packing.slots:
        slot.release()
    gc.collect()
    assert torch.cuda.memory_reserved() <= held


def test_the_forecast_is_the_peak_of_a_step_or_of_an_evaluation(tmp_path):
    kernel = make(tmp_path, graphs=False)
    slot, recipe = kernel.resident().packing.slots[0], Recipe.of({**PARAMS, "batch_size": 25})
    shape, x = kernel.steps(recipe)[0]
    optimiser = slot.optimiser(recipe)
    with slot.turn():
        need = slot.need(Forecast(), recipe, shape, x)
        y, val = torch.zeros(len(x), dtype=torch.int64, device="cuda"), kernel.resident().features.val(shape.frozen)
        step = peak(lambda: slot.whole_step(shape, optimiser, x, y), torch.device("cuda"))
        optimiser.zero_grad()
        evaluation = peak(lambda: slot.logits(val, shape.frozen), torch.device("cuda"))
    beside = 2 * sum(p.nbytes for p in optimiser.params) + sum(t.nbytes for t in optimiser.state().values())
    assert need == pytest.approx(max(step, evaluation) + beside, rel=0.05)


def test_a_batch_too_large_for_the_memory_is_trained_in_parts(tmp_path):
    kernel = make(tmp_path, {"split": {"train_per_class": None, "val": 200, "test": 0}})
    kernel.resident()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**28) / torch.cuda.get_device_properties(0).total_memory)
    try:
        outcome = train(kernel, batch_size=1500, epochs=1)[-1]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcome.status is Status.COMPLETE
    assert kernel.parts.known


def test_images_that_stay_on_the_host_are_streamed_to_the_same_result(tmp_path):
    params = {"epochs": 2, "dropout": 0.0, "batch_size": 16}
    resident, streamed = make(tmp_path / "a"), make(tmp_path / "b", memory=1)
    assert not streamed.resident().features.resident
    assert losses(train(streamed, **params)) == pytest.approx(losses(train(resident, **params)), rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("k", [0, 6])
def test_a_checkpoint_is_judged_as_it_was_scored_and_what_is_frozen_forgets_nothing(tmp_path, k, precision):
    kernel = make(tmp_path / "a", precision=precision)
    outcome = train(kernel, frozen_layers=k)[-1]
    (found,) = judge({**kernel.config, "checkpoints": [["it", outcome.checkpoint]], "judge_split": "val"}).judged
    assert found.loss == pytest.approx(outcome.val_loss, abs=1e-5 if precision == "fp32" else 1e-2)
    assert found.images == sum(map(sum, found.confusion)) == 401
    assert found.forgetting.before > 0.95
    assert (found.forgetting.drop == 0) == (k == 6)


HOLDER = """
import sys, time, torch
from hpsearch.finetune.sharing import DeviceShare
share = DeviceShare(sys.argv[1], "other", torch.cuda.mem_get_info, lambda: 0)
share.ask(int(0.89 * torch.cuda.mem_get_info()[0]), 0)
print("ready", flush=True)
time.sleep(120)
"""


def test_a_trial_waits_for_memory_that_another_process_was_promised(tmp_path, monkeypatch):
    kernel = make(tmp_path / "a", memory=2**20)
    kernel.resident()
    device = str(torch.cuda.get_device_properties(0).uuid)
    with subprocess.Popen([sys.executable, "-c", HOLDER, device], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        monkeypatch.setattr(Slot, "need", lambda *given: 2**34)
        kernel.resident().packing.crowd.room = 2**36
        said = []
        monkeypatch.setattr("hpsearch.finetune.kernel.pulse", lambda why: (said.append(why), other.kill()))
        outcome = train(kernel, epochs=1)[-1]
    assert outcome.status is Status.COMPLETE
    assert f"other (process {other.pid})" in said[0]
