"""Networks by name, as their makers build them, and what they expect of an image.

Three sources: glyphnet (here), torchvision's classifiers, and the user's own "package.module:function".
torchvision is imported only for its own: that costs 2 to 3 s of a worker's start.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpsearch.errors import FixInput, nearest
from hpsearch.finetune.functions import load_function
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.names import check_model, is_file, is_own
from hpsearch.finetune.network_probe import channels

GLYPHNET = Preprocessing(16, 16, (0.32,), (0.31,))  # of the pixels of its source task
RGB = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet
GRAY = Preprocessing(224, 256, (0.5,), (0.5,))
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


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


class GlyphNet(nn.Module):
    """The embedded model: stem + 5 residual blocks for 16x16 gray images, about 170,000 parameters."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        shapes = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(stem, *(Residual(*shape) for shape in shapes))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) to logits (N, K)."""
        pooled: Tensor = self.blocks(x).mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)
        return logits


def glyphnet(classes: int) -> GlyphNet:
    """The embedded model for `classes`, drawn from torch's global generator."""
    return GlyphNet(classes)


class Shapes(TorchFunctionMode):
    """Allocates parameters on the meta device; all else is computed (RegNet's widths are, which `torch.device("meta")` breaks)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, on the meta device when it allocates."""
        del types
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def known_net(name: str, classes: int, size: int) -> nn.Module:
    """glyphnet for `classes`, or torchvision's classifier with its own classes, for square images of `size` pixels."""
    return glyphnet(classes) if name == "glyphnet" else torchvision_net(name, size)


def arguments(name: str, size: int) -> dict[str, Any]:
    """What torchvision's constructor of `name` is called with, JSON-able, for square images of `size` pixels."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    return {"image_size": size} if name.startswith("vit_") else {"input_size": [size, size]} if name.startswith("maxvit_") else {}


def torchvision_net(name: str, size: int) -> nn.Module:
    """torchvision's classifier `name` with its 1000 ImageNet classes, for square images of `size` pixels.

    Raises FixInput when the architecture cannot be built for that size (Vision Transformers and MaxViT depend on it).
    """
    from torchvision.models import get_model

    try:
        net: nn.Module = get_model(name, weights=None, **arguments(name, size))
    except (ValueError, AssertionError) as error:
        raise FixInput(f"{name} cannot be built for images of {size} x {size} pixels: {error}; change preprocess.size") from error
    return net


def torchvision_weights(name: str, weights: str) -> Any:
    """torchvision's entry for pretrained weights of a model: `.url`, `.transforms()`, `.meta`. FixInput for an unknown name."""
    from torchvision.models import get_model_weights

    known = get_model_weights(name).__members__
    if weights.upper() not in known:
        close = difflib.get_close_matches(weights.upper(), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}, none."
        raise FixInput(f"{name} has no weights called '{weights}': {hint} A file of weights would do too")
    return known[weights.upper()]


def preprocessing(name: str, weights: str, overrides: Mapping[str, Any] | None = None) -> Preprocessing:
    """What model `name` expects of an image: as its weights were trained, changed by `overrides`.

    Overrides: size, resize, mean, std, interpolation; `size` alone scales `resize` in proportion. A file of weights, or
    none, counts as the model's DEFAULT weights. A model of the user's own is built to see how many channels it takes.
    """
    check_model(name)
    if name == "glyphnet":
        return changed(GLYPHNET, overrides)
    if is_own(name):
        with torch.random.fork_rng(devices=[]):
            return own_preprocessing(own_net(name, 2, None), overrides)
    entry = torchvision_weights(name, "DEFAULT" if is_file(weights) or weights.lower() == "none" else weights)
    t = entry.transforms()
    expected = Preprocessing(t.crop_size[0], t.resize_size[0], tuple(t.mean), tuple(t.std), t.interpolation.value)
    return changed(expected, overrides)


def own_preprocessing(net: nn.Module, overrides: Mapping[str, Any] | None) -> Preprocessing:
    """Images as ImageNet's, or gray ones with mean and std 0.5 when `net` takes one channel, which is tried.

    Where it takes one as well as three, the number of values in preprocess.mean decides.
    """
    given = {key: value for key, value in (overrides or {}).items() if key not in ("mean", "std")}
    wanted = 1 if len(tuple_of((overrides or {}).get("mean") or RGB.mean)) == 1 else 3
    taken, ran = channels(net, changed(RGB, given).size, wanted)
    if ran and taken not in (1, 3):
        raise FixInput(f"your model takes images of {taken} channels; hpsearch gives it 1 (gray) or 3 (RGB)")
    return changed(GRAY if taken == 1 else RGB, overrides)


def tuple_of(value: Any) -> tuple[float, ...]:
    """A number, or several, as floats; FixInput otherwise."""
    try:
        return (float(value),) if isinstance(value, int | float | str) else tuple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise FixInput(f"preprocess.mean and preprocess.std are numbers, one a channel, not {value!r}") from error


def changed(expected: Preprocessing, overrides: Mapping[str, Any] | None) -> Preprocessing:
    """`expected` with the user's `overrides`; FixInput when they are unknown, not of their kind, or contradict."""
    new = {key: value for key, value in (overrides or {}).items() if value is not None}
    known = [f.name for f in fields(Preprocessing)]
    for key, value in new.items():
        if key not in known:
            raise FixInput(f"unknown setting preprocess.{key}: {nearest(key, known)}")
        if key in ("size", "resize") and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096):
            raise FixInput(f"preprocess.{key} is a number of pixels from 1 to 4096, not {value!r}")
        if key in ("mean", "std"):
            values = tuple_of(value)
            new[key] = values * expected.channels if len(values) == 1 else values
            if len(new[key]) != expected.channels:
                raise FixInput(f"preprocess.{key} has {len(values)} values, but the model takes {expected.channels} channels")
    if "size" in new and "resize" not in new:
        new["resize"] = max(new["size"], round(expected.resize * new["size"] / expected.size))
    result = replace(expected, **new)
    if result.resize < result.size:
        raise FixInput(f"preprocess.resize is {result.resize}, smaller than the square of {result.size} that is cut out of it")
    if min(result.std) <= 0:
        raise FixInput(f"preprocess.std must be above 0, not {result.std}")
    if result.interpolation not in INTERPOLATIONS:
        raise FixInput(f"unknown preprocess.interpolation '{result.interpolation}': {nearest(str(result.interpolation), INTERPOLATIONS)}")
    return result


def own_net(name: str, classes: int, pretrained: bool | None) -> nn.Module:
    """What the user's "package.module:function" returns for `classes`.

    `pretrained` is passed on where the function takes it; None means as cheap as can be. Raises FixInput when the
    function is not there, does not take `num_classes`, fails, or returns no module.
    """
    function = load_function(name, "the model")
    options: dict[str, Any] = {"num_classes": classes}
    if takes_pretrained(name):
        options["pretrained"] = bool(pretrained)
    short = name.partition(":")[2]
    try:
        inspect.signature(function).bind(**options)
    except TypeError:
        takes = f"{short}{inspect.signature(function)}"
        raise FixInput(
            f"the model {name} is called with num_classes, the number of classes, and it is {takes}: "
            f"write def {short}(num_classes), everything else with a default"
        ) from None
    except ValueError:
        pass  # Python cannot tell what it takes
    call = f"{short}({', '.join(f'{k}={v}' for k, v in options.items())})"
    try:
        net = function(**options)
    except (Exception, SystemExit) as error:
        raise FixInput(f"the model {name} failed at {call}: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise FixInput(f"the model {name} must return a torch.nn.Module; {call} returned {type(net).__name__}")
    return net


def takes_pretrained(name: str) -> bool:
    """Whether the user's function wants to know if weights are wanted."""
    return "pretrained" in parameters(load_function(name, "the model"))


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of a function's parameters; empty when Python cannot tell."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
