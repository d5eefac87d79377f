"""The embedded data set and how labelled images are divided, against scikit-learn as the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from hpsearch.errors import FixInput
from hpsearch.finetune import data
from hpsearch.finetune.images import Preprocessing

GRAY = Preprocessing(16, 16, (0.32,), (0.31,))
DIGITS = {"train_per_class": 5, "val": 400, "test": None}


def cut(labels, seed=0, given=None, groups=None, **split):
    classes = [f"class {i}" for i in range(int(max(labels)) + 1)]
    return data.divide(np.array(labels), classes, {"train_per_class": None, "val": None, "test": None, **split}, seed, given, groups)


def test_the_digits_are_scikit_learns_own():
    images, labels = data.digits(8)
    pixels, expected = load_digits(return_X_y=True)
    assert np.array_equal(labels, expected)
    assert np.array_equal(images.numpy().reshape(-1, 64), np.round(pixels * 255 / 16))
    assert data.digits(16)[0].shape == (1797, 1, 16, 16)


def test_the_embedded_splits_are_disjoint_complete_and_stratified():
    _, labels = data.digits(8)
    parts = cut(labels, **DIGITS)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
    assert np.bincount(labels[parts["train"]]).tolist() == [5] * 10
    assert abs(len(parts["val"]) - 400) <= 5
    shares = np.bincount(labels[parts["val"]]) / len(parts["val"]) - np.bincount(labels) / len(labels)
    assert abs(shares).max() < 0.01


def test_splits_follow_the_seed_and_nothing_else():
    a, b = (data.embedded(GRAY, DIGITS, seed=0) for _ in range(2))
    c = data.embedded(GRAY, DIGITS, seed=1)
    assert a.digest == b.digest != c.digest
    assert torch.equal(a.train.pixels(), b.train.pixels())
    assert len(a.train) == 50


def test_a_colour_model_sees_the_gray_digits_in_three_equal_channels():
    colour = data.embedded(Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3), DIGITS, seed=0)
    pixels = colour.train.pixels()
    assert pixels.shape == (50, 3, 32, 32)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


shares = st.one_of(st.floats(0.05, 0.4), st.integers(1, 30))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), val=shares, test=shares, seed=st.integers(0, 99))
def test_shares_give_a_partition_with_every_class_in_every_part_or_are_refused(sizes, val, test, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    try:
        parts = cut(labels, seed, val=val, test=test)
    except FixInput as error:
        assert "too few" in str(error)
        return
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for name, part in parts.items():
        assert set(labels[part]) == set(range(len(sizes))), name
        if name != "train":
            asked = {"val": val, "test": test}[name]
            expected = asked * len(labels) if asked < 1 else asked
            assert abs(len(part) - expected) <= len(sizes)  # each class is rounded, to at least one


@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    per_class=st.integers(1, 10),
    val=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_so_many_a_class_leaves_the_rest_for_testing_or_is_refused(sizes, per_class, val, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    try:
        parts = cut(labels, seed, train_per_class=per_class, val=val)
    except FixInput as error:
        assert "too few" in str(error)
        return
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    assert np.bincount(labels[parts["train"]]).tolist() == [per_class] * len(sizes)
    assert all(set(labels[part]) == set(range(len(sizes))) for part in parts.values())


def test_so_many_a_class_with_a_test_share_leaves_the_others_unused():
    parts = cut([0] * 50 + [1] * 50, train_per_class=5, val=0.1, test=0.2)
    assert {name: len(part) for name, part in parts.items()} == {"train": 10, "val": 10, "test": 20}
    assert len(np.unique(np.concatenate(list(parts.values())))) == 40


def test_splits_that_the_data_brings_stay_and_only_what_is_missing_is_cut_from_training():
    given = ["train"] * 40 + ["test"] * 10 + [None] * 10
    parts = cut([i % 2 for i in range(60)], given=given, val=0.2, test=0.5)
    assert parts["test"].tolist() == list(range(40, 50))
    assert len(parts["val"]) == 10  # a fifth of the 50 that are not for testing
    assert sorted([*parts["train"], *parts["val"]]) == [*range(40), *range(50, 60)]
    whole = cut([0, 1] * 3, given=["train", "train", "val", "val", "test", "test"], val=0.2, test=0.2)
    assert {name: part.tolist() for name, part in whole.items()} == {"train": [0, 1], "val": [2, 3], "test": [4, 5]}


def test_no_test_split_where_none_is_asked_for():
    parts = cut([0, 1] * 10, val=0.2, test=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 16, "val": 4, "test": 0}


@given(seed=st.integers(0, 500), pairs=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=20))
def test_copies_of_an_image_are_never_divided_even_under_two_labels(seed, pairs):
    groups = np.arange(60)
    for a, b in pairs:
        groups[groups == groups[b]] = groups[a]
    try:
        parts = cut([i % 3 for i in range(60)], seed, groups=groups, val=0.2, test=0.2)
    except FixInput:
        return
    home = {i: name for name, part in parts.items() for i in part.tolist()}
    assert sorted(home) == list(range(60))
    assert all(len({home[i] for i in np.flatnonzero(groups == g)}) == 1 for g in groups)


def test_classes_too_small_are_named():
    with pytest.raises(FixInput, match=r"class class 1 has 3 images: too few for 2 validation, 1 test, 1 training images; add"):
        cut([0] * 30 + [1] * 3, val=0.5, test=0.2)
    with pytest.raises(FixInput, match=r"class 0 has 178 images: too few for 170 training, 40 validation, 1 test images \(and 9 more"):
        data.embedded(GRAY, {**DIGITS, "train_per_class": 170}, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_of_copies_is_trained_on_and_never_swells_a_smaller_split(seed):
    groups = np.arange(100)
    groups[50:] = 50  # half of the images are frames of one film
    parts = cut([0] * 100, seed, groups=groups, val=0.15, test=0.15)
    assert {name: len(part) for name, part in parts.items()} == {"train": 70, "val": 15, "test": 15}
    assert set(range(50, 100)) <= set(parts["train"].tolist())


def test_normalising_gives_the_mean_and_spread_asked_for_per_channel():
    x = data.normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), mean=(0.25,), std=(0.5,))
    assert x.flatten().tolist() == [-0.5, 1.5]
    colour = data.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), (0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    assert colour.flatten().tolist() == [1.0, 1.0, 0.0]


def test_an_index_gives_the_same_data_back_from_the_file(tmp_path):
    pixels = torch.arange(6 * 3 * 4 * 4, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(6, 3, 4, 4)
    (tmp_path / "images.u8").write_bytes(pixels.numpy().tobytes())
    labels = np.array([0, 1, 0, 1, 0, 1])
    parts = {"train": np.array([0, 1]), "val": np.array([2, 3]), "test": np.array([4, 5])}
    made = data.assemble(pixels, labels, ["ä", "b"], parts, "content")
    each = {name: labels[part] for name, part in parts.items()}
    data.save_index(tmp_path / "split.npz", tmp_path / "images.u8", pixels.shape, made.classes, parts, each, made.digest)
    found = data.from_index(tmp_path / "split.npz")
    assert (found.classes, found.digest) == (("ä", "b"), made.digest)
    for name in data.SPLITS:
        a, b = getattr(made, name), getattr(found, name)
        assert torch.equal(a.pixels(), b.pixels())
        assert torch.equal(a.labels, b.labels)
    assert torch.equal(found.val.pixels(torch.tensor([1])), pixels[3:4])
