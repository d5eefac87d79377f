"""The loop over honest small parts: the real searcher and storage, an inline executor, tabulated curves."""

import re
import shutil
import time
from pathlib import Path

import pytest

from hpsearch.errors import FixInput
from hpsearch.executors.inline import InlineExecutor
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.orchestrator import Orchestrator
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.catalog import read_study
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec
from hpsearch.types import EpochDone, Status, StudyStarted, TrialAgain, TrialEnded, TrialPaused, TrialStarted, WorkerReady
from tests.waiting import Memory


def session(url, *, config=None, workers=0, budget=None, stop=lambda: None, memory=None, **values):
    """One session of a study; why it ended, and what was seen."""
    spec = parse_spec({"name": "s", "sampler": "random", "trials": budget or 8, **values})
    ref = KernelRef("tests.kernels:curves", config or {})
    executor = ProcessExecutor(ref, workers) if workers else InlineExecutor(ref)
    memory = memory or Memory()
    folder = Path(config["folder"]) if config and "folder" in config else None
    searcher = OptunaSearcher(spec, open_storage(url, create=True), folder=folder)
    try:
        loop = Orchestrator(
            searcher,
            executor,
            [memory],
            TrialFiles(folder),
            budget=spec.trials,
            timeout=spec.timeout,
            ahead=values.get("sampler") == "gp",
            stop=stop,
        )
        return loop.run("s", spec.resolved()), memory
    finally:
        executor.close()
        searcher.close()


def stored(url):
    return read_study(open_storage(url), "s").records


def test_a_study_runs_to_its_budget_and_tells_everything_it_saw(url):
    reason, memory = session(url)
    assert reason == "budget"
    records = stored(url)
    assert [r.number for r in records] == list(range(8))
    assert [type(e) for e in memory.events[:2]] == [StudyStarted, WorkerReady]
    assert [e.trial.number for e in memory.of(TrialStarted)] == list(range(8))
    assert {e.record.number: e.record for e in memory.of(TrialEnded)} == {r.number: r for r in records}
    for record in records:
        seen = [e.progress.row() for e in memory.of(EpochDone) if e.progress.trial == record.number]
        assert list(record.curve) == seen


def test_the_budget_is_the_total(url):
    session(url, budget=3)
    reason, memory = session(url, budget=5)
    assert reason == "budget"
    assert [e.trial.number for e in memory.of(TrialStarted)] == [3, 4]
    assert len(stored(url)) == 5
    reason, memory = session(url, budget=5)
    assert (reason, memory.of(TrialStarted), memory.of(WorkerReady)) == ("budget", [], [])


def test_several_workers_train_each_trial_once(url):
    reason, memory = session(url, workers=3, budget=20, config={"sleep": 0.005})
    assert reason == "budget"
    assert sorted(e.trial.number for e in memory.of(TrialStarted)) == list(range(20))
    assert {r.status for r in stored(url)} <= {Status.COMPLETE, Status.PRUNED}


def test_trials_that_run_are_heard_between_asks_that_take_long(url, monkeypatch):
    monkeypatch.setattr("hpsearch.orchestrator.TURN", 0.0)  # any ask takes longer
    reason, memory = session(url, config={"slots": 4}, budget=8)
    assert reason == "budget"
    events = [e for e in memory.events if isinstance(e, (TrialStarted, EpochDone))]
    first = next(index for index, event in enumerate(events) if isinstance(event, EpochDone))
    assert first < next(index for index, event in enumerate(events) if isinstance(event, TrialStarted) and event.trial.number == 3)
    assert sorted(e.trial.number for e in memory.of(TrialStarted)) == list(range(8))


def test_an_exhausted_grid_ends_the_study(url):
    space = {"learning_rate": {"low": 1e-3, "high": 1e-2, "grid": [2e-3, 5e-3]}, "batch_size": 8, "epochs": 3}
    space |= {"weight_decay": 0.1, "dropout": [0.0, 0.2], "frozen_layers": 0}
    reason, _ = session(url, sampler="grid", pruner="none", budget=50, space=space, workers=2)
    assert reason == "exhausted"
    assert len(stored(url)) == 5  # four points and the default recipe


def test_a_timeout_begins_no_more_trials_and_ends_those_that_run(url):
    reason, memory = session(url, timeout=0.3, config={"sleep": 0.05}, budget=500, pruner="none")
    assert reason == "timeout"
    assert 1 <= len(memory.of(TrialEnded)) == len(memory.of(TrialStarted)) < 500
    assert {r.status for r in stored(url)} == {Status.COMPLETE}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_request_to_stop_keeps_what_was_told_and_the_next_session_goes_on(url, workers):
    memories = []

    def after_ninety_epochs():
        return "interrupted" if memories and sum(isinstance(e, EpochDone) for e in memories[0].events) >= 90 else None

    class Spy(Memory):
        def __init__(self):
            super().__init__()
            memories.append(self)

    spec = parse_spec({"name": "s", "sampler": "random", "trials": 6, "pruner": "none", "space": {"epochs": 40}})
    ref = KernelRef("tests.kernels:curves", {"sleep": 0.005})
    executor = ProcessExecutor(ref, workers) if workers else InlineExecutor(ref)
    searcher = OptunaSearcher(spec, open_storage(url, create=True))
    loop = Orchestrator(searcher, executor, [Spy()], TrialFiles(None), budget=6, stop=after_ninety_epochs)
    assert loop.run("s", spec.resolved()) == "interrupted"
    executor.close()
    searcher.close()
    before = stored(url)
    ended = [r for r in before if r.status.ended]
    assert {r.status for r in before if not r.status.ended} == {Status.WAITING}
    assert 0 < len(before) - len(ended) <= max(1, workers)
    assert {e.record.number for e in memories[0].of(TrialEnded)} == {r.number for r in ended}

    reason, memory = session(url, budget=6, pruner="none", space={"epochs": 40})
    assert reason == "budget"
    after = stored(url)
    assert [r.number for r in after] == list(range(6))
    assert {r.status for r in after} == {Status.COMPLETE}
    assert tuple(after[r.number] for r in ended) == tuple(ended)
    assert {e.trial.number: e.trial.attempt for e in memory.of(TrialStarted)} == {
        n: (2 if n < len(before) else 1) for n in range(6) if n not in {r.number for r in ended}
    }


def test_a_hung_trial_does_not_hold_up_a_request_to_stop(url, monkeypatch):
    monkeypatch.setattr("hpsearch.orchestrator.GRACE", 0.5)
    begun = time.monotonic()
    reason, memory = session(
        url, workers=1, config={"faults": {0: "hang"}}, stop=lambda: "interrupted" if time.monotonic() > begun + 3 else None
    )
    assert reason == "interrupted"
    assert memory.of(TrialEnded) == []


def test_broken_trials_are_failed_and_the_study_goes_on(url):
    faults = {1: "raise", 2: "kill", 4: "silent", 5: "exit", 7: "always kill"}
    reason, memory = session(url, workers=2, config={"faults": faults}, budget=9, pruner="none", space={"epochs": 3})
    assert reason == "budget"
    records = {r.number: r for r in stored(url)}
    assert {n for n, r in records.items() if r.status is Status.FAILED} == {1, 4, 7}, "what was lost with its worker is trained again"
    assert {n: r.attempt for n, r in records.items() if r.attempt > 1} == {2: 2, 5: 2, 7: 3}
    assert re.search(r"worker \d was killed by signal 9 while training, for the 3. time", records[7].error)
    assert [(e.trial.number, e.trial.attempt) for e in memory.of(TrialAgain) if e.trial.number == 7] == [(7, 2), (7, 3)]
    assert all([row["epoch"] for row in r.curve] == [1, 2, 3] for r in records.values() if r.status is Status.COMPLETE)


def test_a_trial_that_takes_its_workers_with_it_is_alone_to_blame(url):
    config = {"slots": 3, "sleep": 0.05, "faults": {1: "always kill"}}
    reason, memory = session(url, workers=1, budget=5, config=config)
    assert reason == "budget"
    assert {r.number: r.status for r in stored(url)} == {n: Status.FAILED if n == 1 else Status.COMPLETE for n in range(5)}
    assert stored(url)[1].attempt == 3
    assert {e.trial.number for e in memory.of(TrialAgain)} >= {0, 1, 2}, "its neighbours were lost with it once"


def test_a_worker_that_cannot_work_ends_the_study_before_its_first_trial(url):
    with pytest.raises(FixInput, match="lower it"):
        session(url, config={"broken": "frozen_layers 9 is too deep; lower it"})
    assert stored(url) == ()


def test_asking_ahead_gives_every_trial_once(url):
    reason, memory = session(url, sampler="gp", budget=6, workers=2, config={"sleep": 0.01})
    assert reason == "budget"
    assert sorted(e.trial.number for e in memory.of(TrialStarted)) == list(range(6))
    assert len(stored(url)) == 6


def test_only_the_best_trials_weights_are_kept(url, tmp_path):
    made = {}

    class WithWeights(InlineExecutor):
        def poll(self, timeout):
            from dataclasses import replace

            from hpsearch.types import Outcome

            out = []
            for message in super().poll(timeout):
                step = []
                for item in message.step:
                    if isinstance(item, Outcome) and item.status is Status.COMPLETE:
                        path = tmp_path / f"trial-{item.trial:04d}.safetensors"
                        path.write_bytes(b"weights")
                        made[item.trial] = path
                        item = replace(item, checkpoint=str(path))
                    step.append(item)
                out.append(replace(message, step=tuple(step)))
            return out

    spec = parse_spec({"name": "s", "sampler": "random", "trials": 6, "pruner": "none"})
    searcher = OptunaSearcher(spec, open_storage(url, create=True))
    executor = WithWeights(KernelRef("tests.kernels:curves", {}))
    Orchestrator(searcher, executor, [], TrialFiles(tmp_path), budget=6).run("s", spec.resolved())
    searcher.close()
    best = min(stored(url), key=lambda r: r.val_loss)
    assert [n for n, path in made.items() if path.exists()] == [best.number]


# ---------------------------------------------------------------- rungs that continue

HALVING = {"pruner": {"name": "halving", "warmup": 0.2, "reduction_factor": 2}, "space": {"epochs": 10}}


def halving(url, tmp_path, **values):
    (tmp_path / "states").mkdir(exist_ok=True)
    return session(url, config={"states": str(tmp_path / "states"), "folder": str(tmp_path / "states")}, **HALVING, **values)


def test_trials_wait_at_rungs_go_on_from_there_and_leave_nothing_behind(url, tmp_path):
    reason, memory = halving(url, tmp_path, budget=24)
    assert reason == "budget"
    records = stored(url)
    assert [r.number for r in records] == list(range(24))
    assert {r.status for r in records} == {Status.COMPLETE, Status.PRUNED}
    paused = [e.record.number for e in memory.of(TrialPaused)]
    again = [e.trial for e in memory.of(TrialStarted) if e.trial.resume]
    assert {t.number for t in again} <= set(paused)
    assert len(again) >= 5
    for r in records:
        assert [row["epoch"] for row in r.curve] == list(range(1, len(r.curve) + 1)), "an epoch trained twice, or never"
        assert r.val_loss == min(row["val_loss"] for row in r.curve)
        assert len(r.curve) in ((2, 4, 8) if r.status is Status.PRUNED else (10,))
    complete = {r.number for r in records if r.status is Status.COMPLETE}
    final = sorted((min(row["val_loss"] for row in r.curve[:8]), r.number) for r in records if len(r.curve) >= 8)
    assert complete >= {n for _, n in final[: len(final) // 2]}  # the best half of those at the last rung
    assert sorted(e.record.number for e in memory.of(TrialEnded)) == list(range(24))  # each once
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["results", "study.json"]


def test_states_that_have_no_room_are_let_go_the_worst_first(url, tmp_path):
    one = 2e-6  # GB, of some ten states that a curve of two epochs takes
    reason, memory = halving(url, tmp_path, budget=24, state_gigabytes=one)
    assert reason == "budget"
    found = stored(url)
    assert {r.status for r in found} == {Status.COMPLETE, Status.PRUNED}
    sizes, most = {}, 0
    for event in memory.events:
        if isinstance(event, TrialPaused):
            sizes[event.record.number] = len(event.record.curve)
        elif isinstance(event, TrialStarted | TrialEnded):
            sizes.pop(event.trial.number if isinstance(event, TrialStarted) else event.record.number, None)
        most = max(most, len(sizes))
    assert most <= 3, "with room for all, more than that wait at once"
    best = min(found, key=lambda r: r.val_loss)
    assert best.status is Status.COMPLETE
    assert [path.name for path in (tmp_path / "states").glob("*.state")] == []


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_with_rungs_that_is_interrupted_goes_on_as_it_would_have(url, tmp_path, empty_storage, sampler):
    other = tmp_path / "whole"
    other.mkdir()
    shutil.copy(empty_storage, other / "hpsearch.db")
    halving(f"sqlite:///{other}/hpsearch.db", other, budget=20, sampler=sampler)
    for stop_after in (7, 30, 80):
        polls = iter(range(stop_after))
        halving(
            url, tmp_path, budget=20, sampler=sampler, stop=lambda polls=polls: None if next(polls, None) is not None else "interrupted"
        )
    halving(url, tmp_path, budget=20, sampler=sampler)
    whole, parts = stored(f"sqlite:///{other}/hpsearch.db"), stored(url)

    def essence(records):
        return [(r.number, r.status, dict(r.params), len(r.curve), r.val_loss) for r in records]

    assert essence(parts) == essence(whole)
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["results", "study.json"]


def test_a_larger_budget_promotes_from_what_is_there(url, tmp_path):
    halving(url, tmp_path, budget=6)
    first = {r.number: r.status for r in stored(url)}
    halving(url, tmp_path, budget=18)
    records = stored(url)
    assert len(records) == 18
    assert all(r.status is first[r.number] for r in records if r.number in first)  # what was over stays over
    assert sum(r.status is Status.COMPLETE for r in records) > sum(s is Status.COMPLETE for s in first.values())


def test_a_kernel_that_keeps_no_state_is_pruned_for_good(url):
    session(url, budget=12, **HALVING)
    records = stored(url)
    assert {r.status for r in records} == {Status.COMPLETE, Status.PRUNED}
    assert len(records) == 12
