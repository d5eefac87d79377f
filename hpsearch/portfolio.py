"""Recipes that are known to be good, by family of models: a study may open with them instead of random draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from hpsearch.recipes import EMBEDDED_MODEL

EMBEDDED, CONVOLUTIONAL, TRANSFORMERS = "the embedded model", "convolutional networks", "transformers"
# What makes a recipe another one where it cannot be had: a learning rate is meant for its optimiser and its depth.
ESSENTIAL = ("learning_rate", "optimizer", "frozen_layers")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A partial configuration; what it leaves out is at the study's default."""

    settings: Mapping[str, Any]
    source: str


def family(model: str) -> str:
    """The family of a model by its name; a model of the user's own is taken for a convolutional network."""
    if model == EMBEDDED_MODEL:
        return EMBEDDED
    return TRANSFORMERS if ":" not in model and model.startswith(("vit_", "swin_", "maxvit_")) else CONVOLUTIONAL


def recipes_for(models: Sequence[str]) -> tuple[Recipe, ...]:
    """The recipes for a study of these models; where there are several, the first ones of each by turns, as many as one model has."""
    if len(models) == 1:
        return PORTFOLIO[family(models[0])]
    lists = [[replace(recipe, settings={**recipe.settings, "model": model}) for recipe in PORTFOLIO[family(model)]] for model in models]
    turns = [recipe for turn in zip_longest(*lists) for recipe in turn if recipe is not None]
    return tuple(turns[: max(map(len, PORTFOLIO.values()))])


def adamw(learning_rate: float, frozen_layers: int | str = 0, **more: Any) -> dict[str, Any]:
    """A recipe with AdamW, of 10 epochs unless it says otherwise."""
    return {"optimizer": "adamw", "learning_rate": learning_rate, "frozen_layers": frozen_layers, "epochs": 10, **more}


def sgd(learning_rate: float, **more: Any) -> dict[str, Any]:
    """A recipe with SGD on large batches and next to no weight decay."""
    usual = {"optimizer": "sgd", "momentum": 0.9, "frozen_layers": 0, "batch_size": 64, "weight_decay": 1e-4, "epochs": 10}
    return {**usual, "learning_rate": learning_rate, **more}


PROBE = Recipe(
    adamw(3e-3, "all", weight_decay=1e-4, dropout=0.0), "linear probing: Kornblith et al., 2019; first half of LP-FT: Kumar et al., 2022"
)
# The sources train on batches of 256 to 1,024, mostly for longer, some without weight decay. For batches of 16 to 64, AdamW's rates are
# scaled down (Goyal et al., 2017) and SGD's stand at the lower end of what was published; epochs and decay are what the usual ranges allow.
PORTFOLIO: Mapping[str, tuple[Recipe, ...]] = {
    EMBEDDED: (  # chosen on the embedded digits themselves, by the measurements of 2026-11-21 (other heads and splits)
        Recipe(adamw(5e-3, 4, batch_size=8, dropout=0.0), "studies/LOG.md: learning rate 5e-3 behind four frozen blocks"),
        Recipe(adamw(1e-2, 5, batch_size=16), "studies/LOG.md: frozen layers and learning rate"),
        Recipe(adamw(3e-3, 3, batch_size=16), "studies/LOG.md: frozen layers and learning rate"),
        Recipe(adamw(3e-3, 0, batch_size=16), "studies/LOG.md: frozen layers and learning rate"),
        Recipe(adamw(3e-2, "all", batch_size=16, epochs=20), "studies/LOG.md: head only"),
    ),
    CONVOLUTIONAL: (
        Recipe(
            adamw(1e-3, weight_decay=1e-2, batch_size=64, schedule="onecycle"),
            "one cycle at a high rate: Smith and Topin, 2018; Howard and Gugger, 2020 (fastai: 2e-3, batch 64, decay 0.01)",
        ),
        Recipe(
            adamw(1e-4, weight_decay=1e-4, layer_decay=0.8, label_smoothing=0.1),
            "gentle, more so near the input: Liu et al., 2022 (ConvNeXt: 5e-5, decay 1e-8, layer decay 0.7 to 0.9)",
        ),
        PROBE,
        Recipe(
            adamw(5e-4, weight_decay=5e-2, dropout=0.3, label_smoothing=0.1, mixup=0.2),
            "regularised as by He et al., 2019 (label smoothing 0.1, mixup 0.2) and Srivastava et al., 2014; near the default rate",
        ),
        Recipe(sgd(1e-2, schedule="cosine"), "Kornblith et al., 2019 (Nesterov momentum 0.9, cosine, rates from 1e-4 to 0.1 at batch 256)"),
        Recipe(sgd(3e-3, schedule="step"), "BiT-HyperRule: Kolesnikov et al., 2020 (momentum 0.9, 3e-3 in steps, no decay, batch 512)"),
    ),
    TRANSFORMERS: (
        Recipe(
            adamw(1.2e-4, weight_decay=5e-2, dropout=0.0, layer_decay=0.65, warmup_epochs=1.0, label_smoothing=0.1),
            "decay by layers: Bao et al., 2022 (BEiT: 2e-3 to 5e-3 at batch 1,024, layer decay 0.65, decay 0.05, label smoothing 0.1)",
        ),
        Recipe(
            adamw(3e-5, weight_decay=0.1, dropout=0.0, warmup_epochs=1.0, clip_norm=1.0),
            "gentle: Wortsman et al., 2022 (fine-tuning before WiSE-FT: 3e-5, decay 0.1, 10 epochs, clipped at 1, batch 512)",
        ),
        PROBE,
        Recipe(
            adamw(1e-4, weight_decay=3e-2, batch_size=64, mixup=0.2, randaugment=5.0),
            "regularised as by Steiner et al., 2022 (decay 0.03, mixup 0.2, RandAugment); a third of the default rate",
        ),
        Recipe(
            sgd(3e-3, schedule="cosine", clip_norm=1.0),
            "Dosovitskiy et al., 2021; Steiner et al., 2022 (momentum 0.9, 1e-3 to 3e-2, cosine, no decay, clipped at 1, batch 512)",
        ),
    ),
}
