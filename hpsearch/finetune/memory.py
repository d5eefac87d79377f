"""Memory: how much a trial will need, and what happens when there is not enough.

Out of memory is handled below the search: a batch that does not fit is trained in parts, and keeps its size. Gradients of the parts
add up to those of the batch. With BatchNorm that is trained each part is normalised by its own statistics, as on several devices
(ghost batches; Hoffer et al., 2017); frozen BatchNorm, and networks without it, give the batch's own gradients but for rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
SMALLEST = 2  # images in a part: BatchNorm cannot normalise one
NEVER = 2**60  # bytes: what ran out of memory in a dry run
RAN_OUT = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or in the machine."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in RAN_OUT)


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

    def backward(self, shape: Hashable, images: int, loss_of: Callable[[slice], Tensor], begin: Callable[[], None]) -> Tensor:
        """The loss of a batch, its gradients accumulated; `loss_of` a slice of it, such that parts add up to the whole.

        `begin` clears what a failed attempt has left. RuntimeError when even the smallest parts do not fit.
        """
        while True:
            parts = self.known.get(shape, 1)

            def whole(parts: int = parts) -> Tensor:
                begin()
                losses = []
                for positions in torch.arange(images).tensor_split(parts):
                    loss = loss_of(slice(int(positions[0]), int(positions[-1]) + 1))
                    loss.backward()
                    losses.append(loss.detach())
                return sum(losses[1:], losses[0])

            loss = attempt(whole)
            if loss is not None:
                return loss
            if images // (2 * parts) < SMALLEST:
                raise RuntimeError(f"out of memory, even with the batch of {images} images trained in {parts} parts")
            self.known[shape] = 2 * parts


class Forecast:
    """Bytes that each shape of work needs beyond what was allocated before it, from dry runs.

    Of the very batches that will be trained: cuDNN plans each size of batch anew, which takes a second, and needs the plan anyway.
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, int] = {}

    def bytes(self, shape: Hashable, measure: Callable[[], int]) -> int:
        """`measure` gives the peak of a dry run."""
        if shape not in self.known:
            measure()  # libraries allocate their work spaces at first use
            found = measure()
            if found >= NEVER:
                return NEVER  # beside what runs now: it may fit another time
            self.known[shape] = found
        return self.known[shape]


def peak(work: Callable[[], object], device: torch.device) -> int:
    """Bytes on a GPU that the work needed beyond what was allocated before it."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before
