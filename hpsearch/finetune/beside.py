"""Runs beside the search, and repeats of a comparison: the random numbers they draw, and the weights they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hpsearch.finetune.blocks import FineTuneModel
from hpsearch.finetune.names import is_own
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.zoo import takes_pretrained
from hpsearch.seeds import repeat_seed, seed_for
from hpsearch.types import Trial, trial_name


def draws(trial: Trial, seed: int) -> tuple[int, int]:
    """The seed and the trial's number that order, augmentation and dropout are drawn by, in a study of `seed`.

    In a repeat of a comparison a configuration draws the same whatever its number, so that one training serves all samplers.
    """
    setup = trial.setup
    if setup is not None and setup.seed is not None:
        return setup.seed, setup.like
    if trial.repeat:
        return repeat_seed(seed, trial.repeat), 0
    return seed, trial.number if setup is None else setup.like


def identity(trial: Trial) -> int:
    """The trial that a checkpoint belongs to: a winner that was trained again stands for itself."""
    return trial.setup.like if trial.setup is not None and trial.origin == "winner" else trial.number


def stem(trial: Trial) -> str:
    """What the trial's files are called."""
    return trial_name(identity(trial)) if trial.origin == "winner" else trial.name


def start(
    trial: Trial,
    recipe: Recipe,
    model: FineTuneModel,
    initial: dict[str, Tensor],
    config: Mapping[str, Any],
    draw: Callable[[int], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The state that a trial starts from: the study's own, with another seed's head, or drawn from scratch.

    `draw` gives a whole network's state as a seed draws it. Blocks that may be frozen are always the study's own: their activations
    are kept. Raises ValueError for a run from scratch that freezes something, or of a network that cannot be had without its weights.
    """
    given, scratch = (None, False) if trial.setup is None else (trial.setup.seed, trial.setup.scratch)
    if given is None and not scratch and not trial.repeat:
        return initial
    name, blocks = config["model"], len(model.blocks)
    whole = recipe.cuts(blocks) == [0]
    if scratch and not whole:
        raise ValueError("from scratch nothing can be frozen")
    if scratch and is_own(name) and config["weights"].lower() != "none" and not takes_pretrained(name):
        raise ValueError(f"{name} may load what it likes: give it a parameter `pretrained`, and it can be had without its weights")
    seed = seed_for(repeat_seed(config["seed"], trial.repeat) if given is None else given, 0, "head")
    drawn = draw(seed)
    if not (scratch or (whole and config["weights"].lower() == "none")):
        drawn = {key: value for key, value in drawn.items() if model.cuts.tensors.get(key) == blocks}  # the head
    device = next(iter(initial.values())).device
    return {**initial, **{key: value.to(device) for key, value in drawn.items()}}
