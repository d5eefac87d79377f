"""From image files to pixels: what a model expects of its input, and reading any image as that. Knows Pillow and NumPy, not torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input; what the pretrained weights were trained with."""

    size: int  # pixels, side of the square that the model sees
    resize: int  # pixels, shorter side before the centre is cut out
    mean: tuple[float, ...]  # of pixels in [0, 1], one value a channel: 1 (gray) or 3 (RGB)
    std: tuple[float, ...]
    interpolation: str = "bilinear"  # or "bicubic", "nearest"

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return len(self.mean)
