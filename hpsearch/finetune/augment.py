"""Images changed at random, and mixed, on the device: every image by draws of its own, and nothing the host would have to wait for.

Notation: N images in a batch, C channels (1 or 3), H x W pixels. All functions can be captured in a CUDA graph: shapes are fixed,
strengths are tensors, and random numbers come from the device's default generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.finetune.recipe import Recipe

DRAWS = 13  # uniform numbers for an image, all drawn, so that a part is drawn alike whatever else is on
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = ("brightness", "contrast", "colour", "sharpness", "autocontrast", "solarise", "posterise")
OPERATIONS = ("identity", *GEOMETRIC, *COLOURS)
ROTATE, SHEAR, TRANSLATE, ENHANCE, BITS = math.radians(30), 0.3, 0.45, 0.9, 4  # RandAugment at full strength
ASPECT = math.log(4 / 3)  # of a crop
PLAIN = 0.1  # how far a pixel of a plain background may be from the others


@dataclass(frozen=True)
class Strengths:
    """0-d float32 tensors, which one captured step reads for every trial."""

    crop: Tensor  # smallest share of the area that is kept; 1: off
    flip: Tensor  # probability
    rotate: Tensor  # largest angle [degrees]
    colour: Tensor  # largest change of brightness, contrast and saturation, 0 to 1
    randaugment: Tensor  # magnitude, 0 to 10

    @classmethod
    def on(cls, device: torch.device) -> Strengths:
        """All off."""
        return cls.of((1.0, 0.0, 0.0, 0.0, 0.0), device)

    @classmethod
    def of(cls, values: Sequence[float], device: torch.device) -> Strengths:
        """From what `values` gives."""
        return cls(*(torch.tensor(value, dtype=torch.float32, device=device) for value in values))

    @classmethod
    def values(cls, recipe: Recipe) -> tuple[float, ...]:
        """A trial's, in the order of the fields."""
        return tuple(getattr(recipe, field.name) for field in fields(cls))

    def set(self, recipe: Recipe) -> None:
        """Copy a trial's values in place."""
        for field in fields(self):
            getattr(self, field.name).fill_(getattr(recipe, field.name))


@torch.no_grad()
def augment(x: Tensor, strengths: Strengths) -> Tensor:
    """Images x (N, C, H, W) in [0, 1], each cropped, turned, flipped and recoloured; in the memory format of x, which is not changed.

    Crop and rotation are those of one affine map with the geometric operations of RandAugment, in one resampling, and colours
    come after. An image that nothing happens to keeps its pixels to the last bit.
    """
    u = torch.rand(DRAWS, len(x), dtype=torch.float32, device=x.device)
    if acts(strengths.flip):  # exact, so not by resampling
        x = torch.where((u[0] < strengths.flip).view(-1, 1, 1, 1), x.flip(3), x)
    operations = [randaugment(u[1], u[2], strengths.randaugment), randaugment(u[3], u[4], strengths.randaugment)]
    if acts(strengths.crop, 1) or acts(strengths.rotate) or acts(strengths.randaugment):
        place = crop_and_turn(u[5:10], strengths.crop, strengths.rotate, x.shape)
        for operation in operations:
            place = compose(place, placed(operation, x.shape))
        x = warp(x, place)
    if acts(strengths.colour):
        x = jitter(x, *(1 + strengths.colour * (2 * u[10:13] - 1)))
    if acts(strengths.randaugment):
        for operation in operations:
            x = recoloured(x, operation)
    return x


def acts(strength: Tensor, off: float = 0.0) -> bool:
    """Whether a part may change anything. Only a CPU is asked: a GPU would have to be waited for, and a graph holds every part."""
    return strength.device.type != "cpu" or strength.item() != off


# ---------------------------------------------------------------- where pixels go


def affine(*entries: Tensor) -> Tensor:
    """(N, 3, 3) from the six entries (N,) of the first two rows; takes a pixel of the result to the one that it shows.

    Pixels are counted from the centre, x to the right and y down.
    """
    zero = torch.zeros_like(entries[0])
    return torch.stack((*entries, zero, zero, zero + 1), 1).view(-1, 3, 3)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """What shows images changed by the first map and then by the second; not by `@`, which autocast does in bf16."""
    return (first[:, :, :, None] * second[:, None]).sum(2)


def crop_and_turn(u: Tensor, crop: Tensor, rotate: Tensor, shape: torch.Size) -> Tensor:
    """Random resized crop (Szegedy et al., 2015), then a rotation about the centre, from five uniform draws u (5, N).

    The area is uniform in [crop, 1] and the logarithm of the aspect ratio in +-log(4/3), or less where the crop would be wider
    or higher than the image.
    """
    area = crop + (1 - crop) * u[0]
    stretch = (2 * u[1] - 1) * (-area.log()).clamp(0, ASPECT)
    w, h = (area * stretch.exp()).sqrt(), (area / stretch.exp()).sqrt()
    right, down = (1 - w) * (u[2] - 0.5) * shape[3], (1 - h) * (u[3] - 0.5) * shape[2]
    angle = (2 * u[4] - 1) * rotate.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return affine(w * cos, -w * sin, right, h * sin, h * cos, down)


def warp(x: Tensor, place: Tensor) -> Tensor:
    """Images x (N, C, H, W) resampled bilinearly by `place` (N, 3, 3).

    What lies outside is the background where there is a plain one, as around digits and products; the mirrored image elsewhere,
    since in photographs a flat patch would tell how they were turned. Mirrored digits would be other digits.
    """
    _, _, height, width = x.shape
    fill, plain = background(x)
    rows = torch.arange(height, dtype=torch.float32, device=x.device)[:, None] - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float32, device=x.device) - (width - 1) / 2
    axes = []
    for entries, size in zip(place.unbind(1), (width, height), strict=False):
        a, b, c = (2 / size * entries).T[:, :, None, None]
        at = a * columns + (b * rows + c)
        inside = 1 - 1 / size  # the centre of the last pixel
        mirrored = (1 - ((at + 1).abs() - 2).abs()).clamp(-inside, inside)
        axes.append(torch.where(plain, at, mirrored))
    moved = F.grid_sample(x - fill, torch.stack(axes, 3), mode="bilinear", padding_mode="zeros", align_corners=False) + fill
    still = (place == torch.eye(3, device=x.device)).flatten(1).all(1)
    return torch.where(still.view(-1, 1, 1, 1), x, moved.clamp(0, 1))


def background(x: Tensor) -> tuple[Tensor, Tensor]:
    """The median colour (N, C, 1, 1) along the edges of images, and whether (N, 1, 1) most of the edge has it."""
    edge = torch.cat((x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]), 2)
    colour = edge.sort(2).values[:, :, edge.shape[2] // 2, None]  # `median` is not deterministic on CUDA
    plain = ((edge - colour).abs().amax(1) < PLAIN).float().mean(1) > 0.5
    return colour[..., None], plain[:, None, None]


# ---------------------------------------------------------------- colours


def grey(x: Tensor) -> Tensor:
    """Luma (N, 1, H, W) of ITU-R BT.601, as Pillow's."""
    return x if x.shape[1] == 1 else 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Enhance (N,) each by its factor: blends with black, with the mean of the luma, with the luma; cut off at [0, 1] once, at the end."""
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation))
    luma = grey(x)
    shift = (1 - contrast) * luma.mean((2, 3), keepdim=True)
    return (brightness * (saturation * contrast * x + ((1 - saturation) * contrast * luma + shift))).clamp_(0, 1)


# ---------------------------------------------------------------- RandAugment


def randaugment(which: Tensor, sign: Tensor, magnitude: Tensor) -> Mapping[str, Tensor]:
    """One of OPERATIONS for each image, from uniform draws (N,): strengths (N,) in [-1, 1] by name, 0 for those not chosen.

    Cubuk et al. (2020) with two operations per image. Differences: equalize is left out, since it takes sorting all pixels; a magnitude of
    0 is the identity also for autocontrast, which is blended in; geometry comes before colours, so that images are resampled once.
    """
    chosen = (which * len(OPERATIONS)).long() == torch.arange(len(OPERATIONS), device=which.device)[:, None]
    return dict(zip(OPERATIONS, magnitude / 10 * chosen * (2 * (sign < 0.5) - 1), strict=True))


def placed(operation: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """The map of a geometric operation, the identity for others; of rotation, shear and translation at most one is not 0."""
    angle = ROTATE * operation["rotate"]
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y = SHEAR * operation["shear_x"], SHEAR * operation["shear_y"]
    right, down = TRANSLATE * shape[3] * operation["translate_x"], TRANSLATE * shape[2] * operation["translate_y"]
    return affine(cos, shear_x - sin, right, shear_y + sin, cos, down)


def recoloured(x: Tensor, operation: Mapping[str, Tensor]) -> Tensor:
    """Images (N, C, H, W) after an operation on colours; of its strengths at most one is not 0.

    All but the last two are sums: a share of the image, of its luma, of the image smoothed, and a constant.
    """
    by = {name: strength.view(-1, 1, 1, 1) for name, strength in operation.items()}
    luma = grey(x)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high - low < 1 / 255
    low, wide = low.masked_fill(flat, 0), (high - low).masked_fill(flat, 1)
    stretch = by["autocontrast"].abs() * (1 / wide - 1)
    shift = -by["autocontrast"].abs() * low / wide
    shift = shift - ENHANCE * by["contrast"] * luma.mean((2, 3), keepdim=True)
    share = 1 + stretch + ENHANCE * (by["brightness"] + by["contrast"] + by["colour"] + by["sharpness"])
    out = share * x + (shift - ENHANCE * by["colour"] * luma) - ENHANCE * by["sharpness"] * smooth(x)
    out = out.clamp_(0, 1)
    threshold = 256 / 255 * (1 - by["solarise"].abs())  # beyond white at strength 0
    out = torch.where(out >= threshold, 1 - out, out)
    coarse = torch.exp2((BITS * by["posterise"].abs()).round()).round()  # steps of 8-bit values
    return torch.where(coarse > 1, ((out * 255).round() / coarse).floor() * (coarse / 255), out)


def smooth(x: Tensor) -> Tensor:
    """Every pixel with its eight neighbours, weighted 5 to 1 each, as Pillow does; the edge stays as it is."""
    out = x.clone()
    out[:, :, 1:-1, 1:-1].mul_(4 / 13).add_(F.avg_pool2d(x, 3, 1), alpha=9 / 13)
    return out


# ---------------------------------------------------------------- mixing


def mixup(x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Each of x (N, ...) and its target of y (N, K) blended with the one before it, of which it keeps `share` (0-d, in [0, 1]).

    Zhang et al. (2018) for pixels, Verma et al. (2019) for activations. Batches are in random order, so that neighbours are random
    pairs. A share of 1 changes nothing.
    """
    return share * x + (1 - share) * x.roll(1, 0), share * y + (1 - share) * y.roll(1, 0)


def cutmix(x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Images x (N, C, H, W) with a box, at a place drawn for each, of the image before it; targets y (N, K) mixed by area.

    Yun et al. (2019), but the box lies inside the image rather than being cut off at its edge, so that an image keeps `share` (0-d,
    in [0, 1]) of its pixels up to rounding; targets follow the pixels. A share of 1 changes nothing.
    """
    _, _, height, width = x.shape
    u = torch.rand(2, len(x), 1, dtype=torch.float32, device=x.device)
    side = (1 - share).sqrt()
    h, w = (side * height).round(), (side * width).round()
    rows, columns = span(u[0], h, height), span(u[1], w, width)
    box = (rows[:, :, None] & columns[:, None])[:, None]
    kept = 1 - h * w / (height * width)
    return torch.where(box, x.roll(1, 0), x), kept * y + (1 - kept) * y.roll(1, 0)


def span(u: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size) true at `length` (0-d) neighbouring positions, of which u (N, 1), uniform, chooses the first."""
    first = (u * (size - length + 1)).floor().minimum(size - length)
    positions = torch.arange(size, device=u.device)
    return (positions >= first) & (positions < first + length)


def draw_share(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha) on the CPU, for `mixup` and `cutmix`; 1 when alpha is 0.

    A ratio of gammas, each made of one with a larger parameter (Marsaglia and Tsang, 2000), in logarithms: for a small alpha the gammas
    themselves are too small for a float.
    """
    if alpha == 0:
        return 1.0
    larger = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64), generator)
    u = 1 - torch.rand(2, dtype=torch.float64, generator=generator)  # in (0, 1]
    logs = larger.log() + u.log() / alpha
    return (logs[0] - logs[1]).sigmoid().item()
