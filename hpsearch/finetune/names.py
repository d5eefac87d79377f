"""What models and weights are called, light to import: a misspelt name is found before torch loads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpsearch.errors import FixInput, nearest
from hpsearch.recipes import told

# torchvision.models.list_models(module=torchvision.models) of torchvision 0.26 to 0.29; a test compares.
TORCHVISION = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
    regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
    regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
    resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
    vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
    """.split()  # noqa: SIM905
)
MODELS = ("glyphnet", *TORCHVISION)
SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")  # of weights files
WITHIN = re.compile(rf"(?P<file>.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))#(?P<within>.*)", re.IGNORECASE | re.DOTALL)


def choices_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The models of a resolved study, the default recipe's first."""
    searched = (config.get("space", {}).get("model") or {}).get("choices", ())
    return (config["model"], *(name for name in searched if name != config["model"]))


def is_own(model: str) -> bool:
    """Whether a model is the user's: "package.module:function"."""
    return ":" in model


def is_file(weights: str) -> bool:
    """Whether weights are given as a file."""
    return file_and_part(weights)[0].lower().endswith(SUFFIXES)


def file_and_part(weights: str) -> tuple[str, str]:
    """The file of "FILE#part.of.it", and the address of the part: "." for what is at its top, "" for whatever fits."""
    found = WITHIN.fullmatch(weights)
    return (found["file"], found["within"].strip(".") or found["within"][:1]) if found else (weights, "")


def check_names(model: str, weights: str) -> None:
    """Raise FixInput, with the nearest name, for a model or weights that cannot be: from their names alone."""
    check_model(model)
    if is_file(weights):
        check_file(weights)
    elif weights != "none" and not re.fullmatch(r"[A-Z0-9_]+", weights.upper()):
        known = "weights are DEFAULT, none, a name such as IMAGENET1K_V1, or a file ending in " + ", ".join(SUFFIXES)
        raise FixInput(f"unknown weights {told(weights)}: {known}")
    elif weights.upper() not in ("DEFAULT", "NONE") and (model == "glyphnet" or is_own(model)):
        hint = nearest(weights, ("default", "none")).replace("default", "DEFAULT")
        hint += "" if hint.endswith("?") else "."
        raise FixInput(f"{model} has no weights called {told(weights)}: {hint} A file of weights would do too")


def check_model(model: str) -> None:
    """Raise FixInput unless `model` is glyphnet, one of torchvision's, or written as package.module:function."""
    if is_own(model):
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", model):
            raise FixInput(f"a model of your own is written package.module:function, not {told(model)}; for example my_models:small_net")
    elif model not in MODELS:
        hint = nearest(model, MODELS)
        own = "A model of your own is written package.module:function"
        raise FixInput(f"unknown model {told(model)}: {hint}{'' if hint.endswith('?') else '.'} {own}")


def check_file(weights: str) -> Path:
    """The file that `weights` names; FixInput when there is none."""
    path = Path(os.path.expanduser(file_and_part(weights)[0]))  # as `os.path` does it, no name is an error
    if not os.path.isfile(path):
        raise FixInput(f"there is no weights file {path.absolute()}: correct the path, or use weights: DEFAULT or none")
    return path
