"""Out of memory, handled below the search: a batch that does not fit is trained in parts, and keeps its size.

Gradients of the parts add up to those of the batch. With BatchNorm that is trained each part is normalised by its own statistics,
as on several devices (ghost batches; Hoffer et al., 2017); frozen BatchNorm, and networks without it, give the batch's own
gradients but for rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
SMALLEST = 2  # images in a part: BatchNorm cannot normalise one


def ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or in the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def attempt(work: Callable[[], T]) -> T | None:
    """The result, or None when memory ran out; what was allocated is given back."""
    try:
        return work()
    except RuntimeError as error:
        if not ran_out(error):
            raise
    gc.collect()  # after the handler: the error holds the frames, and they the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Parts:
    """In how many parts batches of each shape are trained; learned when memory runs out, and kept for later trials."""

    def __init__(self) -> None:
        self.known: dict[Hashable, int] = {}

    def backward(self, shape: Hashable, batch: Tensor, loss_of: Callable[[Tensor], Tensor], begin: Callable[[], None]) -> Tensor:
        """Add the gradients of the mean loss over the positions in `batch`; returns that loss.

        `begin` forgets gradients and puts random numbers back; it is called before every attempt. Raises RuntimeError when not
        even the smallest parts fit.
        """
        while True:
            parts = self.known.get(shape, 1)

            def whole(parts: int = parts) -> Tensor:
                begin()
                if parts == 1:
                    loss = loss_of(batch)
                    loss.backward()
                    return loss.detach()
                total = torch.zeros((), device=batch.device)
                for part in batch.tensor_split(parts):
                    loss = loss_of(part) * (len(part) / len(batch))
                    loss.backward()
                    total += loss.detach()
                return total

            loss = attempt(whole)
            if loss is not None:
                return loss
            if len(batch) // (2 * parts) < SMALLEST:
                raise RuntimeError(f"out of memory, even with the batch of {len(batch)} images trained in {parts} parts")
            self.known[shape] = 2 * parts
