"""The catalogue against the trainer and the documentation, which both follow it."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from hpsearch.finetune.recipe import Recipe
from hpsearch.recipes import CORE, CRAFT, DEFAULTS, IMAGE_DEFAULTS, KNOWN, SPELLINGS, has_effect
from hpsearch.spec import parse_spec
from hpsearch.yamlfile import parse_yaml

PAGE = (Path(__file__).parent.parent / "docs" / "study-file.md").read_text()


def test_the_trainer_knows_the_catalogue_with_the_same_defaults():
    kinds = {"choice": "str"}
    assert {f.name: str(f.type) for f in fields(Recipe)} == {name: kinds.get(known.kind, known.kind) for name, known in KNOWN.items()}
    assert {f.name: f.default for f in fields(Recipe) if f.default is not MISSING} == {name: CRAFT[name]["default"] for name in CRAFT}


def test_the_core_and_the_rest_are_the_catalogue():
    assert [*CORE, *CRAFT] == list(KNOWN) == list(DEFAULTS) == list(IMAGE_DEFAULTS)
    assert set(SPELLINGS.values()) <= set(KNOWN)


@pytest.mark.parametrize(
    ("name", "recipe", "does"),
    [("momentum", {}, False), ("momentum", {"optimizer": "sgd"}, True), ("crop", {}, True), ("unknown", {}, True)],
)
def test_momentum_has_an_effect_beside_sgd_only(name, recipe, does):
    assert has_effect(name, recipe) is does


@pytest.mark.parametrize("name", KNOWN)
def test_the_documentation_has_every_setting_with_its_default_and_words(name):
    (row,) = re.findall(rf"^\| `{name}`[^|]* \|(.*)\|$", PAGE, re.M)
    values, default, meaning, *_ = (cell.strip() for cell in row.split("|"))
    assert meaning
    assert all(f"`{word}`" in values for word in KNOWN[name].choices)
    if default != "by model":
        written = default.split(":")[0].strip("`")
        assert written == str(DEFAULTS[name]["default"]) or float(written) == DEFAULTS[name]["default"] == IMAGE_DEFAULTS[name]["default"]


@pytest.mark.process
def test_the_example_of_the_documentation_is_what_it_says():
    (example,) = re.findall(r"```yaml\n(recipe:.*?)```", PAGE, re.S)
    spec = parse_spec(parse_yaml(example, "the example"))
    space = {p.name: p for p in spec.parameters()}
    assert dict(space["momentum"].when) == {"optimizer": ("sgd",)}
    assert dict(space["warmup_epochs"].when) == {"schedule": ("constant", "cosine")}
    assert spec.resolved()["recipe"]["label_smoothing"] == 0.1
    assert "mixup" not in spec.resolved()["recipe"]
