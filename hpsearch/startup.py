"""What comes before the first trial: names checked, workers begun, data and weights made ready, the kernel's configuration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from hpsearch.devices import Crew, crew
from hpsearch.errors import ChooseAnotherName, FixInput, NotFound
from hpsearch.machine import outlive, study_lock, survivors
from hpsearch.protocols import GRACE
from hpsearch.provenance import commit, versions
from hpsearch.spec import EMBEDDED_DATA, EMBEDDED_MODEL
from hpsearch.types import Finding, Prepared, Say

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from hpsearch.executors.worker import KernelRef, Workforce
    from hpsearch.search.lease import Lease
    from hpsearch.spec import StudySpec

KERNEL = "hpsearch.finetune.family:make"
PREPARE = "hpsearch.finetune.prepare:prepare"
DATA_REPORT = "data-check.json"
LINE = 73  # characters of a warning on the terminal, after "Data: "
NAMED = 5  # images that a refusal names
PRELOAD = ("hpsearch.executors.preload", "torch", "safetensors.torch", "hpsearch.finetune.family", "hpsearch.finetune.prepare")


def check_models(spec: StudySpec) -> None:
    """Raise FixInput for data without a model, and for models or weights of unknown names."""
    from hpsearch.finetune.names import check_names

    if spec.data != EMBEDDED_DATA and "model" not in spec.model_fields_set:
        raise FixInput(
            f"name a model for {spec.data}, such as --model resnet50 (`hpsearch model` lists all): the embedded {EMBEDDED_MODEL} knows "
            f"16-pixel glyphs only; to use it all the same, say --model {EMBEDDED_MODEL}"
        )
    for model in spec.models:
        check_names(model, spec.weights)


def begin_workers(spec: StudySpec, name: str, say: Say) -> Workforce:
    """An executor whose server loads torch while the caller goes on; FixInput for too many workers, or devices that are not there."""
    from hpsearch.executors.process import ProcessExecutor

    preload = PRELOAD if spec.models == (EMBEDDED_MODEL,) else (*PRELOAD, "torchvision")
    if spec.executor == "ray":
        from hpsearch.executors.ray import RayExecutor

        say(f"Connecting to Ray and opening {name}", 0, 0)
        return RayExecutor(None, spec.workers, spec.threads, preload, spec.stall, spec.ray_address, spec.gpus_per_worker)
    found = crew(spec.devices, spec.workers, spec.threads)
    say(f"Starting {found.text(spec.threads)} and opening {name}", 0, 0)
    return ProcessExecutor(None, found, spec.threads, preload, spec.stall)


def await_workers(folder: Path, say: Say) -> None:
    """Wait for workers of a session that was killed: what they leave is read afterwards."""
    if survivors(folder):
        say("Waiting for workers of a session that was killed", 0, 0)
        outlive(folder, GRACE)


def lock_folders(folder: Path, url: str, name: str) -> list[Path]:
    """Where a study is locked: in its folder, and beside its storage, which other folders may share."""
    from hpsearch.search.store import check_storage

    file = check_storage(url, create=True)
    return [folder, *([file.parent / "hpsearch-runs" / name] if file else [])]


@contextmanager
def hold(folder: Path, url: str, name: str) -> Iterator[Lease]:
    """Hold a study: by the locks of its folders, and on a database server by its lease, which its storage is then to be guarded with.

    Raises WaitOrStop, which says who runs it, and FixInput or FixSetup for a storage that cannot be used.
    """
    from hpsearch.search.lease import leased

    with study_lock(lock_folders(folder, url, name), name), leased(url, name) as lease:
        yield lease


def facts_of(storage: RDBStorage, spec: StudySpec) -> Mapping[str, Any]:
    """What a worker found in an earlier session of the study; nothing for a new one, or one with another model."""
    from hpsearch.finetune.names import choices_of
    from hpsearch.search.catalog import read_study

    try:
        stored = read_study(storage, spec.study_name())
    except NotFound:
        return {}
    return stored.facts if stored.uid and choices_of(stored.spec) == spec.models else {}


def prepare(executor: Workforce, spec: StudySpec, folder: Path, say: Say, stopped_by: Callable[[], int | None]) -> Prepared:
    """Data and weights made ready in a process of their own, findings kept in the study's folder; FixInput for refused data."""
    prepared: Prepared = executor.aside(PREPARE, spec.resolved() | {"folder": str(folder)}, say, stopped_by)
    file = folder / DATA_REPORT
    file.write_text(json.dumps(asdict(prepared.report)))
    for line in worth_reading(spec, prepared):
        say(line, 0, 0)
    if refused := prepared.report.refused:
        listed = "\n".join(f"  {finding.text}{examples(finding)}" for finding in refused)
        raise FixInput(f"the data cannot be used:\n{listed}\n`hpsearch check {shlex.quote(spec.data)}` shows everything found in it")
    return prepared


def examples(finding: Finding) -> str:
    """The first images that a finding is about, a line each."""
    return "".join(f"\n    {' and '.join(e.names)}{f': {e.text}' if e.text else ''}" for e in finding.examples[:NAMED])


def worth_reading(spec: StudySpec, prepared: Prepared) -> list[str]:
    """What a person should read about weights and data before the first trial."""
    embedded = (spec.model, spec.weights) == (EMBEDDED_MODEL, "DEFAULT")
    found = [finding.text for finding in prepared.report.findings if finding.level != "note"]
    if spec.data == EMBEDDED_DATA:
        found = []  # known, and shipped as it is
    warnings = [f"Data: {shorten(text, width=LINE, placeholder=' ...')}" for text in found]
    warnings += [f"Data: `hpsearch check {shlex.quote(spec.data)}` says more"] * bool(found)
    slow = f"Model: {prepared.unshared}, so every step computes its frozen blocks anew"
    loaded = [f"{name}: {model['weights']}" for name, model in prepared.models.items()] or [f"W{prepared.weights[1:]}"]
    return ([] if embedded and not prepared.models else loaded) + ([slow] if prepared.unshared else []) + warnings


def same_inputs(name: str, known: Mapping[str, Any], prepared: Prepared) -> None:
    """Refuse to go on with a study on other images, labels, splits or weights than it began with."""
    for key, now, what in (
        ("data_digest", prepared.digest, "images, labels or splits"),
        ("weights_digest", prepared.weights_digest, "pretrained weights"),
    ):
        if known.get(key) not in (None, now):
            raise ChooseAnotherName(
                f"the {what} have changed since the study '{name}' began, so new trials could not be compared with its "
                "earlier ones: choose another --name, or bring them back as they were"
            )


def kernel_of(spec: StudySpec, prepared: Prepared, folder: Path, crew: Crew) -> KernelRef:
    """How workers build the kernel of a study whose space is bound, with what preparing found."""
    from hpsearch.executors.worker import KernelRef

    provenance = {"versions": versions(), "commit": commit(), "workers": crew.sharing}
    config = kernel_config(spec.resolved(), prepared, folder, crew.sharing) | {"provenance": provenance}
    asked = any(crew.gpus) and spec.devices != "auto"
    return KernelRef(KERNEL, config | ({"device": "cuda"} if asked else {}))


def kernel_config(resolved: Mapping[str, Any], prepared: Prepared, folder: Path, workers: int) -> dict[str, Any]:
    """What the kernel of a resolved study is built from; `workers` share each device."""
    found: dict[str, Any] = {"index": prepared.index, "weights_digest": prepared.weights_digest, "files": prepared.files}
    if prepared.models:
        found |= {"indexes": prepared.indexes, "models": prepared.models, "data_digest": prepared.digest}
    return {**resolved, "folder": str(folder), "workers": workers, **found}
