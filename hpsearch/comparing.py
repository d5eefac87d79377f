"""The verb that compares samplers: one ordinary study for each sampler and repeat, by one set of workers, and what they share only once."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hpsearch import tracking
from hpsearch.actions import behind, ending, mirror_stored
from hpsearch.compared import Compared, conclude, members, told, write_values
from hpsearch.control import Control
from hpsearch.errors import ChooseAnotherName, FixInput, Interrupted, NotFound
from hpsearch.executors.reuse import Memo, Reusing
from hpsearch.journal import Digest, Journal
from hpsearch.machine import stop_signals
from hpsearch.names import check_name
from hpsearch.orchestrator import Orchestrator
from hpsearch.places import Place, ui_command
from hpsearch.protocols import Tracker
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.spec import StudySpec, comparable, parse_spec
from hpsearch.startup import (
    DATA_REPORT,
    await_workers,
    begin_workers,
    check_models,
    facts_of,
    hold,
    kernel_of,
    prepare,
    same_inputs,
)
from hpsearch.types import Asked, ComparisonStarted, Facts, Prepared, Say, StoredStudy, TrialRecord, say_nothing

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from hpsearch.executors.worker import Workforce

SAMPLERS, TRIALS = ("random", "tpe", "gp"), 30  # where nothing else is asked for
UNBOUNDED = 1_000_000  # trials, where the budget is in seconds
LEAST_OWN = 10  # trials in which samplers differ, at least, before a comparison says anything
ALONE = {"references": False, "confirm": None, "cv": None, "warm_start": None, "portfolio": False, "timeout": None}
"""What is for a single study, and what a comparison has in its place."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What is asked for."""

    name: str
    specs: tuple[StudySpec, ...]  # one a sampler, alike but for that
    repeats: int
    initial: int  # trials that all samplers of a repeat begin with
    seconds: float  # of training after which a study begins no trial; infinite: `trials` decide

    def studies(self) -> list[StudySpec]:
        """Every study, repeat by repeat: an unfinished comparison has whole repeats to compare."""
        return [
            spec.model_copy(update={**ALONE, "name": study_name(self.name, spec.sampler, repeat), "repeat": repeat})
            for repeat in range(1, self.repeats + 1)
            for spec in self.specs
        ]

    def trials(self) -> int:
        """How many trials all studies come to; 0 where their budget is in seconds."""
        return self.repeats * sum(spec.trials for spec in self.specs) if math.isinf(self.seconds) else 0


def contest(
    specs: Sequence[StudySpec], repeats: int = 8, initial: int = 5, seconds: float | None = None, name: str | None = None
) -> Contest:
    """A checked comparison; `specs` are studies that differ in their sampler alone. Raises FixInput."""
    samplers = [spec.sampler for spec in specs]
    if len(set(samplers)) < 2:
        raise FixInput("a comparison takes at least two samplers, such as --samplers random,tpe")
    if twice := sorted({sampler for sampler in samplers if samplers.count(sampler) > 1}):
        raise FixInput(f"--samplers names {', '.join(twice)} twice: leave one out")
    for what, value in (("--repeats", repeats), ("--initial", initial)):
        if value < 1:
            raise FixInput(f"{what} must be 1 or more, got {value}")
    if seconds is not None and not seconds > 0:
        raise FixInput(f"--seconds must be greater than 0, got {seconds:g}")
    if initial > specs[0].trials:
        raise FixInput(f"the {initial} initial trials are more than the {specs[0].trials} trials of a study: lower --initial")
    title = check_name(default_name(specs[0]) if name is None else name, "comparison")
    if title.endswith((".yaml", ".yml")):
        raise FixInput(f"a comparison called '{title}' could not be told from a study file: leave out the ending")
    found = Contest(title, tuple(specs), repeats, initial, seconds or math.inf)
    for spec in found.studies():
        check_name(spec.study_name())
    return found


def contest_of(values: Mapping[str, Any], samplers: Sequence[str], seconds: float | None = None, **more: int) -> Contest:
    """A comparison on a study, given as the keys of its file; its name becomes that of the comparison. Raises FixInput."""
    values = {"trials": TRIALS if seconds is None else UNBOUNDED, **values}
    specs = [parse_spec({**values, "sampler": sampler}) for sampler in samplers]
    return contest(specs, seconds=seconds, name=values.get("name"), **more)


def check_free(asked: Contest, known: Sequence[str]) -> None:
    """Raise ChooseAnotherName where `known` studies would be taken for those of this comparison, or the other way round."""
    if asked.name in known:
        raise ChooseAnotherName(f"there is a study '{asked.name}': choose another --name for the comparison")
    own = {study_name(asked.name, spec.sampler, repeat) for spec in asked.specs for repeat in range(1, asked.repeats + 1)}
    if others := [study for study in members(known, asked.name) if study not in own]:
        listed = f"{', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
        raise ChooseAnotherName(
            f"a comparison '{asked.name}' is there with other samplers or more repeats ({listed}): choose another --name"
        )


def study_name(name: str, sampler: str, repeat: int) -> str:
    """What the study of a sampler in one repeat is called."""
    return f"{name}-{sampler}-r{repeat}"


def default_name(spec: StudySpec) -> str:
    """A name made of that of one of the studies."""
    name, tail = spec.study_name(), spec.name_after("x").removeprefix("x")
    return f"{name.removesuffix(tail)}{tail.replace(spec.sampler, 'compare', 1)}" if name.endswith(tail) else f"{name}-compare"


# ---------------------------------------------------------------- run


def compare(asked: Contest, where: Place, listeners: Sequence[Tracker] = (), say: Say = say_nothing) -> Compared:
    """Run a comparison, or go on with it; studies that are complete are not touched. What it came to, also as a page.

    Raises FixInput or FixSetup before the first trial, WaitOrStop when another process runs it, Interrupted after a signal.
    """
    begun, folder = time.monotonic(), where.runs(asked.name)
    if left := left_out(asked.specs[0]):
        say(f"Model: a comparison does without the study's {', '.join(left)}", 0, 0)
    check_models(asked.specs[0])
    if few := describe_overlap(asked):
        say(f"Sampler: {few}", 0, 0)
    executor = begin_workers(asked.specs[0], asked.name, say)  # torch loads while Optuna does
    from hpsearch.search.samplers import preflight
    from hpsearch.search.store import open_existing, open_storage

    for spec in asked.specs:
        preflight(spec.sampler)
    mlflow: tracking.MlflowTracker | None = None
    with hold(folder, where.storage, asked.name) as lease, stop_signals() as signalled, closing(Digest(folder)) as digest:
        control = Control(folder)
        control.begin()
        stopped_by, listeners = control.or_pause(signalled), [digest, *listeners]
        try:
            with ExitStack() as stack:
                stack.enter_context(closing(executor))
                await_workers(folder, say)
                storage = open_existing(where.storage)
                earlier = [facts_of(storage, spec) for spec in asked.studies()] if storage else []
                known = next((facts for facts in earlier if "blocks" in facts), None)
                prepared = None if known else prepare(executor, asked.studies()[0], folder, say, stopped_by)
                storage = storage or open_storage(where.storage, create=True)  # not for studies whose data is refused
                stack.callback(storage.engine.dispose)
                lease.guard(storage)
                course = Course(asked, where, storage, executor, stopped_by, say)
                reason = ""
                unfinished = course.begin(known, prepared, listeners)
                if where.tracking:
                    mlflow = tracking.MlflowTracker(where.tracking, folder, listeners)
                    for stored in course.whole():  # a mirror that was killed may not have told all of them
                        mirror_stored(mlflow, stored, where)
                if unfinished:
                    reason = course.run([*([mlflow] if mlflow else []), *listeners])
                names = [spec.study_name() for spec in course.specs]
            if reason == "interrupted":
                if mlflow is not None:
                    mlflow.close()
                text = "stopped; nothing that was told is lost. The same command goes on with the comparison"
                raise Interrupted(text, stopped_by() or signal.SIGINT)
            say("Writing the page", 0, 0)
            result = conclude(asked.name, names, where, time.monotonic() - begun, ui_command(where) if where.tracking else None)
            digest.record(told(result))
            if mlflow is not None:
                say("Completing the MLflow mirror", 0, 0)
                mlflow.record(told(result))
                mlflow.close()
                if mlflow.problem:
                    result = replace(result, tracking_problem=behind(mlflow, asked.name))
                    write_values(result)
        except BaseException:
            if mlflow is not None:
                mlflow.abandon()
            raise
    return result


class Course:
    """The studies of a comparison, one after the other, by workers that are prepared once."""

    def __init__(
        self,
        asked: Contest,
        where: Place,
        storage: RDBStorage,
        executor: Workforce,
        stopped_by: Callable[[], int | None],
        say: Say,
    ) -> None:
        self.asked, self.where, self.storage, self.executor = asked, where, storage, executor
        self.stopped_by, self.say = stopped_by, say
        self.folder = where.runs(asked.name)
        self.specs = asked.studies()
        self.memo = Memo()
        self.left: list[StudySpec] = []  # to be run
        self.facts: Facts | None = None

    def begin(self, known: Mapping[str, Any] | None, prepared: Prepared | None, listeners: Sequence[Tracker]) -> bool:
        """Make everything ready for the studies that are not complete; whether there are any.

        What workers find is `known` from an earlier session, or else `prepared`. Raises ChooseAnotherName where studies of these names
        are others, before anything is trained.
        """
        self.specs = [spec.bound(prepared.blocks if prepared else (known or {})["blocks"]) for spec in self.specs]
        self.check()
        self.take_over()
        stored = {spec.study_name(): self.stored(spec) for spec in self.specs}
        done: dict[tuple[str, int], Sequence[TrialRecord]] = {}
        done |= {(s.sampler, s.repeat): found.records for s in self.specs if (found := stored[s.study_name()]) is not None}
        trials = sum(self.size(spec) for spec in self.specs) if math.isinf(self.asked.seconds) else 0
        samplers = tuple(spec.sampler for spec in self.asked.specs)
        for listener in listeners:
            listener.record(ComparisonStarted(self.asked.name, samplers, self.asked.repeats, trials, self.asked.seconds, done))
        left = [spec for spec in self.specs if not self.complete(spec, stored[spec.study_name()])]
        if not left:
            return False
        prepared = prepared or prepare(self.executor, self.specs[0], self.folder, self.say, self.stopped_by)
        for spec in self.specs:
            same_inputs(spec.study_name(), facts_of(self.storage, spec), prepared)
        self.memo.epochs = int(left[0].resolved()["space"].get("epochs", {}).get("default", 0))
        for spec in self.specs:
            for record in done.get((spec.sampler, spec.repeat), ()):
                self.memo.add(spec.study_name(), spec.repeat, record)
        self.executor.ref = kernel_of(left[0], prepared, self.folder, self.executor.crew)
        self.left = left
        return True

    def check(self) -> None:
        """Raise ChooseAnotherName where a study is there that differs in what makes results comparable."""
        from hpsearch.search.catalog import study_names
        from hpsearch.search.headstart import began_with, initial
        from hpsearch.search.records import differences

        check_free(self.asked, study_names(self.storage))
        for spec in self.specs:
            found, name = self.stored(spec), spec.study_name()
            if found is None or not found.records:
                continue
            changes = differences(comparable(found.spec), spec.identity()) if found.uid else ["it was not made by hpsearch"]
            if not changes and began_with(self.storage, name) != initial(spec, self.asked.initial):
                changes = ["it began with other initial trials: --initial was another number"]
            if changes:
                listed = "\n".join(f"  {line}" for line in changes)
                raise ChooseAnotherName(
                    f"the study '{name}' is there and differs from what this comparison would run:\n{listed}\n"
                    "choose another --name, or repeat the command as it was to go on with that comparison"
                )

    def take_over(self) -> None:
        """Lets the storage know studies again whose results are in their folders; see `take_over_results`."""
        from hpsearch.search.rebuild import take_over_results

        for spec in self.specs:
            name, folder = spec.study_name(), self.where.runs(spec.study_name())
            if not folder.is_dir():
                continue
            with hold(folder, self.where.storage, name) as lease:
                lease.guard(self.storage)
                take_over_results(self.storage, spec, folder, self.say)

    def stored(self, spec: StudySpec) -> StoredStudy | None:
        """The study as the storage has it."""
        from hpsearch.search.catalog import read_study

        try:
            return read_study(self.storage, spec.study_name())
        except NotFound:
            return None

    def size(self, spec: StudySpec) -> int:
        """How many trials a study comes to."""
        from hpsearch.search.headstart import initial
        from hpsearch.search.searcher import most_trials

        return most_trials(spec, [params for _, params in initial(spec, self.asked.initial).trials], spec.trials)

    def whole(self) -> list[StoredStudy]:
        """Returns the studies in which nothing is left to do."""
        found = [(spec, self.stored(spec)) for spec in self.specs]
        return [stored for spec, stored in found if stored is not None and self.complete(spec, stored)]

    def complete(self, spec: StudySpec, found: StoredStudy | None) -> bool:
        """Whether nothing is left to do in a study."""
        if found is None or not all(record.status.ended for record in found.records):
            return False
        spent = math.fsum(record.seconds for record in found.records)
        return len(found.records) >= self.size(spec) or spent >= self.asked.seconds

    def run(self, trackers: Sequence[Tracker]) -> str:
        """Every study that is not complete; "interrupted" when one was cut short, else ""."""
        for spec in self.left:
            if self.study(spec, [self.memo, *trackers]) == "interrupted":
                return "interrupted"
        return ""

    def study(self, spec: StudySpec, trackers: Sequence[Tracker]) -> str:
        """One study; why it ended."""
        from hpsearch.search.headstart import initial
        from hpsearch.search.records import keep_study
        from hpsearch.search.samplers import ask_ahead
        from hpsearch.search.searcher import OptunaSearcher

        name, folder = spec.study_name(), self.where.runs(spec.study_name())
        with hold(folder, self.where.storage, name) as lease, closing(Journal(folder)) as journal:
            lease.guard(self.storage)
            control = Control(folder)
            control.begin()
            if self.stored(spec) is None:
                control.fresh()
            trackers, stopped_by = [*trackers, control, journal], control.or_pause(self.stopped_by)
            shutil.copyfile(self.folder / DATA_REPORT, folder / DATA_REPORT)
            begin = initial(spec, self.asked.initial)

            def stop() -> str | None:
                lease.check()
                return "interrupted" if stopped_by() else None

            def trials_to_stop() -> Asked:
                return replace(control.asked(), trials=0)  # as many for every sampler

            with closing(OptunaSearcher(spec, self.storage, begin, self.asked.seconds, folder)) as searcher:
                reusing = Reusing(self.executor, self.memo, str(folder), spec.pruner.name == "halving")
                loop = Orchestrator(
                    searcher,
                    reusing,
                    trackers,
                    TrialFiles(folder),
                    budget=searcher.size(spec.trials),
                    ahead=ask_ahead(spec.sampler, reusing.workers) if math.isinf(self.asked.seconds) else 0,  # what is asked is trained
                    stop=stop,
                    asked=trials_to_stop,
                    facts=self.facts,
                )
                reason = loop.run(name, spec.resolved(), experiment=self.asked.name)
                self.facts = loop.facts
            stored = self.stored(spec)
            assert stored is not None
            keep_study(self.storage, name, folder)
            (folder / "spec.json").write_text(json.dumps(dict(stored.spec), indent=2) + "\n")
            ended = ending(stored, self.where, reason)
            for tracker in trackers:
                tracker.record(ended)
        return reason


def describe_overlap(asked: Contest) -> str:
    """Returns that samplers differ in too few trials to be told apart, said before anything is trained; "" where they differ in enough.

    All begin with the same trials, and one that models draws at random until enough of them are complete.
    """
    from hpsearch.search.samplers import MODELS_FROM

    if math.isfinite(asked.seconds):
        return ""
    budget = min(spec.trials for spec in asked.specs)
    models = [spec.sampler for spec in asked.specs if spec.sampler in MODELS_FROM]
    alike = max(asked.initial, MODELS_FROM.get(models[0], 0)) if models else asked.initial
    if budget - alike >= LEAST_OWN:
        return ""
    cause = f"{models[0]} draws at random until {MODELS_FROM[models[0]]} trials are complete" if models else "all begin alike"
    return (
        f"samplers differ in {max(0, budget - alike)} of the {budget} trials of a study, too few to tell them apart "
        f"({asked.initial} are the same for all; {cause}): take --trials {alike + LEAST_OWN} or more"
    )


def left_out(spec: StudySpec) -> list[str]:
    """What of a study file a comparison does without."""
    asked: dict[str, Any] = {key: getattr(spec, key) for key in ALONE}
    return [key for key, value in asked.items() if value != ALONE[key]]
