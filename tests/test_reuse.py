"""Reuse in a comparison: what was trained before is replayed, and nobody can tell but by the clock."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpsearch.executors.inline import InlineExecutor
from hpsearch.executors.reuse import Memo, Reusing, completed, cut_short
from hpsearch.executors.worker import KernelRef
from hpsearch.orchestrator import Orchestrator
from hpsearch.protocols import Message
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.catalog import read_study
from hpsearch.search.headstart import initial
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import SAMPLERS, parse_spec
from hpsearch.types import Job, Outcome, Progress, Status, StudyStarted, Trial, TrialEnded
from tests.contracts.test_executor import started, until
from tests.kernels import PARAMS

# Few configurations, so that samplers meet on many of them.
SMALL = {
    "learning_rate": [1e-3, 1e-2],
    "epochs": [3, 10],
    "dropout": [0.0, 0.2],
    "batch_size": 8,
    "weight_decay": 0.01,
    "frozen_layers": {"low": 0, "high": 6, "grid": [0, 3, 6]},
}
CLOCKS = {"started": None, "ended": None, "seconds": 0.0, "reused": "", "checkpoint": None, "state": None}


def timeless(record):
    curve = tuple({k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in record.curve)
    return replace(record, **CLOCKS, curve=curve)


def study(url, name, executor, trackers=(), begin=3, folder=None, **values):
    """One study of a comparison, whose trials leave their files in `folder`; its records."""
    spec = parse_spec({"name": name, "repeat": 1, "space": SMALL, "trials": 12, **values})
    storage = open_storage(url, create=True)
    searcher = OptunaSearcher(spec, storage, initial(spec, begin), folder=folder)
    try:
        Orchestrator(searcher, executor, trackers, TrialFiles(folder), budget=spec.trials).run(name, spec.resolved())
    finally:
        searcher.close()
    records = read_study(open_storage(url), name).records
    storage.engine.dispose()
    return records


def compared(place, empty_storage, samplers, ref, reuse, **values):
    """Records of one study a sampler; with `reuse`, all through one memo."""
    folder = Path(tempfile.mkdtemp(dir=place))
    shutil.copy(empty_storage, folder / "hpsearch.db")
    memo, found = Memo(), {}
    for sampler in samplers:
        inner = InlineExecutor(ref)
        executor = Reusing(inner, memo, str(folder), values.get("pruner") == "halving") if reuse else inner
        (folder / sampler).mkdir(exist_ok=True)
        found[sampler] = study(f"sqlite:///{folder}/hpsearch.db", f"c-{sampler}-r1", executor, [memo], sampler=sampler, **values)
        executor.close()
    return found


@given(
    samplers=st.lists(st.sampled_from(SAMPLERS), min_size=2, max_size=3, unique=True),
    pruner=st.sampled_from(["none", "median", "hyperband"]),
    seed=st.integers(0, 99),
    objective=st.sampled_from(["val_loss", "accuracy"]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_study_with_reuse_is_the_study_without(tmp_path, empty_storage, samplers, pruner, seed, objective):
    ref = KernelRef("tests.kernels:curves", {})
    values = {"pruner": pruner, "seed": seed, "objective": objective}
    plain, reused = (compared(tmp_path, empty_storage, samplers, ref, reuse, **values) for reuse in (False, True))
    for sampler in samplers:
        assert [timeless(r) for r in reused[sampler]] == [timeless(r) for r in plain[sampler]]
    assert not any(r.reused for r in reused[samplers[0]] if r.number < 3)
    common = [r for r in reused[samplers[1]][:3] if r.status is Status.COMPLETE]
    assert all(r.reused == f"c-{samplers[0]}-r1, trial {r.number}" for r in common)
    assert [r.status for r in reused[samplers[0]][:3]] == [r.status for r in reused[samplers[1]][:3]], "Hyperband deals alike brackets"


def test_rungs_pause_and_promote_replayed_trials_alike(tmp_path, empty_storage):
    pruner = {"name": "halving", "warmup": 0.2, "reduction_factor": 2}
    found = []
    for reuse in (False, True):
        folder = tmp_path / f"{reuse}"
        folder.mkdir()
        shutil.copy(empty_storage, folder / "hpsearch.db")
        ref, memo, studies = KernelRef("tests.kernels:curves", {"states": str(folder)}), Memo(), []
        for sampler in ("random", "tpe", "grid"):
            inner = InlineExecutor(ref)
            executor = Reusing(inner, memo, str(folder), resumable=True) if reuse else inner
            url = f"sqlite:///{folder}/hpsearch.db"
            studies.append(study(url, f"c-{sampler}-r1", executor, [memo], folder=folder, sampler=sampler, pruner=pruner, trials=20))
            executor.close()
        found.append([[timeless(r) for r in records] for records in studies])
        assert list(folder.glob("*.state")) == []
    assert found[0] == found[1]
    assert sum(bool(r.reused) for r in studies[1] + studies[2]) > 3
    assert any(r.reused and r.status is Status.PRUNED for records in studies for r in records)


def test_with_the_real_kernel_a_reused_trial_is_what_training_gives(tmp_path, empty_storage):
    space = {**SMALL, "epochs": [2, 4], "learning_rate": [3e-3, 1e-2]}
    config = parse_spec({"space": space}).resolved() | {"folder": str(tmp_path), "device": "cpu", "threads": 1, "precision": "fp32"}
    ref = KernelRef("hpsearch.finetune.family:make", config)
    values = {"space": space, "trials": 7, "pruner": "median"}
    plain, reused = (compared(tmp_path, empty_storage, ["random", "tpe"], ref, reuse, **values) for reuse in (False, True))
    for sampler in ("random", "tpe"):
        assert [timeless(r) for r in reused[sampler]] == [timeless(r) for r in plain[sampler]]
    assert sum(bool(r.reused) for r in reused["tpe"]) >= 3


# ---------------------------------------------------------------- small parts


def trained(params=PARAMS, number=0, repeat=1):
    """The record of a training by the tabulated kernel, and a memo that heard of it."""
    memo = Memo()
    executor = InlineExecutor(KernelRef("tests.kernels:curves", {}))
    started(executor)
    trial = Trial(number, params, repeat=repeat)
    executor.submit(Job(0, (trial,)))
    messages = until(executor, lambda ms: any(m.done for m in ms))
    (outcome,) = [i for m in messages for i in m.step if isinstance(i, Outcome)]
    curve = tuple(i.row() for m in messages for i in m.step if isinstance(i, Progress))
    from tests.events import record

    values = {"params": params, "val_loss": outcome.val_loss, "best_epoch": outcome.epoch, "curve": curve, "seconds": outcome.seconds}
    kept = replace(record(number, Status.COMPLETE, [1.0]), **values, metrics=outcome.metrics, effective=outcome.effective)
    memo.add("a-random-r1", repeat, kept)
    return memo, outcome, curve


@pytest.fixture
def reusing():
    memo, outcome, curve = trained()
    executor = Reusing(InlineExecutor(KernelRef("tests.kernels:curves", {})), memo)
    started(executor)
    yield executor, outcome, curve
    executor.close()


def test_a_replay_tells_every_epoch_waits_for_each_verdict_and_ends_as_the_training_did(reusing):
    executor, outcome, curve = reusing
    executor.submit(Job(4, (Trial(7, dict(PARAMS), repeat=1),)))
    assert executor.free() == 0, "a replay takes the place of a worker"
    (first,) = executor.poll(0)
    assert executor.poll(0) == [], "nothing before the verdict"
    executor.answer(4, frozenset())
    rest = until(executor, lambda ms: any(m.done for m in ms))
    progress = [i for m in [first, *rest] for i in m.step if isinstance(i, Progress)]
    assert [p.row() for p in progress] == list(curve)
    assert {(p.trial, p.epochs) for p in progress} == {(7, 4)}
    (end,) = [i for m in rest for i in m.step if isinstance(i, Outcome)]
    assert replace(end, trial=0, reused="") == outcome
    assert end.reused == "a-random-r1, trial 0"
    assert executor.free() == 1


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_replay_that_the_pruner_stops_ends_there_with_what_had_been_reached(reusing, epoch):
    executor, _, curve = reusing
    executor.submit(Job(0, (Trial(7, dict(PARAMS), repeat=1),)))
    messages = until(executor, lambda ms: any(m.done for m in ms), lambda p: p.epoch == epoch)
    (end,) = [i for m in messages for i in m.step if isinstance(i, Outcome)]
    assert (end.status, end.epoch, end.val_loss) == (Status.PRUNED, epoch, curve[epoch - 1]["val_loss"])
    assert end.seconds == curve[epoch - 1]["seconds"]
    assert (end.checkpoint, end.state) == (None, None)


def test_what_differs_in_repeat_or_configuration_or_is_no_trial_of_the_search_is_trained(reusing):
    executor, _, _ = reusing
    for trial in (
        Trial(1, PARAMS, repeat=2),
        Trial(2, {**PARAMS, "dropout": 0.11}, repeat=1),
        Trial(3, PARAMS, repeat=1, resume="x.state"),
    ):
        assert executor.memo.find(trial) is None
    assert executor.memo.find(Trial(4, PARAMS, repeat=1)) is not None


def test_only_complete_trials_of_a_repeat_are_kept_and_the_first_training_stays_the_origin():
    memo, _, _ = trained()
    (kept,) = memo.kept.values()
    memo.record(StudyStarted("a-tpe-r1", "uid", {"repeat": 1}, (replace(kept, number=9, reused=""),), 3, 1))
    assert memo.find(Trial(0, PARAMS, repeat=1)).reused == "a-random-r1, trial 0"
    other = replace(kept, params={**PARAMS, "dropout": 0.3}, reused="")
    memo.record(TrialEnded(replace(other, status=Status.PRUNED), None))
    assert memo.find(Trial(0, other.params, repeat=1)) is None
    memo.record(TrialEnded(replace(other, number=4), None))
    assert memo.find(Trial(0, other.params, repeat=1)).reused == "a-tpe-r1, trial 4"
    plain = Memo()
    plain.add("ordinary", 0, replace(kept, reused=""))
    assert plain.kept == {}, "an ordinary study draws by the number of its trial"


def test_a_training_that_stopped_early_is_over_at_its_last_epoch():
    memo, _, _ = trained()
    (kept,) = memo.kept.values()
    short = replace(kept, curve=kept.curve[:2])
    executor = Reusing(InlineExecutor(KernelRef("tests.kernels:curves", {})), memo)
    memo.kept = dict.fromkeys(memo.kept, short)
    started(executor)
    executor.submit(Job(0, (Trial(1, PARAMS, repeat=1),)))
    messages = until(executor, lambda ms: any(m.done for m in ms), lambda p: p.epoch == 2)
    assert [i.status for m in messages for i in m.step if isinstance(i, Outcome)] == [Status.COMPLETE]
    executor.close()


def test_what_is_kept_of_a_stopped_trial_follows_the_objective():
    memo, _, _ = trained()
    (kept,) = memo.kept.values()
    rows = [dict(kept.curve[0], epoch=e, val_loss=loss, accuracy=share) for e, loss, share in ((1, 1.0, 0.9), (2, 0.5, 0.8), (3, 0.6, 0.9))]
    by_loss = cut_short(1, replace(kept, curve=rows), 3, False)
    by_share = cut_short(1, replace(kept, curve=rows, objective="accuracy"), 3, False)
    assert (by_loss.epoch, by_share.epoch) == (2, 3), "of equal shares the one of the lower loss"
    assert by_share.metrics["accuracy"] == 0.9
    assert completed(5, kept).trial == 5


def test_a_message_of_a_worker_passes_through(reusing):
    executor, _, _ = reusing
    executor.submit(Job(0, (Trial(1, {**PARAMS, "dropout": 0.4}, repeat=1),)))
    (message,) = executor.poll(0)
    assert isinstance(message, Message)
    assert message.step[0].trial == 1
