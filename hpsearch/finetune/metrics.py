"""Loss and scores from device tensors; one copy to the host per evaluation.

Notation: N images, K classes; confusion[i, j] counts images of class i predicted as j.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.types import PerClass

TOP = 5  # top-5 accuracy says nothing with five classes or fewer, and is left out there


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) float64 counts, rows the true class, columns the predicted one."""
    index = labels * classes + predicted
    return torch.bincount(index, minlength=classes * classes).reshape(classes, classes).double()


def class_scores(matrix: Tensor) -> Tensor:
    """(4, K): images, precision, recall and F1 of each class.

    A class never predicted has precision 0, a class without images recall 0 (scikit-learn's `zero_division=0`).
    """
    right, images = matrix.diagonal(), matrix.sum(1)
    precision = right / matrix.sum(0).clamp(min=1)
    recall = right / images.clamp(min=1)
    f1 = 2 * right / (matrix.sum(0) + images).clamp(min=1)
    return torch.stack([images, precision, recall, f1])


def macro_scores(matrix: Tensor) -> Tensor:
    """(5,) accuracy, balanced accuracy and macro precision, recall, F1 in [0, 1].

    Balanced accuracy (Brodersen et al., 2010) is the mean recall of the classes that have images.
    """
    images, precision, recall, f1 = class_scores(matrix)
    accuracy = matrix.diagonal().sum() / matrix.sum().clamp(min=1)
    balanced = recall.sum() / (images > 0).sum().clamp(min=1)
    return torch.stack([accuracy, balanced, precision.mean(), recall.mean(), f1.mean()])


def evaluate(logits: Tensor, labels: Tensor) -> tuple[dict[str, float], Tensor]:
    """Scores of logits (N, K) against labels (N,), and the confusion matrix, which stays on the device.

    loss [nats per image], accuracy, balanced_accuracy, macro precision, recall and f1; top5 with more than five classes.
    """
    classes = logits.shape[1]
    matrix = confusion(logits.argmax(1), labels, classes)
    values = [F.cross_entropy(logits.double(), labels).reshape(1), macro_scores(matrix)]
    names = ["loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1"]
    if classes > TOP:
        values.append((logits.topk(TOP, dim=1).indices == labels[:, None]).any(1).double().mean().reshape(1))
        names.append("top5")
    return dict(zip(names, torch.cat(values).tolist(), strict=True)), matrix


def per_class(matrix: Tensor) -> PerClass:
    """`class_scores` on the host, four digits: it is stored with every trial."""
    images, *shares = class_scores(matrix).tolist()
    names = ("precision", "recall", "f1")
    return {"images": images, **{name: [round(v, 4) for v in row] for name, row in zip(names, shares, strict=True)}}
