"""The protocols of the rooms: what a kernel, an executor, a searcher and a tracker are to the loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from hpsearch.errors import HpsearchError
from hpsearch.types import Event, Facts, Job, Outcome, Progress, Trial, TrialRecord

GRACE = 8.0  # seconds that running trials get, once they are to stop, to reach the end of their epoch

Step: TypeAlias = tuple[Progress | Outcome, ...]
Session: TypeAlias = Generator[Step, frozenset[int], None]
"""Runs a job. Yields what is new (progress of live trials, outcomes of ended ones), is sent the trials to stop.

An empty step says that work was started: another session of the same kernel may go on meanwhile."""


class Kernel(Protocol):
    """Trains. Built once per worker from a JSON-able configuration; its device context outlives trials."""

    def facts(self) -> Facts:
        """Load what trials share; raises `FixInput` or `FixSetup` when that is impossible."""
        ...

    def session(self, job: Job) -> Session:
        """A generator over the job's epochs; a trial that fails is an `Outcome`, not an exception.

        As many sessions as `Facts.slots` says may be open at once, each advanced in its turn.
        """
        ...

    def keep(self) -> None:
        """From now on a trial that is stopped leaves the state from which it can go on, if it has a folder."""
        ...

    def worn(self) -> str:
        """Why its process should be replaced once its sessions are over; "" while it need not."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """What an executor heard from one worker: facts, or one step of a job (`done` once the job's session ended)."""

    worker: int
    job: int | None
    facts: Facts | None = None
    step: Step = ()
    done: bool = False
    error: HpsearchError | None = None  # the worker cannot work: the study ends
    notice: str = ""  # what a person should read
    worn: str = ""  # why the worker takes no more jobs and is replaced once its sessions are over


class Executor(Protocol):
    """Carries jobs to workers and steps back. Every step with progress waits for `answer`."""

    workers: int

    def start(self) -> None:
        """Start the workers; each sends its facts once it is ready."""
        ...

    def free(self, alone: bool = False) -> int:
        """How many jobs could start at once; `alone`: each with a worker to itself."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a job on a free worker."""
        ...

    def poll(self, timeout: float) -> list[Message]:
        """What has happened, waiting up to `timeout` seconds for something to happen."""
        ...

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Let the job's session go on, without the trials in `stop`."""
        ...

    def keep(self) -> None:
        """Trials that are stopped from now on are to go on later."""
        ...

    def close(self) -> None:
        """End all workers, at once."""
        ...


class Files(Protocol):
    """The files that the trials of a study leave, by the names that records have for them."""

    def delete(self, name: str | None) -> None:
        """Deletes a trial's file; one that is not there, or is not one of ours, is left alone."""
        ...


class Tracker(Protocol):
    """Listens. Never slows the loop and never fails it."""

    def record(self, event: Event) -> None:
        """Take note; returns at once."""
        ...

    def close(self) -> None:
        """Finish writing what was recorded."""
        ...


class Searcher(Protocol):
    """Proposes and judges."""

    uid: str  # of the study
    known: Mapping[str, Any]  # what workers of earlier sessions found

    def ask(self, n: int) -> tuple[Trial, ...]:
        """Up to `n` next trials; fewer, or none, when the space is exhausted."""
        ...

    def report(self, progress: Progress) -> bool:
        """Take note of an epoch, unless it was reported before; True when the trial should stop."""
        ...

    def epochs(self, number: int) -> int:
        """How many epochs of a live trial were reported."""
        ...

    def tell(self, outcome: Outcome) -> TrialRecord:
        """Take note of how a trial ended, or that it waits at a rung."""
        ...

    def left(self, number: int) -> Outcome | None:
        """What a live trial came to that was lost with its worker, if it left that behind."""
        ...

    def retry(self, number: int) -> Trial:
        """Hand out a live trial again, as its next attempt: its worker was lost."""
        ...

    def held(self) -> str:
        """Why no trial should be asked for now, for a person to read; "" where nothing holds the study up."""
        ...

    def away(self) -> str:
        """What a person should know of a storage that does not answer, while training goes on; "" when it does."""
        ...

    def promotable(self) -> int:
        """How many trials that wait at a rung may go on now."""
        ...

    def settle(self, over: bool) -> tuple[TrialRecord, ...]:
        """End the trials at rungs that can never go on; all that wait there when the study is `over`."""
        ...

    def records(self) -> Iterator[TrialRecord]:
        """Every trial so far, in order of number."""
        ...

    def remaining(self, budget: int) -> int:
        """How many trials may be asked for now when the study is to have `budget` in all."""
        ...

    def size(self, budget: int) -> int:
        """How many trials the study will come to with `budget`; a grid may have fewer."""
        ...

    def extend(self, budget: int) -> None:
        """The study is to come to that many trials in all."""
        ...

    def remember(self, facts: Facts) -> None:
        """Keep what the first worker found out with the study."""
        ...

    def close(self) -> None:
        """Write what is queued; trials that did not end wait for the next session."""
        ...
