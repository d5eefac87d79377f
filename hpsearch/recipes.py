"""The catalogue: every setting of a fine-tuning recipe, its kind, its domain, and its usual values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hpsearch.errors import FixInput, nearest
from hpsearch.other_names import hint_key
from hpsearch.types import Value


@dataclass(frozen=True, slots=True)
class Known:
    """A setting that the kernel understands; `when` says beside which values of another one it has an effect."""

    kind: Literal["float", "int", "choice"]
    low: float = 0.0  # smallest value that makes sense
    high: float = 0.0  # largest
    unit: str = ""
    open: Literal["", "low", "high"] = ""  # the end that is itself excluded
    choices: tuple[str, ...] = ()
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def holds(self, value: float) -> bool:
        """Whether a number lies in the domain."""
        return self.low <= value <= self.high and not (self.open and value == (self.low if self.open == "low" else self.high))

    def domain(self) -> str:
        """The domain in words, after "must"."""
        words = {"": "lie between {:g} and {:g}", "low": "be above {:g} and at most {:g}", "high": "be at least {:g} and below {:g}"}
        return words[self.open].format(self.low, self.high)


KNOWN: Mapping[str, Known] = {
    "learning_rate": Known("float", 1e-12, 1e3, "per step"),
    "batch_size": Known("int", 1, 2**20, "images"),
    "epochs": Known("int", 1, 100_000, "passes over the training images"),
    "weight_decay": Known("float", 0.0, 1e3, "decoupled, per step, times the learning rate"),
    "dropout": Known("float", 0.0, 0.99, "probability, before the head"),
    "frozen_layers": Known("int", 0, 10_000, "blocks, from the input"),
    "optimizer": Known("choice", choices=("adamw", "sgd")),
    "momentum": Known("float", 0.0, 1.0, "share of the last step", "high", when={"optimizer": ("sgd",)}),
    "schedule": Known("choice", choices=("constant", "cosine", "onecycle", "cyclical", "step")),
    "warmup_epochs": Known("float", 0.0, 100_000, "epochs"),
    "label_smoothing": Known("float", 0.0, 1.0, "probability given to all classes", "high"),
    "class_weights": Known("choice", choices=("none", "balanced")),
    "l1": Known("float", 0.0, 1e3, "times the sum of absolute weights"),
    "l2_sp": Known("float", 0.0, 1e3, "times half the squared distance from the pretrained weights"),
    "clip_norm": Known("float", 0.0, 1e6, "norm of the gradient; 0: off"),
    "layer_decay": Known("float", 0.0, 1.0, "factor per block below the head", "low"),
    "unfreeze_epochs": Known("int", 0, 100_000, "epochs per block; 0: off"),
    "early_stopping": Known("int", 0, 100_000, "epochs without improvement; 0: off"),
    "mixup": Known("float", 0.0, 1e3, "alpha of the beta distribution; 0: off"),
    "cutmix": Known("float", 0.0, 1e3, "alpha of the beta distribution; 0: off"),
    "crop": Known("float", 0.0, 1.0, "smallest share of the area kept; 1: off", "low"),
    "flip": Known("float", 0.0, 1.0, "probability"),
    "rotate": Known("float", 0.0, 180.0, "degrees to either side"),
    "colour": Known("float", 0.0, 1.0, "strength"),
    "randaugment": Known("float", 0.0, 10.0, "magnitude; 0: off"),
}
MODEL = Known("choice")  # under space.model: any networks, by their names
SPELLINGS = {"color": "colour"}  # read, never written
CORE = ("learning_rate", "batch_size", "epochs", "weight_decay", "dropout", "frozen_layers")  # searched unless a study fixes them
ALL = 10_000  # `frozen_layers: all` until the model's blocks are counted

EMBEDDED_MODEL = "glyphnet"
Defaults = Mapping[str, Mapping[str, Any]]
# Beyond the core, which is searched only where a study says so: the default, and a range to begin with for `--set space.NAME.KEY=`.
CRAFT: Defaults = {
    "optimizer": {"choices": ["adamw", "sgd"], "default": "adamw"},
    "momentum": {"low": 0.5, "high": 0.99, "default": 0.9, "grid": [0.9]},
    "schedule": {"choices": ["constant", "cosine", "onecycle", "cyclical", "step"], "default": "cosine"},
    "warmup_epochs": {"low": 0.0, "high": 3.0, "default": 1.0, "grid": [0.0, 1.0]},
    "label_smoothing": {"low": 0.0, "high": 0.2, "default": 0.0, "grid": [0.0, 0.1]},
    "class_weights": {"choices": ["none", "balanced"], "default": "none"},
    "l1": {"choices": [0.0, 1e-6, 1e-5, 1e-4], "default": 0.0},
    "l2_sp": {"choices": [0.0, 1e-3, 1e-2, 1e-1], "default": 0.0},
    "clip_norm": {"choices": [0.0, 0.5, 1.0, 5.0], "default": 0.0, "grid": [0.0, 1.0]},
    "layer_decay": {"low": 0.5, "high": 1.0, "default": 1.0, "grid": [0.65, 0.8, 1.0]},
    "unfreeze_epochs": {"low": 0, "high": 3, "default": 0, "grid": [0, 1]},
    "early_stopping": {"choices": [0, 3, 5], "default": 0},
    "mixup": {"low": 0.0, "high": 0.4, "default": 0.0, "grid": [0.0, 0.2]},
    "cutmix": {"low": 0.0, "high": 1.0, "default": 0.0, "grid": [0.0, 1.0]},
    "crop": {"low": 0.3, "high": 1.0, "default": 1.0, "grid": [0.5, 1.0]},
    "flip": {"choices": [0.0, 0.5], "default": 0.0},
    "rotate": {"low": 0.0, "high": 30.0, "default": 0.0, "grid": [0.0, 15.0]},
    "colour": {"low": 0.0, "high": 0.5, "default": 0.0, "grid": [0.0, 0.3]},
    "randaugment": {"low": 0.0, "high": 10.0, "default": 0.0, "grid": [0.0, 5.0]},
}
# What an omitted hyperparameter gets; `default` is the default recipe, trial 0 of every study. First for the embedded model:
DEFAULTS: Defaults = {
    "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True, "default": 1e-3, "grid": [3e-4, 1e-3, 3e-3, 1e-2]},
    "batch_size": {"choices": [8, 16, 32], "default": 8, "grid": [8, 16]},
    "epochs": {"low": 3, "high": 20, "default": 15, "grid": [8, 16]},
    "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-2, "grid": [1e-2]},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1, "grid": [0.0, 0.3]},
    "frozen_layers": {"low": 0, "high": 6, "default": 0, "grid": [0, 2, 4, 5]},
    **CRAFT,
}
# For networks pretrained on photographs: AdamW's usual range for fine-tuning, larger batches, fewer epochs.
IMAGE_DEFAULTS: Defaults = {
    "learning_rate": {"low": 1e-5, "high": 3e-3, "log": True, "default": 3e-4, "grid": [1e-4, 3e-4, 1e-3]},
    "batch_size": {"choices": [16, 32, 64], "default": 32, "grid": [32]},
    "epochs": {"low": 3, "high": 10, "default": 6, "grid": [6]},
    "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-2, "grid": [1e-2]},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1, "grid": [0.0, 0.3]},
    "frozen_layers": {"low": 0, "high": "all", "default": 0, "grid": [0, "all"]},
    **CRAFT,
}


def defaults_for(model: object) -> Defaults:
    """The search space where a study says nothing, by its model."""
    return DEFAULTS if model == EMBEDDED_MODEL else IMAGE_DEFAULTS


def catalogued(name: str) -> Known:
    """What the catalogue says of something that can be searched."""
    return MODEL if name == "model" else KNOWN[name]


def searched_models(values: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """The models under `space.model` of a study's plain values, and its default; none where it does not list names."""
    space = values.get("space")
    entry = space.get("model") if isinstance(space, Mapping) else None
    listed, default = (entry.get("choices", entry.get("value")), entry.get("default")) if isinstance(entry, Mapping) else (entry, None)
    listed = [listed] if isinstance(listed, str) else listed
    if not isinstance(listed, Sequence) or not all(isinstance(name, str) for name in listed):
        return [], None
    return list(listed), default


def default_model(values: Mapping[str, Any]) -> object:
    """The default recipe's model in a study's plain values."""
    listed, default = searched_models(values)
    return values.get("model") or default or next(iter(listed), EMBEDDED_MODEL)


def has_effect(name: str, recipe: Mapping[str, Value]) -> bool:
    """Whether a setting has an effect in a recipe, whose omitted settings are at their defaults."""
    conditions = KNOWN[name].when if name in KNOWN else {}
    return all(recipe.get(parent, CRAFT[parent]["default"]) in values for parent, values in conditions.items())


def spelled(section: Mapping[str, Any]) -> dict[str, Any]:
    """A `space` or `recipe` section with every name as the catalogue spells it; one given in both spellings stays twice."""
    return {SPELLINGS[k] if k in SPELLINGS and SPELLINGS[k] not in section else k: v for k, v in section.items()}


def known(name: object, where: str, what: str = "hyperparameter") -> str:
    """`name` if the catalogue has it; FixInput with the nearest otherwise."""
    if name in SPELLINGS:
        raise FixInput(f"{where} holds both {name} and {SPELLINGS[str(name)]}, which are one: remove one of them")
    if name == "model":
        if where.startswith("space"):
            return name
        raise FixInput(f"{where}.model is no setting: write `model:` at the top of the study, or several models under space.model")
    if not isinstance(name, str) or name not in KNOWN:
        raise FixInput(f"unknown {what} '{where}.{name}': {hint_key(str(name), KNOWN)}")
    return name


def checked(name: str, value: Any, where: str) -> Any:
    """`value` as the type the setting has; FixInput when it is not of its kind and domain."""
    if name == "model":
        if not isinstance(value, str) or not value:
            raise FixInput(f"{where} must be the name of a model, such as resnet18, got {told(value)}")
        return value
    return chosen(name, value, where) if KNOWN[name].kind == "choice" else number(name, value, where)


def chosen(name: str, value: Any, where: str) -> str:
    """`value` as one of the setting's words, in any case."""
    words = KNOWN[name].choices
    if not isinstance(value, str):
        raise FixInput(f"{where} must be one of {', '.join(words)}, got {told(value)}")
    if value.lower() not in words:
        raise FixInput(f"{where}: unknown value {told(value)}: {nearest(value[:80], words)}")
    return value.lower()


def number(name: str, value: Any, where: str) -> Any:
    """`value` as a finite number of the setting's kind and domain."""
    known = KNOWN[name]
    if value == "all" and name == "frozen_layers":
        return ALL
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise FixInput(f"{where} must be a number, got {told(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FixInput(f"{where} must be a number, got {told(value)}")
    try:
        value = float(value) if known.kind == "float" else value
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        finite = False
    if not finite:
        raise FixInput(f"{where} must be finite, got {told(value)}")
    if known.kind == "int":
        if value != int(value):
            raise FixInput(f"{where} must be a whole number, got {value}")
        value = int(value)
    if not known.holds(value):
        raise FixInput(f"{where} must {known.domain()} ({known.unit}), got {value}")
    return value


def told(value: Any) -> str:
    """`value` for a message, at most 80 characters; Python refuses to print integers of more than 4,300 digits."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"something too large to print ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:77]}..."
