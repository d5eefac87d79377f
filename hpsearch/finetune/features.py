"""What a trial reads: the activations at its cut, kept in memory where they fit, else computed from the images as they are read.

Notation: n images of a split, k frozen blocks. Frozen blocks never change, so all trials of one cut share their activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.finetune.data import Data, Split, normalise
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.memory import attempt
from hpsearch.finetune.models import FineTuneModel

PIXELS_CPU, PIXELS_GPU = 2**20, 2**24  # of one batch in evaluation: it should stay near a core's cache, or fill a GPU
MOST_IMAGES = 128  # of one batch on a CPU


@dataclass(frozen=True)
class Reader:
    """One split at one cut: `read(positions)` gives the activations (m, ...) on the device."""

    read: Callable[[Tensor], Tensor]
    images: int
    kept: bool  # in memory, rather than computed at each reading


class Features:
    """Activations of the training and validation images at each cut; the least recently used cuts go when memory is short.

    Whether a cut fits depends on the budget alone, never on what else runs: activations computed in other batches differ in the
    last bits, and one seed shall give one result.
    """

    def __init__(self, model: FineTuneModel, data: Data, pre: Preprocessing, device: torch.device, budget: int) -> None:
        self.model, self.pre, self.device = model, pre, device
        self.splits: dict[str, Split] = {"train": data.train, "val": data.val}
        per_image = pre.channels * pre.size**2
        pixels, most = (PIXELS_GPU, 1024) if device.type == "cuda" else (PIXELS_CPU, MOST_IMAGES)
        self.batch = max(1, min(most, pixels // pre.size**2))
        if device.type == "cuda" and 2 * per_image * sum(map(len, self.splits.values())) < budget:  # uint8 images stay on the device
            budget -= per_image * sum(map(len, self.splits.values()))
            self.splits = {n: Split(s.pixels().to(device), torch.arange(len(s), device=device), s.labels) for n, s in self.splits.items()}
        self.budget = budget
        self.kept: dict[int, dict[str, Tensor]] = {}  # cut -> split -> activations; in order of last use
        self.sizes: dict[int, int] = {}  # cut -> bytes of the activations of all images

    def at(self, k: int) -> dict[str, Reader]:
        """Readers of the training and validation images behind the first k blocks.

        Call it while the model holds its initial state with those blocks frozen.
        """
        k = k if self.model.cacheable else 0
        if k not in self.sizes:
            one = self.compute("train", torch.zeros(1, dtype=torch.int64), k)
            self.sizes[k] = one.nbytes * sum(map(len, self.splits.values()))
        if k in self.kept:
            self.kept[k] = self.kept.pop(k)
        elif self.sizes[k] <= self.budget:
            while self.kept and self.sizes[k] + sum(map(self.sizes.__getitem__, self.kept)) > self.budget:
                del self.kept[next(iter(self.kept))]
            while (kept := attempt(lambda: {name: self.whole(name, k) for name in self.splits})) is None:
                self.halve()
            self.kept[k] = kept
        else:
            return {name: Reader(functools.partial(self.compute, name, k=k), len(split), False) for name, split in self.splits.items()}
        return {name: Reader(tensor.__getitem__, len(tensor), True) for name, tensor in self.kept[k].items()}

    def compute(self, name: str, positions: Tensor, k: int) -> Tensor:
        """Activations of some images of a split, on the device, from the pixels."""
        split = self.splits[name]
        with torch.no_grad():
            pixels = split.pixels(positions.to(split.rows.device)).to(self.device, non_blocking=True)
            x = normalise(pixels, self.pre.mean, self.pre.std).contiguous(memory_format=torch.channels_last)
            return self.model.prefix(x, k)

    def whole(self, name: str, k: int) -> Tensor:
        """Activations of a whole split, in batches; filled in place, since joining them would take their room twice.

        From the deepest cut before k that is kept, else from the pixels. The numbers are the same, since what is kept was
        computed in the same batches.
        """
        start = max((cut for cut in self.kept if cut < k), default=None)

        def part(positions: Tensor) -> Tensor:
            if start is None:
                return self.compute(name, positions, k)
            with torch.no_grad():
                return self.model.prefix(self.kept[start][name][positions.to(self.device)], k, start)

        count = len(self.splits[name])
        first = part(torch.zeros(1, dtype=torch.int64))
        form = torch.channels_last if first.ndim == 4 else torch.contiguous_format
        out = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=self.device).to(memory_format=form)
        for positions in torch.arange(count).split(self.batch):
            out[positions[0] : positions[-1] + 1] = part(positions)
        return out

    def halve(self) -> None:
        """Evaluate smaller batches from now on: memory ran out. Raises RuntimeError when a single image was too much."""
        if self.batch == 1:
            raise RuntimeError("out of memory, even for a single image")
        self.batch //= 2

    def batches(self, images: int) -> tuple[Tensor, ...]:
        """Positions of a split in evaluation batches, on the device."""
        return tuple(torch.arange(images, device=self.device).split(self.batch))
