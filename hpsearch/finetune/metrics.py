"""Loss, accuracy, precision, recall and F1 from device tensors; one copy to the host per evaluation.

Notation: N images, K classes; confusion[i, j] counts images of class i predicted as j.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) float64 counts, rows the true class, columns the predicted one."""
    index = labels * classes + predicted
    return torch.bincount(index, minlength=classes * classes).reshape(classes, classes).double()


def macro_scores(matrix: Tensor) -> Tensor:
    """(4,) accuracy and macro precision, recall, F1 in [0, 1].

    A class never predicted has precision 0, a class without images recall 0 (scikit-learn's `zero_division=0`).
    """
    right = matrix.diagonal()
    precision = right / matrix.sum(0).clamp(min=1)
    recall = right / matrix.sum(1).clamp(min=1)
    f1 = 2 * right / (matrix.sum(0) + matrix.sum(1)).clamp(min=1)
    return torch.stack([right.sum() / matrix.sum().clamp(min=1), precision.mean(), recall.mean(), f1.mean()])


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss [nats per image], accuracy, macro precision, recall and F1 of logits (N, K) against labels (N,)."""
    loss = F.cross_entropy(logits.double(), labels)
    scores = macro_scores(confusion(logits.argmax(1), labels, logits.shape[1]))
    values = torch.cat([loss.reshape(1), scores]).tolist()
    return dict(zip(("loss", "accuracy", "precision", "recall", "f1"), values, strict=True))
