"""Networks from an exported folder's config.json, without weights. `export` puts the source of one of them into predict.py.

So each stands on its own: it uses torch, torchvision and the standard library, and nothing of hpsearch but `GlyphNet` and `fitted`,
whose source goes along.

config["arguments"] are the constructor's; "head" and "dropout" name the layers that fine-tuning replaced ("" for none).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from hpsearch.finetune import zoo
from hpsearch.finetune.names import check_model, is_own
from hpsearch.finetune.zoo import GlyphNet


def glyphnet_network(config: dict[str, Any]) -> nn.Module:
    """hpsearch's embedded model."""
    return GlyphNet(**config["arguments"])


def torchvision_network(config: dict[str, Any]) -> nn.Module:
    """torchvision's classifier with the head that was trained."""
    from torchvision.models import get_model

    net: nn.Module = get_model(config["model"], weights=None, **config["arguments"])
    return fitted(net, config)


def own_network(config: dict[str, Any]) -> nn.Module:
    """What your function returns; its code is not in this folder: have it beside this file, or on PYTHONPATH."""
    from importlib import import_module

    module, _, function = config["model"].partition(":")
    net: nn.Module = getattr(import_module(module), function)(**config["arguments"])
    return fitted(made(net, config), config)


def made(net: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The network with its lazy layers, which are made by a first batch of images."""
    from torch import no_grad, zeros
    from torch.nn.parameter import is_lazy

    if any(is_lazy(tensor) for tensor in (*net.parameters(), *net.buffers())):
        pre = config["preprocessing"]
        with no_grad():
            net.eval()(zeros(2, pre["channels"], pre["size"], pre["size"]))
    return net


def fitted(net: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The network with a head for the classes, and without the dropout before it: training had one with a rate of its own."""
    old, classes = net.get_submodule(config["head"]), len(config["classes"])
    bias = getattr(old, "bias", None) is not None
    if isinstance(old, nn.Linear) and old.out_features != classes:
        net.set_submodule(config["head"], nn.Linear(old.in_features, classes, bias))
    elif isinstance(old, nn.Conv2d) and old.out_channels != classes:
        form = (old.kernel_size, old.stride, old.padding)
        net.set_submodule(config["head"], nn.Conv2d(old.in_channels, classes, *form, bias=bias))  # type: ignore[arg-type]
    if config["dropout"]:
        net.set_submodule(config["dropout"], nn.Identity())
    return net


def builder(model: str) -> Callable[[dict[str, Any]], nn.Module]:
    """The function that builds a model of this name."""
    return glyphnet_network if model == "glyphnet" else own_network if is_own(model) else torchvision_network


def network(config: dict[str, Any]) -> nn.Module:
    """The network of config.json; its weights are those it is drawn with. FixInput when it has no such name or function.

    The user's function is called with the number of classes, as in training, whatever config.json says: that is no place for code.
    """
    check_model(config["model"])
    if not is_own(config["model"]):
        return builder(config["model"])(config)
    net = zoo.own_net(config["model"], len(config["classes"]), pretrained=False)
    return fitted(made(net, config), config)


def source(model: str) -> str:
    """Code of a function `network` that builds a model of this name, with what it needs beside torch's `nn` and `Tensor`."""
    build = builder(model)
    parts = [zoo.Residual, zoo.GlyphNet] if build is glyphnet_network else [fitted, made] if is_own(model) else [fitted]
    code = "\n\n".join(inspect.getsource(part) for part in (*parts, build))
    return code.replace(f"def {build.__name__}(", "def network(")


def arguments(model: str, classes: int, size: int) -> dict[str, Any]:
    """What the constructor is called with, JSON-able, for square images of `size` pixels; as in `zoo`, which trained it."""
    if model == "glyphnet":
        return {"classes": classes}
    if is_own(model):
        return {"num_classes": classes} | ({"pretrained": False} if zoo.takes_pretrained(model) else {})
    return zoo.arguments(model, size)
