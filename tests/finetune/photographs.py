"""Real photographs for tests: tiles of the two pictures that scikit-learn ships."""

import functools
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

SIDE = 96


@functools.cache
def tiles():
    """(98, 96, 96, 3) uint8: tiles that do not overlap much; the first half of one picture, the second of the other."""
    cut = []
    for name in ("china.jpg", "flower.jpg"):
        picture = load_sample_image(name)
        cut += [picture[y : y + SIDE, x : x + SIDE] for y in range(0, 427 - SIDE, 55) for x in range(0, 640 - SIDE, 78)]
    return np.stack(cut)


def recompressed(pixels, quality=40):
    """What JPEG makes of a picture."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def resized(pixels, side=64):
    """Smaller, then large again."""
    return np.asarray(Image.fromarray(pixels).resize((side, side)).resize((SIDE, SIDE)))


def thumbnails(pictures):
    """(N, 32, 32, 3) uint8."""
    return np.stack([np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures])
