"""Pretrained networks as an ordered list of blocks plus a new head.

Notation: N images in a batch, C channels, K classes, B blocks, D features; "k frozen layers" freezes blocks[0..k-1].
Dropouts and stochastic depth inside a network stay as its maker set them; the one directly before the head gives way to
the sampled dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpsearch.errors import FixInput
from hpsearch.finetune import cuts, pretrained, zoo
from hpsearch.finetune.blocks import Dropout as Dropout
from hpsearch.finetune.blocks import FineTuneModel as FineTuneModel
from hpsearch.finetune.blocks import drop, eval_mode, renew
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.names import check_names, file_and_part, is_file, is_own
from hpsearch.finetune.own import own_model
from hpsearch.finetune.pretrained import WeightsReport
from hpsearch.finetune.zoo import glyphnet as glyphnet  # a public name here
from hpsearch.finetune.zoo import preprocessing as preprocessing


@dataclass(frozen=True)
class Built:
    """A model, the state that every trial starts from, and what it expects of images."""

    model: FineTuneModel
    initial: dict[str, Tensor]  # copy of model.net.state_dict()
    preprocessing: Preprocessing
    matched: WeightsReport
    file: Path | None = None  # where the weights were read from


def silent(message: str) -> None:
    """Say nothing."""
    del message


def build(
    name: str,
    classes: int,
    weights: str,
    seed: int,
    preprocess: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = silent,
) -> Built:
    """Model `name` with a new head for `classes`: glyphnet, one of torchvision's, or the user's "package.module:function".

    The head, and with weights "none" every layer, is drawn with `seed`; the global generator is left alone. `say` hears of
    downloads. Raises FixInput for names, files, functions and sizes that are wrong, FixSetup for weights out of reach.
    """
    check_names(name, weights)
    from_file = is_file(weights) or (weights.lower() != "none" and not is_own(name))
    path = pretrained.weights_file(name, weights, say) if from_file else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_own(name):
            net = zoo.own_net(name, classes, {"none": False, "default": True}.get(weights.lower()))
            expects = zoo.own_preprocessing(net, preprocess)
            model = own_model(name, net, classes, expects)
        else:
            expects = preprocessing(name, weights, preprocess)
            model = known_model(name, zoo.known_net(name, classes, expects.size), classes)
        if path is not None:
            matched = pretrained.load(model.net, model.cuts.head, path, file_and_part(weights)[1])
        else:
            matched = pretrained.without_file(name, weights)
    model.freeze(0)
    initial = {key: value.clone() for key, value in model.net.state_dict().items()}
    return Built(model, initial, expects, replace(matched, note=model.note), path)


def known_model(name: str, net: nn.Module, classes: int) -> FineTuneModel:
    """glyphnet, or one of torchvision's classifiers with a new head drawn from torch's global generator."""
    found = cuts.find(net)
    if name != "glyphnet":
        renew(net, found.head, classes)
    drop(net, found.before)
    return FineTuneModel(net, found)


@dataclass(frozen=True)
class Row:
    """One block of a model, for people."""

    index: int  # freeze this many layers and it is the last one frozen
    name: str
    parameters: int
    shape: tuple[int, ...]  # of the activation after it, of one image: (C, H, W), (S, D) or (D,); empty when not cacheable
    trainable: int  # parameters left to train when frozen up to here


def describe(name: str, classes: int = 10, overrides: Mapping[str, Any] | None = None, weights: str = "DEFAULT") -> list[Row]:
    """The blocks of a model as made for `weights`, which are not needed: on the meta device, so that size costs nothing.

    A model of the user's own is built and tried. Raises FixInput for an unknown name and for a size of image that the
    model cannot take.
    """
    if is_own(name):
        with torch.random.fork_rng(devices=[]):
            net = zoo.own_net(name, classes, None)
            expects = zoo.own_preprocessing(net, overrides)
            model = own_model(name, net, classes, expects)
    else:
        expects = preprocessing(name, weights, overrides)
        with zoo.Shapes():
            net = zoo.known_net(name, classes, expects.size)
        model = known_model(name, net.to("meta"), classes)
    left = sum(p.numel() for p in model.freeze(0))
    x = torch.empty(1, expects.channels, expects.size, expects.size, device=next(model.parameters()).device)
    rows = []
    with eval_mode(model):
        for i, block in enumerate(model.blocks):
            left -= block.parameters
            x = step(name, model, x, i) if model.cacheable else x
            rows.append(Row(i + 1, block.name, block.parameters, tuple(x.shape[1:]) if model.cacheable else (), left))
    return rows


def step(name: str, model: FineTuneModel, x: Tensor, i: int) -> Tensor:
    """The activation after block i, from the one before; FixInput when the images were too small for it."""
    try:
        return model.cuts.runs[i](model.net, x)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = f"{model.blocks[i].name}: {error}"
        raise FixInput(f"{name} does not take images of this size ({reason}); change preprocess.size") from error
