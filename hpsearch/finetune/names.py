"""What the kernel knows by name, light to import: a misspelt name is found before torch loads."""

from __future__ import annotations

from hpsearch.errors import FixInput, nearest

MODELS = ("glyphnet",)
DATA_SETS = ("digits",)
WEIGHTS = ("DEFAULT", "none")


def check_names(model: str, data: str, weights: str) -> None:
    """Raise FixInput, with the nearest name, for a model, data set or kind of weights that there is not."""
    for what, name, known in (("model", model, MODELS), ("data", data, DATA_SETS), ("weights", weights, WEIGHTS)):
        if name not in known:
            raise FixInput(f"unknown {what} '{name}': {nearest(name, known)}")
