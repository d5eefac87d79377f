"""The training step, and what makes one step serve every trial of its shape.

Notation: n images in a batch, K classes, k frozen blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed(targets: Tensor, smoothing: Tensor) -> Tensor:
    """Targets (n, K) with a share of their mass spread over all classes (Szegedy et al., 2016)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: Tensor) -> Tensor:
    """Sum over a batch of the cross-entropy [nats] of logits (n, K) with targets (n, K), smoothed.

    `weights` (K,) multiply the classes' terms; torch.nn.functional.cross_entropy divides the same sum by that of `weights[label]`.
    """
    return -(smoothed(targets, smoothing) * weights * F.log_softmax(logits.float(), dim=1)).sum()


@dataclass(frozen=True)
class Shape:
    """What a step is made for: whatever is no number in a tensor."""

    frozen: int
    images: int  # in the batch
    kept: bool  # whether it is given activations, or pixels
    augmented: bool = False
    mixed: bool = False
    kind: str = ""  # of the optimiser
    by_depth: bool = False
    lowest: int = 0  # blocks that stay frozen to the end
    terms: frozenset[str] = frozenset()  # of the regularisation


@dataclass
class Program:
    """Work on tensors of fixed shapes: on CUDA captured once as a graph and replayed with other values, elsewhere called.

    A replay's result is overwritten by the next replay of any program of its pool: use it, or copy it, before.
    """

    work: Callable[..., Tensor]
    graph: torch.cuda.CUDAGraph | None = None
    inputs: tuple[Tensor, ...] = field(default=())
    result: Tensor | None = None

    def __call__(self, *given: Tensor) -> Tensor:
        """The result for these inputs, on the current stream."""
        if self.graph is None:
            return self.work(*given)
        for static, value in zip(self.inputs, given, strict=True):
            static.copy_(value, non_blocking=True)
        self.graph.replay()
        assert self.result is not None
        return self.result

    def capture(self, pool: Any, *examples: Tensor) -> bool:
        """Capture on the current stream, and say True; the work is run once before, so bring back afterwards what it changes."""
        stream = torch.cuda.current_stream()
        self.inputs = tuple(example.clone() for example in examples)
        self.work(*self.inputs)  # cuDNN chooses, libraries allocate what they keep on this stream
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.result = self.work(*self.inputs)
        self.graph = graph
        return True
