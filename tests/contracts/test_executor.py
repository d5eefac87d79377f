"""The contract of `protocols.Executor`, over every executor."""

import math
import time
from contextlib import closing

import pytest

from hpsearch.errors import FixInput, FixSetup
from hpsearch.executors.inline import InlineExecutor
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.ray import RayExecutor
from hpsearch.executors.reuse import Memo, Reusing
from hpsearch.executors.worker import KernelRef
from hpsearch.types import Job, Outcome, Progress, Status, Trial
from tests import waiting as wait
from tests.kernels import PARAMS

pytestmark = pytest.mark.process


def make(kind, config=None, workers=2):
    ref = KernelRef("tests.kernels:curves", config or {})
    makers = {
        "inline": lambda: InlineExecutor(ref),
        "process": lambda: ProcessExecutor(ref, workers),
        "ray": lambda: RayExecutor(ref, workers),
    }
    executor = makers[kind.split()[-1]]()
    return Reusing(executor, Memo()) if "reusing" in kind else executor


@pytest.fixture(params=["inline", "process", "ray", "reusing inline", "reusing process"])
def kind(request):
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return request.param


@pytest.fixture(params=["process", "ray"])
def elsewhere(request):
    """Executors whose workers can die alone."""
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return request.param


def until(executor, condition, verdict=lambda p: False):
    """Poll, answering with `verdict`, until `condition(messages)` holds; all messages."""
    messages = []
    give_up = time.monotonic() + 180
    while not condition(messages):
        assert time.monotonic() < give_up, messages
        for message in executor.poll(0.2):
            messages.append(message)
            progress = [i for i in message.step if isinstance(i, Progress)]
            if progress:
                executor.answer(message.job, frozenset(p.trial for p in progress if verdict(p)))
    return messages


def started(executor):
    """Start, and wait until every worker has sent its facts."""
    executor.start()
    return until(executor, lambda ms: sum(m.facts is not None for m in ms) == executor.workers)


def run(executor, trials, verdict=lambda p: False):
    """Give out one job per trial as workers get free; outcomes by trial."""
    waiting, outcomes, done = [Job(i, (t,)) for i, t in enumerate(trials)], {}, 0
    while done < len(trials):
        while waiting and executor.free():
            executor.submit(waiting.pop(0))
        for message in until(executor, bool, verdict):
            done += message.done
            outcomes |= {i.trial: i for i in message.step if isinstance(i, Outcome)}
    return outcomes


def test_no_worker_is_free_before_it_is_ready(kind):
    executor = make(kind)
    try:
        assert executor.free() == 0
        messages = started(executor)
        assert executor.free() == executor.workers
        assert all(m.facts.values["model"] == "curves" for m in messages)
    finally:
        executor.close()


def test_jobs_run_to_their_outcomes_and_free_their_worker(kind):
    executor = make(kind)
    try:
        started(executor)
        outcomes = run(executor, [Trial(n, {**PARAMS, "epochs": 1 + n % 3}) for n in range(7)])
        assert sorted(outcomes) == list(range(7))
        assert {o.status for o in outcomes.values()} == {Status.COMPLETE}
        assert executor.free() == executor.workers
    finally:
        executor.close()


def test_the_verdict_reaches_the_session(kind):
    executor = make(kind)
    try:
        started(executor)
        outcomes = run(executor, [Trial(0, PARAMS), Trial(1, PARAMS)], lambda p: p.trial == 1 and p.epoch == 2)
        assert (outcomes[0].status, outcomes[1].status) == (Status.COMPLETE, Status.PRUNED)
        assert outcomes[1].epoch == 2
    finally:
        executor.close()


@pytest.mark.parametrize(("fault", "reason"), [("raise", "no such tensor"), ("silent", "without an outcome")])
def test_a_session_that_breaks_fails_its_trial_and_spares_the_worker(kind, fault, reason):
    executor = make(kind, {"faults": {0: fault}})
    try:
        started(executor)
        outcomes = run(executor, [Trial(0, PARAMS), Trial(1, PARAMS)])
        assert outcomes[0].status is Status.FAILED
        assert reason in outcomes[0].error
        assert outcomes[1].status is Status.COMPLETE
    finally:
        executor.close()


def test_a_kernel_that_refuses_its_configuration_says_so_in_its_own_words(kind):
    executor = make(kind, {"broken": "frozen_layers 9 is too deep; lower it"})
    try:
        executor.start()
        (error, *_) = [m.error for m in until(executor, lambda ms: any(m.error for m in ms)) if m.error]
        assert isinstance(error, FixInput)
        assert "lower it" in str(error)
    finally:
        executor.close()


@pytest.mark.parametrize(("fault", "reason"), [("kill", "signal 9"), ("exit", "exit code 7")])
def test_a_worker_that_dies_fails_its_trial_and_is_replaced(elsewhere, fault, reason):
    executor = make(elsewhere, {"faults": {0: fault}})
    try:
        started(executor)
        outcomes = run(executor, [Trial(n, PARAMS) for n in range(4)])
        assert (outcomes[0].status, outcomes[0].lost) == (Status.FAILED, True)
        assert (reason if elsewhere == "process" else "died") in outcomes[0].error
        assert [outcomes[n].status for n in (1, 2, 3)] == [Status.COMPLETE] * 3
        until(executor, lambda _: executor.free() == 2)
    finally:
        executor.close()


def test_a_worker_that_dies_before_it_is_ready_ends_the_study_instead_of_being_replaced_for_ever(elsewhere):
    executor = {"process": ProcessExecutor, "ray": RayExecutor}[elsewhere](KernelRef("os:_exit", 3), 1)  # type: ignore[arg-type]
    try:
        executor.start()
        (message, *_) = until(executor, bool)
        assert isinstance(message.error, FixSetup)
        assert ("exit code 3" if elsewhere == "process" else "before it was ready, 5 times") in str(message.error)
    finally:
        executor.close()


def test_close_ends_workers_that_hang():
    executor = make("process", {"faults": {0: "hang"}})
    started(executor)
    executor.submit(Job(0, (Trial(0, PARAMS),)))
    processes = [seat.process for seat in executor.seats]
    executor.close()
    assert all(process.exitcode is not None for process in processes)


def test_close_frees_the_places_of_actors_that_hang(ray_here):
    import ray

    executor = make("ray", {"faults": {0: "hang"}})
    started(executor)
    executor.submit(Job(0, (Trial(0, PARAMS),)))
    executor.close()
    wait.until(lambda: ray.available_resources().get("CPU") == 4.0, 30)


def test_an_actor_that_hangs_is_ended_and_its_trial_lost(ray_here):
    ref = KernelRef("tests.kernels:curves", {"faults": {0: "hang"}})
    with closing(RayExecutor(ref, 1, stall=2.0)) as executor:
        started(executor)
        outcomes = run(executor, [Trial(0, PARAMS), Trial(1, PARAMS)])
    assert (outcomes[0].status, outcomes[0].lost) == (Status.FAILED, True)
    assert "made no progress for 2 s" in outcomes[0].error
    assert outcomes[1].status is Status.COMPLETE


def test_every_executor_gives_the_same_outcomes(ray_here):
    trials = [Trial(n, {**PARAMS, "learning_rate": 10**-n, "epochs": 2 + n}) for n in range(1, 5)]
    found = {}
    for kind in ("inline", "process", "ray"):
        executor = make(kind)
        try:
            started(executor)
            outcomes = run(executor, trials, lambda p: p.val_loss > 1.5 and p.epoch == 3)
            found[kind] = {n: (o.status, o.val_loss, o.epoch) for n, o in outcomes.items()}
        finally:
            executor.close()
    assert found["inline"] == found["process"] == found["ray"]


def items(messages, kind):
    return [item for message in messages for item in message.step if isinstance(item, kind)]


def facts(messages):
    return [message.facts for message in messages if message.facts is not None]


def test_a_worker_takes_as_many_jobs_as_it_has_slots_and_runs_them_by_turns(kind):
    with closing(make(kind, {"slots": 3, "sleep": 0.01}, workers=1)) as executor:
        started(executor)
        assert executor.free() == 3
        for number in range(3):
            executor.submit(Job(number, (Trial(number, PARAMS),)))
        assert executor.free() == 0
        seen = until(executor, lambda ms: sum(m.done for m in ms) == 3)
        assert sorted(p.trial for p in items(seen, Progress)[:3]) == [0, 1, 2]
        assert executor.free() == 3


def test_all_trials_of_a_worker_that_dies_fail_and_it_is_replaced(elsewhere):
    with closing(make(elsewhere, {"slots": 2, "sleep": 0.02, "faults": {0: "kill"}}, workers=1)) as executor:
        started(executor)
        for number in range(2):
            executor.submit(Job(number, (Trial(number, PARAMS),)))
        seen = until(executor, lambda ms: sum(m.done for m in ms) == 2)
        outcomes = items(seen, Outcome)
        assert {o.trial: o.status for o in outcomes} == {0: Status.FAILED, 1: Status.FAILED}
        assert all(("killed by signal 9" if elsewhere == "process" else "died") in o.error for o in outcomes)
        facts(seen) or until(executor, facts)
        assert executor.free() == 2


def test_a_worn_worker_is_replaced_after_its_job_and_no_trial_is_lost(elsewhere):
    with closing(make(elsewhere, {"worn": "memory not given back"}, workers=1)) as executor:
        seen, pids = started(executor), []
        for number in range(3):
            pids.append((facts(seen) or facts(until(executor, facts)))[-1].values["pid"])
            executor.submit(Job(number, (Trial(number, PARAMS),)))
            seen = until(executor, lambda ms: any(m.done for m in ms))
            assert [o.status for o in items(seen, Outcome)] == [Status.COMPLETE]
            assert executor.free() == 0
        assert len(set(pids)) == 3


NO_NUMBERS = [
    {"val_loss": math.nan},
    {"val_loss": -math.inf},
    {"train_loss": math.inf},
    {"val_loss": None},
    {"val_loss": "1.5"},
    {"accuracy": math.nan},
    {"accuracy": None},
]


def test_an_epoch_without_numbers_ends_the_trial_and_nobody_judges_it(kind):
    executor = make(kind, {"faults": dict(enumerate(NO_NUMBERS))}, workers=1)
    whole = len(NO_NUMBERS)
    judged = []
    try:
        started(executor)
        trials = [Trial(number, PARAMS) for number in range(whole + 1)]
        outcomes = run(executor, trials, lambda p: bool(judged.append((p.trial, p.epoch))))
    finally:
        executor.close()
    for number, fault in enumerate(NO_NUMBERS):
        assert outcomes[number].status is Status.FAILED, fault
        assert outcomes[number].error.startswith("diverged: "), fault
        assert "after epoch 2 of 4" in outcomes[number].error, fault
        assert outcomes[number].val_loss is None, fault
        assert [epoch for trial, epoch in judged if trial == number] == [1], fault
    assert outcomes[whole].status is Status.COMPLETE


def test_a_job_that_is_to_be_alone_shares_its_worker_with_nobody(kind):
    with closing(make(kind, {"slots": 2, "sleep": 0.02}, workers=1)) as executor:
        started(executor)
        assert (executor.free(), executor.free(alone=True)) == (2, 1)
        executor.submit(Job(0, (Trial(0, PARAMS),)))
        assert (executor.free(), executor.free(alone=True)) == (1, 0)
        until(executor, lambda ms: any(m.done for m in ms))
        executor.submit(Job(1, (Trial(1, PARAMS),), alone=True))
        assert (executor.free(), executor.free(alone=True)) == (0, 0)
        until(executor, lambda ms: any(m.done for m in ms))
        assert (executor.free(), executor.free(alone=True)) == (2, 1)
