"""The study file: YAML and flags in, one resolved `StudySpec` out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hpsearch.errors import FixInput, nearest
from hpsearch.names import check_name
from hpsearch.other_names import hint_key
from hpsearch.recipes import CORE, CRAFT, KNOWN, Defaults, checked, defaults_for, searched_models, spelled, told
from hpsearch.recipes import EMBEDDED_MODEL as EMBEDDED_MODEL
from hpsearch.settings import HEADS, apply_setting
from hpsearch.space import Parameter, Space, bind_blocks, bind_condition, grid_size, parse_space
from hpsearch.types import OBJECTIVES, Params
from hpsearch.yamlfile import check_leaves, check_shape, read_yaml

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
SESSION = (
    "name",
    "trials",
    "timeout",
    "workers",
    "devices",
    "executor",
    "ray_address",
    "gpus_per_worker",
    "trials_per_device",
    "stall",
    "state_gigabytes",
    "data_root",
    "artifacts",
    "bad_files",
    "references",
    "confirm",
    "cv",
    "warm_start",
    "portfolio",
)  # may differ from one session of a study to the next
EMBEDDED_DATA = "digits"
SPLITS: Mapping[bool, Mapping[str, Any]] = {  # of the embedded data, of other data
    True: {"train_per_class": 5, "val": 400},
    False: {"val": 0.15, "test": 0.15},
}
NUMBER = r"(\d+(?:\.\d+)?)"
DURATION = re.compile(
    rf"(?:{NUMBER}\s*d(?:ays?)?)?\s*(?:{NUMBER}\s*h(?:ours?|rs?)?)?\s*(?:{NUMBER}\s*m(?:in(?:utes?)?)?)?\s*(?:{NUMBER}\s*s(?:ec(?:onds?)?)?)?"
)
LISTED = 20  # problems that an error lists
YOUNGER = ("precision", "augment_views", "repeat")  # no part of the identity at their defaults: studies stored without them go on


def known_name(names: tuple[str, ...], what: str) -> BeforeValidator:
    """Accept a name or alias of `names` in any case; the error carries the nearest valid one."""
    article = "an" if what[0] in "aeiou" else "a"

    def check(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be the name of {article} {what}, got {told(value)}; known: {', '.join(names)}")
        name = ALIASES.get(value.lower(), value.lower())
        if name not in names:
            near = nearest(value, (*names, *(alias for alias, target in ALIASES.items() if target in names)))
            raise ValueError(f"unknown {what} {told(value)}: {near if near.startswith('did') else 'known: ' + ', '.join(names)}")
        return name

    return BeforeValidator(check)


def seconds_of(value: object) -> object:
    """Returns a duration such as "2h", "30m" or "1h30m" in seconds; numbers, and whatever is none, as they are."""
    found = DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, str) and (found is None or not any(found.groups())):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"must be a number of seconds, or a time such as 90s, 30m, 2h or 1h30m, got {told(value)}") from None
    if found is None:
        return value
    return sum(float(number) * unit for number, unit in zip(found.groups(), (86_400, 3600, 60, 1), strict=True) if number)


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


def rung_levels(first: int, factor: int, tick: int = 10) -> list[int]:
    """Where the rungs of `halving` lie, in percent of a trial's epochs: from the first on, rounded up to where losses are known."""
    found, level = [], max(tick, -(-first // tick) * tick)
    while level < 100:
        found.append(level)
        level = -(-level * factor // tick) * tick
    return found


class RepeatSpec(Part):
    """The best `top` configurations trained again, `times` times each."""

    top: Whole = Field(3, ge=1, le=100)
    times: Whole = Field(3, ge=2, le=100)


REPEATS = re.compile(r"(?:(\d{1,4})\s*[x×*]\s*)?(\d{1,4})")


def short_repeats(value: object) -> object:
    """Let "3x5" stand for `{top: 3, times: 5}`, and 5 alone for the same."""
    if value is None or isinstance(value, (Mapping, RepeatSpec)):
        return value
    found = None if isinstance(value, bool) else REPEATS.fullmatch(str(value).strip().lower())
    if found is None:
        raise ValueError(f"must be written as 3x5 (the best 3 configurations, 5 times each) or as a number, got {told(value)}")
    top, times = found.groups()
    return {"times": int(times)} | ({"top": int(top)} if top else {})


Repeats: TypeAlias = Annotated[RepeatSpec | None, BeforeValidator(short_repeats)]


def short_devices(value: object) -> object:
    """Let "0,1" and 0 stand for `[0, 1]` and `[0]`."""
    if isinstance(value, str) and value.lower() in ("auto", "all", "cpu"):
        return value.lower()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers = [int(str(part)) for part in parts if not isinstance(part, bool) and str(part).strip().isdecimal()]
    if not numbers or len(numbers) < len(parts) or len(set(numbers)) < len(numbers):
        raise ValueError(f"must be auto, all, cpu, or the numbers of GPUs such as 0,1, each once; got {told(value)}")
    return tuple(numbers)


def short_pruner(value: object) -> object:
    """Let `pruner: median` stand for `pruner: {name: median}`."""
    return {"name": value} if isinstance(value, (str, bool)) else value  # `pruner: no` is told the names there are


def study_named(value: str) -> str:
    """Refuse what no study is called."""
    try:
        return check_name(value)
    except FixInput as error:
        raise ValueError(str(error)) from None


class WarmStartSpec(Part):
    """An earlier study in the same storage, and how many of its best configurations open this one."""

    study: Annotated[str, AfterValidator(study_named)]
    top: Whole = Field(5, ge=1, le=1000)


def short_warm_start(value: object) -> object:
    """Let `warm_start: flowers-tpe` stand for `warm_start: {study: flowers-tpe}`."""
    if value is None or isinstance(value, (Mapping, WarmStartSpec)):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be the name of a study in the same storage, got {told(value)}")
    return {"study": value}


class StudySpec(Part):
    """A whole study, resolved. What a study file may hold, with its defaults."""

    name: str | None = None
    data: str = Field(EMBEDDED_DATA, min_length=1)
    data_root: str | None = Field(None, description="folder of torchvision data sets")
    artifacts: str | None = Field(
        None, min_length=1, description="where report, study and winner are copied: a path, s3://, gs://, ... (fsspec)"
    )
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
    repeat: Whole = Field(0, ge=0, lt=2**31, description="of a comparison: sampler, heads and order drawn anew, images divided alike")
    trials: Whole = Field(50, ge=1, le=1_000_000)
    timeout: Annotated[Real | None, BeforeValidator(seconds_of)] = Field(None, gt=0, description="seconds, or such as 30m, 2h, 1h30m")
    workers: Whole | Literal["auto"] = "auto"
    devices: Annotated[tuple[int, ...] | Literal["auto", "all", "cpu"], BeforeValidator(short_devices)] = Field(
        "auto", description="auto: every GPU that is visible, or else the CPU; all: the same, an error without one; cpu; or GPUs by number"
    )
    threads: Whole = Field(1, ge=1, le=1024, description="of each worker; small networks are fastest with one")
    executor: Literal["process", "ray"] = Field("process", description="what carries trials to workers: processes here, or a Ray cluster")
    ray_address: str | None = Field(None, description="HOST:PORT of a Ray cluster, or auto; without it one is started here")
    gpus_per_worker: Real | None = Field(None, ge=0, le=64, description="on Ray; 0.5: two workers share a GPU")
    trials_per_device: Whole | Literal["auto"] = Field("auto", description="trials at once in each worker")
    stall: Annotated[Real, BeforeValidator(seconds_of)] = Field(
        300.0, gt=0, description="seconds (or such as 10m) without a sign of life after which a worker hangs"
    )
    state_gigabytes: Real = Field(20.0, gt=0, description="of disk for the states of trials that wait at rungs")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the network's arithmetic; auto: bf16 where the device has it"
    )
    augment_views: Whole = Field(8, ge=0, le=1000, description="augmented versions of each image that are kept; 0: none")
    references: bool = Field(False, description="also train from scratch, the head alone, and the default recipe, at equal epochs")
    confirm: Repeats = Field(None, description="3x5: the best 3 configurations on 5 fresh seeds; then the test split is opened")
    cv: Repeats = Field(None, description="3x5: the same on 5 folds of training and validation images")
    warm_start: Annotated[WarmStartSpec | None, BeforeValidator(short_warm_start)] = Field(
        None, description="an earlier study, whose best configurations open this one"
    )
    portfolio: Annotated[bool, Field(strict=True)] = Field(False, description="open with recipes that are known to be good")
    recipe: dict[str, Any] = Field(default_factory=dict, description="what is fixed; the rest is in the space, or at its default")
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

    @model_validator(mode="before")
    @classmethod
    def settle_model(cls, values: Any) -> Any:
        """Take the default recipe's model from those that are searched; one alone is not searched."""
        listed, default = searched_models(values) if isinstance(values, Mapping) else ([], None)
        if not listed:
            return values
        given = values.get("model")
        if given is not None and given not in listed:
            raise ValueError(f"the model {told(given)} is not among space.model {listed}: add it there, or leave one of the two out")
        if None not in (given, default) and given != default:
            raise ValueError(f"the default recipe has one model: model is {told(given)}, space.model.default {told(default)}; remove one")
        space, entry = dict(values["space"]), values["space"]["model"]
        if len(listed) == 1 and default in (None, *listed) and not (isinstance(entry, Mapping) and "when" in entry):
            del space["model"]
        return {**values, "model": given or default or listed[0], "space": space}

    @model_validator(mode="after")
    def weights_of_all(self) -> StudySpec:
        """Refuse weights of one model for several."""
        if len(self.models) > 1 and self.weights.lower() not in ("default", "none"):
            raise ValueError(f"weights: {self.weights} are of one model, and space.model has several: take DEFAULT or none, or one model")
        return self

    @model_validator(mode="after")
    def one_confirmation(self) -> StudySpec:
        """Refuse two ways of confirming in one study."""
        if self.confirm and self.cv:
            raise ValueError("confirm (fresh seeds) and cv (folds) are two ways to one end: keep one of them")
        return self

    @model_validator(mode="after")
    def on_ray(self) -> StudySpec:
        """Refuse settings of Ray without it, and numbers of GPUs that it cannot give."""
        for key in ("ray_address", "gpus_per_worker"):
            if self.executor != "ray" and getattr(self, key) is not None:
                raise ValueError(f"{key} is for executor: ray, and the executor is {self.executor}: add --executor ray, or remove {key}")
        if self.executor == "ray" and self.devices != "auto":
            raise ValueError("devices are those of this machine; on Ray say how many each worker takes: gpus_per_worker (0: the CPU)")
        gpus = self.gpus_per_worker or 0.0
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker is a share of one GPU or a whole number of them, got {gpus:g}")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """What trials train, the default recipe's model first."""
        return (self.model, *(name for name in searched_models({"space": self.space})[0] if name != self.model))

    @property
    def repeats(self) -> RepeatSpec | None:
        """How the best configurations are confirmed, if at all."""
        return self.confirm or self.cv

    def defaults(self) -> Defaults:
        """What omitted hyperparameters get."""
        return {**defaults_for(self.model), "model": {"default": self.model}}

    def parameters(self) -> Space:
        """The parsed search space."""
        return parse_space(self.space, self.defaults(), self.recipe)

    def fixed(self) -> Params:
        """Every setting of the catalogue that is not in the space, at its given or default value."""
        given, searched = spelled(self.recipe), spelled(self.space)
        names = [name for name in KNOWN if name in given or (name not in CORE and name not in searched)]
        return {name: checked(name, given.get(name, self.defaults()[name]["default"]), f"recipe.{name}") for name in names}

    def bound(self, blocks: int) -> StudySpec:
        """The study with `all` frozen layers as the model's number of blocks; FixInput when more may be frozen than there are."""
        space = {name: bind_condition(entry, blocks) for name, entry in self.space.items()}
        if "frozen_layers" in self.recipe:
            update = {"recipe": {**self.recipe, "frozen_layers": bind_blocks(self.recipe["frozen_layers"], blocks)}, "space": space}
        else:
            entry = space.get("frozen_layers", self.defaults()["frozen_layers"])
            update = {"space": {**space, "frozen_layers": bind_blocks(entry, blocks)}}
        spec = self.model_copy(update=update)
        frozen = next(p for p in spec.parameters() if p.name == "frozen_layers")
        deepest = max(int(str(value)) for value in (*frozen.choices, *frozen.grid, int(frozen.high)))
        if deepest > blocks:
            where = "recipe.frozen_layers is" if "frozen_layers" in self.recipe else "space.frozen_layers goes up to"
            model = self.model if len(self.models) == 1 else "the deepest of its models"
            raise FixInput(f"{where} {deepest}, but {model} has {blocks} blocks before its head; lower it, or write `all`")
        return spec

    def study_name(self) -> str:
        """The study's name; without one given, made of its data and, unless it is the embedded one, its model."""
        if len(self.models) > 1:
            return self.name or self.name_after(f"{Path(self.data).name}-{len(self.models)}-models")
        return self.name or self.name_after(self.data if self.model == EMBEDDED_MODEL else f"{Path(self.data).name}-{self.model}")

    def name_after(self, path: str) -> str:
        """A name made of the last part of a path, the sampler and, unless 0, seed and repeat."""
        base = re.sub(r"[^a-z0-9._-]+|[.]{2,}", "-", Path(path).name.lower()).strip("-._") or "study"
        return f"{base[:40]}-{self.sampler}" + (f"-s{self.seed}" if self.seed else "") + (f"-r{self.repeat}" if self.repeat else "")

    def resolved(self) -> dict[str, Any]:
        """JSON-able form with every default written out; `load_spec` of it gives the same study."""
        values = self.model_dump(mode="json")
        values["name"] = self.study_name()
        values["recipe"] = dict(self.fixed())
        values["space"] = {p.name: entry(p) for p in self.parameters() if p.name not in values["recipe"]}
        return values

    def identity(self) -> dict[str, Any]:
        """What two sessions must share for their trials to belong to one study."""
        return comparable(self.resolved())

    def digest(self) -> str:
        """Hash of the identity (16 hexadecimal characters)."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=8).hexdigest()


def comparable(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved study makes its trials comparable; of its recipe, what differs from the defaults: the catalogue may grow."""
    usual = {key: StudySpec.model_fields[key].default for key in YOUNGER}
    kept = {key: value for key, value in resolved.items() if key not in (*SESSION, "recipe") and not (key in usual and value == usual[key])}
    recipe = resolved.get("recipe", {}).items()
    unusual = {name: value for name, value in recipe if name in CORE or value != CRAFT.get(name, {}).get("default")}
    return kept | ({"recipe": unusual} if unusual else {})


def entry(p: Parameter) -> dict[str, Any]:
    """A parameter as its mapping in a study file."""
    values: dict[str, Any]
    if p.kind == "fixed":
        values = {"value": p.default}
    elif p.kind == "choice":
        values = {"choices": list(p.choices), "default": p.default}
    else:
        values = {"low": p.low, "high": p.high, "default": p.default}
    values |= {"log": True} if p.log else {}
    values |= {"grid": list(p.grid)} if p.grid else {}
    return values | ({"when": {parent: list(listed) for parent, listed in p.when}} if p.when else {})


def load_spec(path: Path | None = None, settings: Iterable[str] = (), flags: Mapping[str, Any] | None = None) -> StudySpec:
    """The study in `path` (none: all defaults), changed by `settings` ("a.b=c") and then by `flags` that are not None.

    Raises FixInput that names every unknown key with the nearest valid one, and every contradiction, before
    anything is created.
    """
    values = read_yaml(path) if path else {}
    for key in ("data", "model"):  # defaults of other keys depend on them
        if (flags or {}).get(key) is not None:
            values[key] = (flags or {})[key]
    for setting in sorted(settings, key=lambda text: not text.startswith(("model=", "space.model"))):
        apply_setting(values, setting)
    for key, value in (flags or {}).items():
        if value is None:
            continue
        if key in HEADS and isinstance(values.get(key), dict):
            value = values[key] | {HEADS[key]: value}
        values[key] = value
    changed = any(settings) or any(value is not None for value in (flags or {}).values())
    spec = parse_spec(values, source=(f"{path} with these options" if changed else str(path)) if path else "this study")
    return spec if spec.name or not path else spec.model_copy(update={"name": spec.name_after(path.stem)})


def parse_spec(values: Mapping[str, Any], source: str = "the study") -> StudySpec:
    """A checked `StudySpec` from plain values; raises FixInput listing all problems found."""
    problems: list[str] = []
    try:
        check_shape(values)
        spec = StudySpec.model_validate(dict(values))
        if spec.name is not None:
            check_name(spec.name)
        check_name(spec.study_name())
        if isinstance(spec.workers, int) and not 1 <= spec.workers <= 1024:
            raise FixInput(f"workers must be 'auto' or 1 to 1024, got {spec.workers}")
        if isinstance(spec.trials_per_device, int) and not 1 <= spec.trials_per_device <= 64:
            raise FixInput(f"trials_per_device must be 'auto' or 1 to 64, got {spec.trials_per_device}")
        space = spec.parameters()
        if spec.sampler == "grid":
            grid_size(space)
        check_leaves(values)
        return spec
    except ValidationError as error:
        wrong = error.errors()
        problems, more = [explain(dict(item)) for item in wrong[:LISTED]], len(wrong) - LISTED
    except FixInput as error:
        lines = str(error).splitlines()
        problems, more = lines[:LISTED], len(lines) - LISTED
    problems += [f"and {more:,} more"] * (more > 0)
    raise FixInput(f"{source} cannot be used:\n" + "\n".join(f"  {p}" for p in problems))


def explain(item: Mapping[str, Any]) -> str:
    """One pydantic problem in a sentence, with the nearest valid key for an unknown one."""
    path = [str(part) for part in item["loc"]]
    if path[:1] in (["workers"], ["devices"]):
        path = path[:1]  # pydantic adds which member of the union it tried
    where = ".".join(path) or "a key"
    if item["type"] == "extra_forbidden":
        sections: dict[str, type[Part]] = {
            "split": SplitSpec,
            "pruner": PrunerSpec,
            "preprocess": PreprocessSpec,
            "confirm": RepeatSpec,
            "cv": RepeatSpec,
            "warm_start": WarmStartSpec,
        }
        section = sections.get(path[0], StudySpec) if len(path) > 1 else StudySpec
        return f"unknown key '{where}': {hint_key(path[-1], section.model_fields)}"
    if item["type"] == "string_unicode":
        return f"{where}: its text holds half a character, which cannot be stored or shown: take it out, or rename what it names"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message if item["type"] == "value_error" and not path else f"{where}: {message[0].lower()}{message[1:]}"
