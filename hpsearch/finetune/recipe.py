"""A trial's hyperparameters as the trainer uses them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hpsearch.types import Params

KINDS = {"float": float, "int": int, "str": str}
AUGMENTATIONS = {"crop": 1.0, "flip": 0.0, "rotate": 0.0, "colour": 0.0, "randaugment": 0.0}  # with what turns each off


@dataclass(frozen=True)
class Recipe:
    """Every setting of the trainer; docs/study-file.md says what each means and where it comes from."""

    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float
    dropout: float
    frozen_layers: int
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    l1: float = 0.0
    l2_sp: float = 0.0
    clip_norm: float = 0.0
    layer_decay: float = 1.0
    unfreeze_epochs: int = 0
    early_stopping: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    crop: float = 1.0
    flip: float = 0.0
    rotate: float = 0.0
    colour: float = 0.0
    randaugment: float = 0.0

    @classmethod
    def of(cls, params: Params) -> Recipe:
        """From sampled and fixed values; KeyError or ValueError when one is missing or of another kind."""
        unknown = sorted(set(params) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"the trainer knows no {', '.join(unknown)}")
        needed = [f.name for f in fields(cls)][:6]
        given = {f.name: KINDS[str(f.type)](str(params[f.name])) for f in fields(cls) if f.name in params or f.name in needed}
        return cls(**given)

    @property
    def augments(self) -> bool:
        """Whether pixels change from epoch to epoch."""
        return any(getattr(self, name) != off for name, off in AUGMENTATIONS.items())

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    def frozen(self, epoch: int, blocks: int) -> int:
        """How many of `blocks` are frozen in an epoch (from 1): with gradual unfreezing (Howard and Ruder, 2018) less and less."""
        if not self.unfreeze_epochs:
            return self.frozen_layers
        return max(self.frozen_layers, blocks - (epoch - 1) // self.unfreeze_epochs)

    def cuts(self, blocks: int) -> list[int]:
        """Every number of frozen blocks that the trial goes through, in order."""
        return list(dict.fromkeys(self.frozen(epoch, blocks) for epoch in range(1, self.epochs + 1)))
