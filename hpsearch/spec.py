"""The study file: YAML and flags in, one resolved `StudySpec` out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hpsearch.errors import FixInput, nearest
from hpsearch.space import ALL, DEFAULTS, GOES_WITH, IMAGE_DEFAULTS, Defaults, Parameter, Space, bind_blocks, grid_size, parse_space, told
from hpsearch.types import OBJECTIVES
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
SESSION = ("name", "trials", "timeout", "workers", "data_root", "bad_files")  # may differ from one session of a study to the next
EMBEDDED_DATA, EMBEDDED_MODEL = "digits", "glyphnet"
SPLITS: Mapping[bool, Mapping[str, Any]] = {  # of the embedded data, of other data
    True: {"train_per_class": 5, "val": 400},
    False: {"val": 0.15, "test": 0.15},
}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def known_name(names: tuple[str, ...], what: str) -> BeforeValidator:
    """Accept a name or alias of `names` in any case; the error carries the nearest valid one."""
    article = "an" if what[0] in "aeiou" else "a"

    def check(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be the name of {article} {what}, got {told(value)}; known: {', '.join(names)}")
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


def share_or_number(value: object) -> object:
    """Accept a share in [0, 1) or a whole number of images."""
    no_truth_value(value)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not (0 <= value < 1 or (value >= 1 and value == int(value))):
        raise ValueError(f"must be a share such as 0.15 or a whole number of images, got {told(value)}")
    return value if value < 1 else int(value)


Share: TypeAlias = Annotated[int | float | None, BeforeValidator(share_or_number)]


class SplitSpec(Part):
    """How labelled images are divided where the data does not say: shares, or numbers of images."""

    train_per_class: Whole | None = Field(None, ge=1, description="training images of each class; without it, all that are left")
    val: Share = None
    test: Share = Field(None, description="without it, beside train_per_class, all that are left; 0: no test split")


class PreprocessSpec(Part):
    """What differs from the preprocessing that the pretrained weights expect."""

    size: Whole | None = Field(None, ge=8, le=2048, description="pixels, side of the square that the model sees")
    resize: Whole | None = Field(None, ge=8, le=4096, description="pixels, shorter side before the centre is cut out")
    mean: tuple[Real, ...] | None = Field(None, description="of pixels in [0, 1], one value a channel")
    std: tuple[Real, ...] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None

    @model_validator(mode="after")
    def consistent(self) -> PreprocessSpec:
        """Refuse what no image can be prepared by."""
        if self.size and self.resize and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}: there would be nothing to cut the edges from")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise ValueError(f"{name} takes 1 value (gray) or 3 (red, green, blue), got {len(values)}")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ValueError("mean and std must have as many values")
        if self.std and min(self.std) <= 0:
            raise ValueError("std must be greater than 0")
        return self


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
    data: str = Field(EMBEDDED_DATA, min_length=1)
    data_root: str | None = Field(None, description="folder of torchvision data sets")
    bad_files: Real = Field(0.05, ge=0, le=1, description="share of files that cannot be used above which the study is refused")
    split: SplitSpec = SplitSpec()
    model: str = EMBEDDED_MODEL
    weights: str = "DEFAULT"
    preprocess: PreprocessSpec = PreprocessSpec()
    objective: Annotated[
        Literal["val_loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "top5"],
        known_name(tuple(OBJECTIVES), "objective"),
    ] = "val_loss"
    sampler: Annotated[Literal["grid", "random", "tpe", "gp", "qmc", "cmaes"], known_name(SAMPLERS, "sampler")] = "tpe"
    pruner: Annotated[PrunerSpec, BeforeValidator(short_pruner)] = PrunerSpec()
    seed: Whole = Field(0, ge=0, lt=2**31)
    trials: Whole = Field(50, ge=1, le=1_000_000)
    timeout: Real | None = Field(None, gt=0, description="seconds")
    workers: Whole | Literal["auto"] = "auto"
    threads: Whole = Field(1, ge=1, le=1024, description="of each worker; small networks are fastest with one")
    space: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def fill_split(cls, values: Any) -> Any:
        """Let a partial `split` keep what it leaves out of the data's default."""
        split = values.get("split") if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping) or not (split is None or isinstance(split, Mapping)):
            return values
        usual = dict(SPLITS[values.get("data", EMBEDDED_DATA) == EMBEDDED_DATA])
        if split and split.get("train_per_class") is not None:
            usual.pop("test", None)  # all that are left
        return {**values, "split": {**usual, **(split or {})}}

    def defaults(self) -> Defaults:
        """What omitted hyperparameters get."""
        return defaults_for(self.model)

    def parameters(self) -> Space:
        """The parsed search space."""
        return parse_space(self.space, self.defaults())

    def bound(self, blocks: int) -> StudySpec:
        """The study with `all` frozen layers as the model's number of blocks; FixInput when more may be frozen than there are."""
        entry = bind_blocks(self.space.get("frozen_layers", self.defaults()["frozen_layers"]), blocks)
        spec = self.model_copy(update={"space": {**self.space, "frozen_layers": entry}})
        frozen = next(p for p in spec.parameters() if p.name == "frozen_layers")
        deepest = max(int(str(value)) for value in (*frozen.choices, *frozen.grid, int(frozen.high)))
        if deepest > blocks:
            raise FixInput(
                f"space.frozen_layers goes up to {deepest}, but {self.model} has {blocks} blocks before its head; lower it, or write `all`"
            )
        return spec

    def study_name(self) -> str:
        """The study's name; without one given, made of its data and, unless it is the embedded one, its model."""
        return self.name or self.name_after(self.data if self.model == EMBEDDED_MODEL else f"{Path(self.data).name}-{self.model}")

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


def defaults_for(model: object) -> Defaults:
    """The search space where a study says nothing, by its model."""
    return DEFAULTS if model == EMBEDDED_MODEL else IMAGE_DEFAULTS


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
    for key in ("data", "model"):  # defaults of other keys depend on them
        if (flags or {}).get(key) is not None:
            values[key] = (flags or {})[key]
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
        sections: dict[str, type[Part]] = {"split": SplitSpec, "pruner": PrunerSpec, "preprocess": PreprocessSpec}
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
        fallback = default_section(keys[: depth + 1], defaults_for(values.get("model", EMBEDDED_MODEL)))
        child = spot.get(key)
        if child is None:
            child = spot[key] = fallback
        if not isinstance(child, dict):
            child = spot[key] = {"name" if key == "pruner" else "choices" if isinstance(child, list) else "value": child}
        spot = child
    spot[keys[-1]] = parse_yaml(text, f"--set {setting}")
    if len(keys) == 3 and keys[0] == "space":
        drop_rivals(spot, keys[-1])


def default_section(keys: list[str], defaults: Defaults) -> dict[str, Any]:
    """What a setting below `keys` changes when the file says nothing there: the built-in range of a hyperparameter."""
    return dict(defaults.get(keys[1], {})) if len(keys) == 2 and keys[0] == "space" else {}


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
            v = ALL if v == "all" else v
            if form == "choices":
                return isinstance(choices, list) and v in choices
            return not all(isinstance(x, (int, float)) for x in (low, v, high)) or low <= v <= high  # type: ignore[operator]

        if "default" in entry and not inside(entry["default"]):
            del entry["default"]
        if isinstance(entry.get("grid"), list):
            entry["grid"] = [p for p in entry["grid"] if inside(p)] or None
            if entry["grid"] is None:
                del entry["grid"]
