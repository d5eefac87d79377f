"""The verb that trains a recorded trial again, in a folder that is thrown away, and compares every epoch with what is stored."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import FixInput, Interrupted, NotFound, nearest
from hpsearch.machine import stop_signals
from hpsearch.places import Place, show
from hpsearch.provenance import LAYOUT, session_at
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.startup import KERNEL, begin_workers, kernel_config, prepare
from hpsearch.types import Job, Outcome, Prepared, Progress, Say, Status, StoredStudy, Trial, TrialRecord, say_nothing

if TYPE_CHECKING:
    from hpsearch.protocols import Executor

TIMED = ("seconds", "images_per_second")  # of an epoch's row: no two runs share them
# Where exactness is not promised, numbers count as the same within this share of themselves or this much: nats, shares.
RELATIVE, ABSOLUTE = 0.02, 0.01
EQUAL, CLOSE, DIFFERENT = "equal", "close", "different"
OWN_FAULTS = ("diverged", "ValueError", "KeyError", "RuntimeError")  # how failures begin that belong to the configuration


@dataclass(frozen=True, slots=True)
class Replayed:
    """A trial as it is recorded, and as it is when it is trained again."""

    study: str
    trial: str
    verdict: str  # EQUAL: to the last bit; CLOSE: within the tolerance, where exactness is not promised; DIFFERENT
    exact: bool  # whether equality to the last bit is promised: the same CPU, libraries and threads
    first: int | None  # epoch of the first difference
    largest: Mapping[str, float]  # difference of each number of an epoch, where there is one
    remarks: tuple[str, ...]  # what is not as it was, and how the ends differ
    weights: str  # EQUAL, DIFFERENT, or "" where the trial's weights are not kept or exactness is not promised
    status: Mapping[str, str]  # "recorded", "replayed"
    recorded: Sequence[Mapping[str, float]]  # a row for each epoch
    replayed: Sequence[Mapping[str, float]]


def replay(where: Place, study: str, trial: str, say: Say = say_nothing) -> Replayed:
    """Train a trial of a study again with everything that the study fixed; nothing is written but into a temporary folder.

    `trial` is its number, or the name of a run such as confirm-0003-seed-1. Raises NotFound without it, FixInput when data or weights
    are not those that it was trained with, FixSetup when they cannot be read, Interrupted after a signal.
    """
    stored = show(where, study)
    record = chosen(stored, trial)
    from hpsearch.executors.worker import KernelRef
    from hpsearch.spec import parse_spec

    spec = parse_spec(stored.spec, f"the study '{stored.name}'").model_copy(update={"workers": 1, "devices": "auto", "executor": "process"})
    layout = session_at(stored.facts, record.started)
    with (
        stop_signals() as stopped_by,  # first: a signal must not come between the making of the folder and its removal
        tempfile.TemporaryDirectory(prefix="hpsearch-replay-") as aside,
        closing(begin_workers(spec, stored.name, say)) as executor,
    ):
        folder = Path(aside)
        prepared = prepare(executor, spec, folder, say, stopped_by)
        if changes := changed_inputs(stored, prepared):
            listed = "\n".join(f"  {line}" for line in changes)
            raise FixInput(
                f"'{stored.name}' was trained on something else, so its trials cannot be replayed:\n{listed}\nbring them back as they were"
            )
        # Workers share memory: how many there were decides which activations are kept.
        config = kernel_config(spec.resolved(), prepared, folder, int(layout.get("workers", 1)))
        executor.ref = KernelRef(KERNEL, config | {"provenance": provenance(layout)})
        repeat = int(stored.spec.get("repeat", 0))
        again = Trial(record.number, record.params, record.attempt, record.origin, setup=record.setup, repeat=repeat)
        facts, curve, outcome = train(executor, again, epochs_to_train(record), say, stopped_by)
        changes = unlike(layout, facts)
        exact = not changes and facts.get("device") == "cpu"
        weights = same_weights(where, stored, record, outcome) if exact else ""
    return compared(stored.name, record, curve, outcome, exact, changes, weights)


def chosen(stored: StoredStudy, trial: str) -> TrialRecord:
    """A trial by number, or a run by name; NotFound when there is none, or nothing of it is recorded."""
    runs = {r.name: r for r in (*stored.records, *stored.runs)}
    numbers = {str(r.number): r for r in stored.records}
    record = numbers.get(trial) or runs.get(trial)
    if record is None:
        hint = nearest(trial, runs) if stored.runs and not trial.isdigit() else f"its trials are 0 to {len(stored.records) - 1}"
        raise NotFound(f"'{stored.name}' has no trial {trial}: {hint if runs else 'it has none yet'}")
    if not stored.uid:
        raise FixInput(f"the study '{stored.name}' in this storage was not made by hpsearch, so its trials cannot be trained again")
    if not record.status.ended and record.status is not Status.PAUSED:
        raise NotFound(f"{record.name} of '{stored.name}' is {record.status.lower()}: there is nothing to compare with yet")
    return record


def changed_inputs(stored: StoredStudy, prepared: Prepared) -> list[str]:
    """What of images and weights is not as the study has it."""
    facts, lines = stored.facts, []
    if facts.get("data_digest") not in (None, prepared.digest):
        lines.append(f"images, labels or splits: digest {facts['data_digest']} -> {prepared.digest}")
        if facts.get("classes") not in (None, list(prepared.report.classes)):
            lines.append(f"classes: {len(facts['classes']):,} -> {len(prepared.report.classes):,}")
        for split, now in prepared.report.counts.items():
            before = facts.get(f"{split}_images")
            if before not in (None, sum(now)):
                lines.append(f"{split} images: {before:,} -> {sum(now):,}")
    if facts.get("weights_digest") not in (None, "", prepared.weights_digest):
        lines.append(f"pretrained weights: digest {facts['weights_digest']} -> {prepared.weights_digest}")
    return lines


def provenance(layout: Mapping[str, Any]) -> dict[str, Any]:
    """What the kernel is to tell of this session; workers are those that it is laid out for."""
    from hpsearch.provenance import commit, versions

    return {"versions": versions(), "commit": commit(), "workers": int(layout.get("workers", 1))}


def unlike(layout: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What the numbers depend on and is not as it was when the trial was trained."""
    if "versions" not in layout:
        return ["the study does not say with which versions it was trained"]
    before, now = layout["versions"], facts["versions"]
    names = ("hpsearch", "torch", "torchvision")
    lines = [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]
    keys = [key for key in LAYOUT if key not in ("versions", "commit", "workers")]
    return lines + [f"{key}: {layout.get(key)} -> {facts.get(key)}" for key in keys if layout.get(key) != facts.get(key)]


def epochs_to_train(record: TrialRecord) -> int | None:
    """The epoch after which the trial is to be stopped, as it was; None: it goes on by itself to its end."""
    if record.status is Status.COMPLETE:
        return None
    return len(record.curve) + (record.status is Status.FAILED)  # a failed one may fail in the epoch that it did not finish


def train(
    executor: Executor, trial: Trial, limit: int | None, say: Say, stopped_by: Callable[[], int | None]
) -> tuple[Mapping[str, Any], list[dict[str, float]], Outcome]:
    """The trial alone on one worker; what the worker is, the curve, and the end."""
    facts: Mapping[str, Any] = {}
    curve: list[dict[str, float]] = []
    ends: list[Outcome] = []
    executor.start()
    while not ends:
        if (number := stopped_by()) is not None:
            raise Interrupted("stopped; nothing was written", number)
        for message in executor.poll(0.2):
            if message.error is not None:
                raise message.error
            if message.facts is not None and not facts:
                facts = message.facts.values
                executor.submit(Job(0, (trial,)))
            ends += [item for item in message.step if isinstance(item, Outcome)]
            for item in message.step:
                if isinstance(item, Progress):
                    curve.append(item.row())
                    say(f"Training {trial.name} again", item.epoch, limit or item.epochs)
                    stop = limit is not None and item.epoch >= limit
                    executor.answer(0, frozenset({trial.number}) if stop else frozenset())
    return facts, curve, ends[0]


# ---------------------------------------------------------------- comparing


def compared(
    study: str,
    record: TrialRecord,
    curve: Sequence[Mapping[str, float]],
    outcome: Outcome,
    exact: bool,
    changes: Sequence[str],
    weights: str,
) -> Replayed:
    """What was recorded beside what came out now."""
    rows, largest, first, far = record.curve, dict[str, float](), None, False
    failed = record.status is Status.FAILED
    for before, now in zip(rows, curve, strict=False):
        for key in dict.fromkeys((*before, *now)):
            if key not in TIMED and not same(a := before.get(key), b := now.get(key)):
                first = int(before["epoch"]) if first is None else first
                gap = abs(a - b) if a is not None and b is not None else math.inf
                largest[key] = max(largest.get(key, 0.0), gap)
                far = far or not near(a, b)
    remarks = list(changes)
    extra = len(curve) - len(rows)
    own = failed and str(record.error).startswith(OWN_FAULTS)
    if extra < 0 or (extra and not failed):
        first, far = first or min(len(rows), len(curve)) + 1, True
        remarks.append(f"{len(rows):,} epochs are recorded, and there were {len(curve):,} now")
    if failed and outcome.error != record.error:
        far = far or own
        now_ended = f"it {outcome.error}" if outcome.error else "it did not"
        remarks.append(f"it failed then ({record.error}), and now {now_ended}")
    if not failed and outcome.status is Status.FAILED:
        far = True
        remarks.append(f"it failed now: {outcome.error}")
    if weights == DIFFERENT:
        remarks.append("the weights that are kept are not those that came out now")
    if not far and first is None and weights != DIFFERENT:
        verdict = EQUAL
    else:
        verdict = DIFFERENT if exact or far else CLOSE
    status = {"recorded": record.status.value, "replayed": outcome.status.value}
    return Replayed(study, record.name, verdict, exact, first, largest, tuple(remarks), weights, status, rows, curve)


def same(a: float | None, b: float | None) -> bool:
    """Whether two numbers are the same to the last bit; NaN is NaN."""
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def near(a: float | None, b: float | None) -> bool:
    """Whether two numbers are the same within the tolerance."""
    return a is not None and b is not None and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def same_weights(where: Place, stored: StoredStudy, record: TrialRecord, outcome: Outcome) -> str:
    """Whether the trial's weights, where they are kept, are those that came out now."""
    if record.checkpoint is None or outcome.checkpoint is None or record.reused:
        return ""
    kept = TrialFiles(where.runs(stored.name)).find(record.checkpoint)
    if kept is None:
        return ""
    return EQUAL if payload(kept) == payload(Path(outcome.checkpoint)) else DIFFERENT


def payload(path: Path) -> bytes:
    """The numbers of a safetensors file, without what is written about them."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
