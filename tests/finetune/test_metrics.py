"""Scores against scikit-learn as the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    top_k_accuracy_score,
)

from hpsearch.finetune import metrics


@given(classes=st.integers(2, 8), n=st.integers(1, 50), seed=st.integers(0, 10_000))
def test_scores_are_scikit_learns(classes, n, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, classes)), rng.integers(0, classes, n)
    found, matrix = metrics.evaluate(torch.tensor(logits), torch.tensor(labels))
    predicted, every = logits.argmax(1), list(range(classes))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=every, average="macro", zero_division=0)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = {"accuracy": accuracy_score(labels, predicted), "precision": precision, "recall": recall, "f1": f1}
    expected["loss"] = log_loss(labels, probabilities, labels=every)
    expected["balanced_accuracy"] = recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    if classes > 5:
        expected["top5"] = top_k_accuracy_score(labels, logits, k=5, labels=every)
    assert found == pytest.approx(expected)
    table = metrics.per_class(matrix)
    single = precision_recall_fscore_support(labels, predicted, labels=every, average=None, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "images"), single, strict=True):
        assert table[name] == pytest.approx(values.tolist(), abs=1e-4)
    assert np.array_equal(matrix.numpy(), confusion_matrix(labels, predicted, labels=every))
