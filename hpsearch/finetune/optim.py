"""Optimiser and schedule. Hyperparameters that change are tensors, so that a captured step can read new values."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over torch's fused kernel, with a 0-d tensor learning rate.

    Biases and normalisation scales (one dimension) are not decayed. Built on the functional form: constructing
    `torch.optim.AdamW` imports the compiler, 2 to 7 s of a worker's start.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: Tensor, weight_decay: float) -> None:
        params = list(parameters)
        decayed, plain = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
        self.learning_rate = learning_rate
        self.groups = [(decayed, weight_decay), (plain, 0.0)]
        self.mean: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in params}
        self.square: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in params}
        self.steps: dict[Tensor, Tensor] = {p: torch.zeros((), device=p.device) for p in params}

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by the position of their parameter (not copied)."""
        kinds = {"mean": self.mean, "square": self.square, "steps": self.steps}
        return {f"{kind}.{i}": tensor for kind, tensors in kinds.items() for i, tensor in enumerate(tensors.values())}

    def zero_grad(self) -> None:
        """Forget gradients."""
        for params, _ in self.groups:
            for p in params:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients; a parameter without one is left as it is."""
        for params, weight_decay in self.groups:
            live: list[Tensor] = [p for p in params if p.grad is not None]
            if live:
                adamw(
                    live,
                    [p.grad for p in live if p.grad is not None],
                    [self.mean[p] for p in live],
                    [self.square[p] for p in live],
                    [],
                    [self.steps[p] for p in live],
                    fused=True,
                    amsgrad=False,
                    beta1=0.9,
                    beta2=0.999,
                    lr=self.learning_rate,
                    weight_decay=weight_decay,
                    eps=1e-8,
                    maximize=False,
                )


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate at `step` of `steps`: linear warm-up, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
