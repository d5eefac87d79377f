"""The study file: YAML and flags in, one resolved `StudySpec` out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hpsearch.errors import FixInput, nearest
from hpsearch.space import DEFAULTS, GOES_WITH, Parameter, Space, grid_size, parse_space, told
from hpsearch.yamlfile import parse_yaml, read_yaml

SAMPLERS = ("grid", "random", "tpe", "gp", "qmc", "cmaes")
PRUNERS = ("none", "median", "halving", "hyperband", "patient")
ALIASES = {
    "bayes": "gp",
    "bayesian": "gp",
    "cma-es": "cmaes",
    "sobol": "qmc",
    "gridsampler": "grid",
    "randomsampler": "random",
    "tpesampler": "tpe",
    "gpsampler": "gp",
    "qmcsampler": "qmc",
    "cmaessampler": "cmaes",
    "asha": "halving",
    "medianpruner": "median",
    "nop": "none",
}
SESSION = ("name", "trials", "timeout", "workers")  # may differ from one session of a study to the next
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def known_name(names: tuple[str, ...], what: str) -> BeforeValidator:
    """Accept a name or alias of `names` in any case; the error carries the nearest valid one."""

    def check(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be the name of a {what}, got {told(value)}; known: {', '.join(names)}")
        name = ALIASES.get(value.lower(), value.lower())
        if name not in names:
            aliases = (alias for alias, target in ALIASES.items() if target in names)
            raise ValueError(f"unknown {what} {told(value)}: {nearest(value, (*names, *aliases))}")
        return name

    return BeforeValidator(check)


def check_study_name(name: str) -> str:
    """A name that is safe as a folder, a URL part and an MLflow experiment; FixInput otherwise."""
    if not NAME.fullmatch(name) or ".." in name:
        raise FixInput(
            f"the study name {name[:80]!r} cannot be used: take 1 to 64 of a-z 0-9 . _ - "
            "beginning with a letter or digit, such as 'flowers-tpe'"
        )
    return name


def no_truth_value(value: object) -> object:
    """Refuse true and false where a number belongs: YAML also reads yes, no, on and off so, and pydantic would make 1 of them."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()} (YAML reads yes, no, on and off as true or false)")
    return value


Whole: TypeAlias = Annotated[int, BeforeValidator(no_truth_value)]
Real: TypeAlias = Annotated[float, BeforeValidator(no_truth_value)]


class Part(BaseModel):
    """Base of the study file's sections: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class SplitSpec(Part):
    """How labelled images are divided."""

    train_per_class: Whole = Field(5, ge=1)
    val_images: Whole = Field(400, ge=1)


class PrunerSpec(Part):
    """When a trial is stopped early. `warmup` is the share of its epochs during which no trial is stopped."""

    name: Annotated[Literal["none", "median", "halving", "hyperband", "patient"], known_name(PRUNERS, "pruner")] = "median"
    warmup: Real = Field(0.3, ge=0, le=1)
    startup_trials: Whole = Field(5, ge=0)
    reduction_factor: Whole = Field(3, ge=2, le=100)
    patience: Whole = Field(2, ge=0, description="reports without improvement that `patient` tolerates")
    around: Annotated[Literal["none", "median", "halving", "hyperband"], known_name(PRUNERS[:-1], "pruner to wrap")] = "median"


def short_pruner(value: object) -> object:
    """Let `pruner: median` stand for `pruner: {name: median}`."""
    return {"name": value} if isinstance(value, (str, bool)) else value  # `pruner: no` is told the names there are


class StudySpec(Part):
    """A whole study, resolved. What a study file may hold, with its defaults."""

    name: str | None = None
    data: str = "digits"
    split: SplitSpec = SplitSpec()
    model: str = "glyphnet"
    weights: str = "DEFAULT"
    objective: Literal["val_loss"] = "val_loss"
    sampler: Annotated[Literal["grid", "random", "tpe", "gp", "qmc", "cmaes"], known_name(SAMPLERS, "sampler")] = "tpe"
    pruner: Annotated[PrunerSpec, BeforeValidator(short_pruner)] = PrunerSpec()
    seed: Whole = Field(0, ge=0, lt=2**31)
    trials: Whole = Field(50, ge=1, le=1_000_000)
    timeout: Real | None = Field(None, gt=0, description="seconds")
    workers: Whole | Literal["auto"] = "auto"
    threads: Whole = Field(1, ge=1, le=1024, description="of each worker; small networks are fastest with one")
    space: dict[str, Any] = Field(default_factory=dict)

    def parameters(self) -> Space:
        """The parsed search space."""
        return parse_space(self.space)

    def study_name(self) -> str:
        """The study's name; without one given, made of its data."""
        return self.name or self.name_after(self.data)

    def name_after(self, path: str) -> str:
        """A name made of the last part of a path, the sampler and, unless 0, the seed."""
        base = re.sub(r"[^a-z0-9._-]+|[.]{2,}", "-", Path(path).name.lower()).strip("-._") or "study"
        return f"{base[:40]}-{self.sampler}" + (f"-s{self.seed}" if self.seed else "")

    def resolved(self) -> dict[str, Any]:
        """JSON-able form with every default written out; `load_spec` of it gives the same study."""
        values = self.model_dump(mode="json")
        values["name"] = self.study_name()
        values["space"] = {p.name: entry(p) for p in self.parameters()}
        return values

    def identity(self) -> dict[str, Any]:
        """What two sessions must share for their trials to belong to one study."""
        return {k: v for k, v in self.resolved().items() if k not in SESSION}

    def digest(self) -> str:
        """Hash of the identity (16 hexadecimal characters)."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=8).hexdigest()


def entry(p: Parameter) -> dict[str, Any]:
    """A parameter as its mapping in a study file."""
    if p.kind == "fixed":
        return {"value": p.default}
    if p.kind == "choice":
        values: dict[str, Any] = {"choices": list(p.choices), "default": p.default}
    else:
        values = {"low": p.low, "high": p.high, "default": p.default}
        values |= {"log": True} if p.log else {}
    return values | ({"grid": list(p.grid)} if p.grid else {})


def load_spec(path: Path | None = None, settings: Iterable[str] = (), flags: Mapping[str, Any] | None = None) -> StudySpec:
    """The study in `path` (none: all defaults), changed by `settings` ("a.b=c") and then by `flags` that are not None.

    Raises FixInput that names every unknown key with the nearest valid one, and every contradiction, before
    anything is created.
    """
    values = read_yaml(path) if path else {}
    for setting in settings:
        apply_setting(values, setting)
    for key, value in (flags or {}).items():
        if value is None:
            continue
        if key == "pruner" and isinstance(values.get("pruner"), dict):
            value = values["pruner"] | {"name": value}
        values[key] = value
    changed = any(settings) or any(value is not None for value in (flags or {}).values())
    spec = parse_spec(values, source=(f"{path} with these options" if changed else str(path)) if path else "this study")
    return spec if spec.name or not path else spec.model_copy(update={"name": spec.name_after(path.stem)})


def parse_spec(values: Mapping[str, Any], source: str = "the study") -> StudySpec:
    """A checked `StudySpec` from plain values; raises FixInput listing all problems found."""
    problems: list[str] = []
    try:
        spec = StudySpec.model_validate(dict(values))
        if spec.name is not None:
            check_study_name(spec.name)
        check_study_name(spec.study_name())
        if isinstance(spec.workers, int) and not 1 <= spec.workers <= 1024:
            raise FixInput(f"workers must be 'auto' or 1 to 1024, got {spec.workers}")
        space = spec.parameters()
        if spec.sampler == "grid":
            grid_size(space)
        return spec
    except ValidationError as error:
        problems = [explain(dict(item)) for item in error.errors()]
    except FixInput as error:
        problems = str(error).splitlines()
    raise FixInput(f"{source} cannot be used:\n" + "\n".join(f"  {p}" for p in problems))


def explain(item: Mapping[str, Any]) -> str:
    """One pydantic problem in a sentence, with the nearest valid key for an unknown one."""
    path = [str(part) for part in item["loc"]]
    if path[:1] == ["workers"]:
        path = path[:1]  # pydantic adds which member of the union it tried
    where = ".".join(path) or "a key"
    if item["type"] == "extra_forbidden":
        sections: dict[str, type[Part]] = {"split": SplitSpec, "pruner": PrunerSpec}
        section = sections.get(path[0], StudySpec) if len(path) > 1 else StudySpec
        return f"unknown key '{where}': {nearest(path[-1], section.model_fields)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}"


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put "a.b=c" into nested `values`; the right side is read as YAML. Raises FixInput."""
    path, sign, text = setting.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys) or len(keys) > 3:  # nothing in a study lies deeper
        raise FixInput(f"--set takes KEY=VALUE such as space.dropout=0.1, got {told(setting)}")
    spot = values
    for depth, key in enumerate(keys[:-1]):
        fallback = default_section(keys[: depth + 1])
        child = spot.get(key)
        if child is None:
            child = spot[key] = fallback
        if not isinstance(child, dict):
            child = spot[key] = {"name" if key == "pruner" else "choices" if isinstance(child, list) else "value": child}
        spot = child
    spot[keys[-1]] = parse_yaml(text, f"--set {setting}")
    if len(keys) == 3 and keys[0] == "space":
        drop_rivals(spot, keys[-1])


def default_section(keys: list[str]) -> dict[str, Any]:
    """What a setting below `keys` changes when the file says nothing there: the built-in range of a hyperparameter."""
    return dict(DEFAULTS.get(keys[1], {})) if len(keys) == 2 and keys[0] == "space" else {}


def drop_rivals(entry: dict[str, Any], key: str) -> None:
    """After one form of a hyperparameter was set, remove what belongs to the other forms or lies outside it."""
    form = {"value": "value", "choices": "choices", "low": "low", "high": "low", "log": "low"}.get(key)
    if form is None:
        return
    for name in list(entry):
        if name not in GOES_WITH[form]:
            del entry[name]
    if key in ("low", "high", "choices"):
        low, high, choices = entry.get("low"), entry.get("high"), entry.get("choices")

        def inside(v: object) -> bool:
            """Whether it may stay; what is no number stays too, for `parse_space` to refuse."""
            if form == "choices":
                return isinstance(choices, list) and v in choices
            return not all(isinstance(x, (int, float)) for x in (low, v, high)) or low <= v <= high  # type: ignore[operator]

        if "default" in entry and not inside(entry["default"]):
            del entry["default"]
        if isinstance(entry.get("grid"), list):
            entry["grid"] = [p for p in entry["grid"] if inside(p)] or None
            if entry["grid"] is None:
                del entry["grid"]
