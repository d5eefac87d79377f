"""The searcher: proposes trials, judges their progress, and remembers how they ended."""

from __future__ import annotations

import copy
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from hpsearch.faults import crash_point
from hpsearch.keeping import later_results, left_by, read_result, resumed
from hpsearch.provenance import remembered
from hpsearch.runtime.trial_files import TrialFiles, is_trial_file
from hpsearch.search import rows
from hpsearch.search.foreign_trials import ENQUEUED, enter, is_foreign, params_of_enqueued
from hpsearch.search.headstart import NOTHING, HeadStart, keep
from hpsearch.search.history import History
from hpsearch.search.records import RECORD, direction_of, extras, keep_study, open_study, record_of, running
from hpsearch.search.rungs import Rungs
from hpsearch.search.samplers import distributions, make_pruner, make_sampler, preflight, suggested
from hpsearch.search.store import Writer
from hpsearch.seeds import repeat_seed, seed_for
from hpsearch.space import default_params, grid_points
from hpsearch.spec import StudySpec
from hpsearch.types import (
    OBJECTIVES,
    Facts,
    Outcome,
    Params,
    Progress,
    Status,
    Trial,
    TrialRecord,
    point_key,
    progress_of,
    sound,
    trial_name,
)

PICKLES = ("cma:optimizer", "sepcma:optimizer", "cmawm:optimizer")  # begin the attributes in which Optuna keeps pickles
TICKS = 10  # a trial reports to the pruner at every tenth of its planned epochs


class OptunaSearcher:
    """One study: a working copy in memory, carried to `storage` by a writer thread.

    Pruning compares trials at equal progress: epochs is itself searched, and the fourth of 5 epochs is not the fourth of
    15. So reports are made in percent of the planned epochs, with the best validation loss so far; negated where the
    objective is to be maximised, since Optuna compares reports in the study's direction.
    """

    def __init__(
        self,
        spec: StudySpec,
        storage: RDBStorage,
        begin: HeadStart = NOTHING,
        seconds: float = math.inf,
        folder: Path | None = None,
    ) -> None:
        """Open or make the study. `folder` is where its trials leave states and results; `seconds` bounds the training."""
        preflight(spec.sampler)
        self.spec, self.seconds, self.folder, self.files = spec, seconds, folder, TrialFiles(folder)
        self.seed = repeat_seed(spec.seed, spec.repeat)
        self.spent = 0.0  # seconds of training, of trials that have ended; no trial is new once they reach `seconds`
        self.space = spec.parameters()
        self.varied = distributions(self.space)
        self.fixed = {p.name: p.default for p in self.space if p.name not in self.varied}
        self.storage = storage
        self.study_id = open_study(storage, spec)
        self.lead = keep(storage, self.study_id, begin).trials
        if folder is not None:
            keep_study(storage, spec.study_name(), folder)
        about = storage.get_study_user_attrs(self.study_id)[RECORD]
        self.uid: str = about["uid"]
        self.known: Mapping[str, Any] = about.get("facts", {})
        self.memory = InMemoryStorage()
        self.sign = OBJECTIVES[spec.objective]
        direction = direction_of(spec.objective)
        # Hyperband deals its brackets by this name, so that trials of one repeat of a comparison meet the same bracket.
        name = f"seed {self.seed}"
        self.history = History(self.sign)
        pruner = make_pruner(spec.pruner, self.history)
        self.study = optuna.create_study(storage=self.memory, study_name=name, pruner=pruner, direction=direction)
        self.ids: dict[int, int] = {}  # trial number -> id in the storage; the writer's thread adds to it
        self.curves: dict[int, list[dict[str, float]]] = {}
        self.best: dict[int, float] = {}  # best validation loss so far of live trials
        self.trials: dict[int, Trial] = {}  # live trials
        self.started: dict[int, float] = {}
        self.known_trials = 0  # Optuna counts them by copying a list of all
        self.again: deque[Trial] = deque()  # interrupted in an earlier session
        self.rungs = Rungs(round(100 * spec.pruner.warmup), spec.pruner.reduction_factor) if spec.pruner.name == "halving" else None
        self.paused: dict[int, TrialRecord] = {}
        self.sizes: dict[int, int] = {}  # bytes of the states of trials that wait at a rung
        self.writer = Writer(storage)
        self.recall()
        self.plan = self.planned()
        self.adopt()

    # ------------------------------------------------------------ resume

    def recall(self) -> None:
        """Copy the stored trials into memory; those that did not end are to be trained on, under their number.

        Of these, some have left a result that the storage was not told of.
        """
        untold = []
        for key, value in self.storage.get_study_system_attrs(self.study_id).items():
            self.memory.set_study_system_attr(self.study._study_id, key, value)
        for stored in sorted(self.storage.get_all_trials(self.study_id), key=lambda t: t.number):
            self.ids[stored.number] = stored._trial_id
            foreign = is_foreign(stored)
            if foreign:
                self.enter_foreign(stored)
            known = record_of(stored, self.fixed, self.spec.objective)
            self.spent += known.seconds if stored.state.is_finished() else 0.0
            if self.rungs is not None:
                self.rungs.recall(stored.number, {percent: self.sign * v for percent, v in stored.intermediate_values.items()})
                if stored.state is TrialState.PRUNED:
                    self.rungs.retire(stored.number)
            if not stored.state.is_finished() and self.pause_again(stored):
                stored.state = TrialState.RUNNING
            elif not stored.state.is_finished():
                stored.state, stored.intermediate_values = TrialState.RUNNING, {}
                result = read_result(self.folder, trial_name(stored.number), self.uid)
                if result is not None and stored.params.items() <= result.params.items():  # else of a trial that nobody heard of
                    untold.append(result)
                else:
                    attempt, origin = (1, ENQUEUED) if foreign else (known.attempt + 1, known.origin)
                    params = self.fixed | stored.params
                    self.again.append(Trial(stored.number, params, attempt, origin, losses=losses_of(stored)))
            attributes, stored.user_attrs = stored.user_attrs, {}
            stored.system_attrs = {key: value for key, value in stored.system_attrs.items() if not key.startswith(PICKLES)}
            copied = self.memory.create_new_trial(self.study._study_id, stored)
            self.memory.get_trial(copied).user_attrs = attributes  # with the whole curve, which it would copy number by number
            self.known_trials += 1
            self.history.note(stored)
        for result in untold:
            self.take(result)

    def enter_foreign(self, stored: FrozenTrial) -> None:
        """Makes a trial that another program has put into the study one of ours, to be trained if it has not ended."""
        if stored.state.is_finished():
            enter(stored, self.space, self.varied)
            return
        params = params_of_enqueued(stored, self.space, self.varied)
        if isinstance(params, str):
            error = f"it was enqueued by another program and cannot be trained: {params}"
            stored.state, stored.datetime_complete, stored.params, stored.distributions = TrialState.FAIL, datetime.now(), {}, {}
            stored.datetime_start = stored.datetime_start or stored.datetime_complete
            stored.user_attrs[RECORD] = {"origin": ENQUEUED, "attempt": 1, "status": Status.FAILED.value, "error": error, "losses": 0}
            ended = copy.copy(stored)  # whose attributes stay
            self.writer.put(lambda: self.store_end(ended))
            return
        stored.params = {name: value for name, value in params.items() if name in self.varied}
        stored.distributions = {name: self.varied[name] for name in stored.params}

    def adopt(self) -> None:
        """Enter the trials that the storage never heard of, because it was behind when the orchestrator was killed."""
        results = later_results(self.folder, self.uid, self.known_trials)
        for number in range(self.known_trials, 1 + max(results, default=-1)):
            trial = next(self.plan, None)
            result = results.get(number)
            if result is not None and not self.fits(result):
                result = None  # it is trained again, and what is in the way is left to its file
            if result is not None:
                trial = Trial(number, result.params, result.attempt, result.origin)
            if trial is None:
                trial = self.sample()
            else:
                self.create(trial)
            self.open(trial)
            if result is not None:
                self.take(result)
            else:
                for live in (self.trials, self.curves, self.started):
                    live.pop(number)
                self.again.append(trial)

    def fits(self, result: TrialRecord) -> bool:
        """Whether a result is one of this study's space, and scored by its objective."""
        return result.objective == self.spec.objective and in_space(self.varied, self.fixed, result.params)

    def take(self, result: TrialRecord) -> None:
        """Tell of a result what the trial itself could not."""
        number, paused = result.number, result.status is Status.PAUSED
        if paused and (self.rungs is None or self.files.find(result.state) is None):
            self.again.append(Trial(number, result.params, result.attempt + 1, result.origin))
            return
        self.trials[number] = Trial(number, result.params, result.attempt, result.origin)
        self.curves[number], self.started[number] = [], result.started or time.time()
        epochs = int(result.params.get("epochs") or len(result.curve))
        for row in result.curve:
            self.report(progress_of(number, row, epochs))
        crash_point("result-taken")
        if paused:
            self.pause(result)
        else:
            self.conclude(result)

    def pause_again(self, stored: FrozenTrial) -> bool:
        """Let a trial of an earlier session wait at its rung as before, if the state it goes on from is there."""
        record = record_of(stored, self.fixed, self.spec.objective)
        if self.rungs is None or record.status is not Status.PAUSED or self.files.find(record.state) is None:
            return False
        number = record.number
        self.paused[number], self.curves[number] = record, [dict(row) for row in record.curve]
        self.best[number] = min(row["val_loss"] for row in record.curve)
        self.rungs.wait(number)
        return True

    def planned(self) -> Iterator[Trial]:
        """Trials that no sampler draws: the default recipe, what opens the study, then, for a grid, every other point in shuffled order."""
        earlier = self.memory.get_all_trials(self.study._study_id, deepcopy=False)
        seen, number = {point_key(self.fixed | t.params) for t in earlier}, len(earlier)
        default = default_params(self.space)
        if number == 0:
            yield Trial(0, default, origin="default")
            number, seen = 1, {point_key(default)}
        listed = list(self.lead)
        if self.spec.sampler == "grid":
            points = list(grid_points(self.space))
            random.Random(seed_for(self.seed, 0, "grid")).shuffle(points)
            listed += [("grid", point) for point in points]
        for origin, params in listed:
            if point_key(params) not in seen:
                yield Trial(number, params, origin=origin)
                number += 1
                seen.add(point_key(params))

    # ------------------------------------------------------------ the loop's three verbs

    def ask(self, n: int = 1) -> tuple[Trial, ...]:
        """Up to `n` next trials: interrupted ones first, then those that go on from a rung, then planned, then sampled.

        None when a grid is exhausted and nobody may go on.
        """
        out: list[Trial] = []
        while len(out) < n:
            if self.again:
                trial = self.again.popleft()
            elif self.promotable():
                trial = self.promote()
            elif (planned := next(self.plan, None)) is not None:
                self.create(planned)
                trial = planned
            elif self.spec.sampler == "grid":
                break
            else:
                trial = self.sample()
            resume = trial.resume or resumed(trial, self.folder)
            trial = replace(trial, repeat=self.spec.repeat, study=self.uid, resume=resume)
            self.open(trial)
            out.append(trial)
        return tuple(out)

    def report(self, progress: Progress) -> bool:
        """Take note of an epoch, unless it was reported before; True when the pruner wants the trial stopped."""
        number = progress.trial
        if progress.epoch <= self.epochs(number):
            return False
        self.curves[number].append(progress.row())
        best = self.best[number] = min(self.best.get(number, float("inf")), progress.val_loss)
        done = progress.epoch * TICKS // progress.epochs
        before = (progress.epoch - 1) * TICKS // progress.epochs
        if done == before:
            return False
        memory_id = self.memory_id(number)
        goes_on = True
        for percent in (tick * 100 // TICKS for tick in range(before + 1, done + 1)):
            self.memory.set_trial_intermediate_value(memory_id, percent, self.sign * best)
            if self.rungs is not None and percent in self.rungs.levels:
                goes_on = self.rungs.arrive(number, percent, best)
        if progress.epoch >= progress.epochs or self.trials[number].origin == "default":  # the yardstick is never cut short
            return False
        if self.rungs is not None:
            return not goes_on
        return bool(self.study.pruner.prune(self.study, self.memory.get_trial(memory_id)))

    def epochs(self, number: int) -> int:
        """How many epochs of a live trial were reported."""
        return len(self.curves[number])

    def left(self, number: int) -> Outcome | None:
        """What a live trial came to that was lost with its worker, if it left that behind."""
        return left_by(self.trials[number], self.folder)

    def retry(self, number: int) -> Trial:
        """Hand out a live trial again, as its next attempt: its worker was lost."""
        lost = self.trials.pop(number)
        again = replace(lost, attempt=lost.attempt + 1, losses=lost.losses + 1, resume=None)
        if lost.resume is None or self.rungs is None:
            for live in (self.curves, self.best, self.started):
                live.pop(number, None)
        self.again.append(again)
        return again

    def tell(self, outcome: Outcome) -> TrialRecord:
        """Take note of how a trial ended and queue it for the storage."""
        n, outcome = outcome.trial, sound(outcome, self.spec.objective)
        record = TrialRecord.of(self.trials[n], outcome, self.started[n], time.time(), self.curves[n], self.spec.objective)
        if self.rungs is not None and outcome.status is Status.PRUNED:
            if outcome.state is not None:
                return self.pause(record)
            self.rungs.retire(n)  # it never goes on: another takes its place
        return self.conclude(record)

    def conclude(self, record: TrialRecord) -> TrialRecord:
        """Tell Optuna of an ended trial and queue it for the storage."""
        number, memory_id = record.number, self.memory_id(record.number)
        self.spent += record.seconds
        self.memory.set_trial_user_attr(memory_id, RECORD, extras(record))
        if "accuracy" in record.metrics:  # for whoever looks with Optuna's dashboard
            self.memory.set_trial_user_attr(memory_id, "accuracy", record.metrics["accuracy"])
        if record.status is Status.COMPLETE:
            self.study.tell(number, record.score)
        elif record.status is Status.PRUNED:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, state=TrialState.FAIL)
        for live in (self.best, self.trials, self.started, self.curves):
            live.pop(number, None)
        ended = self.memory.get_trial(memory_id)
        self.history.note(ended)
        if record.status is Status.PRUNED and self.sign < 0:
            ended.value = None  # Optuna makes the last report its value, a negated loss among shares
        self.writer.put(lambda: self.store_end(ended))
        return record

    # ------------------------------------------------------------ rungs

    def pause(self, record: TrialRecord) -> TrialRecord:
        """Let a stopped trial wait at its rung; to Optuna it runs on, and counts as bad as long as it waits."""
        assert self.rungs is not None
        record = replace(record, status=Status.PAUSED)
        self.rungs.wait(record.number)
        self.paused[record.number] = record
        self.trials.pop(record.number)
        memory_id = self.memory_id(record.number)
        self.memory.set_trial_user_attr(memory_id, RECORD, extras(record))
        waiting = self.memory.get_trial(memory_id)
        self.writer.put(lambda: self.store_pause(waiting))
        return record

    def held(self) -> str:
        """Why nothing new should be asked for now: the storage's disk is full; "" where nothing holds the study up."""
        return self.writer.full

    def away(self) -> str:
        """What a person should know of a database server that does not answer; "" when it does."""
        return self.writer.away()

    def promotable(self) -> int:
        """How many trials that wait at a rung may go on now."""
        return len(self.rungs.promotable()) if self.rungs is not None else 0

    def promote(self) -> Trial:
        """The first trial that may go on, from where it stopped."""
        assert self.rungs is not None
        number = self.rungs.promotable()[0]
        self.rungs.promote(number)
        record = self.paused.pop(number)
        self.sizes.pop(number, None)
        self.started[number] = record.started or time.time()
        file = self.files.find(record.state)
        replayed = None if is_trial_file(record.state or "") else record.state  # a trial that is replayed goes on from no file
        return Trial(number, record.params, record.attempt, record.origin, str(file) if file else replayed)

    def settle(self, over: bool) -> tuple[TrialRecord, ...]:
        """End the trials at rungs that can never go on, or have no room, as pruned; all that wait there when the study is `over`."""
        if self.rungs is None:
            return ()
        hopeless = [] if over else self.rungs.hopeless(self.spec.trials)
        numbers = list(self.paused) if over else hopeless + [number for number in self.without_room() if number not in hopeless]
        ended = []
        for number in numbers:
            self.rungs.retire(number)
            self.sizes.pop(number, None)
            ended.append(self.conclude(replace(self.paused.pop(number), status=Status.PRUNED)))
        return tuple(ended)

    def without_room(self) -> list[int]:
        """The worst of the trials that wait at rungs, as far as their states are more than the study may keep."""
        room, out = self.spec.state_gigabytes * 1e9, []
        for number in self.paused.keys() - self.sizes.keys():
            self.sizes[number] = 0
            if (file := self.files.find(self.paused[number].state)) is not None:
                self.sizes[number] = file.stat().st_size
        if sum(self.sizes.values()) <= room:
            return []
        for number in sorted(self.paused, key=lambda number: self.best[number]):
            room -= self.sizes[number]
            if room < 0:
                out.append(number)
        return out

    # ------------------------------------------------------------ looking

    def records(self) -> Iterator[TrialRecord]:
        """Every trial so far, in order of number."""
        for trial in self.memory.get_all_trials(self.study._study_id, deepcopy=False):
            yield record_of(trial, self.fixed, self.spec.objective)

    def remaining(self, budget: int) -> int:
        """How many trials may be asked for now: interrupted ones, those that go on, and what the study lacks to `budget` in all."""
        fresh = self.promotable() + max(0, budget - self.known_trials)
        return len(self.again) + (fresh if self.spent < self.seconds else 0)

    def size(self, budget: int) -> int:
        """How many trials the study will come to: its budget, or what a grid has."""
        return most_trials(self.spec, [params for _, params in self.lead], budget)

    def extend(self, budget: int) -> None:
        """The study is to come to that many trials in all."""
        self.spec = self.spec.model_copy(update={"trials": budget})
        self.writer.put(lambda: self.store_about(lambda stored: {"spec": {**stored.get("spec", {}), "trials": budget}}))

    def remember(self, facts: Facts) -> None:
        """Keep what the first worker found out with the study."""
        at = time.time()
        self.writer.put(lambda: self.store_about(lambda stored: {"facts": remembered(stored.get("facts", {}), facts.values, at)}))

    def close(self) -> None:
        """Write what is queued. Trials that did not end are marked WAITING, for the next session to train again."""
        for number in (*self.trials, *(trial.number for trial in self.again)):
            self.writer.put(lambda number=number: self.requeue(number))  # type: ignore[misc]
        try:
            self.writer.close()
        finally:
            self.storage.engine.dispose()

    # ------------------------------------------------------------ helpers

    def memory_id(self, number: int) -> int:
        """Id of a trial in the working copy."""
        return self.memory.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def sample(self) -> Trial:
        """One configuration from the sampler, seeded by the trial's number."""
        number = self.known_trials
        whole = self.spec.pruner.name == "hyperband"  # which shows a sampler the trials of one bracket
        self.study.sampler = make_sampler(self.spec.sampler, self.space, self.seed, number, None if whole else self.history)
        asked = self.study.ask()
        self.known_trials += 1
        return Trial(asked.number, suggested(asked, self.space, self.varied))

    def create(self, trial: Trial) -> None:
        """Put a planned trial into the working copy."""
        varied = {k: v for k, v in trial.params.items() if k in self.varied}
        self.memory.create_new_trial(self.study._study_id, running(varied, {k: self.varied[k] for k in varied}))
        self.known_trials += 1

    def open(self, trial: Trial) -> None:
        """Open a trial for reports, and queue its row for the storage."""
        self.trials[trial.number] = trial
        if trial.number in self.curves:  # it goes on from a rung: its row, curve and start are there
            return
        self.curves[trial.number] = []
        self.started[trial.number] = time.time()
        memory_id = self.memory_id(trial.number)
        self.memory.set_trial_user_attr(memory_id, RECORD, {"origin": trial.origin, "attempt": trial.attempt, "losses": trial.losses})
        frozen = self.memory.get_trial(memory_id)
        shared = self.memory.get_study_system_attrs(self.study._study_id)
        self.writer.put(lambda: self.store_start(frozen, dict(shared)))

    # ------------------------------------------------------------ the writer's side

    def store_about(self, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Change the study's own record."""
        stored = self.storage.get_study_user_attrs(self.study_id).get(RECORD, {})
        self.storage.set_study_user_attr(self.study_id, RECORD, {**stored, **change(stored)})
        if self.folder is not None:
            keep_study(self.storage, self.spec.study_name(), self.folder)

    def store_start(self, trial: FrozenTrial, shared: Mapping[str, Any]) -> None:
        """Create the trial's row, or reopen it for another attempt."""
        if trial.number in self.ids:
            rows.reopen(self.storage, self.ids[trial.number], trial)
            return
        crash_point("before-row")
        self.ids[trial.number] = rows.start(self.storage, self.study_id, trial, shared)
        crash_point("after-row")

    def store_pause(self, trial: FrozenTrial) -> None:
        """Write what a paused trial has come to."""
        rows.pause(self.storage, self.ids[trial.number], trial)

    def store_end(self, trial: FrozenTrial) -> None:
        """Write the end of a trial."""
        crash_point("before-row-end")
        rows.end(self.storage, self.ids[trial.number], trial)
        crash_point("after-row-end")

    def requeue(self, number: int) -> None:
        """Mark an interrupted trial as waiting: nothing in the storage claims to run when nothing does."""
        if number in self.ids:
            rows.requeue(self.storage, self.ids[number])


def in_space(varied: Mapping[str, BaseDistribution], fixed: Params, params: Params) -> bool:
    """Whether a configuration is a point of a space."""
    if not {*params} <= {*varied, *fixed}:
        return False
    try:
        return all(name in params and kind._contains(kind.to_internal_repr(params[name])) for name, kind in varied.items())
    except (TypeError, ValueError):
        return False


def losses_of(stored: FrozenTrial) -> int:
    """How often a trial's worker was lost in earlier sessions."""
    about = stored.user_attrs.get(RECORD, {})
    losses = about.get("losses", 0) if isinstance(about, Mapping) else 0
    return losses if isinstance(losses, int) else 0


def most_trials(spec: StudySpec, lead: Sequence[Params], budget: int) -> int:
    """How many trials a study that begins with `lead` comes to: its budget, or what a grid has."""
    if spec.sampler != "grid":
        return budget
    space = spec.parameters()
    return min(budget, len({point_key(params) for params in (*grid_points(space), default_params(space), *lead)}))
