"""The searcher of runs beside the search: hands out a list, stops nothing, and keeps what comes of it with the study."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage

from hpsearch.keeping import left_by, read_result, resumed
from hpsearch.search.records import OPENINGS, RECORD, RUN, run_values
from hpsearch.search.store import Writer
from hpsearch.types import Facts, Outcome, Progress, Trial, TrialRecord, sound


class ListedRuns:
    """Runs of the study called `name`; each is stored once it has ended, in one transaction, and none is lost or made twice."""

    known: Mapping[str, Any] = {}

    def __init__(self, storage: RDBStorage, name: str, objective: str, trials: Sequence[Trial], folder: Path | None = None) -> None:
        """`folder` is where runs leave states and results; a run that has left a result is not made again."""
        self.storage, self.objective, self.folder = storage, objective, folder
        self.study_id = storage.get_study_id_from_name(name)
        self.uid = str(storage.get_study_user_attrs(self.study_id).get(RECORD, {}).get("uid", ""))
        self.writer = Writer(storage)
        found = [(trial, read_result(folder, trial.name, self.uid)) for trial in trials]
        self.taken = [result for _, result in found if result is not None]
        for record in self.taken:
            self.store(record)
        self.waiting = deque(replace(trial, study=self.uid) for trial, result in found if result is None)
        self.live: dict[int, tuple[Trial, float, list[dict[str, float]]]] = {}  # trial, start, curve

    def ask(self, n: int = 1) -> tuple[Trial, ...]:
        """The next `n` of the list."""
        trials = tuple(self.waiting.popleft() for _ in range(min(n, len(self.waiting))))
        trials = tuple(replace(trial, resume=resumed(trial, self.folder)) for trial in trials)
        for trial in trials:
            self.live[trial.number] = (trial, time.time(), [])
        return trials

    def report(self, progress: Progress) -> bool:
        """Take note of an epoch, unless it was reported before; nothing is stopped."""
        if progress.epoch > self.epochs(progress.trial):
            self.live[progress.trial][2].append(progress.row())
        return False

    def epochs(self, number: int) -> int:
        """How many epochs of a live run were reported."""
        return len(self.live[number][2])

    def left(self, number: int) -> Outcome | None:
        """What a live trial came to that was lost with its worker, if it left that behind."""
        return left_by(self.live[number][0], self.folder)

    def retry(self, number: int) -> Trial:
        """Hand out a live run again, as its next attempt: its worker was lost."""
        lost, *_ = self.live.pop(number)
        again = replace(lost, attempt=lost.attempt + 1, losses=lost.losses + 1)
        self.waiting.appendleft(again)
        return again

    def tell(self, outcome: Outcome) -> TrialRecord:
        """Store how a run ended."""
        trial, started, curve = self.live.pop(outcome.trial)
        outcome = sound(outcome, self.objective)
        assert trial.setup is not None
        record = TrialRecord.of(trial, outcome, started, time.time(), curve, self.objective)
        self.store(record)
        return record

    def store(self, record: TrialRecord) -> None:
        """Queue a run for the storage."""
        key, values = f"{RUN}{record.name}", run_values(record)
        self.writer.put(lambda: self.storage.set_study_user_attr(self.study_id, key, values))

    def held(self) -> str:
        """Why nothing new should be begun now: the storage's disk is full; "" where nothing holds the runs up."""
        return self.writer.full

    def away(self) -> str:
        """What a person should know of a database server that does not answer; "" when it does."""
        return self.writer.away()

    def promotable(self) -> int:
        """No run waits at a rung."""
        return 0

    def settle(self, over: bool) -> tuple[TrialRecord, ...]:
        """Nor does one end there."""
        del over
        return ()

    def records(self) -> Iterator[TrialRecord]:
        """None: these are no trials of the search."""
        return iter(())

    def remaining(self, budget: int) -> int:
        """Runs that have not begun."""
        del budget
        return len(self.waiting)

    def size(self, budget: int) -> int:
        """Runs that have not begun."""
        return self.remaining(budget)

    def extend(self, budget: int) -> None:
        """A list has its length."""

    def remember(self, facts: Facts) -> None:
        """The study's own searcher did."""

    def close(self) -> None:
        """Write what is queued; runs that did not end are made anew next time."""
        self.writer.close()
        self.storage.engine.dispose()


def add_opening(storage: RDBStorage, name: str, opening: Mapping[str, Any]) -> int:
    """Record that the test split was looked at, and what was seen; how many times that has happened now."""
    study_id = storage.get_study_id_from_name(name)
    earlier: list[Mapping[str, Any]] = storage.get_study_user_attrs(study_id).get(OPENINGS, [])
    write: Callable[[], None] = lambda: storage.set_study_user_attr(study_id, OPENINGS, [*earlier, dict(opening)])  # noqa: E731
    writer = Writer(storage)  # waits out a storage that is locked for a while
    writer.put(write)
    writer.close()
    return len(earlier) + 1
