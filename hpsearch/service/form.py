"""The form that starts a study: its fields, the study that they make, and the file and the command line that do the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpsearch.errors import FixInput, HpsearchError
from hpsearch.service.models import Submission
from hpsearch.settings import HEADS
from hpsearch.spec import PRUNERS, SAMPLERS
from hpsearch.types import OBJECTIVES
from hpsearch.yamlfile import parse_yaml, write_yaml


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form."""

    name: str
    label: str
    value: str  # sensible to begin with
    about: str
    choices: tuple[str, ...] = ()
    hint: str = ""
    number: bool = False


FIELDS = (
    Field("name", "Name", "", "a-z 0-9 . _ -; left empty, it is made of data and sampler", hint="digits-tpe"),
    Field("data", "Data", "digits", "a folder with a sub-folder of images a class, a table of paths, or a set of torchvision"),
    Field("model", "Model", "", "a torchvision classifier; left empty, the embedded glyphnet", hint="resnet50"),
    Field("sampler", "Sampler", "tpe", "what proposes the trials", SAMPLERS),
    Field("trials", "Trials", "12", "in all", number=True),
    Field("pruner", "Pruner", "median", "what stops hopeless ones", PRUNERS),
    Field("objective", "Objective", "val_loss", "on the validation images", tuple(OBJECTIVES)),
    Field("seed", "Seed", "0", "makes the whole study reproducible", number=True),
    Field("timeout", "Time", "", "seconds after which no trial begins; empty: none", hint="3600", number=True),
    Field("priority", "Priority", "0", "larger ones run first", number=True),
    Field("share", "For", "", "whoever it is for: equal priorities get equal shares of the machine"),
    Field("more", "More of the study file", "", "anything else that a study file may hold, as YAML"),
)
WHOLE = ("trials", "seed", "priority")
BESIDE = ("priority", "share", "more", "key")  # no part of a study


@dataclass(frozen=True, slots=True)
class Preview:
    """What the form comes to."""

    yaml: str
    command: str
    problem: str = ""


def filled(values: Mapping[str, str]) -> tuple[Field, ...]:
    """The fields with what was typed."""
    return tuple(Field(f.name, f.label, values.get(f.name, f.value), f.about, f.choices, f.hint, f.number) for f in FIELDS)


def study_of(values: Mapping[str, str]) -> dict[str, Any]:
    """The study that was typed; FixInput for what is no number, or no mapping."""
    study: dict[str, Any] = {}
    for field in FIELDS:
        text = values.get(field.name, "").strip()
        if not text or field.name in BESIDE:
            continue
        study[field.name] = number(field, text) if field.number else text
    more = parse_yaml(values["more"], "what was added") if values.get("more", "").strip() else {}
    if not isinstance(more, Mapping):
        raise FixInput("what was added must be keys with values, such as `space: {epochs: 5}`")
    return study | dict(more)


def number(field: Field, text: str) -> int | float:
    """A number that was typed."""
    try:
        return int(text) if field.name in WHOLE else float(text)
    except ValueError:
        raise FixInput(f"{field.name}: must be a number, got {text[:40]!r}") from None


def submission(values: Mapping[str, str]) -> Submission:
    """What was typed, as it would come by the API."""
    share = values.get("share", "").strip()
    priority = number(FIELDS[9], values.get("priority", "").strip() or "0")
    try:
        return Submission(study=study_of(values), priority=int(priority), share=share)
    except ValueError as error:  # pydantic's
        raise FixInput(f"priority must be -1000 to 1000, and `for` letters, digits and _ . @ -: {str(error).splitlines()[0]}") from None


def preview(study: Mapping[str, Any], problem: str = "") -> Preview:
    """The file and the command line that do the same."""
    return Preview(write_yaml(study), command(study), problem)


def preview_of(values: Mapping[str, str], check: Any) -> Preview:
    """The same of what was typed; `check` raises for what is no study."""
    try:
        study = study_of(values)
    except HpsearchError as error:
        return Preview("", "", str(error))
    try:
        check(submission(values))
    except HpsearchError as error:
        return preview(study, str(error))
    return preview(study)


FLAGS = ("sampler", "trials", "pruner", "seed", "timeout", "name", "data", "model", "weights", "objective")


def command(study: Mapping[str, Any]) -> str:
    """The command line of a study."""
    parts = ["hpsearch", "run"]
    for key, value in study.items():
        plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if key in FLAGS and plain:
            parts += [f"--{key}", str(value)]
        elif isinstance(value, Mapping) and key not in HEADS:
            for inner, entry in value.items():
                parts += ["--set", f"{key}.{inner}={write_yaml(entry, flow=True)}"]
        else:
            parts += ["--set", f"{key}={write_yaml(value, flow=True)}"]
    return shlex.join(parts)
