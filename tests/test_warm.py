"""A study that begins with the best of an earlier one, or with known recipes: what fits, what is said, what comes first, what stays."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.cli import main
from hpsearch.errors import FixInput, FixSetup, NotFound
from hpsearch.finetune.names import TORCHVISION
from hpsearch.portfolio import CONVOLUTIONAL, EMBEDDED, PORTFOLIO, TRANSFORMERS, family
from hpsearch.recipes import ALL, DEFAULTS, KNOWN, checked
from hpsearch.search.catalog import read_study
from hpsearch.search.headstart import NOTHING, begin, find_source, head_start, whole
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.space import default_params, grid_points, parse_space
from hpsearch.spec import SAMPLERS, load_spec, parse_spec
from hpsearch.types import Outcome, Status, StoredStudy, best_record, point_key
from hpsearch.warm import Remark, fit, sentences
from tests.contracts.test_searcher import CRAFT, SMALL, check_conditions, run
from tests.test_main_job import QUICK, hpsearch
from tests.test_space import conditional_spaces, entries, value_of

BLOCKS = 6

# ---------------------------------------------------------------- fitting


@st.composite
def configurations(draw):
    """Any settings at all: of the catalogue, unknown ones, values of another kind."""
    names = draw(st.lists(st.sampled_from(sorted(KNOWN)), max_size=8, unique=True))
    wild = st.one_of(st.none(), st.booleans(), st.integers(-3, 20_000), st.floats(), st.sampled_from(["all", "sgd", "adamw", "x", ""]))
    known = {name: draw(st.one_of(value_of(name), wild)) for name in names}
    return known | draw(st.dictionaries(st.text(max_size=5).filter(lambda name: name not in KNOWN), wild, max_size=2))


@st.composite
def spaces(draw):
    """A parsed space, with conditions or with ranges."""
    if draw(st.booleans()):
        return parse_space(draw(conditional_spaces()))
    given_entries = dict(draw(st.lists(entries(), max_size=6)))
    return parse_space(given_entries | ({"optimizer": ["adamw", "sgd"]} if "momentum" in given_entries else {}))


@settings(deadline=None)
@given(configurations(), spaces())
def test_whatever_comes_the_fitted_configuration_lies_in_the_space_under_its_conditions(params, space):
    fitted, remarks = fit(params, space)
    check_conditions(fitted, space)
    named = {p.name: p for p in space}
    told = {remark.name for remark in remarks}
    for name, value in fitted.items():
        assert type(value) is type(checked(name, value, name))  # as Optuna and JSON will give it back
        if name not in params or name in told:
            assert value == named[name].default
    for name in params:  # taken or told
        assert name in told or (name in fitted and fitted[name] == checked(name, params[name], name))
    assert fit(fitted, space) == (fitted, ())
    assert json.loads(json.dumps(fitted)) == fitted
    assert bool(sentences(remarks)) == bool(remarks)
    assert len(sentences(remarks)) == len({remark.kind for remark in remarks})


@settings(deadline=None)
@given(st.data())
def test_every_configuration_of_a_space_fits_it_as_it_is(data):
    space = parse_space(data.draw(conditional_spaces()))
    for point in list(grid_points(space))[:50]:
        assert fit(point, space) == (point, ())


def test_what_hangs_on_another_value_goes_and_comes_with_it():
    space = parse_space(CRAFT)
    sgd, remarks = fit({"optimizer": "sgd", "momentum": 0.7, "mixup": 0.2, "schedule": "cosine"}, space)
    assert (sgd["momentum"], "mixup" in sgd) == (0.7, False)
    assert [(r.kind, r.name) for r in remarks] == [("unused", "mixup")]
    adamw, remarks = fit({"optimizer": "adamw", "momentum": 0.7, "mixup": 0.2, "schedule": "cosine"}, space)
    assert ("momentum" in adamw, adamw["mixup"]) == (False, 0.2)
    assert [(r.kind, r.name) for r in remarks] == [("unused", "momentum")]
    new, remarks = fit({"optimizer": "sgd"}, space)
    assert (new["momentum"], remarks) == (0.9, ())  # newly active: its default


def test_misfits_are_told_once_a_kind_with_their_values():
    space = parse_space({"frozen_layers": {"low": 0, "high": 18}, "epochs": 6, "optimizer": ["adamw", "sgd"]})
    given_params = [{"frozen_layers": n, "mixup": 0.2, "epochs": 9, "learning_rate": 0.5, "momentum": 0.9} for n in (40, 41, 42, 43, 40)]
    remarks = [remark for params in given_params for remark in fit(params, space)[1]]
    assert sentences([r for r in remarks if r.name != "momentum"]) == [
        "learning_rate 0.5 does not fit 0.0001 to 0.03 (default 0.001 instead); "
        "frozen_layers 40, 41, 42 and 1 more do not fit 0 to 18 (default 0 instead)",
        "epochs is fixed at 6 here (not 9)",
        "mixup is not searched here (0.2 not taken)",
    ]
    optimizers = parse_space({"optimizer": ["adamw", "sgd"], "momentum": [0.8, 0.9]})
    assert sentences(fit({"momentum": 0.9}, optimizers)[1]) == ["momentum is not used beside what was taken (0.9)"]
    assert sentences(fit({"optimizer": "lion"}, optimizers)[1]) == ["optimizer lion does not fit adamw, sgd (default adamw instead)"]
    assert sentences([]) == []


# ---------------------------------------------------------------- the portfolio


def test_every_recipe_is_of_the_catalogue_has_a_source_and_comes_once():
    for recipes in PORTFOLIO.values():
        assert 4 <= len(recipes) <= 6
        for recipe in recipes:
            assert recipe.source
            for name, value in recipe.settings.items():
                known = ALL if value == "all" else value
                assert checked(name, value, name) == known
        assert len({point_key(recipe.settings) for recipe in recipes}) == len(recipes)


def test_the_page_of_the_study_file_lists_every_recipe():
    page = (Path(__file__).parent.parent / "docs" / "study-file.md").read_text()
    for kind, recipes in PORTFOLIO.items():
        for recipe in recipes:
            listed = ", ".join(f"`{k}` {v:g}" if isinstance(v, float) else f"`{k}` {v}" for k, v in recipe.settings.items())
            assert f"| {kind} | {listed} | {recipe.source} |" in page


def test_every_model_has_a_family():
    families = {name: family(name) for name in TORCHVISION}
    transformers = {name for name, kind in families.items() if kind == TRANSFORMERS}
    assert {name.split("_")[0] for name in transformers} == {"vit", "swin", "maxvit"}
    assert families["convnext_tiny"] == families["resnet50"] == family("mine:net") == family("vit_like.nets:make_cnn") == CONVOLUTIONAL
    assert family("glyphnet") == EMBEDDED
    assert set(PORTFOLIO) == {EMBEDDED, CONVOLUTIONAL, TRANSFORMERS}


@pytest.mark.parametrize("model", ["glyphnet", "resnet50", "vit_b_16", "mine:net"])
def test_most_recipes_open_a_study_of_the_defaults_and_all_one_of_everything(model):
    plain = parse_spec({"model": model, "portfolio": True}).bound(BLOCKS)
    found = head_start(plain, None, BLOCKS)
    assert 4 <= len(found.trials) <= 6
    configs = [params for _, params in found.trials]
    for params in configs:
        check_conditions(params, plain.parameters())
    assert len({point_key(p) for p in (*configs, default_params(plain.parameters()))}) == len(configs) + 1
    assert sum(p["frozen_layers"] == BLOCKS for p in configs) == 1  # a head alone: `all`
    kind = family(model)
    assert f"Portfolio: {len(configs)} of {len(PORTFOLIO[kind])} recipes for {kind} open this study" in found.remarks[0]
    wide = {"learning_rate": {"low": 1e-6, "high": 1.0, "log": True}, "optimizer": ["adamw", "sgd"], "momentum": {"low": 0, "high": 0.99}}
    rich = parse_spec({"model": model, "portfolio": True, "space": wide}).bound(BLOCKS)
    assert len(head_start(rich, None, BLOCKS).trials) == len(PORTFOLIO[kind])


def test_a_recipe_without_its_optimizer_depth_or_rate_is_left_out_and_counted():
    def opening(**more):
        spec = parse_spec({"model": "resnet50", "portfolio": True, **more}).bound(18)
        return head_start(spec, None, 18)

    adamw = opening(trials=3)
    assert len(adamw.trials) == 4
    assert adamw.remarks == (
        "Portfolio: 4 of 6 recipes for convolutional networks open this study "
        "(2 need another learning rate, optimizer or depth than it has)",
        "Portfolio: the budget of 3 trials leaves room for 2 of these",
    )
    unfrozen = opening(recipe={"frozen_layers": 0})
    assert len(unfrozen.trials) == 3
    slow = opening(space={"learning_rate": {"low": 1e-5, "high": 2e-4, "log": True}})
    assert [params["learning_rate"] for _, params in slow.trials] == [1e-4]
    sgd = opening(recipe={"optimizer": "sgd"}, space={"learning_rate": [3e-3, 1e-2]})
    assert [params["learning_rate"] for _, params in sgd.trials] == [1e-2, 3e-3]
    one = opening(recipe={"learning_rate": 1e-3})  # which is what the study wants; the rest of each recipe is worth trying
    assert len(one.trials) == 4
    nothing = opening(recipe={"optimizer": "sgd", "frozen_layers": 3})
    assert nothing.trials == ()
    assert "none of 6 recipes" in nothing.remarks[0]


def test_of_several_models_each_has_its_turn():
    models = ["resnet18", "vit_b_16", "efficientnet_b0"]
    spec = parse_spec({"data": "x", "portfolio": True, "space": {"model": models}}).bound(18)
    found = head_start(spec, None, 18)
    assert [params["model"] for _, params in found.trials] == [*models, *models]
    for _, params in found.trials:
        check_conditions(params, spec.parameters())
    assert found.remarks == ("Portfolio: 6 of 6 recipes for convolutional networks and transformers open this study",)


# ---------------------------------------------------------------- studies in a storage


def spec_of(name, sampler="random", space=None, **more):
    return parse_spec({"name": name, "sampler": sampler, "pruner": "none", "space": SMALL if space is None else space, **more})


def opened(url, spec, say=lambda *_: None):
    """A searcher as a session makes it."""
    source = find_source(url, spec)
    storage = open_storage(url, create=True)
    return OptunaSearcher(spec, storage, begin(storage, spec, source, BLOCKS, say))


def first(url, n=12, **more):
    """An earlier study."""
    s = opened(url, spec_of("first", **more))
    records = run(s, n)
    s.close()
    return records


def ranked(records):
    return sorted(records, key=lambda r: (r.cost, r.number))


def test_the_best_trials_of_another_study_come_right_after_the_default_recipe(url):
    earlier = first(url)
    said = []
    s = opened(url, spec_of("second", warm_start="first"), lambda text, *_: said.append(text))
    records = run(s, 10)
    s.close()
    assert [r.origin for r in records] == ["default", *["warm"] * 5, *["sampled"] * 4]
    best = [r.params for r in ranked(earlier) if r.number]  # the default recipe comes first in any case
    expected = [r.params for r in ranked(earlier)[:5] if r.number]
    assert [r.params for r in records[1 : 1 + len(expected)]] == expected == best[: len(expected)]
    assert said == ["Warm start from first: its 5 best trials open this study"]
    assert read_study(open_storage(url), "second").headstart == tuple(said)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "cmaes"])
def test_an_interrupted_study_goes_on_with_the_same_list_without_asking_again(url, sampler):
    first(url)
    spec = spec_of("second", sampler, warm_start="first", portfolio=True)
    whole_study = opened(url, replace_name(spec, "whole"))
    expected = [(r.origin, r.params) for r in run(whole_study, 14)]
    whole_study.close()
    s = opened(url, spec)
    found = run(s, 2)
    s.ask(1)  # cut off
    s.close()
    optuna.delete_study(study_name="first", storage=url)
    said = []
    s = opened(url, spec, lambda text, *_: said.append(text))
    found += run(s, 4)
    s.close()
    s = opened(url, spec_of("second", sampler))  # without the flags
    found += run(s, 14)
    s.close()
    if sampler == "grid":  # the order of points is drawn from the seed alone
        assert len(found) == len(expected)
    assert [(r.origin, r.params) for r in found] == expected
    assert [r.attempt for r in found] == [1, 1, 2, *[1] * (len(found) - 3)]
    kept = "ignored, this study has 3 trials already and keeps the ones it began with"
    assert said == [f"Warm start from first: {kept}", f"Portfolio: {kept}"]
    stored = read_study(open_storage(url), "second")
    assert len([r for r in stored.records if r.origin in ("warm", "portfolio")]) > 5
    assert stored.headstart[0].startswith("Warm start from first: its 5 best trials")


def replace_name(spec, name):
    return parse_spec(spec.resolved() | {"name": name})


def test_a_grid_visits_each_of_its_points_once_whatever_it_begins_with(url):
    first(url, 20, sampler="grid")
    spec = spec_of("second", "grid", warm_start={"study": "first", "top": 8}, portfolio=True, trials=10_000)
    s = opened(url, spec)
    size = s.size(10_000)
    records = run(s, 30)
    s.close()
    s = opened(url, spec)
    records += run(s, 10_000)
    assert s.ask(1) == ()
    s.close()
    keys = [point_key(r.params) for r in records]
    grid = {point_key(p) for p in grid_points(spec.parameters())}
    assert len(keys) == len(set(keys)) == size
    assert grid <= set(keys)
    warm = {point_key(r.params) for r in records if r.origin == "warm"}
    assert warm & grid  # counted as the points that they are
    others = [r for r in records if point_key(r.params) not in grid]
    assert {r.origin for r in others} <= {"default", "warm", "portfolio"}


def test_optuna_and_its_samplers_see_ordinary_trials(url):
    first(url, 30, sampler="tpe")
    spec = spec_of("second", "tpe", warm_start={"study": "first", "top": 10}, trials=40)
    s = opened(url, spec)
    run(s, 12)
    s.close()
    warm = optuna.load_study(study_name="second", storage=url)
    assert [t.state for t in warm.trials] == [optuna.trial.TrialState.COMPLETE] * 12
    assert all(t.params.keys() == t.distributions.keys() for t in warm.trials)
    # ten trials are known when trial 11 is drawn: it is modelled on them, and not what a study without them draws
    cold = opened(url, spec_of("cold", "tpe", trials=40))
    other = run(cold, 12)
    cold.close()
    assert warm.trials[11].params != {k: v for k, v in other[11].params.items() if k in warm.trials[11].params}


def test_a_space_of_conditions_takes_and_tells(url):
    first(url, 25, space=CRAFT, recipe={"colour": 0.3})
    said = []
    space = {**CRAFT, "frozen_layers": {"low": 0, "high": 1}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "grid": 2}}
    space.pop("schedule"), space.pop("mixup")
    spec = spec_of("second", space=space, warm_start={"study": "first", "top": 20}, trials=60)
    s = opened(url, spec, lambda text, *_: said.append(text))
    records = run(s, 21)
    s.close()
    assert {r.origin for r in records[:5]} == {"default", "warm"}
    for record in records:
        check_conditions(record.params, spec.parameters())
    text = "\n".join(said)
    assert "colour is not searched here (0.3 not taken)" in text
    assert "schedule is not searched here (step not taken)" in text
    assert "frozen_layers" in text
    assert "do not fit 0 to 1 (default 0 instead)" in text
    assert len(said) <= 5


def test_what_the_earlier_study_fixed_is_taken_where_it_is_searched_now(url):
    first(url, 6, recipe={"flip": 0.5, "optimizer": "sgd", "momentum": 0.8})
    space = {**SMALL, "flip": [0.0, 0.5], "optimizer": ["adamw", "sgd"], "momentum": {"low": 0.5, "high": 0.99}, "cutmix": [0.0, 1.0]}
    said = []
    s = opened(url, spec_of("second", space=space, warm_start="first"), lambda text, *_: said.append(text))
    records = run(s, 4)
    s.close()
    assert {(r.params["flip"], r.params["optimizer"], r.params["momentum"], r.params["cutmix"]) for r in records[1:]} == {
        (0.5, "sgd", 0.8, 0.0)
    }
    assert len(said) == 1


def test_all_blocks_of_one_model_are_all_blocks_of_another():
    stored = StoredStudy("s", {"model": "glyphnet", "recipe": {"momentum": 0.9, "mixup": 0.0, "optimizer": "adamw"}}, {"blocks": 6}, ())
    configuration = whole(stored, {"frozen_layers": 6, "learning_rate": 1e-3})
    assert configuration == {"model": "glyphnet", "mixup": 0.0, "optimizer": "adamw", "learning_rate": 1e-3, "frozen_layers": "all"}
    assert whole(stored, {"frozen_layers": 5})["frozen_layers"] == 5
    fitted = fit({"frozen_layers": 18}, parse_spec({"model": "resnet50"}).bound(18).parameters())[0]
    assert fitted["frozen_layers"] == 18


def test_trials_are_ranked_by_the_objective_and_only_complete_ones_count(url):
    s = opened(url, spec_of("first", objective="accuracy"))
    shares = [0.5, 0.9, 0.99, 0.7, 0.1, 0.8]
    for number, share in enumerate(shares):
        (trial,) = s.ask(1)
        status = Status.FAILED if number == 2 else Status.COMPLETE
        s.tell(Outcome(trial.number, status, 1.0, 1, 0.1, {"accuracy": share}, trial.params))
    records = {r.number: r.params for r in s.records()}
    s.close()
    source = find_source(url, spec_of("second", objective="accuracy", warm_start={"study": "first", "top": 3}))
    rates = [configuration["learning_rate"] for configuration in source.configurations]
    assert rates == [records[n]["learning_rate"] for n in (1, 5, 3)]


def test_equal_configurations_count_once(url):
    records = first(url, 3)
    storage = open_storage(url, create=True)
    study = optuna.load_study(study_name="first", storage=storage)
    best = best_record(records)
    again = storage.get_all_trials(study._study_id)[best.number]
    study.add_trial(again)
    storage.engine.dispose()
    source = find_source(url, spec_of("second", warm_start="first"))
    assert len(source.configurations) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"warm_start": "frist"}, NotFound, "no study 'frist': did you mean 'first'?"),
        ({"warm_start": "first", "name": "first"}, FixInput, "called 'first' too: choose another --name"),
        ({"warm_start": "first", "objective": "f1"}, FixInput, "give this study --objective val_loss, or begin with a study of f1"),
        ({"warm_start": "empty"}, NotFound, "no trial of 'empty' is complete, so there is nothing to begin with: run it on"),
        ({"warm_start": "foreign"}, FixInput, "'foreign' was not made by hpsearch"),
    ],
)
def test_a_source_that_is_none_is_refused_with_its_remedy(url, changes, error, message):
    first(url, 2)
    opened(url, spec_of("empty")).close()
    optuna.create_study(study_name="foreign", storage=url)
    with pytest.raises(error, match=message.replace("?", r"\?")):
        find_source(url, spec_of(**{"name": "second", **changes}))
    with pytest.raises(FixSetup, match="run a study first, or name another with --storage"):
        find_source(url.replace("hpsearch.db", "other.db"), spec_of("second", warm_start="first"))


def test_a_command_that_failed_before_its_first_trial_begins_anew(url):
    first(url, 8)
    opened(url, spec_of("second", portfolio=True)).close()  # no trial was asked for
    s = opened(url, spec_of("second"))
    assert s.lead == ()
    s.close()
    s = opened(url, spec_of("second", warm_start={"study": "first", "top": 2}))
    assert {origin for origin, _ in s.lead} == {"warm"}
    s.close()


def test_a_head_start_is_no_part_of_the_identity_and_round_trips():
    plain, warm = parse_spec({}), parse_spec({"warm_start": {"study": "a", "top": 2}, "portfolio": True})
    assert plain.digest() == warm.digest()
    assert parse_spec(warm.resolved()).resolved() == warm.resolved()
    assert parse_spec({"warm_start": "a"}).warm_start.top == 5
    assert load_spec(None, ["warm_start.top=3"], {"warm_start": "a"}).warm_start.model_dump() == {"study": "a", "top": 3}
    assert load_spec(None, ["warm_start=b", "warm_start.top=3"]).warm_start.model_dump() == {"study": "b", "top": 3}
    assert head_start(plain, None, BLOCKS) == NOTHING


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "warm_start=3"], 2, "warm_start: must be the name of a study in the same storage, got 3"),
        (["--set", "warm_start={studi: a}"], 2, "unknown key 'warm_start.studi': did you mean 'study'?"),
        (["--set", "warm_start={study: a, top: 0}"], 2, "warm_start.top: input should be greater than or equal to 1"),
        (["--set", "portfolio=5"], 2, "portfolio: input should be a valid boolean"),
        (["--warm-start", "digits-tpe"], 2, "choose another --name"),
        (["--warm-start", "flowers"], 1, "there is no storage"),
    ],
)
def test_a_bad_head_start_ends_with_its_remedy_and_creates_nothing(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["run", *arguments])
    assert result.exit_code == code
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_both_from_the_command_line_on_the_embedded_data(tmp_path):
    done = hpsearch(tmp_path, "run", "--trials", "6", "--portfolio", "--no-tracking", *QUICK)
    assert done.returncode == 0, done.stderr
    # of five recipes two are as deep as this space wants it
    assert "Portfolio: 2 of 5 recipes for the embedded model open this study (3 need another learning rate" in done.stdout
    ended = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert sum(line.removesuffix("  best").endswith("  portfolio") for line in ended) == 2
    trials = json.loads(hpsearch(tmp_path, "show", "--json").stdout)["trials"]
    assert [t["origin"] for t in trials] == ["default", "portfolio", "portfolio", "sampled", "sampled", "sampled"]
    command = ["run", "--trials", "4", "--warm-start", "digits-tpe", "--name", "second", "--no-tracking", *QUICK[:2]]
    command += ["--set", "space.frozen_layers=[0, 5]"]
    second = hpsearch(tmp_path, *command)
    assert second.returncode == 0, second.stderr
    assert "Warm start from digits-tpe: its 5 best trials" in second.stdout
    assert "Warm start: frozen_layers 6 does not fit 0, 5 (default 0 instead)" in second.stdout
    assert "leaves room for 3 of these" in second.stdout
    again = hpsearch(tmp_path, *command, "--portfolio")
    assert "Warm start from digits-tpe: ignored, this study has 4 trials already" in again.stdout
    assert "Portfolio: ignored" in again.stdout
    page = (tmp_path / "hpsearch-runs" / "second" / "report.html").read_text()
    assert "Warm start from digits-tpe: its 5 best trials" in page
    runs = json.loads(hpsearch(tmp_path, "show", "second", "--json").stdout)["trials"]
    assert [t["origin"] for t in runs] == ["default", "warm", "warm", "warm"]


def test_remarks_compare_by_value():
    assert Remark("outside", "dropout", 0.9) == Remark("outside", "dropout", 0.9, "", None)
    assert DEFAULTS["frozen_layers"]["high"] == BLOCKS
