from __future__ import annotations

import copy
import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch import recipes, space
from hpsearch.errors import FixInput
from hpsearch.names import check_name
from hpsearch.resources import folder
from hpsearch.spec import ALIASES, PRUNERS, SAMPLERS, SESSION, PrunerSpec, SplitSpec, StudySpec, load_spec, parse_spec


def refusal(*args, **kwargs):
    """The message with which load_spec refuses."""
    with pytest.raises(FixInput) as caught:
        load_spec(*args, **kwargs)
    return str(caught.value)


# ---------------------------------------------------------------- defaults and names


def test_no_file_is_the_embedded_default_and_the_shipped_file_says_the_same():
    plain, shipped = load_spec(), load_spec(folder("studies") / "digits.yaml")
    assert plain.resolved() == shipped.resolved()
    assert (plain.study_name(), plain.sampler, plain.trials) == ("digits-tpe", "tpe", 50)


@pytest.mark.parametrize("file", sorted(folder("studies").glob("*.yaml")), ids=lambda f: f.name)
def test_every_shipped_study_is_a_study(file):
    assert parse_spec(load_spec(file).resolved()).digest() == load_spec(file).digest()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "digits-tpe"),
        ({"sampler": "bayes"}, "digits-gp"),
        ({"seed": 3}, "digits-tpe-s3"),
        ({"name": "mine", "seed": 3}, "mine"),
        ({"data": "/data/My Flowers/"}, "my-flowers-tpe"),
        ({"data": "/data/My Flowers/", "model": "resnet50"}, "my-flowers-resnet50-tpe"),
        ({"model": "nets:small"}, "digits-nets-small-tpe"),
        ({"data": "..."}, "study-tpe"),
        ({"data": "a..b"}, "a-b-tpe"),
        ({"data": "花"}, "study-tpe"),
        ({"data": "x" * 300}, "x" * 40 + "-tpe"),
    ],
)
def test_a_study_without_a_name_is_called_after_data_sampler_and_seed(values, name):
    assert parse_spec(values).study_name() == name


@settings(deadline=None)
@given(st.text(min_size=1), st.sampled_from(SAMPLERS), st.integers(0, 2**31 - 1))
def test_a_made_up_name_is_always_a_valid_one(data, sampler, seed):
    assert check_name(StudySpec(data=data, sampler=sampler, seed=seed).study_name())


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a/b", "a..b", ".a", "-a", "a\n", "é", "x" * 65, "a\\b", "a%2fb", "\ud800"])
def test_a_name_that_is_no_safe_folder_is_refused(name):
    with pytest.raises(FixInput, match=r"cannot be used: take 1 to 64 of a-z 0-9 . _ -.*such as 'flowers-tpe'") as caught:
        parse_spec({"name": name})
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("given_name", "name"), [*ALIASES.items(), *((n, n) for n in (*SAMPLERS, *PRUNERS)), ("TPE", "tpe"), ("Bayes", "gp")]
)
def test_samplers_and_pruners_go_by_name_and_alias_in_any_case(given_name, name):
    spec = parse_spec({"sampler": given_name}) if name in SAMPLERS else parse_spec({"pruner": given_name})
    assert name in (spec.sampler, spec.pruner.name)


# ---------------------------------------------------------------- refusals

BAD = [
    ({"smapler": "tpe"}, "unknown key 'smapler': did you mean 'sampler'?"),
    ({"int": 1}, "unknown key 'int': "),
    ({"on": 1}, "unknown key 'on': "),
    ({"pruner": {"int": 1}}, "unknown key 'pruner.int': "),
    ({"pruner": {"warm_up": 0.1}}, "unknown key 'pruner.warm_up': did you mean 'warmup'?"),
    ({"split": {"train_per_clas": 1}}, "unknown key 'split.train_per_clas': did you mean 'train_per_class'?"),
    ({"space": {"droput": 0.1}}, "unknown hyperparameter 'space.droput': did you mean 'dropout'?"),
    ({"space": {"dropout": {"lo": 0, "high": 1}}}, "unknown key 'space.dropout.lo': did you mean 'low'?"),
    ({"sampler": "tpee"}, "unknown sampler 'tpee': did you mean 'tpe'?"),
    ({"sampler": "baies"}, "unknown sampler 'baies': did you mean 'bayes'?"),
    ({"sampler": "xyzzy"}, "unknown sampler 'xyzzy': known: "),
    ({"sampler": False}, "must be the name of a sampler, got False; known: grid, random, tpe"),
    ({"sampler": "\ud800"}, "unknown sampler '\\ud800'"),
    ({"sampler": None}, "must be the name of a sampler, got None"),
    ({"pruner": "medain"}, "unknown pruner 'medain': did you mean 'median'?"),
    ({"pruner": False}, "must be the name of a pruner, got False; known: none, median"),
    ({"pruner": 3}, "pruner: "),
    ({"pruner": {"name": "patient", "around": "patient"}}, "unknown pruner to wrap 'patient'"),
    ({"pruner": {"warmup": 1.5}}, "pruner.warmup: input should be less than or equal to 1"),
    ({"trials": 0}, "trials: input should be greater than or equal to 1"),
    ({"trials": -1}, "trials: input should be greater"),
    ({"trials": True}, "trials: must be a number, got true (YAML reads yes"),
    ({"trials": 1.5}, "trials: "),
    ({"trials": "many"}, "trials: "),
    ({"trials": int("f" * 5000, 16)}, "trials: "),
    ({"timeout": 0}, "timeout: input should be greater than 0"),
    ({"timeout": float("inf")}, "timeout: input should be a finite number"),
    ({"timeout": True}, "timeout: must be a number"),
    ({"seed": -1}, "seed: "),
    ({"seed": 2**31}, "seed: "),
    ({"workers": 0}, "workers must be 'auto' or 1 to 1024, got 0"),
    ({"workers": -3}, "workers must be 'auto' or 1 to 1024, got -3"),
    ({"workers": "two"}, "workers: input should be 'auto'"),
    ({"workers": True}, "workers: must be a number, got true"),
    ({"objective": "acuracy"}, "unknown objective 'acuracy': did you mean 'accuracy'?"),
    ({"objective": True}, "must be the name of an objective, got True; known: val_loss"),
    ({"data": ""}, "data: string should have at least 1 character"),
    ({"split": {"val": 1.5}}, "split.val: must be a share such as 0.15 or a whole number of images, got 1.5"),
    ({"split": {"val": -0.1}}, "split.val: must be a share"),
    ({"split": {"test": "half"}}, "split.test: must be a share"),
    ({"split": {"test": True}}, "split.test: must be a number, got true"),
    ({"split": 0.2}, "split: input should be a valid dictionary"),
    ({"bad_files": 2}, "bad_files: input should be less than or equal to 1"),
    ({"preprocess": {"sise": 64}}, "unknown key 'preprocess.sise': did you mean 'size'?"),
    ({"preprocess": {"size": 224, "resize": 200}}, "resize 200 is smaller than size 224"),
    ({"preprocess": {"mean": [0.5, 0.5]}}, "mean takes 1 value (gray) or 3"),
    ({"preprocess": {"mean": [0.5], "std": [0.5, 0.5, 0.5]}}, "mean and std must have as many values"),
    ({"preprocess": {"std": [0]}}, "std must be greater than 0"),
    ({"preprocess": {"interpolation": "lanczos"}}, "preprocess.interpolation: input should be 'nearest', 'bilinear' or 'bicubic'"),
    ({"space": {"dropout": "all"}}, "space.dropout must be a number, got 'all'"),
    ({"recipe": {"mixpu": 0.1}}, "unknown setting 'recipe.mixpu': did you mean 'mixup'?"),
    ({"recipe": {"mixup": -1}}, "recipe.mixup must lie between 0 and 1000"),
    ({"recipe": {"mixup": 0.1}, "space": {"mixup": [0, 0.1]}}, "mixup is both searched and fixed: remove space.mixup or recipe.mixup"),
    ({"recipe": None}, "recipe: "),
    ({"data": None}, "data: input should be a valid string"),
    ({"name": 5}, "name: input should be a valid string"),
    ({"space": None}, "space: "),
    ({"space": [1]}, "space: "),
    ({"split": {"train_per_class": 0}}, "split.train_per_class: input should be greater"),
    ({"sampler": "grid", "space": {"dropout": {"low": 0, "high": 0.5}}}, "the grid sampler needs points for 'dropout'"),
    ({"confirm": True}, "confirm: must be written as 3x5"),
    ({"confirm": "3 by 5"}, "confirm: must be written as 3x5"),
    ({"cv": "3x1"}, "cv.times: input should be greater than or equal to 2"),
    ({"confirm": {"tops": 1}}, "unknown key 'confirm.tops': did you mean 'top'?"),
    ({"confirm": "3x5", "cv": 3}, "confirm (fresh seeds) and cv (folds) are two ways to one end"),
    ({"\ud800": 1}, "a key: "),
    ({1: 2}, "1: keys should be strings"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=range(len(BAD)))
def test_a_wrong_value_is_refused_with_its_key_and_the_nearest_name(values, message):
    with pytest.raises(FixInput) as caught:
        parse_spec(values, "my.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == "my.yaml cannot be used:"
    assert any(line.startswith(f"  {message}") or f": {message}" in line for line in lines), lines


def test_all_problems_are_listed_at_once():
    with pytest.raises(FixInput) as caught:
        parse_spec({"smapler": 1, "trials": 0, "pruner": {"nmae": "x"}})
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(("section", "values"), [(StudySpec, {}), (SplitSpec, {"split": {}}), (PrunerSpec, {"pruner": {}})])
def test_no_numeric_field_takes_a_truth_value(section, values):
    numbers = {name: field.default for name, field in section.model_fields.items() if not isinstance(field.default, bool)}
    numeric = [name for name, default in numbers.items() if isinstance(default, (int, float))] + ["timeout"] * (not values)
    for name in numeric:
        wrong = {next(iter(values)): {name: True}} if values else {name: True}
        with pytest.raises(FixInput, match=f"{name}: must be a number, got true"):
            parse_spec(wrong)


@pytest.mark.parametrize(("written", "top", "times"), [("3x5", 3, 5), ("2 × 4", 2, 4), (5, 3, 5), ("5", 3, 5), ({"top": 2}, 2, 3)])
@pytest.mark.parametrize("key", ["confirm", "cv"])
def test_repeats_are_written_in_short(key, written, top, times):
    spec = parse_spec({key: written})
    assert (spec.repeats.top, spec.repeats.times) == (top, times)
    assert spec.digest() == parse_spec({}).digest(), "confirming makes no other study"
    assert parse_spec(spec.resolved()).repeats == spec.repeats


# ---------------------------------------------------------------- merging


def test_flags_win_over_settings_and_settings_over_the_file(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("trials: 10\nseed: 1\nsampler: random\n")
    spec = load_spec(file, ["trials=20", "seed=2"], {"trials": 30, "sampler": None})
    assert (spec.trials, spec.seed, spec.sampler) == (30, 2, "random")


def test_a_pruner_flag_keeps_what_the_file_says_of_pruning(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("pruner: {name: median, warmup: 0.5}\n")
    spec = load_spec(file, flags={"pruner": "patient"})
    assert (spec.pruner.name, spec.pruner.warmup) == ("patient", 0.5)


@pytest.mark.parametrize(
    ("file", "settings_", "written"),
    [
        ({}, ["space.dropout=0.2"], {"value": 0.2}),
        ({}, ["space.dropout=[0.1, 0.2]"], {"choices": [0.1, 0.2], "default": 0.1}),
        ({}, ["space.dropout.value=2e-1"], {"value": 0.2}),
        ({}, ["space.dropout.low=0.2"], {"low": 0.2, "high": 0.5, "default": 0.2, "grid": [0.3]}),
        ({}, ["space.dropout.high=0.2"], {"low": 0.0, "high": 0.2, "default": 0.1, "grid": [0.0]}),
        ({}, ["space.dropout.default=0.3"], {"low": 0.0, "high": 0.5, "default": 0.3, "grid": [0.0, 0.3]}),
        ({}, ["space.dropout.grid=2"], {"low": 0.0, "high": 0.5, "default": 0.1, "grid": [0.0, 0.5]}),
        ({}, ["space.batch_size.choices=[16, 64]"], {"choices": [16, 64], "default": 16, "grid": [16]}),
        ({}, ["space.batch_size.low=4", "space.batch_size.high=6"], {"low": 4, "high": 6, "default": 6}),
        ({"space": {"batch_size": [16, 64]}}, ["space.batch_size.default=64"], {"choices": [16, 64], "default": 64}),
        ({"space": {"batch_size": 16}}, ["space.batch_size.choices=[4, 8]"], {"choices": [4, 8], "default": 8}),
        ({"space": {"batch_size": None}}, ["space.batch_size.default=16"], {"choices": [8, 16, 32], "default": 16, "grid": [8, 16]}),
        ({"space": None}, ["space.dropout=0.2"], {"value": 0.2}),
    ],
)
def test_a_setting_changes_one_thing_and_drops_what_contradicts_it(tmp_path, file, settings_, written):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(file))
    name = settings_[0].split(".")[1].split("=")[0]
    assert load_spec(tmp_path / "s.yaml", settings_).resolved()["space"][name] == written


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("", "--set takes KEY=VALUE"),
        ("a", "--set takes KEY=VALUE such as space.dropout=0.1, got 'a'"),
        ("=1", "--set takes KEY=VALUE"),
        ("a..b=1", "--set takes KEY=VALUE"),
        (".=1", "--set takes KEY=VALUE"),
        ("space.dropout.low.x=1", "--set takes KEY=VALUE"),
        ("a" + ".a" * 50_000 + "=1", "--set takes KEY=VALUE"),
        ("smapler=tpe", "unknown key 'smapler': did you mean 'sampler'?"),
        ("pruner.warmpu=1", "unknown key 'pruner.warmpu': did you mean 'warmup'?"),
        ("space.dropuot=0.1", "unknown hyperparameter 'space.dropuot': did you mean 'dropout'?"),
        ("space.dropout.hgih=0.1", "unknown key 'space.dropout.hgih': did you mean 'high'?"),
        ("space.dropout.low=0.9", "low 0.9 is greater than high 0.5"),
        ("space.dropout.log=true", "a log scale needs low > 0"),
        ("space.dropout.choices=5", "choices must be a list"),
        ("space.dropout.choices=null", "choices must be a list"),
        ("space.dropout.choices={a: 1}", "choices must be a list"),
        ("space.dropout.low=x", "must be a number, got 'x'"),
        ("space.dropout.low=[1]", "must be a number, got [1]"),
        ("trials=[", "--set trials=[ is not YAML"),
        ("trials=!!python/name:os.system x", "python/name:os.system' is not allowed"),
        ("trials=yes", "trials: must be a number, got true"),
        ("\udc80=1", "a key: "),
        ("data=\udc80", "unacceptable character"),
    ],
    ids=range(23),
)  # fmt: skip
def test_a_wrong_setting_is_refused(setting, message):
    text = refusal(None, [setting])
    assert message in text
    assert len(text) < 500


@pytest.mark.parametrize("wrong", ["default: x", "default: [1]", "grid: [[1]]", "grid: [x]", "grid: {}"])
def test_a_setting_on_top_of_a_broken_entry_is_refused_too(tmp_path, wrong):
    (tmp_path / "s.yaml").write_text(f"space: {{dropout: {{low: 0, high: 0.5, {wrong}}}}}")
    for setting in ("space.dropout.low=0.1", "space.dropout.high=0.4"):
        assert "space.dropout" in refusal(tmp_path / "s.yaml", [setting])


@pytest.mark.parametrize(
    ("file", "settings_", "recipe", "entry"),
    [
        ({}, ["recipe.flip=0.5"], 0.5, None),
        ({"recipe": {"flip": 0.2}}, ["recipe.flip=0.5"], 0.5, None),
        ({"space": {"flip": [0, 0.5]}}, ["recipe.flip=0.5"], 0.5, None),
        ({"recipe": {"flip": 0.2}}, ["space.flip=[0, 1]"], None, {"choices": [0.0, 1.0], "default": 0.0}),
        ({"recipe": {"flip": 0.2}}, ["space.flip.default=0.5"], None, {"choices": [0.0, 0.5], "default": 0.5}),
        ({}, ["space.mixup.high=0.3"], None, {"low": 0.0, "high": 0.3, "default": 0.0, "grid": [0.0, 0.2]}),
        ({"space": {"dropout": {"low": 0, "high": 0.2}}}, ["recipe.dropout=0.1"], 0.1, None),
        ({"space": {"color": [0, 0.2]}}, ["recipe.colour=0.1"], 0.1, None),
        ({"recipe": {"colour": 0.3}}, ["recipe.color=0.1"], 0.1, None),
        ({"space": {"colour": [0, 0.2]}}, ["space.color.default=0.2"], None, {"choices": [0.0, 0.2], "default": 0.2}),
    ],
)
def test_a_setting_fixes_or_searches_whatever_the_file_says(tmp_path, file, settings_, recipe, entry):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(file))
    name = settings_[0].split("=")[0].split(".")[1].replace("color", "colour")
    resolved = load_spec(tmp_path / "s.yaml", settings_).resolved()
    assert (resolved["recipe"].get(name), resolved["space"].get(name)) == (recipe, entry)


def test_a_setting_never_changes_the_built_in_ranges():
    before = copy.deepcopy(dict(recipes.DEFAULTS))
    load_spec(None, ["space.dropout.low=0.2", "space.batch_size.choices=[64]", "space.learning_rate.grid=3"])
    assert dict(recipes.DEFAULTS) == before


# ---------------------------------------------------------------- what depends on data and model


def test_a_split_keeps_what_it_leaves_out_of_its_datas_default():
    assert parse_spec({}).split == SplitSpec(train_per_class=5, val=400)
    assert parse_spec({"split": {"train_per_class": 2}}).split == SplitSpec(train_per_class=2, val=400)
    assert parse_spec({"data": "photos"}).split == SplitSpec(val=0.15, test=0.15)
    assert parse_spec({"data": "photos", "split": {"train_per_class": 9}}).split == SplitSpec(train_per_class=9, val=0.15)
    assert parse_spec({"data": "photos", "split": {"test": 0}}).split == SplitSpec(val=0.15, test=0)
    assert load_spec(None, ["split.val=0.3"], {"data": "photos"}).split == SplitSpec(val=0.3, test=0.15)


def test_a_model_for_photographs_has_its_own_default_space():
    small, large = parse_spec({}), parse_spec({"model": "resnet50"})
    assert {p.name: p.default for p in large.parameters()}["batch_size"] == 32
    assert small.parameters() != large.parameters()
    changed = load_spec(None, ["space.batch_size.default=16"], {"model": "resnet50"})
    assert next(p for p in changed.parameters() if p.name == "batch_size").choices == (16, 32, 64)


@pytest.mark.parametrize(
    "entry", ["all", {"value": "all"}, ["all"], {"low": 0, "high": "all", "grid": [0, 17, "all"]}, {"low": "all", "high": "all"}]
)
def test_all_layers_are_the_models_own_number_once_that_is_known(entry):
    spec = parse_spec({"model": "resnet50", "space": {"frozen_layers": entry}}).bound(17)
    frozen = next(p for p in spec.parameters() if p.name == "frozen_layers")
    assert 17 in (frozen.high, *frozen.choices)
    assert frozen.grid in ((), (0, 17))
    assert parse_spec(spec.resolved()).bound(17).digest() == spec.digest()


def test_a_setting_below_all_leaves_no_point_beyond_it():
    spec = load_spec(None, ["space.frozen_layers.high=9"], {"model": "resnet50"}).bound(17)
    frozen = next(p for p in spec.parameters() if p.name == "frozen_layers")
    assert (frozen.low, frozen.high, frozen.grid) == (0, 9, (0,))


@pytest.mark.parametrize("entry", [18, [0, 18], {"low": 0, "high": 18}])
def test_more_frozen_layers_than_the_model_has_are_refused(entry):
    with pytest.raises(FixInput, match="goes up to 18, but resnet50 has 17 blocks"):
        parse_spec({"model": "resnet50", "space": {"frozen_layers": entry}}).bound(17)


def test_all_frozen_layers_can_be_fixed_in_the_recipe():
    spec = parse_spec({"model": "resnet50", "recipe": {"frozen_layers": "all"}})
    assert spec.bound(17).resolved()["recipe"]["frozen_layers"] == 17
    with pytest.raises(FixInput, match=r"recipe.frozen_layers is 18, but resnet50 has 17 blocks"):
        parse_spec({"model": "resnet50", "recipe": {"frozen_layers": 18}}).bound(17)


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ({}, "1a61fe82aa899433"),
        ({"data": "photos", "model": "resnet50", "space": {"dropout": 0.1}}, "974cc5c684726834"),
        ({"sampler": "grid", "seed": 3, "space": {"epochs": [2, 4], "dropout": {"low": 0, "high": 0.5, "grid": 3}}}, "37b85e8494ac007d"),
    ],
)
def test_studies_from_before_there_was_a_recipe_keep_their_identity(values, digest):
    assert parse_spec(values).digest() == digest
    assert parse_spec({**values, "recipe": {"optimizer": "adamw", "mixup": 0}}).digest() == digest


@settings(deadline=None)
@given(st.data())
def test_every_setting_is_either_in_the_resolved_recipe_or_in_the_space(data):
    """What the kernel reads: one value of everything that a trial does not bring."""
    names = data.draw(st.lists(st.sampled_from(sorted(recipes.KNOWN)), unique=True))
    fixed = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    choices = {name: recipes.DEFAULTS[name].get("choices", [recipes.DEFAULTS[name]["default"]]) for name in names}
    recipe = {name: recipes.DEFAULTS[name]["default"] for name in fixed}
    searched = {
        name: choices[name] for name in names if name not in fixed and (name != "momentum" or "optimizer" in set(names) - set(fixed))
    }
    spec = parse_spec({"recipe": recipe, "space": searched})
    resolved = json.loads(json.dumps(spec.resolved()))
    assert sorted([*resolved["recipe"], *resolved["space"]]) == sorted(recipes.KNOWN)
    assert {name: resolved["recipe"][name] for name in fixed} == recipe
    assert parse_spec(resolved).resolved() == resolved
    assert parse_spec(resolved).digest() == spec.digest()


def test_a_default_written_out_changes_nothing_but_what_is_unusual_does():
    assert parse_spec({"recipe": {"mixup": 0.2}}).identity()["recipe"] == {"mixup": 0.2}
    assert "recipe" not in parse_spec({"recipe": {"mixup": 0}}).identity()
    assert parse_spec({"recipe": {"epochs": 15}}).identity()["recipe"] == {"epochs": 15}  # else it would be searched


def test_the_session_may_change_without_changing_the_study():
    one = parse_spec({"name": "a", "trials": 1, "workers": 1})
    two = parse_spec({"name": "b", "trials": 9, "workers": 2, "timeout": 5})
    assert one.digest() == two.digest()
    assert not set(SESSION) & set(one.identity())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"sampler": "random"},
        {"pruner": "none"},
        {"split": {"val": 300}},
        {"objective": "f1"},
        {"preprocess": {"size": 32}},
        {"weights": "none"},
        {"model": "resnet18"},
        {"space": {"dropout": 0.1}},
        {"recipe": {"flip": 0.5}},
        {"space": {"optimizer": ["adamw", "sgd"]}},
        {"data": "x"},
        {"threads": 2},
    ],
)
def test_what_makes_trials_comparable_is_the_identity(change):
    assert parse_spec(change).digest() != parse_spec({}).digest()


def test_the_resolved_study_is_plain_json():
    values = parse_spec({"space": {"dropout": {"low": 0, "high": 0.5, "grid": 3}}}).resolved()
    assert json.loads(json.dumps(values)) == values


def test_the_digest_of_the_default_study_follows_from_its_text_alone():
    assert parse_spec({}).digest() == parse_spec(load_spec().resolved()).digest()
    assert len(parse_spec({}).digest()) == 16


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_spec({}).trials = 3


# ---------------------------------------------------------------- anything a user can type

WORDS = st.sampled_from(
    [
        *StudySpec.model_fields,
        *PrunerSpec.model_fields,
        *recipes.KNOWN,
        *space.ENTRY_KEYS,
        *SAMPLERS,
        *PRUNERS,
        "int",
        "on",
        "no",
        "auto",
        "1e-3",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63])
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=4)
    | WORDS
)
KEYS = WORDS | st.text(st.characters(codec="utf-8"), max_size=6)
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10)
STUDIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(StudySpec.model_fields, NESTED),
        "pruner": st.dictionaries(st.sampled_from([*PrunerSpec.model_fields, "int"]), LEAVES, max_size=3) | NESTED,
        "space": st.dictionaries(
            st.sampled_from(sorted(recipes.KNOWN)),
            st.dictionaries(st.sampled_from(space.ENTRY_KEYS), NESTED, max_size=4) | NESTED,
            max_size=3,
        )
        | NESTED,
        "recipe": st.dictionaries(st.sampled_from(sorted(recipes.KNOWN)), LEAVES, max_size=3) | NESTED,
    },
)
SETTINGS = st.lists(
    st.builds(
        "{}={}".format,
        st.lists(WORDS, min_size=1, max_size=4).map(".".join)
        | st.builds("space.{}.{}".format, st.sampled_from(sorted(recipes.KNOWN)), st.sampled_from(space.ENTRY_KEYS)),
        NESTED.map(lambda v: yaml.safe_dump(v, default_flow_style=True).strip().removesuffix("...")) | st.text(max_size=6),
    )
    | st.text(),
    max_size=3,
)


def accepted(path, settings_=()):
    """Load; what is refused is refused by FixInput, and what is accepted resolves to itself."""
    with suppress(FixInput):
        spec = load_spec(path, settings_)
        resolved = spec.resolved()
        assert parse_spec(resolved).resolved() == resolved


@settings(max_examples=300, deadline=None)
@given(STUDIES | st.dictionaries(KEYS, NESTED, max_size=4), SETTINGS)
def test_arbitrary_values_in_a_file_are_read_or_refused(tmp_path_factory, values, settings_):
    file = tmp_path_factory.getbasetemp() / "values.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    accepted(file)
    accepted(file, settings_)


@settings(deadline=None)
@given(st.text() | st.builds("{}: {}".format, WORDS, st.text()))
def test_arbitrary_text_in_a_file_is_read_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "text.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    accepted(file)


@settings(max_examples=300, deadline=None)
@given(SETTINGS)
def test_arbitrary_settings_are_taken_or_refused(settings_):
    accepted(None, settings_)


@settings(deadline=None)
@given(STUDIES)
def test_arbitrary_python_values_are_read_or_refused(values):
    with suppress(FixInput):
        parse_spec(values)
