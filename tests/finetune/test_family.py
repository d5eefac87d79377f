"""Several models and folds on one device: each trial is trained as a kernel of its own would train it."""

import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import make_folder

from hpsearch.errors import FixInput
from hpsearch.finetune import data as datasets
from hpsearch.finetune import names, prepare
from hpsearch.finetune.family import Family, Member
from hpsearch.finetune.kernel import FineTuneKernel
from hpsearch.spec import parse_spec
from hpsearch.types import Job, Outcome, Progress, Setup, Status, Trial
from tests.contracts.test_kernel import timeless
from tests.kernels import PARAMS

SMALL, SMALLER = "shufflenet_v2_x0_5", "squeezenet1_1"
TWO = {"weights": "none", "preprocess": {"size": 32}, "space": {"model": [SMALL, "glyphnet"]}}
SHORT = {**PARAMS, "epochs": 2, "batch_size": 16}


def config(values, **own):
    return parse_spec(values).resolved() | {"folder": "", "threads": 1, "device": "cpu", "precision": "fp32", "memory": 2**28} | own


def train(kernel, number=0, setup=None, **params):
    """All items of one trial's session, without times."""
    job = Job(0, (Trial(number, {**SHORT, **params}, setup=setup),))
    return [timeless(item) for step in kernel.session(job) for item in step]


def fold(i, n=3):
    return Setup(f"cv-{i}", 0, fold=i, folds=n)


@pytest.fixture(scope="module")
def family():
    return Family(config(TWO))


# ---------------------------------------------------------------- one model


def test_one_model_without_folds_is_the_kernel_itself_to_the_bit():
    one, kernel = Family(config({})), FineTuneKernel(config({}))
    assert one.facts() == kernel.facts()
    for number, params in enumerate(({"dropout": 0.4}, {"frozen_layers": 3}, {"frozen_layers": 6, "flip": 0.5})):
        assert train(one, number, **params) == train(kernel, number, **params)
    assert one.kernels.keys() == {Member("glyphnet")}
    assert one.kernel(Member("glyphnet")).resident().features.budget == kernel.resident().features.budget
    assert one.worn() == ""


# ---------------------------------------------------------------- several


def test_each_model_trains_as_by_itself_whatever_ran_before(family):
    trials = [(SMALL, {"dropout": 0.3}), ("glyphnet", {"frozen_layers": 4}), (SMALL, {"frozen_layers": 2}), ("glyphnet", {})]
    for number, (model, params) in enumerate(trials):
        alone = FineTuneKernel(config({"model": model, "weights": "none", "preprocess": {"size": 32}}))
        *progress, outcome = train(family, number, model=model, **params)
        *expected, ended = train(alone, number, **params)
        assert progress == expected
        assert outcome.status is Status.COMPLETE
        assert outcome.effective == {**ended.effective, "model": model}


def test_a_trial_without_a_model_has_the_default_recipes(family):
    assert train(family)[:-1] == train(family, model=SMALL)[:-1]


def test_facts_say_what_each_model_is_and_the_most_blocks(family):
    facts = family.facts().values
    assert facts["model"] == SMALL
    assert list(facts["models"]) == [SMALL, "glyphnet"]
    assert facts["models"]["glyphnet"]["blocks"] == 6
    assert facts["models"][SMALL] == {key: facts[key] for key in ("parameters", "image_size", "weights")} | {"blocks": facts["blocks"]}


def test_facts_load_the_default_model_alone_where_the_others_are_known():
    known = {name: {"parameters": 1, "blocks": blocks, "image_size": 32, "weights": ""} for name, blocks in ((SMALL, 20), ("glyphnet", 30))}
    family = Family(config(TWO, models=known, data_digest="of all"))
    facts = family.facts().values
    assert (facts["blocks"], facts["models"], facts["data_digest"]) == (30, known, "of all")
    assert family.loaded(Member("glyphnet")) is None


def test_more_frozen_layers_than_a_model_has_freeze_all_of_it_and_the_outcome_says_how_many(family):
    *progress, outcome = train(family, model="glyphnet", frozen_layers=20)
    *expected, same = train(family, model="glyphnet", frozen_layers=6)
    assert progress == expected
    assert outcome.effective["frozen_layers"] == same.effective["frozen_layers"] == 6


def test_a_number_of_frozen_layers_that_is_fixed_is_cut_too():
    family = Family(config({**TWO, "recipe": {"frozen_layers": 20}}))
    params = {name: value for name, value in SHORT.items() if name != "frozen_layers"}
    items = [item for step in family.session(Job(0, (Trial(0, {**params, "model": "glyphnet"}),))) for item in step]
    assert items[-1].status is Status.COMPLETE


def test_a_core_setting_with_a_condition_is_at_its_default_where_it_does_not_hold():
    space = {"model": [SMALL, "glyphnet"], "dropout": {"low": 0.0, "high": 0.5, "default": 0.3, "when": {"model": ["glyphnet"]}}}
    family, params = Family(config({**TWO, "space": space})), {name: value for name, value in SHORT.items() if name != "dropout"}
    left_out, given = (
        [timeless(item) for step in family.session(Job(0, (Trial(0, p),))) for item in step] for p in (params, {**params, "dropout": 0.3})
    )
    assert left_out[:-1] == given[:-1]
    assert left_out[-1].status is Status.COMPLETE


def test_an_unknown_model_fails_its_trial_alone(family):
    (outcome,) = train(family, model="resnet18")
    assert outcome.status is Status.FAILED
    assert "resnet18" in outcome.error


def test_models_share_the_memory_for_kept_activations(family):
    for model in (SMALL, "glyphnet"):
        assert family.kernel(Member(model)).resident().features.budget == 2**27


def test_trials_of_two_models_at_once_draw_numbers_of_their_own():
    """Both networks drop out at random, by turns on one device."""
    together = Family(config(TWO, trials_per_device=2))
    jobs = [(0, SMALL), (1, "glyphnet"), (2, SMALL), (3, "glyphnet")]
    sessions = {n: together.session(Job(n, (Trial(n, {**SHORT, "dropout": 0.5, "model": model}),))) for n, model in jobs}
    found = {n: [] for n in sessions}
    while sessions:
        for n in list(sessions):
            step = next(sessions[n], None)
            if step is None:
                del sessions[n]
            else:
                found[n] += map(timeless, step)
    owners = [slot.index for kernel in together.kernels.values() for slot in kernel.resident().packing.slots]
    assert len(set(owners)) == 4
    for n, model in jobs:
        assert found[n] == train(Family(config(TWO)), n, model=model, dropout=0.5)


# ---------------------------------------------------------------- folds


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A prepared study of a folder of pictures, some of which are copies."""
    base = tmp_path_factory.mktemp("family")
    folder = make_folder(base / "pictures", {"one": 24, "two": 18})
    for i in range(3):
        (folder / "one" / f"copy{i}.png").write_bytes((folder / "one" / f"{i}.png").read_bytes())
    spec = {"data": str(folder), "model": SMALL, "weights": "none", "preprocess": {"size": 32}}
    cfg = config(spec, folder=str(base), bad_files=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPSEARCH_CACHE", str(base / "cache"))
        prepared = prepare.prepare(cfg)
    return cfg | {"index": prepared.index, "folder": ""}


def test_a_fold_is_trained_as_a_study_with_that_division(pictures, tmp_path):
    """Slow twin: the division written into an index by hand."""
    study = datasets.from_index(datasets.Path(pictures["index"]))
    assert study.groups is not None
    rows, labels = (np.concatenate([getattr(s, key).numpy() for s in (study.train, study.val)]) for key in ("rows", "labels"))
    groups = study.groups.numpy()
    folds = datasets.dealt_folds(labels, study.classes, 3, pictures["seed"], groups)
    family = Family(pictures)
    with np.load(pictures["index"]) as index:
        images, shape = datasets.Path(str(index["images"])), tuple(index["shape"])
    for i in range(3):
        parts = {"train": rows[folds != i], "val": rows[folds == i], "test": study.test.rows.numpy()}
        each = {"train": labels[folds != i], "val": labels[folds == i], "test": study.test.labels.numpy()}
        datasets.save_index(tmp_path / "by-hand.npz", images, shape, study.classes, parts, each, "by hand")
        twin = FineTuneKernel(pictures | {"index": str(tmp_path / "by-hand.npz")})
        for params in ({"dropout": 0.2}, {"frozen_layers": 5}):
            assert train(family, setup=fold(i), **params)[:-1] == train(twin, **params)[:-1]


def test_copies_reach_the_index(pictures):
    study = datasets.from_index(datasets.Path(pictures["index"]))
    assert len(study.groups) == len(study.train) + len(study.val)
    assert len(torch.unique(study.groups)) < len(study.groups)
    for i in range(3):
        digests = [
            {bytes(pixels.numpy().tobytes()) for pixels in split.pixels()}
            for part in [datasets.fold(study, i, 3, 0)]
            for split in (part.train, part.val)
        ]
        assert not digests[0] & digests[1]


def test_one_fold_of_a_model_is_resident_and_none_once_the_search_goes_on():
    family = Family(config(TWO))
    train(family, model="glyphnet", frozen_layers=2)
    train(family, model=SMALL, frozen_layers=2)
    own = family.loaded(Member(SMALL)).features
    assert own.kept
    for i in range(3):
        train(family, model=SMALL, setup=fold(i), frozen_layers=2)
        assert [member for member in family.kernels if member.fold] == [Member(SMALL, (i, 3))]
        assert not own.kept
    train(family, model="glyphnet", setup=fold(1))
    assert {member for member in family.kernels if member.fold} == {Member(SMALL, (2, 3)), Member("glyphnet", (1, 3))}
    train(family, model=SMALL, frozen_layers=2)
    assert own.kept
    assert family.kernels.keys() == {Member(SMALL), Member("glyphnet")} == family.context.built.keys() - {"crowd"}
    crowd = family.context.built["crowd"]
    assert crowd.slots.keys() == {0, 2}
    assert crowd.busy == set()


def test_a_fold_that_is_done_with_gives_its_memory_back():
    family, known = Family(config(TWO)), []
    for i in range(3):
        train(family, model=SMALL, setup=fold(i), frozen_layers=2)
        member = Member(SMALL, (i, 3))
        known += [[weakref.ref(thing) for thing in (family.kernels[member], family.loaded(member).model, family.loaded(member).features)]]
    assert [[ref() is None for ref in refs] for refs in known] == [[True] * 3, [True] * 3, [False] * 3]


def test_a_fold_keeps_its_activations_while_other_models_train_on_it():
    family = Family(config(TWO))
    train(family, model=SMALL, setup=fold(0), frozen_layers=2)
    kept = dict(family.loaded(Member(SMALL, (0, 3))).features.kept)
    train(family, 1, model="glyphnet", setup=fold(0), frozen_layers=2)
    train(family, model=SMALL, setup=fold(0), frozen_layers=2)
    now = family.loaded(Member(SMALL, (0, 3))).features.kept
    assert now.keys() == kept.keys()
    assert all(now[key] is kept[key] for key in kept)


def test_another_fold_waits_while_one_is_at_work():
    family = Family(config({}, trials_per_device=2))
    first = family.session(Job(0, (Trial(0, SHORT, setup=fold(0)),)))
    next(first)
    second = family.session(Job(1, (Trial(1, SHORT, setup=replace(fold(1), like=1)),)))
    assert next(second) == next(second) == ()
    assert family.kernels.keys() == {Member("glyphnet", (0, 3))}
    found = [timeless(item) for step in first for item in step]
    assert isinstance(found[-1], Outcome)
    rest = [timeless(item) for step in second for item in step]
    assert rest == train(Family(config({})), 1, setup=replace(fold(1), like=1))


def test_a_search_trial_and_a_fold_of_one_model_at_once():
    family = Family(config({}, trials_per_device=2))
    sessions = [family.session(Job(n, (Trial(n, SHORT, setup=setup),))) for n, setup in ((0, None), (1, replace(fold(1), like=1)))]
    found = [[], []]
    for _ in range(1000):
        for session, items in zip(sessions, found, strict=True):
            items += map(timeless, next(session, ()))
    assert found[0] == train(Family(config({})), 0)
    assert found[1] == train(Family(config({})), 1, setup=replace(fold(1), like=1))


def test_a_session_that_is_closed_leaves_its_fold_free():
    family = Family(config({}))
    session = family.session(Job(0, (Trial(0, SHORT, setup=fold(0)),)))
    next(step for step in session if any(isinstance(item, Progress) for item in step))
    session.close()
    assert train(family, 1, setup=fold(1))[-1].status is Status.COMPLETE


# ---------------------------------------------------------------- prepared together


@pytest.fixture
def several(tmp_path, monkeypatch):
    """The configuration of a study of two models on a folder of pictures."""
    monkeypatch.setenv("HPSEARCH_CACHE", str(tmp_path / "cache"))
    folder = make_folder(tmp_path / "pictures", {"one": 20, "two": 20})
    values = {"data": str(folder), "weights": "none", "preprocess": {"size": 32}, "space": {"model": [SMALL, "glyphnet"]}}
    return config(values, folder=str(tmp_path), bad_files=0.5)


def test_models_are_prepared_on_one_division_with_pixels_of_their_own(several):
    prepared = prepare.prepare(several)
    assert list(prepared.indexes) == list(prepared.models) == [SMALL, "glyphnet"]
    assert prepared.blocks == max(about["blocks"] for about in prepared.models.values())
    first, second = (datasets.from_index(datasets.Path(index)) for index in prepared.indexes.values())
    assert first.train.images.shape[1:] == (3, 32, 32)
    assert second.train.images.shape[1:] == (1, 32, 32)
    for name, split in first.splits().items():
        assert torch.equal(split.labels, second.splits()[name].labels)
    family = Family(several | {"indexes": prepared.indexes, "models": prepared.models, "data_digest": prepared.digest})
    facts = family.facts()
    assert facts.values["models"] == prepared.models
    assert facts.values["data_digest"] == prepared.digest
    for model in prepared.indexes:
        assert train(family, model=model)[-1].status is Status.COMPLETE
        assert family.facts().values["models"][model] == Family(several | {"indexes": prepared.indexes}).facts().values["models"][model]


def test_digests_tell_when_a_further_model_is_another(several, monkeypatch):
    before = prepare.prepare(several)
    assert prepare.prepare(several) == before
    other = several | {"space": {"model": {"choices": [SMALL, SMALLER]}}}
    assert prepare.prepare(other).weights_digest != before.weights_digest


def test_models_that_can_use_other_images_are_refused(several, monkeypatch):
    load = prepare.load

    def fewer(cfg, pre, say):
        loaded = load(cfg, pre, say)
        return loaded if pre.channels == 3 else replace(loaded, names=loaded.names[:-1], labels=loaded.labels[:-1])

    monkeypatch.setattr(prepare, "load", fewer)
    with pytest.raises(FixInput, match=r"glyphnet can use other images than shufflenet.*leave glyphnet out of space.model"):
        prepare.prepare(several)


def test_wrong_weights_of_any_model_are_found_before_the_first_trial(several, tmp_path, monkeypatch):
    (tmp_path / "family_models.py").write_text("def broken(num_classes):\n    raise RuntimeError('no such thing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FixInput, match="no such thing"):
        prepare.prepare(several | {"space": {"model": {"choices": [SMALL, "family_models:broken"]}}})
    sys.modules.pop("family_models", None)


def test_more_folds_than_images_are_refused_when_preparing(several):
    with pytest.raises(FixInput, match="40 folds need 40 different"):
        prepare.prepare(several | {"cv": {"top": 1, "times": 40}})
    assert prepare.prepare(several | {"cv": {"top": 1, "times": 5}}).models


def test_the_models_of_a_configuration():
    assert names.choices_of({"model": "a"}) == ("a",)
    assert names.choices_of(config(TWO)) == (SMALL, "glyphnet")
    assert names.choices_of(config({**TWO, "model": "glyphnet"})) == ("glyphnet", SMALL)
