"""What the kernel knows by name, light to import: a misspelt name is found before torch loads."""

from __future__ import annotations

from hpsearch.errors import FixInput, nearest
from hpsearch.space import Space

MODELS = {"glyphnet": 6}  # blocks before the head
DATA_SETS = ("digits",)
WEIGHTS = ("DEFAULT", "none")


def check_names(model: str, data: str, weights: str, space: Space) -> None:
    """Raise FixInput, with the nearest name, for a model, data set or kind of weights that there is not.

    Likewise when more layers may be frozen than the model has.
    """
    for what, name, known in (("model", model, MODELS), ("data", data, DATA_SETS), ("weights", weights, WEIGHTS)):
        if name not in known:
            raise FixInput(f"unknown {what} '{name}': {nearest(name, known)}")
    frozen = next(p for p in space if p.name == "frozen_layers")
    deepest = max(int(str(value)) for value in (frozen.choices or (int(frozen.high),)))
    if deepest > MODELS[model]:
        raise FixInput(f"space.frozen_layers goes up to {deepest}, but {model} has {MODELS[model]} blocks before its head; lower it")
