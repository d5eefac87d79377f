"""Copies of images and doubtful labels, on real photographs and real digits."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from hpsearch.finetune import data, neighbours
from tests.finetune.photographs import recompressed, resized, thumbnails, tiles

CPU = torch.device("cpu")


def test_the_nearest_rows_are_scikit_learns():
    rows = neighbours.unit(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    cosines, found = neighbours.nearest(rows, 5)
    distances, expected = NearestNeighbors(n_neighbors=6).fit(rows.numpy()).kneighbors(rows.numpy())
    assert np.array_equal(found.numpy(), expected[:, 1:])
    assert np.allclose(2 - 2 * cosines.numpy(), distances[:, 1:] ** 2, atol=1e-5)


def test_chunks_do_not_change_what_is_found(monkeypatch):
    rows = neighbours.unit(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)))
    whole = neighbours.nearest(rows, 3)
    monkeypatch.setattr(neighbours, "CHUNK", 7 * 50)
    assert torch.equal(neighbours.nearest(rows, 3)[1], whole[1])


@pytest.mark.parametrize("retouch", [recompressed, resized, lambda p: np.clip(p.astype(int) + 6, 0, 255).astype(np.uint8)])
def test_near_copies_of_photographs_are_found_and_nothing_else(retouch):
    pictures = list(tiles())
    copied = range(0, 96, 12)
    pictures += [retouch(pictures[i]) for i in copied]
    copies = neighbours.find_copies(thumbnails(pictures), np.arange(len(pictures)), CPU)
    expected = {(original, len(tiles()) + k) for k, original in enumerate(copied)}
    assert set(copies.near) <= expected
    assert len(copies.near) >= 0.7 * len(expected), copies.near
    assert copies.exact == ()
    assert all(copies.groups[i] == copies.groups[j] for i, j in copies.near)
    assert len(set(copies.groups)) == len(pictures) - len(copies.near)


def test_digits_that_resemble_each_other_are_no_copies():
    small = data.digits(32)[0].expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    assert neighbours.find_copies(small, np.arange(len(small)), CPU).near == ()


def test_exact_copies_are_found_by_digest_in_chains():
    digests = np.array([b"a", b"b", b"a", b"c", b"a", b"b"])
    flat = np.full((6, 32, 32, 3), 200, np.uint8)  # flat images resemble each other and are not judged
    copies = neighbours.find_copies(flat, digests, CPU)
    assert set(copies.exact) == {(0, 2), (2, 4), (1, 5)}
    assert copies.near == ()
    assert copies.groups.tolist() == [0, 1, 0, 3, 0, 1]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_very_few_images_have_no_copies(n):
    copies = neighbours.find_copies(thumbnails(tiles()[:3])[:n], np.arange(n), CPU)
    assert (copies.near, copies.groups.tolist()) == ((), list(range(n)))


def test_wrong_labels_are_found_among_digits_and_few_right_ones_doubted():
    images, labels = data.digits(8)
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(labels), 36, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    votes = neighbours.vote(images.flatten(1).float(), given, np.arange(len(labels)))
    suspects = np.flatnonzero((votes.agreement <= 0.1) & (votes.support >= 0.7))
    assert len(set(suspects) & set(wrong)) >= 0.9 * len(wrong)
    assert len(set(suspects) - set(wrong)) <= 0.01 * len(labels)
    assert all(votes.other[i] == labels[i] for i in set(suspects) & set(wrong))
    assert votes.accuracy == pytest.approx(0.965, abs=0.02)


def test_copies_of_an_image_have_no_vote_on_it():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    features = torch.cat([features, features[:1].repeat(12, 1)])
    labels = np.array([0] + [1] * 39 + [0] * 12)  # an image and its twelve copies under a label that nobody else has
    copies = np.array([*range(40), *[0] * 12])
    assert neighbours.vote(features, labels, copies).agreement[0] == 0
    assert neighbours.vote(features, labels, np.arange(52)).agreement[0] == 1
