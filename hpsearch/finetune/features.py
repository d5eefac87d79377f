"""What a trial reads: the activations at its cut, kept in memory where they fit, else computed from the images as they are read.

Notation: n images of a split, k frozen blocks. Frozen blocks never change, so all trials of one cut share their activations.
Where images are augmented, a cut has several views: epoch e reads view e modulo their number. A view is drawn from a seed of its
own, so that all trials with the same strengths see the same images in their epoch e, and share what is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hpsearch.finetune.augment import Strengths, augment
from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.data import Data, Split
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.memory import attempt
from hpsearch.finetune.models import FineTuneModel
from hpsearch.machine import pulse
from hpsearch.seeds import seed_for

PIXELS_CPU, PIXELS_GPU = 2**20, 2**24  # of one batch in evaluation: it should stay near a core's cache, or fill a GPU
MOST_IMAGES = 128  # of one batch on a CPU
Key: TypeAlias = tuple[int, str, tuple[float, ...], int]  # frozen blocks, split, strengths (none: as they are), view


@dataclass(frozen=True)
class Reader:
    """One split at one cut. `read(positions)` gives the activations (m, ...) on the device or, not `kept`, the pixels (m, C, H, W)."""

    read: Callable[[Tensor], Tensor]
    images: int
    kept: bool
    place: torch.device  # of the positions: the host's for images that are there


class Features:
    """Activations of the training and validation images at each cut; the least recently used go when memory is short.

    Whether they fit depends on the budget alone, never on what else runs: activations computed in other batches differ in the
    last bits, and one seed shall give one result. `model` is not trained: it keeps the state that every trial starts from.
    """

    def __init__(self, model: FineTuneModel, data: Data, pre: Preprocessing, context: DeviceContext, budget: int, seed: int = 0) -> None:
        self.model, self.pre, self.context, self.device, self.seed = model, pre, context, context.device, seed
        self.splits: dict[str, Split] = {"train": data.train, "val": data.val}
        per_image = pre.channels * pre.size**2
        pixels, most = (PIXELS_GPU, 1024) if context.cuda else (PIXELS_CPU, MOST_IMAGES)
        self.batch = max(1, min(most, pixels // pre.size**2))
        self.resident = not context.cuda
        if context.cuda and 2 * per_image * sum(map(len, self.splits.values())) < budget:  # uint8 images stay on the device
            budget -= per_image * sum(map(len, self.splits.values()))
            self.splits = {
                n: Split(s.pixels().to(self.device), torch.arange(len(s), device=self.device), s.labels) for n, s in self.splits.items()
            }
            self.resident = True
        self.mean, self.std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (pre.mean, pre.std))
        self.budget = budget
        self.kept: dict[Key, Tensor] = {}  # in order of last use
        self.sizes: dict[int, int] = {}  # cut -> bytes of the activations of one image

    def val(self, k: int) -> Reader:
        """The validation images behind the first k blocks."""
        return self.reader((k, "val", (), 0), sum(map(len, self.splits.values())))

    def train(self, k: int, strengths: tuple[float, ...] = (), view: int = 0, views: int = 1) -> Reader:
        """The training images behind the first k blocks, or one of their augmented views; pixels when not all views fit."""
        views = views if strengths else 1
        if views == 0:
            return self.passing("train")
        images = views * len(self.splits["train"]) + len(self.splits["val"])
        return self.reader((k, "train", strengths, view % views), images)

    def reader(self, key: Key, images: int) -> Reader:
        """Activations from memory, computed now if need be, when those of `images` fit into the budget; else pixels."""
        k, name, _, _ = key
        if not self.model.cacheable or images * self.size(k) > self.budget:
            return self.passing(name)
        if key in self.kept:
            self.kept[key] = self.kept.pop(key)
        else:
            self.make_room(self.size(k) * len(self.splits[name]))
            while (kept := attempt(lambda: self.whole(key))) is None:
                self.halve()
            self.kept[key] = kept
        tensor = self.kept[key]
        return Reader(tensor.__getitem__, len(tensor), True, self.device)

    def passing(self, name: str) -> Reader:
        """A split's pixels, on the device when read."""
        split = self.splits[name]
        return Reader(lambda positions: self.pixels(name, positions), len(split), False, split.rows.device)

    def size(self, k: int) -> int:
        """Bytes of one image's activations at a cut; measured for all cuts at once, on a batch such as will be computed anyway."""
        while not self.sizes:
            self.sizes = attempt(self.measured) or {}
            if not self.sizes:
                self.halve()
        return self.sizes[k]

    def most(self, augmented: bool) -> int:
        """Bytes that activations may come to; those of augmented images have no bound of their own."""
        if augmented or not self.model.cacheable:
            return self.budget
        images = sum(map(len, self.splits.values()))
        return min(self.budget, images * sum(self.size(k) for k in range(len(self.model.blocks) + 1)))

    def measured(self) -> dict[int, int]:
        """Bytes of one image's activations by cut."""
        n, sizes = min(self.batch, len(self.splits["train"])), {}
        x = self.front(self.pixels("train", torch.arange(n)), 0)
        for k in range(len(self.model.blocks) + 1):
            with torch.no_grad(), self.context.autocast():
                x = self.model.prefix(x, k, max(k - 1, 0))
            sizes[k] = x.nbytes // n
        return sizes

    def make_room(self, size: int) -> None:
        """Let go of what was used longest ago, until `size` more bytes fit."""
        spare = self.budget - size - self.bytes()
        if spare < 0 and self.context.cuda:
            torch.cuda.synchronize(self.device)  # other streams may still read them
        while spare < 0 and self.kept:
            spare += self.kept.pop(next(iter(self.kept))).nbytes

    def pixels(self, name: str, positions: Tensor) -> Tensor:
        """(m, C, H, W) uint8 on the device; from pinned memory where they do not stay there, so that the copy runs beside the work."""
        split = self.splits[name]
        pixels = split.pixels(positions.to(split.rows.device))  # where they are already, as `Reader.place` says
        if self.resident:
            return pixels.to(self.device)
        return pixels.pin_memory().to(self.device, non_blocking=True)

    def front(self, pixels: Tensor, k: int, strengths: Strengths | None = None) -> Tensor:
        """Activations behind the first k blocks, from pixels (m, C, H, W) uint8."""
        return self.behind(self.scaled(pixels, strengths), k)

    def scaled(self, pixels: Tensor, strengths: Strengths | None = None) -> Tensor:
        """Pixels uint8 as float32 in [0, 1], augmented or as they are; a new tensor."""
        x = pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
        return x if strengths is None else augment(x, strengths)

    def behind(self, x: Tensor, k: int) -> Tensor:
        """Normalise scaled pixels, in place, and compute the first k blocks."""
        with torch.no_grad(), self.context.autocast():
            return self.model.prefix(x.sub_(self.mean).div_(self.std), k)

    def whole(self, key: Key) -> Tensor:
        """Activations of a whole split, in batches; filled in place, since joining them would take their room twice.

        From the deepest cut before k that is kept, else from the pixels. The numbers are the same, since what is kept was
        computed in the same batches.
        """
        k, name, values, view = key
        start = max((cut for cut, *rest in self.kept if cut < k and rest == [name, values, view]), default=None)
        strengths = Strengths.of(values, self.device) if values else None
        count, out = len(self.splits[name]), None
        with self.context.draws.aside(seed_for(self.seed, view, "view")):
            for positions in torch.arange(count).split(self.batch):
                pulse()
                if start is None:
                    part = self.front(self.pixels(name, positions), k, strengths)
                else:
                    with torch.no_grad(), self.context.autocast():
                        part = self.model.prefix(self.kept[start, name, values, view][positions.to(self.device)], k, start)
                if out is None:
                    form = torch.channels_last if part.ndim == 4 else torch.contiguous_format
                    out = torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=self.device).to(memory_format=form)
                out[positions[0] : positions[-1] + 1] = part
        assert out is not None
        if self.context.cuda:
            torch.cuda.current_stream(self.device).synchronize()  # other streams will read it
        return out

    def halve(self) -> None:
        """Evaluate smaller batches from now on: memory ran out. Raises RuntimeError when a single image was too much."""
        if self.batch == 1:
            raise RuntimeError("out of memory, even for a single image")
        self.batch //= 2

    def batches(self, reader: Reader) -> tuple[Tensor, ...]:
        """Positions of a split in evaluation batches."""
        return tuple(torch.arange(reader.images, device=reader.place).split(self.batch))

    def bytes(self) -> int:
        """What is kept."""
        return sum(t.nbytes for t in self.kept.values())
