"""What an executor knows of its workers, wherever they are: who has room, who has what, and who is silent."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hpsearch.protocols import Message
from hpsearch.types import Job, Outcome

SHARED = ("model", "frozen_layers")  # trials that are equal in these share activations
S = TypeVar("S", bound="Seat")


@dataclass(kw_only=True)
class Seat:
    """One worker as the executor sees it."""

    slots: int = 0  # jobs that it takes at once; 0 until it is ready
    jobs: dict[int, set[int]] = field(default_factory=dict)  # live trials by job
    seen: set[tuple[Any, ...]] = field(default_factory=set)  # what it has activations of, as far as is known here
    alone: int | None = None  # the last job that was to have the worker to itself
    worn: bool = False  # it takes no more jobs
    heard: float = field(default_factory=time.monotonic)  # when it last gave a sign of life
    hung: bool = False

    def free(self, alone: bool = False) -> int:
        """Jobs that could start; `alone`: with the worker to itself."""
        if self.worn or self.alone in self.jobs:
            return 0
        return self.slots - len(self.jobs) if not alone else int(bool(self.slots) and not self.jobs)

    def heed(self, message: Message) -> None:
        """Take note of what the worker said."""
        self.heard = time.monotonic()
        if message.facts is not None:
            self.slots = message.facts.slots
        if message.job is not None:
            self.jobs[message.job] -= {item.trial for item in message.step if isinstance(item, Outcome)}
            if message.done:
                del self.jobs[message.job]
        self.worn = self.worn or bool(message.worn)


def seated(seats: Iterable[S], job: Job) -> S:
    """The seat that gets the job: of the worker with the fewest; one that has activations of its trials may have one more."""
    shared = {tuple(trial.params.get(name) for name in SHARED) for trial in job.trials}
    free = [seat for seat in seats if seat.free(job.alone)]
    assert free, "submit only to a free executor"
    seat = min(free, key=lambda seat: (len(seat.jobs) - (shared <= seat.seen), not shared <= seat.seen))
    seat.seen |= shared
    seat.alone = job.id if job.alone else seat.alone
    seat.jobs[job.id], seat.heard = {trial.number for trial in job.trials}, time.monotonic()
    return seat


class Watch:
    """Finds workers that hang. Silence counts only while this process itself was awake."""

    def __init__(self, stall: float) -> None:
        self.stall, self.looked = stall, time.monotonic()

    def silent(self, seats: Iterable[S]) -> list[S]:
        """Those that have jobs and gave no sign of life for `stall` seconds."""
        seats, now = list(seats), time.monotonic()
        if now - self.looked > min(10.0, self.stall):
            for seat in seats:
                seat.heard = now
        self.looked = now
        return [seat for seat in seats if seat.jobs and now - seat.heard > self.stall]
