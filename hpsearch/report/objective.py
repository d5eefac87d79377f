"""What a study optimises, in words and units: every page speaks of the score through this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpsearch.types import OBJECTIVES, SIGNS

LABELS = {
    "val_loss": "validation loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "top5": "top-5 accuracy",
}


@dataclass(frozen=True, slots=True)
class Objective:
    """The score of a study's trials."""

    name: str  # one of OBJECTIVES; its column in every table
    label: str
    noun: str  # "loss" or "score": short, after "a" and "no"
    unit: str  # nats or %
    factor: float  # from the raw value to the unit
    sign: int  # 1: less is better, -1: more is better

    @property
    def axis(self) -> str:
        """The title of an axis."""
        return f"{self.label} ({self.unit})"

    @property
    def is_loss(self) -> bool:
        """Whether trials are judged by validation loss, as they are unless a study says otherwise."""
        return self.name == "val_loss"

    def drawn(self, value: float | None) -> float | None:
        """A raw value in the unit of the axis, a gap for none."""
        return None if value is None or value != value else self.factor * value

    def gain(self, before: float | None, after: float | None) -> float | None:
        """How much better `after` is: nats, or percentage points; None when one is missing."""
        return None if before is None or after is None else self.factor * self.sign * (before - after)


def objective(spec: Mapping[str, Any]) -> Objective:
    """The objective of a resolved study."""
    name = spec.get("objective", "val_loss")
    if name in SIGNS and name not in OBJECTIVES:
        return Objective(name, name, "score", "as it is", 1.0, SIGNS[name])
    if name not in LABELS or name == "val_loss":
        return Objective("val_loss", LABELS["val_loss"], "loss", "nats", 1.0, OBJECTIVES["val_loss"])
    return Objective(name, LABELS[name], "score", "%", 100.0, OBJECTIVES[name])
