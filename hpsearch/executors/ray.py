"""Workers on a Ray cluster: one actor each, on whatever machines it has. Ray places them; what they do is `actor`'s.

Nothing has to be shared: data and weights reach a machine through Ray's object store where its cache lacks them, and what a trial
comes to (its state, its weights) travels with the message that tells of it, into the study's folder of the orchestrator.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpsearch.devices import Crew
from hpsearch.errors import FixSetup
from hpsearch.executors.actor import Here, Letter, Parcel, Sent, Wanted, Worker
from hpsearch.executors.aside import PREPARING
from hpsearch.executors.cluster import cause_of, connect, load_ray
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.seat import Seat, Watch, seated
from hpsearch.executors.worker import BIRTHS, KEEP, STALL, KernelRef, Notes, failures
from hpsearch.keeping import patiently
from hpsearch.protocols import Message
from hpsearch.types import Job, Outcome, Progress, Say, Trial

LOOK = 2.0  # seconds between looks at what the cluster has free
WAIT = 15.0  # seconds without any worker after which a person is told what is waited for
CHUNK = 2**26  # bytes of a file that travel at once


@dataclass
class RaySeat(Seat):
    """A worker in an actor."""

    actor: Any
    said: Any  # generator of references to what it says
    births: int = 0  # workers in a row in this seat that were lost before they were ready
    where: str = ""  # it was placed there


class RayExecutor:
    """`workers` actors with `threads` processor cores and `gpus` GPUs each; "auto": as many as fit, also on machines that join later.

    The Ray at `address` (or RAY_ADDRESS) is used, else one is started on this machine and ended with the executor. An actor that is lost,
    with its machine or without, is replaced as soon as Ray finds room; its trials end as FAILED and lost.
    """

    def __init__(
        self,
        ref: KernelRef | None,
        workers: int | str,
        threads: int = 1,
        preload: tuple[str, ...] = (),
        stall: float = STALL,
        address: str | None = None,
        gpus: float | None = None,
    ) -> None:
        self.ref, self.threads, self.stall = ref, threads, stall
        self.home = ProcessExecutor(None, 1, threads, preload, stall)  # what is called aside runs on this machine
        self.ray = load_ray()
        self.owned = connect(self.ray, address or os.environ.get("RAY_ADDRESS"), workers, threads)
        everything = self.ray.cluster_resources()
        self.gpus = gpus if gpus is not None else float(everything.get("GPU", 0) > 0)
        self.asked = None if workers == "auto" else int(workers)
        self.workers = self.asked or max(1, self.fitting(everything))
        nodes = [self.fitting(node["Resources"]) for node in self.ray.nodes() if node["Alive"]]
        beside = max(1, int(1 / self.gpus)) if self.gpus else max(1, *nodes)
        sharing = min(beside, self.workers)
        self.crew = Crew(({},) * sharing, ("",) * sharing)  # of one device; which one an actor sees is Ray's to say
        self.seats: dict[int, RaySeat] = {}
        self.notes = Notes(None, "val_loss")
        self.trials: dict[int, Trial] = {}  # live ones, by number
        self.files: dict[str, Sent] = {}  # in the object store, by path
        self.looked = self.manned = time.monotonic()
        self.watched = Watch(stall)

    def fitting(self, resources: Mapping[str, float]) -> int:
        """How many workers these resources are enough for."""
        room = resources.get("CPU", 0.0) / self.threads
        return int(min(room, resources.get("GPU", 0.0) / self.gpus) + 1e-6 if self.gpus else room + 1e-6)

    def start(self) -> None:
        """Ask Ray for the workers; it places them as there is room."""
        assert self.ref is not None, "name the kernel before the workers start"
        self.notes = Notes(self.ref.folder, self.ref.objective)
        self.look()

    def look(self) -> None:
        """Hire the workers that are missing: as many as were asked for, else as many as there is room for once the last are placed."""
        self.looked = time.monotonic()
        if self.asked is not None:
            lacking = self.asked - len(self.seats)
        elif all(seat.where for seat in self.seats.values()):
            lacking = max(self.fitting(self.ray.available_resources()), not self.seats)
        else:
            lacking = 0
        for _ in range(lacking):
            self.hire(next(number for number in itertools.count() if number not in self.seats))

    def hire(self, number: int, births: int = 0) -> None:
        """Ask Ray for one worker."""
        actors = self.ray.remote(concurrency_groups={"orders": 1})(Worker)
        actor = actors.options(num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0).remote(self.ref, number)
        self.seats[number] = RaySeat(actor, actor.serve.options(num_returns="streaming").remote(), births)

    def send(self, seat: RaySeat, order: Any) -> None:
        """Give an order; that the worker is lost is noticed in poll()."""
        seat.actor.order.options(concurrency_group="orders").remote(order)

    def aside(
        self, target: str, config: Mapping[str, Any], say: Say, stopped_by: Callable[[], int | None] = lambda: None, what: str = PREPARING
    ) -> Any:
        """Call a function in a process of this machine; see `aside.call`."""
        return self.home.aside(target, config, say, stopped_by, what)

    def free(self, alone: bool = False) -> int:
        """How many jobs could start at once; `alone`: each with a worker to itself."""
        return sum(seat.free(alone) for seat in self.seats.values())

    def submit(self, job: Job) -> None:
        """Send the job, with the states of its trials, to a worker; `seated` chooses."""
        seat = seated(self.seats.values(), job)
        self.notes.begin(job)
        self.trials |= {trial.number: trial for trial in job.trials}
        states: dict[int, bytes] = {}
        for trial in job.trials:
            with suppress(OSError):  # it is gone: the trial begins anew
                states |= {trial.number: Path(trial.resume).read_bytes()} if trial.resume is not None else {}
        seat.heard = time.monotonic()  # states may be large
        self.send(seat, Parcel(job, states))

    def poll(self, timeout: float) -> list[Message]:
        """Messages of all workers; a lost worker's trials as FAILED outcomes."""
        self.watch()
        if time.monotonic() - self.looked > LOOK:
            self.look()
        seats = {seat.said: number for number, seat in self.seats.items()}
        found, _ = self.ray.wait(list(seats), num_returns=1, timeout=timeout)
        if found:
            found, _ = self.ray.wait(list(seats), num_returns=len(seats), timeout=0)
        messages = [message for said in found for message in self.hear(seats[said])]
        return messages + self.waiting()

    def waiting(self) -> list[Message]:
        """A notice when no worker has had a place for a while."""
        if any(seat.where for seat in self.seats.values()):
            self.manned = time.monotonic()
        if time.monotonic() - self.manned < WAIT:
            return []
        free, total = self.ray.available_resources(), self.ray.cluster_resources()
        need = [f"{amount:g} {kind}" for kind, amount in (("CPU", self.threads), ("GPU", self.gpus)) if amount]
        has = [f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")]
        text = f"Waiting for room on the cluster: a worker takes {' and '.join(need)}, free are {' and '.join(has)}"
        self.manned = time.monotonic()
        return [Message(0, None, notice=text)]

    def watch(self) -> None:
        """End workers that hang."""
        for seat in self.watched.silent(self.seats.values()):
            if not seat.hung:
                seat.hung = True
                self.ray.kill(seat.actor)

    def hear(self, number: int) -> list[Message]:
        """What a worker has to say, once its files are in place; or its obituary."""
        seat = self.seats[number]
        try:
            said = self.ray.get(next(seat.said))
        except StopIteration:
            return self.bury(number, "ended")
        except self.ray.exceptions.RayError as error:
            return self.bury(number, cause_of(error))
        seat.heard = time.monotonic()
        if isinstance(said, Here):
            seat.where = said.where
            return []
        if isinstance(said, Wanted):
            self.send(seat, self.file(said.path))
            return []
        message = self.receive(said)
        seat.heed(message)
        if message.facts is not None:
            seat.births = 0
        return [message]

    def receive(self, letter: Letter) -> Message:
        """The message of a letter, whose files now are where the orchestrator looks for them."""
        for trial, name, content in letter.files:
            folder = self.notes.place(self.trials[trial])
            assert folder is not None, "files of trials without a folder"
            write_file(Path(folder) / name, content)
        step = tuple(self.returned(item) for item in letter.message.step)
        for item in step:
            self.notes.note(item)
            if isinstance(item, Outcome):
                del self.trials[item.trial]
        return replace(letter.message, step=step)

    def returned(self, item: Progress | Outcome) -> Progress | Outcome:
        """An outcome with its files where they are here."""
        folder = self.notes.place(self.trials[item.trial])
        if isinstance(item, Progress) or folder is None:
            return item
        checkpoint, state = (str(Path(folder) / Path(path).name) if path else None for path in (item.checkpoint, item.state))
        return replace(item, checkpoint=checkpoint, state=state)

    def file(self, path: str) -> Sent:
        """A file of this machine in the object store, put there once."""
        if path not in self.files:
            try:
                with open(path, "rb") as file:
                    self.files[path] = Sent(tuple(self.ray.put(chunk) for chunk in iter(lambda: file.read(CHUNK), b"")))
            except OSError as error:
                return Sent((), f"{path} cannot be read for the workers ({error.strerror}): bring it back, then repeat the command")
        return self.files[path]

    def bury(self, number: int, cause: str) -> list[Message]:
        """Ask for another worker in place of a lost one; its live trials failed with it."""
        seat = self.seats[number]
        self.ray.kill(seat.actor)
        cause = f"made no progress for {self.stall:g} s and was ended" if seat.hung else cause
        births = 0 if seat.slots else seat.births + 1
        if births >= BIRTHS:
            text = (
                f"worker {number} {cause} before it was ready, {births} times: is hpsearch installed on every machine, with enough memory?"
            )
            return [Message(number, None, error=FixSetup(text))]
        self.hire(number, births)
        reason = f"worker {number} ({seat.where}) {cause} while training"
        messages = [Message(number, job, step=failures(live, reason, lost=True), done=True) for job, live in seat.jobs.items()]
        for item in (item for message in messages for item in message.step):
            self.notes.note(item)
            del self.trials[item.trial]
        return messages

    def answer(self, job: int, stop: frozenset[int]) -> None:
        """Send the verdict to the worker that has the job."""
        self.send(next(seat for seat in self.seats.values() if job in seat.jobs), (job, stop))

    def keep(self) -> None:
        """Trials that are stopped from now on are to go on later."""
        self.notes.keeping = True
        for seat in self.seats.values():
            self.send(seat, KEEP)

    def close(self) -> None:
        """End all workers, at once, and the Ray that was started for them."""
        for seat in self.seats.values():
            self.ray.kill(seat.actor)
        self.seats, self.files = {}, {}
        self.home.close()
        if self.owned:
            self.ray.shutdown()
            self.owned = False


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a full disk is waited for."""

    def write() -> None:
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_bytes(content)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    patiently(write, path.parent)
