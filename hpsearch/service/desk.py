"""The service's verbs, without HTTP: what API and page call."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hpsearch.compared import PAGE, members
from hpsearch.comparing import check_free, contest_of
from hpsearch.control import Control
from hpsearch.errors import FixInput, FixSetup, HpsearchError, NotFound, WaitOrStop
from hpsearch.finetune.roots import VARIABLE, roots_in_words
from hpsearch.machine import Load, load
from hpsearch.names import check_name
from hpsearch.places import Place, comparison_of
from hpsearch.search.queue import COMPARE, Entry, Queue
from hpsearch.service.guard import Guard
from hpsearch.service.models import Revision, Submission
from hpsearch.service.reader import Reader
from hpsearch.service.runner import Runner
from hpsearch.service.stream import Feed
from hpsearch.spec import parse_spec
from hpsearch.startup import check_models
from hpsearch.types import Status
from hpsearch.yamlfile import parse_yaml

SLOW = 900.0  # seconds that a report, an export or a comparison may take
MOST = 100_000_000  # trials of a comparison
LONGEST_KEY = 200  # characters of an idempotency key


@dataclass
class Desk:
    """Everything that a request may need."""

    queue: Queue
    runner: Runner
    reader: Reader
    where: Place
    guard: Guard
    feed: Feed = field(default_factory=Feed)
    ui: str = ""  # address of MLflow's page
    aside: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))  # commands beside the studies, one at a time

    # ------------------------------------------------------------ studies

    def submit(self, asked: Submission, key: str | None) -> tuple[Entry, bool]:
        """Queue a study: its row, and whether it is new. FixInput as `hpsearch run` says it."""
        if key is not None and not (0 < len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
            raise FixInput(f"the idempotency key must be 1 to {LONGEST_KEY} plain characters")
        name, values, trials = self.understood(asked)
        said = asked.model_dump(exclude={"compare"} if asked.compare is None else None)
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()
        entry, new = self.queue.add(name, values, trials, asked.priority, asked.share, key, digest)
        self.reader.forget(entry.study)
        self.runner.wake.set()
        return entry, new

    def understood(self, asked: Submission) -> tuple[str, Mapping[str, Any], int]:
        """What is asked for, checked: its name, its values as the queue keeps them, how many trials it comes to."""
        values: Any = asked.study if asked.study is not None else parse_yaml(asked.yaml or "", "the study")
        if not isinstance(values, Mapping):
            raise FixInput("the study must be a mapping of keys to values, as in a study file")
        if asked.compare is None:
            spec = parse_spec(values)
            name, trials = spec.study_name(), spec.trials
        else:
            wanted = asked.compare.model_dump()
            contest = contest_of(values, **wanted)
            check_free(contest, self.reader.studies())
            spec, values = contest.specs[0], {**values, COMPARE: wanted | {"samplers": [spec.sampler for spec in contest.specs]}}
            name, trials = contest.name, contest.trials()
            if trials > MOST:
                raise FixInput(f"these are {trials:,} trials in all, and a comparison takes {MOST:,}: lower `repeats` or `trials`")
        check_models(spec)
        self.guard.admit(spec, self.where.folder)
        return name, values, trials

    def want(self, name: str, wanted: str) -> Entry:
        """Pause or cancel a study."""
        entry = self.submitted(name, lambda: self.queue.want(name, wanted))
        if entry.state == "running" and entry.home == self.queue.home:
            Control(self.where.runs(name)).pause()
        return entry

    def resume(self, name: str) -> Entry:
        """Have a study go on."""
        entry = self.submitted(name, lambda: self.queue.resume(name))
        if entry.state == "running" and entry.home == self.queue.home:
            Control(self.where.runs(name)).take("pause")
        self.runner.wake.set()
        return entry

    def revise(self, name: str, asked: Revision) -> Entry:
        """More trials, or another priority."""
        check_name(name)
        known = self.reader.entry(name)
        if asked.trials and known is not None and known.compares:
            raise FixInput(f"'{name}' is a comparison, whose studies have as many trials each: submit another one with more")
        entry = self.submitted(name, lambda: self.queue.revise(name, asked.trials, asked.priority))
        if entry.state == "running" and asked.trials and entry.home == self.queue.home:
            Control(self.where.runs(name)).extend(asked.trials)
        self.runner.wake.set()
        return entry

    def submitted(self, name: str, verb: Any) -> Entry:
        """Call a verb of the queue; for a study that was run without it, say so."""
        check_name(name)
        try:
            entry: Entry = verb()
            self.reader.forget(name)
            return entry
        except NotFound:
            self.reader.study(name)
            raise WaitOrStop(
                f"the study '{name}' was not submitted to this server: `hpsearch pause` and `hpsearch run` steer it where it was started"
            ) from None

    def stop_trial(self, name: str, number: int) -> None:
        """Have a trial end at its next epoch; WaitOrStop when it has ended."""
        stored, record = self.reader.trial(name, number)
        if record.status.ended:
            raise WaitOrStop(f"trial {number} of '{name}' has ended ({record.status.value}): there is nothing to stop")
        if record.status is Status.PAUSED:
            raise WaitOrStop(f"trial {number} of '{name}' waits at a rung: it takes nothing until it is promoted, and can be stopped then")
        entry = self.reader.entry(name) or self.reader.entry(comparison_of(stored) or name)
        if entry is not None and entry.home != self.queue.home:
            raise WaitOrStop(f"'{name}' belongs to another server of this storage ({entry.home}): ask that one")
        Control(self.where.runs(name)).stop(number)

    def devices(self) -> list[dict[str, Any]]:
        """What processor and GPUs do, and which studies are on them."""
        found: Load = self.reader.once("load", load)
        running = self.reader.once("running", lambda: self.queue.running())
        mine = {"name": f"{found.cores} cores", "busy": found.busy, "memory": found.memory, "memory_used": found.memory_used}
        rows = [mine | {"studies": [] if found.gpus else [e.study for e in running]}]
        for gpu in found.gpus:
            on = [e.study for e in running if (e.slot or 0) % len(found.gpus) == gpu.index]
            rows.append({"name": gpu.name, "busy": gpu.busy, "memory": gpu.memory, "memory_used": gpu.memory_used, "studies": on})
        return rows

    # ------------------------------------------------------------ what takes long: commands of their own

    async def command(self, *arguments: str) -> str:
        """Run `hpsearch` with these arguments; what it printed. Its errors are ours."""
        environment = {key: value for key, value in os.environ.items() if key != "HPSEARCH_TOKEN"} | {"OPTUNA_STORAGE": self.where.storage}
        environment[VARIABLE] = roots_in_words(self.guard.roots)
        if self.where.tracking:
            environment["MLFLOW_TRACKING_URI"] = self.where.tracking
        async with self.aside:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "hpsearch.cli",
                *arguments,
                cwd=self.where.folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                out, err = await asyncio.wait_for(process.communicate(), SLOW)
            except (TimeoutError, asyncio.CancelledError):
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise
        if process.returncode:
            raise refused(process.returncode, err.decode("utf-8", "replace"))
        return out.decode("utf-8", "replace")

    async def report(self, name: str) -> Path:
        """A study's page: the one in its folder where the study is at rest, a new one otherwise."""
        row = await asyncio.to_thread(self.reader.study, name)
        path = self.reader.folder(name) / "report.html"
        if row["studies"]:
            return await self.comparison(name, live=row["state"] != "done")
        if row["state"] in ("running", "queued") or not path.is_file():
            if not row["ended"]:
                raise WaitOrStop(f"no trial of '{name}' has ended yet: there is nothing to report")
            path = self.reader.folder(name) / "report-live.html"
            await self.command("report", name, "-o", str(path))
        return path

    async def export(self, name: str) -> IO[bytes]:
        """The winner as a folder, packed: an open file that has no name, so that nothing is left of it whatever happens."""
        await asyncio.to_thread(self.reader.weights, name)
        with tempfile.TemporaryDirectory(prefix="hpsearch-export-") as place:
            folder = Path(place) / name
            await self.command("export", name, "-o", str(folder))
            return await asyncio.to_thread(packed, folder)

    async def comparison(self, name: str, live: bool) -> Path:
        """The page of a comparison, made anew while its studies run."""
        path = self.reader.folder(name) / PAGE
        if live or not path.is_file():
            await self.compare([name], False)
        return path

    async def compare(self, names: list[str], anyway: bool) -> Any:
        """Studies compared, or one comparison that was run, as `hpsearch compare` does it."""
        known = await asyncio.to_thread(self.reader.studies)
        for name in names:
            if not members(known, check_name(name)):
                await asyncio.to_thread(self.reader.stored, name)
        if len(set(names)) < 2 and names[0] in known:
            raise FixInput("name two studies or more to compare, or one comparison")
        return json.loads(await self.command("compare", *names, "--json", "--no-tracking", *(["--anyway"] if anyway else [])))


def refused(code: int, said: str) -> HpsearchError:
    """The error that a command ended with."""
    text = said.strip().removeprefix("hpsearch: ") or f"the command ended with code {code}"
    return FixInput(text) if code == 2 else FixSetup(text)


def packed(folder: Path) -> IO[bytes]:
    """A zip file of a folder, open at its beginning."""
    import zipfile

    file = tempfile.TemporaryFile()  # noqa: SIM115  it closes once nobody has it any more
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path(folder.name) / path.relative_to(folder))
    file.seek(0)
    return file
