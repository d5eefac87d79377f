"""The embedded data set and its splits, against scikit-learn as the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from hpsearch.errors import FixInput
from hpsearch.finetune import data


def test_the_digits_are_scikit_learns_own():
    images, labels = data.digits(8)
    pixels, expected = load_digits(return_X_y=True)
    assert np.array_equal(labels, expected)
    assert np.array_equal(images.numpy().reshape(-1, 64), np.round(pixels * 255 / 16))
    assert data.digits(16)[0].shape == (1797, 1, 16, 16)


def test_splits_are_disjoint_complete_and_stratified():
    _, labels = data.digits(8)
    train, val, test = data.stratify(labels, 5, 400, seed=0)
    assert sorted(np.concatenate([train, val, test])) == list(range(1797))
    assert np.bincount(labels[train]).tolist() == [5] * 10
    assert abs(len(val) - 400) <= 5
    shares = np.bincount(labels[val]) / len(val) - np.bincount(labels) / len(labels)
    assert abs(shares).max() < 0.01


def test_splits_follow_the_seed_and_nothing_else():
    a, b = (data.load("digits", 16, 5, 400, seed=0) for _ in range(2))
    c = data.load("digits", 16, 5, 400, seed=1)
    assert a.digest == b.digest != c.digest
    assert torch.equal(a.train.images, b.train.images)
    assert len(a.train) == 50


@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    per_class=st.integers(1, 10),
    val=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_any_split_is_a_partition_with_every_class_in_every_part_or_is_refused(sizes, per_class, val, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    try:
        parts = data.stratify(labels, per_class, val, seed)
    except FixInput as error:
        assert "too few" in str(error)
        return
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for part in parts:
        assert set(labels[part]) == set(range(len(sizes)))


def test_classes_too_small_are_named():
    with pytest.raises(FixInput, match=r"class 0 has 178 images: too few for 170 training"):
        data.load("digits", 16, 170, 400, seed=0)


def test_normalising_gives_the_mean_and_spread_asked_for():
    x = data.normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), mean=0.25, std=0.5)
    assert x.flatten().tolist() == [-0.5, 1.5]
