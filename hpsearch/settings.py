"""`--set a.b=c`: one value of a study changed, and what contradicts it dropped."""

from __future__ import annotations

from typing import Any

from hpsearch.errors import FixInput
from hpsearch.recipes import ALL, SPELLINGS, Defaults, default_model, defaults_for, spelled, told
from hpsearch.space import GOES_WITH
from hpsearch.yamlfile import parse_yaml

RIVALS = {"space": "recipe", "recipe": "space"}
HEADS = {"pruner": "name", "warm_start": "study"}  # sections that may be written as this one of their keys


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put "a.b=c" into nested `values`; the right side is read as YAML. Raises FixInput."""
    path, sign, text = setting.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys) or len(keys) > 3:  # nothing in a study lies deeper
        raise FixInput(f"--set takes KEY=VALUE such as space.dropout=0.1, got {told(setting)}")
    if keys[0] in RIVALS:
        free_name(values, keys)
    spot = values
    for depth, key in enumerate(keys[:-1]):
        fallback = default_section(keys[: depth + 1], defaults_for(default_model(values)))
        child = spot.get(key)
        if child is None:
            child = spot[key] = fallback
        if not isinstance(child, dict):
            child = spot[key] = {HEADS[key] if key in HEADS else "choices" if isinstance(child, list) else "value": child}
        spot = child
    spot[keys[-1]] = parse_yaml(text, f"--set {setting if len(setting) <= 80 else setting[:77] + '...'}")
    if len(keys) == 3 and keys[0] == "space":
        drop_rivals(spot, keys[-1])


def free_name(values: dict[str, Any], keys: list[str]) -> None:
    """Spell the hyperparameter in `keys[1]` as the catalogue does, and take it out of the other section: fixed or searched, not both."""
    keys[1:2] = [SPELLINGS.get(key, key) for key in keys[1:2]]
    for section in RIVALS:
        if isinstance(values.get(section), dict):
            values[section] = spelled(values[section])
    other = values.get(RIVALS[keys[0]])
    if isinstance(other, dict) and len(keys) > 1:
        other.pop(keys[1], None)


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
