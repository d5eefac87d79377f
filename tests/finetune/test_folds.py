"""Folds: every image is held out exactly once, classes are spread evenly, copies stay together, the test split is not touched."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import FixInput
from hpsearch.finetune import data
from hpsearch.finetune.data import Data, Split

NAMES = tuple(f"class {i}" for i in range(5))


def made(labels, groups=None, shift=0):
    """Data whose images are single pixels: in training, validation and test by turns."""
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    parts = [Split(images, rows, labels[rows]) for rows in (torch.arange((i + shift) % 3, len(labels), 3) for i in range(3))]
    kept = None if groups is None else torch.tensor(groups)[torch.cat([parts[0].rows, parts[1].rows])]
    return Data(NAMES, *parts, "digest", kept)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=120), n=st.integers(2, 6), seed=st.integers(0, 99))
def test_without_copies_folds_are_a_partition_with_every_class_spread_to_within_one_image(labels, n, seed):
    labels = np.array([*labels, *np.repeat(np.unique(labels), n)])  # enough of each
    folds = data.dealt_folds(labels, NAMES, n, seed)
    assert set(folds.tolist()) <= set(range(n))
    for label in np.unique(labels):
        counts = np.bincount(folds[labels == label], minlength=n)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(folds, minlength=n)
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(folds, data.dealt_folds(labels, NAMES, n, seed))


@given(
    images=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=120),
    n=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_copies_stay_together_also_across_classes(images, n, seed):
    labels, groups = (np.array(values) for values in zip(*images, strict=True))
    more = np.repeat(np.unique(labels), n)
    labels, groups = np.concatenate([labels, more]), np.concatenate([groups, 100 + np.arange(len(more))])
    folds = data.dealt_folds(labels, NAMES, n, seed, groups)
    for group in np.unique(groups):
        assert len(set(folds[groups == group].tolist())) == 1
    assert set(range(n)) == set(folds.tolist())


@given(labels=st.lists(st.integers(0, 2), min_size=60, max_size=90), n=st.integers(2, 4), seed=st.integers(0, 9))
def test_every_image_is_validated_on_once_and_the_test_split_never_touched(labels, n, seed):
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2] * n + labels  # each class in every split
    study = made(labels)
    every = sorted([*study.train.rows.tolist(), *study.val.rows.tolist()])
    held = []
    for i in range(n):
        part = data.fold(study, i, n, seed)
        assert part.test is study.test
        assert sorted([*part.train.rows.tolist(), *part.val.rows.tolist()]) == every
        for split in (part.train, part.val):
            assert split.labels.tolist() == [labels[row] for row in split.rows.tolist()]
        held += part.val.rows.tolist()
    assert sorted(held) == every
    assert len({data.fold(study, i, n, seed).digest for i in range(n)} | {study.digest}) == n + 1


def test_folds_follow_the_seed():
    labels = np.arange(100) % 5
    a, b = (data.dealt_folds(labels, NAMES, 5, seed) for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_folds_keep_the_groups_of_an_index():
    groups = [i // 6 for i in range(90)]  # two of each in training, two in validation
    study = made([0, 1] * 45, groups)
    for i in range(3):
        part = data.fold(study, i, 3, 0)
        train, val = ({groups[row] for row in split.rows.tolist()} for split in (part.train, part.val))
        assert not train & val


def test_more_folds_than_images_of_a_class_are_refused_with_what_to_do():
    labels = np.array([0] * 10 + [1] * 4)
    with pytest.raises(FixInput, match=r"5 folds need 5 different .* of each class, and class class 1 has 4: ask for fewer folds"):
        data.dealt_folds(labels, NAMES, 5, 0)
    assert len(data.dealt_folds(labels, NAMES, 4, 0)) == 14
    with pytest.raises(FixInput, match="class class 1 has 3"):  # copies count once
        data.dealt_folds(labels, NAMES, 4, 0, np.array([*range(13), 12]))
