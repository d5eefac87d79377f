"""Runs beside the search (references, confirmations): the random numbers they draw, and the weights they start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hpsearch.finetune import models
from hpsearch.finetune.blocks import FineTuneModel
from hpsearch.finetune.names import is_own
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.zoo import takes_pretrained
from hpsearch.seeds import seed_for
from hpsearch.types import Setup, Trial


def draws(trial: Trial, seed: int) -> tuple[int, int]:
    """The seed and the trial's number that order, augmentation and dropout are drawn by, in a study of `seed`."""
    setup = trial.setup
    if setup is None:
        return seed, trial.number
    return (seed if setup.seed is None else setup.seed), setup.like


def identity(trial: Trial) -> int:
    """The trial that a checkpoint belongs to: a winner that was trained again stands for itself."""
    return trial.setup.like if trial.setup is not None and trial.origin == "winner" else trial.number


def stem(trial: Trial) -> str:
    """What the trial's files are called."""
    if trial.setup is None or trial.origin == "winner":
        return f"trial-{identity(trial):04d}"
    return trial.setup.name


def start(
    setup: Setup | None, recipe: Recipe, model: FineTuneModel, initial: dict[str, Tensor], config: Mapping[str, Any], classes: int
) -> dict[str, Tensor]:
    """The state that a run starts from: the study's own, with another seed's head, or drawn from scratch.

    Blocks that may be frozen are always the study's own: their activations are kept. Raises ValueError for a run from scratch that
    freezes something, or of a network that cannot be had without its weights.
    """
    if setup is None or (setup.seed is None and not setup.scratch):
        return initial
    name, blocks = config["model"], len(model.blocks)
    whole = recipe.cuts(blocks) == [0]
    if setup.scratch and not whole:
        raise ValueError("from scratch nothing can be frozen")
    if setup.scratch and is_own(name) and config["weights"].lower() != "none" and not takes_pretrained(name):
        raise ValueError(f"{name} may load what it likes: give it a parameter `pretrained`, and it can be had without its weights")
    seed = seed_for(config["seed"] if setup.seed is None else setup.seed, 0, "head")
    drawn = models.build(name, classes, "none", seed, config["preprocess"]).initial
    if not (setup.scratch or (whole and config["weights"].lower() == "none")):
        drawn = {key: value for key, value in drawn.items() if model.cuts.tensors.get(key) == blocks}  # the head
    device = next(iter(initial.values())).device
    return {**initial, **{key: value.to(device) for key, value in drawn.items()}}
