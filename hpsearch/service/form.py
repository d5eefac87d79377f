"""The form that starts a study: its fields, the study that they make, and the file and the command line that do the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpsearch.errors import FixInput, HpsearchError
from hpsearch.service.models import Samplers, Submission
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
    Field("compare", "Compare samplers", "", "these on the same study, several times each, in place of one run", hint="random, tpe, gp"),
    Field("repeats_each", "Repeats", "", "how often each of those; left empty, 8", hint="8", number=True),
    Field("timeout", "Time", "", "seconds after which no trial begins; empty: none", hint="3600", number=True),
    Field("priority", "Priority", "0", "larger ones run first", number=True),
    Field("share", "For", "", "whoever it is for: equal priorities get equal shares of the machine"),
    Field("more", "More of the study file", "", "anything else that a study file may hold, as YAML"),
)
WHOLE = ("trials", "seed", "priority", "repeats_each")
BESIDE = ("priority", "share", "more", "key", "compare", "repeats_each")  # no part of a study


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
    study, share = study_of(values), values.get("share", "").strip()
    try:
        wanted = Samplers(**compared) if (compared := compare_of(values)) else None
    except ValueError:  # pydantic's
        raise FixInput("comparing takes two samplers or more, such as `random, tpe`, and 1 to 1000 repeats") from None
    try:
        return Submission(study=study, compare=wanted, priority=int(whole(values, "priority") or 0), share=share)
    except ValueError as error:
        raise FixInput(f"priority must be -1000 to 1000, and `for` letters, digits and _ . @ -: {str(error).splitlines()[0]}") from None


def compare_of(values: Mapping[str, str]) -> dict[str, Any]:
    """What was typed of a comparison; empty where none is wanted."""
    samplers = [name for name in values.get("compare", "").replace(",", " ").split() if name]
    repeats = whole(values, "repeats_each")
    if not samplers and repeats is not None:
        raise FixInput("repeats are those of a comparison: name its samplers, or leave them empty")
    return {"samplers": samplers} | ({} if repeats is None else {"repeats": repeats}) if samplers else {}


def whole(values: Mapping[str, str], name: str) -> int | float | None:
    """The number in a field; None for an empty one."""
    text = values.get(name, "").strip()
    return number(next(field for field in FIELDS if field.name == name), text) if text else None


def preview(study: Mapping[str, Any], compare: Mapping[str, Any] = {}, problem: str = "") -> Preview:
    """The file and the command line that do the same."""
    return Preview(write_yaml(study), command(study, compare), problem)


def preview_of(values: Mapping[str, str], check: Any) -> Preview:
    """The same of what was typed; `check` raises for what is no study."""
    try:
        study, compare = study_of(values), compare_of(values)
    except HpsearchError as error:
        return Preview("", "", str(error))
    try:
        check(submission(values))
    except HpsearchError as error:
        return preview(study, compare, str(error))
    return preview(study, compare)


FLAGS = ("sampler", "trials", "pruner", "seed", "timeout", "name", "data", "model", "weights", "objective")


def command(study: Mapping[str, Any], compare: Mapping[str, Any] = {}) -> str:
    """The command line of a study, or of a comparison on it."""
    parts = ["hpsearch", "compare" if compare else "run"]
    for key, value in compare.items():
        parts += [f"--{key}", ",".join(value) if key == "samplers" else str(value)] if value is not None else []
    for key, value in study.items():
        if compare and key in ("sampler", "timeout"):  # a comparison has its own, and none
            continue
        plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if key in FLAGS and plain:
            parts += [f"--{key}", str(value)]
        elif isinstance(value, Mapping) and key not in HEADS:
            for inner, entry in value.items():
                parts += ["--set", f"{key}.{inner}={write_yaml(entry, flow=True)}"]
        else:
            parts += ["--set", f"{key}={write_yaml(value, flow=True)}"]
    return shlex.join(parts)
