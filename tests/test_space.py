from __future__ import annotations

import itertools
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpsearch.errors import FixInput
from hpsearch.recipes import CORE, CRAFT, DEFAULTS, KNOWN
from hpsearch.space import (
    GRID_LIMIT,
    default_params,
    grid_points,
    grid_size,
    parse_parameter,
    parse_space,
    searched,
    spread,
)
from hpsearch.spec import entry, parse_spec

# ---------------------------------------------------------------- strategies


NUMERIC = sorted(name for name, known in KNOWN.items() if known.kind != "choice")


def value_of(name):
    known = KNOWN[name]
    if known.kind == "choice":
        return st.sampled_from(known.choices)
    if known.kind == "int":
        return st.integers(int(known.low), int(known.high))
    return st.floats(known.low, known.high, exclude_min=known.open == "low", exclude_max=known.open == "high")


@st.composite
def entries(draw):
    """The name of a hyperparameter, and a mapping that a user may write for it."""
    name = draw(st.sampled_from(sorted(KNOWN)))
    value = value_of(name)
    form = draw(
        st.sampled_from(["value", "short", "choices", "list", "range"] if name in NUMERIC else ["value", "short", "choices", "list"])
    )
    if form in ("value", "short"):
        fixed = draw(value)
        return name, {"value": fixed} if form == "value" else fixed
    if form in ("choices", "list"):
        choices = draw(st.lists(value, min_size=1, max_size=6, unique=True))
        if form == "list":
            return name, choices
        more = {"default": draw(st.sampled_from(choices))} if draw(st.booleans()) else {}
        more |= {"grid": draw(st.lists(st.sampled_from(choices), min_size=1, unique=True))} if draw(st.booleans()) else {}
        return name, {"choices": choices, **more}
    low, high = sorted((draw(value), draw(value)))
    out = {"low": low, "high": high}
    inside = st.integers(low, high) if KNOWN[name].kind == "int" else st.floats(low, high)
    if draw(st.booleans()):
        out["default"] = draw(inside)
    if low > 0 and draw(st.booleans()):
        out["log"] = True
    grid = draw(st.sampled_from(["none", "count", "list"]))
    if grid == "count":
        out["grid"] = draw(st.integers(1, 40))
    elif grid == "list":
        out["grid"] = draw(st.lists(inside, min_size=1, max_size=6, unique=True))
    return name, out


@st.composite
def ranges(draw):
    """A parsed parameter between low and high, low < high."""
    name = draw(st.sampled_from(NUMERIC))
    low, high = sorted((draw(value_of(name)), draw(value_of(name))))
    assume(low < high)
    return parse_parameter(name, {"low": low, "high": high, "log": low > 0 and draw(st.booleans())})


# ---------------------------------------------------------------- defaults


def test_the_default_space_is_the_default_recipe_and_its_ranges():
    space = parse_space({})
    assert [p.name for p in space] == list(CORE)
    assert default_params(space) == {name: DEFAULTS[name]["default"] for name in CORE}
    assert searched(space) == space


def test_the_default_recipe_lies_inside_every_default_range():
    everything = parse_space({name: DEFAULTS[name] for name in KNOWN})
    assert sorted(p.name for p in everything) == sorted(KNOWN) == sorted(DEFAULTS)
    assert all(p.contains(p.default) and p.default == DEFAULTS[p.name]["default"] for p in everything)
    assert set(default_params(everything)) == set(KNOWN) - {"momentum"}  # which AdamW has not
    assert all(p.points() for p in everything)  # every usual range has a usual grid


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("written", "kind", "points"),
    [
        (0.2, "fixed", (0.2,)),
        ("2e-1", "fixed", (0.2,)),
        (0, "fixed", (0.0,)),
        ({"value": 0.2}, "fixed", (0.2,)),
        ([0.0, 0.5], "choice", (0.0, 0.5)),
        ({"choices": [0.5, 0.0], "grid": [0.5]}, "choice", (0.5,)),
        ({"low": 0, "high": 0.5, "grid": 3}, "float", (0.0, 0.25, 0.5)),
        ({"low": 0, "high": 0.5, "grid": [0.4, 0.1]}, "float", (0.4, 0.1)),
    ],
)
def test_an_entry_is_a_value_a_list_or_a_range(written, kind, points):
    parameter = parse_parameter("dropout", written)
    assert (parameter.kind, parameter.points()) == (kind, points)
    assert all(isinstance(point, float) for point in points)


@pytest.mark.parametrize(
    ("written", "default"),
    [
        ({"low": 0.0, "high": 0.05}, 0.05),
        ({"low": 0.3, "high": 0.5}, 0.3),
        ({"low": 0.0, "high": 0.5}, 0.1),
        ([0.3, 0.1], 0.1),
        ([0.3, 0.2], 0.3),
    ],
)
def test_without_a_default_the_nearest_to_the_built_in_one_is_taken(written, default):
    assert parse_parameter("dropout", written).default == default


@pytest.mark.parametrize(
    ("written", "points"),
    [
        ({"low": 0, "high": 3}, (0, 1, 2, 3)),
        ({"low": 5, "high": 5}, (5,)),
        ({"low": 1, "high": 9, "log": True, "grid": 3}, (1, 3, 9)),
        ({"low": 0, "high": 2, "grid": 9}, (0, 1, 2)),
    ],
)
def test_whole_numbers_bring_their_own_grid_points_when_few(written, points):
    got = parse_parameter("frozen_layers", written) if written["low"] == 0 else parse_parameter("epochs", written)
    assert got.points() == points
    assert all(isinstance(point, int) for point in got.points())


# ---------------------------------------------------------------- refusals

BAD = [
    ("learning_rate", {"low": 1, "high": 1e-3}, r"low 1.0 is greater than high 0.001; swap"),
    ("weight_decay", {"low": 0, "high": 1, "log": True}, r"a log scale needs low > 0.*log: false"),
    ("weight_decay", {"low": -1, "high": 1, "log": True}, r"between 0 and 1000"),
    ("dropout", {"low": 0, "high": 0.5, "log": "yes"}, r"log must be true or false"),
    ("dropout", {"low": 0}, r"needs both low and high"),
    ("dropout", {"high": 0}, r"needs both low and high"),
    ("dropout", {}, r"takes a value, or choices, or low and high; got nothing"),
    ("dropout", {"default": 0.1}, r"takes a value, or choices, or low and high; got default"),
    ("dropout", {"value": 0.1, "low": 0, "high": 1}, r"takes a value, or choices, or low"),
    ("dropout", {"value": 0.1, "choices": [0.1]}, r"takes a value, or choices, or low"),
    ("dropout", {"value": 0.1, "grid": [0.1, 0.2]}, r"grid cannot go with value"),
    ("dropout", {"choices": [0.1, 0.2], "log": True}, r"log cannot go with choices"),
    ("dropout", {"lwo": 0, "high": 0.5}, r"unknown key 'space.dropout.lwo': did you mean 'low'"),
    ("dropout", {"low": 0, "high": 0.5, "default": 0.6}, r"default 0.6 lies outside 0.0 to 0.5"),
    ("dropout", {"low": 0, "high": 0.5, "grid": 0}, r"1 to 1000, got 0"),
    ("dropout", {"low": 0, "high": 0.5, "grid": 10**6}, r"1 to 1000"),
    ("dropout", {"low": 0, "high": 0.5, "grid": int("f" * 5000, 16)}, r"1 to 1000, got something too large to print"),
    ("dropout", {"low": 0, "high": 0.5, "grid": []}, r"grid must be a list of points"),
    ("dropout", {"low": 0, "high": 0.5, "grid": True}, r"grid must be a list of points"),
    ("dropout", {"low": 0, "high": 0.5, "grid": "5"}, r"grid must be a list of points"),
    ("dropout", {"low": 0, "high": 0.5, "grid": [0.1, 0.7]}, r"outside the range: \[0.7\]"),
    ("dropout", {"low": 0, "high": 0.5, "grid": [0.1, "1e-1"]}, r"holds a point twice"),
    ("dropout", {"choices": [0.1, 0.2], "grid": 2}, r"grid must be a list"),
    ("dropout", {"choices": [0.1, 0.2], "grid": [0.3]}, r"outside the range: \[0.3\]"),
    ("dropout", {"choices": [0.1, 0.2], "default": 0.3}, r"0.3 is not among the choices"),
    ("dropout", {"choices": []}, r"at least one value"),
    ("dropout", [], r"at least one value"),
    ("dropout", {"choices": "0.1"}, r"at least one value"),
    ("dropout", {"choices": None}, r"at least one value"),
    ("dropout", [0.1, 0.1], r"holds a value twice"),
    ("dropout", None, r"must be a number, got None"),
    ("dropout", "high", r"must be a number, got 'high'"),
    ("dropout", True, r"must be a number, got True"),
    ("dropout", {"value": {}}, r"must be a number, got {}"),
    ("dropout", float("nan"), r"must be finite"),
    ("dropout", "inf", r"must be finite"),
    ("dropout", 10**400, r"must be finite"),
    ("dropout", int("f" * 5000, 16), r"must be finite, got something too large"),
    ("dropout", "x" * 10_000, r"must be a number, got 'x{70,80}\.\.\."),
    ("dropout", 0.995, r"between 0 and 0.99 \(probability, before the head\), got 0.995"),
    ("batch_size", 0, r"between 1 and"),
    ("batch_size", 8.5, r"whole number, got 8.5"),
    ("batch_size", 10**400, r"must be finite"),
    ("epochs", {"low": 1, "high": 10, "step": 5}, r"unknown key 'space.epochs.step'"),
    ("optimizer", "adamm", r"unknown value 'adamm': did you mean 'adamw'"),
    ("optimizer", ["adamw", "AdamW"], r"holds a value twice"),
    ("optimizer", {"low": 0, "high": 1}, r"one of adamw, sgd: give choices instead of low and high"),
    ("class_weights", False, r"must be one of none, balanced, got False"),
    ("momentum", 1, r"must be at least 0 and below 1 \(share of the last step\), got 1.0"),
    ("layer_decay", 0, r"must be above 0 and at most 1 \(factor per block below the head\), got 0.0"),
    ("crop", {"low": 0, "high": 1}, r"crop.low must be above 0 and at most 1"),
    ("cutmix", -1, r"between 0 and 1000 \(alpha of the beta distribution; 0: off\), got -1.0"),
    ("mixup", [0, -0.2], r"mixup.choices must lie between 0"),
    ("rotate", 181, r"between 0 and 180"),
    ("early_stopping", 2.5, r"whole number, got 2.5"),
    ("dropout", {"low": 0, "high": 0.5, "when": {"optimiser": ["sgd"]}}, r"'space.dropout.when.optimiser': did you mean 'optimizer'"),
    ("dropout", {"value": 0.1, "when": {"optimizer": ["sgdd"]}}, r"dropout.when.optimizer: unknown value 'sgdd': did you mean 'sgd'"),
    ("dropout", {"choices": [0.1], "when": "sgd"}, r"when must name other hyperparameters with their values"),
    ("dropout", {"choices": [0.1], "when": {}}, r"when must name other hyperparameters"),
    ("dropout", {"choices": [0.1], "when": {"optimizer": []}}, r"when.optimizer must list at least one value"),
    ("learning_rate", 0, r"between 1e-12 and 1000"),
    ("learning_rate", -0.1, r"between 1e-12 and 1000"),
]


@pytest.mark.parametrize(("name", "written", "message"), BAD, ids=[f"{i}-{b[2][:24]}" for i, b in enumerate(BAD)])
def test_a_contradictory_entry_is_refused_with_its_key(name, written, message):
    with pytest.raises(FixInput, match=message) as caught:
        parse_parameter(name, written)
    assert f"space.{name}" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_everything_wrong_is_listed_at_once():
    with pytest.raises(FixInput) as caught:
        parse_space({"learning_rat": 1, "dropout": 2, "epochs": "many"})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["unknown", "space.epochs", "space.dropout"]
    assert "did you mean 'learning_rate'?" in str(caught.value)


@pytest.mark.parametrize("written", [{"low": 0.0, "high": 0.5}, {"low": 0.1, "high": 0.5, "log": True}])
def test_a_float_without_grid_points_is_refused_by_the_grid_only(written):
    space = parse_space({"dropout": written})
    with pytest.raises(FixInput, match=r"needs points for 'dropout': add `grid: \[...\]` or `grid: 5` to space.dropout, or fix"):
        grid_size(space)
    with pytest.raises(FixInput, match="dropout"):
        next(grid_points(space))


def test_a_long_range_of_whole_numbers_needs_grid_points_too():
    with pytest.raises(FixInput, match="needs points for 'epochs'"):
        parse_parameter("epochs", {"low": 1, "high": 100}).points()


def test_a_grid_beyond_the_limit_is_refused_before_it_is_made():
    wide = {name: {"low": 1e-3, "high": 0.9, "grid": 500} for name in ("learning_rate", "weight_decay", "dropout")}
    with pytest.raises(FixInput, match=rf"more than {GRID_LIMIT:,}: give fewer points"):
        grid_size(parse_space(wide))


# ---------------------------------------------------------------- properties


@settings(deadline=None)
@given(st.lists(entries(), max_size=6))
def test_a_parsed_space_is_a_fixed_point_of_resolved_and_parse(given_entries):
    space = dict(given_entries)
    if "momentum" in space:  # beside AdamW alone it is refused
        space["optimizer"] = ["adamw", "sgd"]
    spec = parse_spec({"space": space, "sampler": "random"})
    again = parse_spec(spec.resolved())
    assert again.parameters() == spec.parameters()
    assert again.resolved() == spec.resolved()
    assert again.digest() == spec.digest()


@settings(deadline=None)
@given(entries())
def test_default_and_grid_points_lie_inside_and_no_point_comes_twice(named):
    parameter = parse_parameter(*named)
    assert parameter.contains(parameter.default)
    assert len(set(parameter.grid)) == len(parameter.grid)
    assert all(parameter.contains(point) for point in parameter.grid)
    assert parse_parameter(parameter.name, entry(parameter)) == parameter


@settings(deadline=None)
@given(st.fixed_dictionaries({"epochs": st.integers(1, 4), "dropout": st.integers(1, 4), "batch_size": st.integers(1, 4)}))
def test_every_grid_point_comes_once_in_the_same_order(counts):
    space = parse_space(
        {
            "epochs": {"low": 1, "high": 100, "grid": counts["epochs"]},
            "dropout": {"low": 0.0, "high": 0.9, "grid": counts["dropout"]},
            "batch_size": [2**i for i in range(counts["batch_size"])],
            **{name: DEFAULTS[name]["default"] for name in ("learning_rate", "weight_decay", "frozen_layers")},
        }
    )
    points = list(grid_points(space))
    assert len(points) == grid_size(space) == len({tuple(sorted(p.items())) for p in points})
    assert points == list(grid_points(space))
    assert all(p.contains(point[p.name]) for point in points for p in space)


@settings(deadline=None)
@given(ranges(), st.integers(1, 1000))
def test_spread_points_are_inside_increasing_and_include_both_ends(parameter, n):
    points = spread(parameter, n, "here")
    assert 1 <= len(points) <= n
    assert all(parameter.low <= point <= parameter.high for point in points)
    assert all(a < b for a, b in pairwise(points))
    assert points[0] == parameter.low
    if n > 1:
        assert points[-1] == parameter.high


@pytest.mark.parametrize(
    ("written", "varies"),
    [(0.1, False), ([0.1], False), ([0.1, 0.2], True), ({"low": 0.1, "high": 0.1}, False), ({"low": 0, "high": 0.1}, True)],
)
def test_only_what_varies_is_searched(written, varies):
    assert ("dropout" in {p.name for p in searched(parse_space({"dropout": written}))}) is varies


# ---------------------------------------------------------------- fixed or searched


def refused(space, recipe=None):
    """The message with which a space is refused."""
    with pytest.raises(FixInput) as caught:
        parse_space(space, recipe=recipe or {})
    return str(caught.value)


def test_of_the_core_what_a_recipe_fixes_is_one_value_of_every_trial():
    space = parse_space({}, recipe={"epochs": 4, "mixup": 0.2})
    assert [p.name for p in space] == list(CORE)
    assert default_params(space)["epochs"] == 4
    assert "epochs" not in {p.name for p in searched(space)}


@pytest.mark.parametrize(
    ("space", "recipe", "message"),
    [
        ({"mixup": [0, 0.2]}, {"mixup": 0.1}, "mixup is both searched and fixed: remove space.mixup or recipe.mixup"),
        ({"dropout": 0.1}, {"dropout": 0.1}, "dropout is both searched and fixed: remove space.dropout or recipe.dropout"),
        ({"color": [0, 0.2]}, {"colour": 0.1}, "colour is both searched and fixed"),
        ({}, {"color": 0.2, "colour": 0.1}, "recipe holds both color and colour, which are one: remove one of them"),
        ({}, {"mixpu": 0.2}, "unknown setting 'recipe.mixpu': did you mean 'mixup'?"),
        ({}, {"cutmix": -0.2}, "recipe.cutmix must lie between 0 and 1000 (alpha of the beta distribution; 0: off), got -0.2"),
        ({}, {"schedule": "cosin"}, "recipe.schedule: unknown value 'cosin': did you mean 'cosine'?"),
        ({}, {"flip": [0, 0.5]}, "recipe.flip must be a number, got [0, 0.5]"),
        ({"momentum": [0.8, 0.9]}, {}, "space.momentum is used only beside optimizer sgd, and optimizer is adamw: change optimizer or"),
        ({"momentum": [0.8, 0.9], "optimizer": ["adamw"]}, {}, "space.momentum is used only beside optimizer sgd"),
        ({}, {"momentum": 0.5}, "recipe.momentum is used only beside optimizer sgd, and optimizer is adamw"),
        ({"optimizer": ["adamw"]}, {"momentum": 0.5}, "recipe.momentum is used only beside optimizer sgd"),
    ],
)
def test_a_setting_is_fixed_or_searched_and_has_an_effect(space, recipe, message):
    assert message in refused(space, recipe)


# ---------------------------------------------------------------- conditions

SGD = {"optimizer": ["adamw", "sgd"], "momentum": {"low": 0.5, "high": 0.9, "grid": [0.5, 0.9]}}


def named(space, name):
    return next(p for p in space if p.name == name)


@pytest.mark.parametrize(
    ("space", "recipe", "when"),
    [
        (SGD, {}, (("optimizer", ("sgd",)),)),
        ({"momentum": SGD["momentum"]}, {"optimizer": "sgd"}, ()),
        ({"momentum": SGD["momentum"], "optimizer": ["sgd"]}, {}, ()),
        (SGD | {"momentum": {"choices": [0.5, 0.9], "when": {"optimizer": ["sgd", "adamw"]}}}, {}, (("optimizer", ("sgd",)),)),
        (SGD | {"momentum": {"choices": [0.5, 0.9], "when": {"epochs": 4}}}, {}, (("epochs", (4,)), ("optimizer", ("sgd",)))),
    ],
)
def test_momentum_is_for_sgd_by_itself(space, recipe, when):
    assert sorted(named(parse_space(space, recipe=recipe), "momentum").when) == list(when)


def test_parents_come_first_and_absent_ones_switch_off_what_hangs_on_them():
    space = parse_space(
        {
            **SGD,
            "batch_size": {"choices": [8, 16], "when": {"momentum": [0.5]}},
            "momentum": {"choices": [0.9, 0.5]},
            "rotate": {"value": 10, "when": {"batch_size": [16]}},
        }
    )
    names = [p.name for p in space]
    assert names.index("optimizer") < names.index("momentum") < names.index("batch_size") < names.index("rotate")
    assert not {"momentum", "batch_size", "rotate"} & set(default_params(space))
    assert named(space, "rotate").active({"batch_size": 16})
    assert not named(space, "rotate").active({"momentum": 0.5})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"flip": {"choices": [0, 0.5], "when": {"rotate": [10]}}, "rotate": {"low": 0, "high": 20}}, "rotate is a range"),
        (
            {"flip": {"choices": [0, 0.5], "when": {"epochs": [99]}}},
            "when.epochs has values that space.epochs never takes: [99]",
        ),
        (
            {"flip": {"choices": [0, 0.5], "when": {"schedule": ["step"]}}},
            "space.flip is used only beside schedule step, and schedule is cosine: change schedule or remove space.flip",
        ),
        (
            {"momentum": {"value": 0.8, "when": {"optimizer": ["adamw"]}}, "optimizer": ["adamw", "sgd"]},
            "space.momentum.when.optimizer: momentum is used only beside sgd",
        ),
        ({"flip": {"choices": [0, 0.5], "when": {"flip": [0.5]}}}, "the conditions of flip go round in a circle"),
        (
            {"optimizer": {"choices": ["adamw", "sgd"], "when": {"momentum": [0.9]}}, "momentum": [0.5, 0.9]},
            "the conditions of momentum, optimizer go round in a circle: remove the `when` of one of them",
        ),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(space, message):
    lines = refused(space).splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_condition_on_all_frozen_layers_follows_the_model():
    values = {"flip": {"choices": [0, 0.5], "when": {"frozen_layers": ["all"]}}, "frozen_layers": [0, "all"]}
    spec = parse_spec({"model": "resnet50", "space": values}).bound(17)
    assert named(spec.parameters(), "flip").when == (("frozen_layers", (17,)),)


@st.composite
def conditional_spaces(draw):
    """A space of choices in which some are used only beside values of earlier ones."""
    space = {name: DEFAULTS[name]["default"] for name in CORE}
    free = st.sampled_from(["epochs", "batch_size", *sorted(set(CRAFT) - {"momentum", "optimizer"})])
    names = draw(st.lists(free, min_size=1, max_size=5, unique=True))
    for i, name in enumerate(names):
        choices = draw(st.lists(value_of(name), min_size=1, max_size=3, unique=True))
        space[name] = {"choices": choices}
        parents = draw(st.lists(st.sampled_from(names[:i]), max_size=2, unique=True)) if i else []
        when = {p: draw(st.lists(st.sampled_from(space[p]["choices"]), min_size=1, unique=True)) for p in parents}
        space[name] |= {"when": when} if when else {}
    return space


@settings(deadline=None)
@given(conditional_spaces())
def test_under_conditions_every_configuration_comes_exactly_once(entries):
    space = parse_space(entries)
    points = list(grid_points(space))
    assert len(points) == grid_size(space) == len({tuple(sorted(p.items())) for p in points})
    # The whole product, with what is not used dropped, and repeats too: the same configurations.
    names = [p.name for p in space]
    kept = set()
    for values in itertools.product(*(p.points() for p in space)):
        params = {}
        for p, value in zip(space, values, strict=True):
            params |= {p.name: value} if p.active(params) else {}
        kept.add(tuple(sorted(params.items())))
    assert {tuple(sorted(p.items())) for p in points} == kept
    default = default_params(space)
    assert list(default) == [name for name in names if named(space, name).active(default)]
    assert all(default[p.name] == p.default for p in space if p.name in default)


@settings(deadline=None)
@given(conditional_spaces())
def test_a_conditional_space_is_a_fixed_point_of_resolved_and_parse(entries):
    spec = parse_spec({"space": entries, "sampler": "grid"})
    again = parse_spec(spec.resolved())
    assert again.parameters() == spec.parameters()
    assert again.resolved() == spec.resolved()
    assert sorted([*spec.resolved()["recipe"], *spec.resolved()["space"]]) == sorted(KNOWN)


def test_a_conditional_grid_beyond_the_limit_is_refused_before_it_is_made():
    wide = {name: {"low": 1, "high": 10_000, "grid": 1000} for name in ("epochs", "batch_size", "unfreeze_epochs")}
    spec = parse_space({**wide, "flip": {"choices": [0, 0.5], "when": {name: [1] for name in wide}}})
    with pytest.raises(FixInput, match=rf"more than {GRID_LIMIT:,}"):
        grid_size(spec)


def test_a_point_of_a_grid_that_is_the_default_but_for_rounding_is_the_default():
    entry = {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-3, "grid": 4}
    (found,) = [p for p in parse_spec({"sampler": "random", "space": {"learning_rate": entry}}).parameters() if p.name == "learning_rate"]
    assert found.grid[1] == 1e-3
    assert len(set(found.grid)) == 4
