"""The loop: ask, train, judge, tell. Knows neither Optuna, nor torch, nor MLflow."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hpsearch.faults import crash_point
from hpsearch.protocols import GRACE, Executor, Files, Message, Searcher, Tracker
from hpsearch.types import (
    Asked,
    BudgetRaised,
    EpochDone,
    Event,
    Facts,
    Job,
    LoopSpent,
    Notice,
    Outcome,
    Progress,
    Status,
    StudyStarted,
    Trial,
    TrialAgain,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialStarted,
    WorkerReady,
    best_record,
)

MOST_LOSSES = 3  # of a trial's worker; then the trial has failed
TURN = 0.02  # seconds of asking for trials after which those that run are heard
STOPPED = "stopped on request"  # why a trial ended that somebody asked to stop
TOLD = 5.0  # seconds after which the loop tells again what it has taken


class Orchestrator:
    """One session of a study. `stop` is looked at between steps; it gives the reason to stop, or None. So is `asked`.

    `files` are those that the trials leave. `facts` are those of workers that were started already. `tidy`: only the weights of the
    best trial are kept.
    """

    def __init__(
        self,
        searcher: Searcher,
        executor: Executor,
        trackers: Sequence[Tracker],
        files: Files,
        *,
        budget: int,
        timeout: float | None = None,
        ahead: int = 0,
        stop: Callable[[], str | None] = lambda: None,
        asked: Callable[[], Asked] = Asked,
        facts: Facts | None = None,
        tidy: bool = True,
    ) -> None:
        self.searcher, self.executor, self.trackers, self.files = searcher, executor, trackers, files
        self.budget, self.timeout, self.ahead, self.stop = budget, timeout, ahead, stop
        self.asked = asked
        self.job_ids = itertools.count()
        self.live: set[int] = set()  # jobs
        self.prepared: deque[Trial] = deque()  # asked ahead of a free worker
        self.interrupted: set[int] = set()
        self.unwanted: set[int] = set()  # trials that somebody asked to stop
        self.spent, self.ended, self.told = 0.0, 0, time.monotonic()  # what the loop has taken, trials that ended, when that was told
        self.trials: dict[int, Trial] = {}  # as handed out last
        self.held = ""  # what holds the study up
        self.away = ""  # why the storage is behind
        self.noticed = ""  # what a worker said last
        self.exhausted = False
        self.facts, self.tidy = facts, tidy
        self.best = best_record(searcher.records())
        self.states = {r.number: r.state for r in searcher.records() if r.status is Status.PAUSED and r.state is not None}

    def run(self, study: str, spec: Mapping[str, Any], beside: Sequence[TrialRecord] = (), experiment: str = "") -> str:
        """Announce the study, then `loop`; `beside`: its earlier runs beside the search, `experiment`: as in StudyStarted.

        The study hears what workers are that were started for another one.
        """
        searcher, workers = self.searcher, self.executor.workers
        earlier = tuple(searcher.records())
        self.heed()
        size, known = searcher.size(self.budget), searcher.known
        self.record(StudyStarted(study, searcher.uid, spec, earlier, size, workers, known, beside, experiment))
        if self.facts is not None:
            searcher.remember(self.facts)
            self.record(WorkerReady(0, self.facts.values))
        return self.loop()

    def loop(self) -> str:
        """Train until the budget is spent; returns why it ended: "budget", "timeout", "exhausted" or "interrupted".

        Trials that were cut off by a request to stop are not told: the searcher hands them out again next time.
        """
        if not self.searcher.remaining(self.budget):
            self.settle(over=True)
            return "budget"
        if self.facts is None:
            self.executor.start()
        begun = time.monotonic()
        asked_to_stop: float | None = None
        while True:
            more, turn = False, time.monotonic()
            reason = self.stop()
            self.heed()
            late = self.timeout is not None and time.monotonic() - begun >= self.timeout
            if reason is not None:
                if asked_to_stop is None:
                    asked_to_stop = time.monotonic()
                    self.executor.keep()
                if not self.live or time.monotonic() - asked_to_stop > GRACE:
                    return reason
            elif late:
                if not self.live:
                    return "timeout"
            elif self.facts is not None and not self.waits():
                more = self.feed()
                if not self.live and not self.pending():
                    self.settle(over=True)
                    return "exhausted" if self.searcher.remaining(self.budget) else "budget"
            waits = time.monotonic()
            messages = self.executor.poll(0.0 if more else 0.2)
            waited = time.monotonic() - waits
            for message in messages:
                self.handle(message, stopping=reason is not None)
            self.spent += time.monotonic() - turn - waited
            if time.monotonic() - self.told > TOLD:
                self.told = time.monotonic()
                self.record(LoopSpent(self.spent, self.ended))

    def heed(self) -> None:
        """Take more trials on, if that is asked."""
        trials = self.asked().trials
        if trials > self.budget:
            self.budget = trials
            self.searcher.extend(trials)
            self.record(BudgetRaised(self.searcher.size(trials)))

    def waits(self) -> bool:
        """Whether something outside holds the study up, such as a full disk; it is told, and when it is over."""
        before, self.held = self.held, self.searcher.held()
        if bool(self.held) != bool(before):
            self.record(Notice(self.held or "The storage can be written again: the study goes on"))
        before, self.away = self.away, self.searcher.away()
        if bool(self.away) != bool(before):
            self.record(Notice(self.away or "The storage answers again, and catches up"))
        return bool(self.held)

    def pending(self) -> bool:
        """Whether there is a trial to start."""
        more = not self.exhausted and self.searcher.remaining(self.budget) > 0
        return bool(self.prepared) or more or self.searcher.promotable() > 0

    def feed(self) -> bool:
        """Give every free worker a trial, then ask ahead while they train; whether it stopped before, so that others are heard.

        A trial that lost its worker gets the next one to itself: should it take that with it, no other trial is to blame.
        """
        until = time.monotonic() + TURN
        while self.executor.free() and (trial := self.next_trial()):
            if trial.losses and not self.executor.free(alone=True):
                self.prepared.appendleft(trial)
                break
            job = Job(next(self.job_ids), (trial,), alone=trial.losses > 0)
            self.trials[trial.number] = trial
            self.live.add(job.id)
            crash_point("before-submit")
            self.executor.submit(job)
            crash_point("after-submit")
            self.record(TrialStarted(trial, time.time()))
            if time.monotonic() > until and self.executor.free():
                return True
        while len(self.prepared) < self.ahead and (trial := self.ask()):
            self.prepared.append(trial)
            if time.monotonic() > until and len(self.prepared) < self.ahead:
                return True
        return False

    def next_trial(self) -> Trial | None:
        """A trial prepared ahead, or asked now; None when the budget is spent or the space exhausted."""
        return self.prepared.popleft() if self.prepared else self.ask()

    def ask(self) -> Trial | None:
        """One trial from the searcher, if the budget allows."""
        if (self.exhausted and not self.searcher.promotable()) or not self.searcher.remaining(self.budget):
            return None
        trials = self.searcher.ask(1)
        self.exhausted = not trials
        return trials[0] if trials else None

    def handle(self, message: Message, stopping: bool) -> None:
        """Judge progress, tell outcomes; raises the error of a worker that cannot work."""
        if message.error is not None:
            raise message.error
        if message.facts is not None:
            if self.facts is None:
                self.facts = message.facts
                self.searcher.remember(message.facts)
            self.record(WorkerReady(message.worker, message.facts.values))
        if message.notice and message.notice != self.noticed:
            self.noticed = message.notice
            self.record(Notice(message.notice))
        progress = [item for item in message.step if isinstance(item, Progress)]
        if progress:
            assert message.job is not None
            self.executor.answer(message.job, frozenset(p.trial for p in progress if self.judge(p, stopping)))
        for item in message.step:
            if isinstance(item, Outcome):
                self.end(item)
        if message.done and message.job is not None:
            self.live.discard(message.job)

    def judge(self, progress: Progress, stopping: bool) -> bool:
        """Whether the trial stops here: the pruner says so, or the study is being stopped before its last epoch."""
        if progress.epoch <= self.searcher.epochs(progress.trial):
            return progress.trial in self.interrupted or progress.trial in self.unwanted
        stop = self.searcher.report(progress) and not progress.again  # it went on from there
        if stopping and progress.epoch < progress.epochs:
            self.interrupted.add(progress.trial)
        elif progress.trial in self.asked().stop and progress.epoch < progress.epochs:
            self.unwanted.add(progress.trial)
            stop = True
        self.record(EpochDone(progress, stop, progress.at or time.time()))
        return stop or progress.trial in self.interrupted

    def end(self, outcome: Outcome) -> None:
        """Tell a trial's outcome, unless it was cut off; it may be over, or wait at a rung."""
        if outcome.trial in self.interrupted:
            return
        if outcome.lost:
            outcome = self.searcher.left(outcome.trial) or outcome
        losses = self.trials[outcome.trial].losses + outcome.lost
        if outcome.lost and losses < MOST_LOSSES:
            again = self.trials[outcome.trial] = self.searcher.retry(outcome.trial)
            self.exhausted = False
            self.record(TrialAgain(again, outcome.error or ""))
            return
        if losses > 1 and outcome.lost:
            outcome = replace(outcome, error=f"{outcome.error}, for the {losses}. time")
        if outcome.trial in self.unwanted and outcome.status is Status.PRUNED:  # it waits at no rung
            self.files.delete(outcome.state)
            outcome = replace(outcome, error=STOPPED, state=None)
        crash_point("before-tell")
        record = self.searcher.tell(outcome)
        crash_point("after-tell")
        before = self.states.pop(record.number, None)
        if record.status is Status.PAUSED and record.state is not None:
            self.states[record.number] = record.state
            self.record(TrialPaused(record))
        else:
            self.conclude(record)
        if before != record.state:
            self.files.delete(before)
        if record.status is not Status.PAUSED:
            self.files.delete(record.state)
        self.settle(over=False)

    def settle(self, over: bool) -> None:
        """End trials that wait at a rung in vain."""
        for record in self.searcher.settle(over):
            self.files.delete(self.states.pop(record.number, record.state))
            self.conclude(record)

    def conclude(self, record: TrialRecord) -> None:
        """Tell of an ended trial; keep the weights of the best one only."""
        self.ended += 1
        before, self.best = self.best, best_record([record, *([self.best] if self.best else [])])
        loser = before if self.best is record else record
        if self.tidy:
            self.files.delete(loser.checkpoint if loser is not None else None)  # checkpoints of losers fill disks
        self.record(TrialEnded(record, self.best.number if self.best and self.tidy else None))

    def record(self, event: Event) -> None:
        """Tell everybody who listens."""
        for tracker in self.trackers:
            tracker.record(event)
