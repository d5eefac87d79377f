"""Nearest neighbours by cosine, and what they tell: copies of an image, and labels that their neighbours contradict.

Notation: N images, D features; rows are unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.types import Say, say_nothing

CHUNK = 2**26  # similarities at once, float32
COARSE, FINE = 8, 32  # pixels, sides of the thumbnails that candidates are found by and judged by
CLOSE = 0.2  # distance of unit vectors (cosine 0.98) up to which two images can be near copies
RELATIVE = 0.25  # and this share of the distance at which neighbours usually lie in the data (its upper quartile)
FLAT = 2.0  # grey levels: an image that varies less has no features to compare
MOST = 200_000  # images; the search is quadratic, 20 s for 100,000 on two cores
NEIGHBOURS = 10


class Rows(Protocol):
    """An array, or what gives rows of one: by slice or by positions."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Copies:
    """Pairs of images that show the same, and the groups they form."""

    exact: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int], ...]
    groups: np.ndarray  # (N,) int64: equal for images that are copies of each other
    searched: int  # images among which near copies were looked for


def unit(rows: Tensor) -> Tensor:
    """Rows of (N, D) centred and scaled to length 1."""
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def nearest(rows: Tensor, k: int, say: Say = say_nothing, what: str = "") -> tuple[Tensor, Tensor]:
    """The k most similar other rows of each of (N, D) unit rows: cosines (N, k) and indices (N, k), on the CPU."""
    n, out = len(rows), []
    chunk = max(1, CHUNK // max(1, n))
    for start in range(0, n, chunk):
        cosines = rows[start : start + chunk] @ rows.T
        here = torch.arange(len(cosines), device=rows.device)
        cosines[here, here + start] = -2
        out.append(tuple(t.cpu() for t in cosines.topk(min(k, n - 1), dim=1)))
        say(what, min(start + chunk, n), n)
    return torch.cat([c for c, _ in out]), torch.cat([i for _, i in out])


def find_copies(thumbnails: Rows, digests: np.ndarray, device: torch.device, say: Say = say_nothing) -> Copies:
    """Exact copies by digest, near copies (recompressed, resized, slightly retouched) by what thumbnails (N, 32, 32, 3) show.

    A near copy is nearer than CLOSE, and much nearer than images of this data usually are to their nearest neighbour: small
    grey pictures of one digit resemble each other without being copies. Mirrored or rotated copies are not found.
    """
    n = len(digests)
    order = np.argsort(digests, kind="stable")
    same = digests[order[1:]] == digests[order[:-1]]
    exact = tuple((int(min(a, b)), int(max(a, b))) for a, b in zip(order[:-1][same], order[1:][same], strict=True))
    searched = min(n, MOST)
    near = near_copies(thumbnails, searched, device, say) if searched > 2 else ()
    known = set(exact) | {(i, j) for i, j in near if digests[i] == digests[j]}
    return Copies(exact, tuple(pair for pair in near if pair not in known), joined(n, (*exact, *near)), searched)


def near_copies(thumbnails: Rows, count: int, device: torch.device, say: Say) -> tuple[tuple[int, int], ...]:
    """Pairs (i < j) of the first `count` thumbnails (N, 32, 32, 3) that show nearly the same."""
    small, large = [], []
    for start in range(0, count, 4096):
        pixels = torch.from_numpy(thumbnails[start : min(start + 4096, count)].copy()).permute(0, 3, 1, 2).float()
        small.append(F.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), COARSE).flatten(1))
        large.append(pixels.flatten(1).std(1))
    coarse, spread = torch.cat(small), torch.cat(large)
    rows = (spread > FLAT).nonzero().flatten()  # flat images resemble every flat image
    if len(rows) < 3:
        return ()
    cosines, found = nearest(unit(coarse[rows]).to(device), 4, say, "Looking for copies")
    i, slot = (cosines > 1 - CLOSE**2).nonzero(as_tuple=True)  # twice as generous as CLOSE: judged below
    pairs = torch.stack([rows[i], rows[found[i, slot]]], 1).sort(dim=1).values.unique(dim=0)
    if not len(pairs):
        return ()
    usual = fine_distance(thumbnails, torch.stack([rows, rows[found[:, 0]]], 1)[:: max(1, len(rows) // 2000)])
    limit = min(CLOSE, RELATIVE * usual.quantile(0.75).item())
    limit = limit if limit > 0.01 else CLOSE  # nearly everything is there several times
    close = pairs[fine_distance(thumbnails, pairs) <= limit]
    return tuple((int(a), int(b)) for a, b in close.tolist())


def fine_distance(thumbnails: Rows, pairs: Tensor) -> Tensor:
    """Distance of the unit vectors of each pair's thumbnails."""
    out = []
    for part in pairs.split(4096):
        a, b = (unit(torch.from_numpy(thumbnails[side.numpy()]).float().flatten(1)) for side in part.T)
        out.append((a - b).norm(dim=1))
    return torch.cat(out)


def joined(n: int, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(n,) group of each image: the lowest image that a chain of pairs leads to."""
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(i) for i in range(n)], dtype=np.int64)


@dataclass(frozen=True)
class Votes:
    """What the neighbours in the frozen features say of each label."""

    agreement: np.ndarray  # (N,) share of the neighbours that carry the image's own label
    other: np.ndarray  # (N,) the most frequent other label among them
    support: np.ndarray  # (N,) its share
    accuracy: float  # share of images whose label is the neighbours' most frequent one


def vote(features: Tensor, labels: np.ndarray, copies: np.ndarray) -> Votes:
    """Leave-one-out nearest neighbours (Cover and Hart, 1967) in (N, D) features; copies of an image have no vote on it."""
    k = min(2 * NEIGHBOURS, len(labels) - 1)
    _, found = nearest(F.normalize(features - features.mean(0), dim=1), k)
    allowed = copies[found.numpy()] != copies[:, None]
    counted = allowed & (np.cumsum(allowed, 1) <= NEIGHBOURS)
    total = np.maximum(counted.sum(1), 1)
    theirs = labels[found.numpy()]  # (N, k)
    same = (theirs[:, :, None] == theirs[:, None, :]) & counted[:, None, :]
    ballots = np.where(counted, same.sum(2), 0)  # (N, k) how many of the voters agree with each of them
    mine = theirs == labels[:, None]
    own = (mine & counted).sum(1)
    rivals = np.where(mine, 0, ballots)
    best = rivals.argmax(1)
    support = rivals.max(1)
    return Votes(own / total, theirs[np.arange(len(labels)), best], support / total, float((own > support).mean()))
