"""An exported model as one traced graph, with its preprocessing from uint8 on: what loads where its code is not at hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpsearch.finetune import standalone
from hpsearch.finetune.functions import brief

CLOSE = 1e-4  # of probabilities: a traced graph may add in another order


class Probabilities(nn.Module):
    """Class probabilities (N, K), calibrated, of images (N, C, size, size) uint8."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.config = net, config
        pre = config["preprocessing"]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(pre[name]).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """As `standalone.probabilities(standalone.logits(...))`."""
        scores: Tensor = self.net(images.float().div(255).sub(self.mean).div(self.std))
        return torch.softmax(scores.double() / self.config["temperature"], dim=1)


def trace(folder: Path, file: Path) -> str:
    """Write the model that an export left in `folder` as the graph `file`; why it cannot be written, or "".

    The file holds JSON and raw tensors, and one record of torch's: the example, a black image, that it was traced with.
    """
    try:
        net, config = standalone.load(folder)
        pre = config["preprocessing"]
        module = Probabilities(net, config).eval()
        example = torch.zeros((2, pre["channels"], pre["size"], pre["size"]), dtype=torch.uint8)
        tried = torch.randint(0, 256, (3, pre["channels"], pre["size"], pre["size"]), dtype=torch.uint8)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = torch.export.export(module, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
            torch.export.save(graph, file)
            off = (
                (torch.export.load(file).module()(tried) - standalone.probabilities(standalone.logits(net, tried, config), config))
                .abs()
                .max()
            )
        if not off <= CLOSE:
            raise ValueError(f"the graph's probabilities differ by {off:.1g}")
    except Exception as error:  # anything may be in a network
        file.unlink(missing_ok=True)
        return brief(error)
    return ""
