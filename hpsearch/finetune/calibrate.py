"""Temperature scaling (Guo et al., 2017): one number that makes probabilities as right as they sound, and changes no prediction.

Notation: N images, K classes; probabilities are softmax(logits / T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15  # of confidence, equally wide
LOWEST, HIGHEST = 0.05, 20.0  # temperatures looked at
GOLDEN = (math.sqrt(5) - 1) / 2
STEPS = 60  # of golden section: log T to 1e-12


@dataclass(frozen=True)
class Calibration:
    """What fitting a temperature came to, measured on the images that it was fitted on."""

    temperature: float
    images: int
    nll_before: float  # nats per image
    nll_after: float
    ece_before: float  # in [0, 1]
    ece_after: float
    reason: str = ""  # why the temperature was left at 1, if so


def nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of logits (N, K) [nats per image]."""
    return float(F.cross_entropy(logits.double() / temperature, labels))


def expected_error(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Expected calibration error (Naeini et al., 2015): |accuracy - confidence|, averaged over the images of BINS equal bins."""
    confidence, predicted = (logits.double() / temperature).softmax(1).max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (0, 1/15], (1/15, 2/15], ...
    excess = (predicted == labels).double() - confidence
    return float(torch.zeros(BINS, dtype=torch.float64, device=logits.device).index_add_(0, bins, excess).abs().sum() / len(labels))


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit T to logits (N, K) and labels (N,) by golden section on log T; the likelihood has one optimum in T.

    Where every image is classified rightly there is none, the likelihood grows as T falls; T stays 1 then.
    """
    logits = logits.double()
    before = nll(logits, labels), expected_error(logits, labels)
    if bool((logits.argmax(1) == labels).all()):
        reason = "every validation image is classified rightly, so nothing says how sure is too sure"
        return Calibration(1.0, len(labels), before[0], before[0], before[1], before[1], reason)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(STEPS):
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if nll(logits, labels, math.exp(a)) <= nll(logits, labels, math.exp(b)):
            high = b
        else:
            low = a
    t = math.exp((low + high) / 2)
    return Calibration(t, len(labels), before[0], nll(logits, labels, t), before[1], expected_error(logits, labels, t))
