"""Pretrained backbones as an ordered list of blocks plus a new head.

Notation: N images in a batch, C channels, K classes, B blocks; "k frozen layers" freezes blocks[0..k-1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hpsearch.errors import FixSetup

WEIGHTS = Path(__file__).parent / "weights"


class Dropout(nn.Module):
    """Dropout whose rate is a tensor and whose random numbers come from the trial's own generator.

    A rate held as a tensor can change without recompiling a captured step; an own generator keeps a trial's draws
    independent of whatever else runs in the process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.zeros(())
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability `rate` and rescale, when training; shape kept."""
        if not self.training:
            return x
        keep = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Residual(nn.Module):
    """Basic residual block (He et al., 2016): two 3x3 convolutions, with a 1x1 projection where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.skip(x))


class FineTuneModel(nn.Module):
    """A backbone cut into blocks, pooled, with dropout before a new linear head."""

    def __init__(self, blocks: list[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.dropout = Dropout()
        self.head = nn.Linear(features, classes)

    def prefix(self, x: Tensor, frozen: int) -> Tensor:
        """Through the first `frozen` blocks: (N, C, H, W) in, the activation at the cut out."""
        for block in self.blocks[:frozen]:
            x = block(x)
        return x

    def suffix(self, x: Tensor, frozen: int) -> Tensor:
        """From the activation at the cut to logits (N, K)."""
        for block in self.blocks[frozen:]:
            x = block(x)
        pooled: Tensor = x.mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, K)."""
        return self.suffix(x, 0)

    def freeze(self, frozen: int) -> list[nn.Parameter]:
        """Freeze the first `frozen` blocks and put the rest in training mode; returns the trainable parameters.

        Frozen blocks are in eval mode too: otherwise BatchNorm statistics drift and the "frozen" part changes.
        """
        self.train()
        for i, block in enumerate(self.blocks):
            block.requires_grad_(i >= frozen)
            block.train(i >= frozen)
        self.head.requires_grad_(True)
        return [p for p in self.parameters() if p.requires_grad]

    def trainable_state(self, frozen: int) -> dict[str, Tensor]:
        """Parameters and buffers outside the frozen blocks, by name (not copied)."""
        skipped = tuple(f"blocks.{i}." for i in range(frozen))
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(skipped)}


def glyphnet(classes: int) -> FineTuneModel:
    """The embedded model: stem + 5 residual blocks for 16x16 gray images, about 170,000 parameters."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = [
        stem,
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 32, 1),
        Residual(32, 64, 2),
        Residual(64, 64, 1),
    ]
    return FineTuneModel(blocks, 64, classes)


@dataclass(frozen=True)
class Architecture:
    """How to build a model and what its pretrained weights expect."""

    build: Callable[[int], FineTuneModel]  # number of classes -> model
    weights: Path
    size: int  # pixels, square
    mean: float  # of pixels in [0, 1]
    std: float


ARCHITECTURES = {"glyphnet": Architecture(glyphnet, WEIGHTS / "glyphnet.safetensors", 16, 0.32, 0.31)}


def initial_state(name: str, classes: int, pretrained: bool, seed: int) -> tuple[FineTuneModel, dict[str, Tensor]]:
    """A model with a new head for `classes`, and a copy of its state to start each trial from.

    The new head (and, with `pretrained=False`, every layer) is drawn with `seed`; the source task's head is dropped.
    """
    arch = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = arch.build(classes)
    if pretrained:
        if not arch.weights.is_file():
            raise FixSetup(f"the pretrained weights of '{name}' are missing: {arch.weights}; reinstall hpsearch")
        source = {k: v for k, v in load_file(arch.weights).items() if not k.startswith("head.")}
        missing, unexpected = model.load_state_dict(source, strict=False)
        if unexpected or any(not k.startswith("head.") for k in missing):
            raise FixSetup(f"the weights file {arch.weights} does not fit '{name}': missing {missing}, unexpected {unexpected}")
    return model, {k: v.clone() for k, v in model.state_dict().items()}
