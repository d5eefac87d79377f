"""From image files to pixels: what a model expects of its input, and reading any image as that. Knows Pillow and NumPy, not torch."""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".avif", ".jp2", ".j2k"),
)
FOREIGN = (".heic", ".heif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".svg", ".psd", ".jxl")  # images not read
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # not EPS: Pillow runs Ghostscript on it
MAGIC = (  # how files begin that are images, but none that Pillow reads; "." is any byte
    (rb"(?s)....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", "HEIC"),
    (rb"(?s)....ftypavi[fs]", "AVIF"),
    (rb"(?s)....ftypcrx |II\*\0....CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0", "camera raw"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"8BPS", "PSD"),
    (rb"(?s)(\xef\xbb\xbf)?\s*(<(\?xml|!--|!DOCTYPE svg).*?)?<svg\b", "SVG"),
)
DNG, SUB_IMAGES, KIND = 0xC612, 0x14A, 0xFE  # TIFF tags: version of DNG; other images inside; 1: a preview
SPECIAL = ("rgba", "cmyk", "palette", "16-bit", "rotated", "animated", "gray")  # what may be special about an image
MEGAPIXELS = 100  # more are refused
MEGABYTES = 256  # of a file
THUMBNAIL = 32  # pixels, side
NO_MEMORY = "not enough memory"  # the one reason that is not the file's fault

INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {  # its values, and what turns such an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Bytes = npt.NDArray[np.uint8]


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


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded image."""

    image: Bytes  # (channels, size, size)
    thumbnail: Bytes  # (32, 32, 3), the whole image squeezed to a square
    width: int  # pixels, of the original, upright
    height: int
    special: tuple[str, ...]  # of SPECIAL


class Unusable(ValueError):
    """No image can be had from this; the message is the reason in a few words."""


def read_file(path: Path, stamp: tuple[int, int] | None = None) -> bytes:
    """The bytes of an image file; `stamp` is the (size in bytes, mtime in ns) it had when it was listed.

    Raises Unusable when there is no such file, it cannot be an image, or it is not the one that was listed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unusable("not a file")
        # Not blocking: a named pipe in its place would wait for its writer for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise Unusable("empty file")
            if status.st_size > MEGABYTES * 2**20:
                raise Unusable(f"larger than {MEGABYTES} MB")
            data = file.read()
    except FileNotFoundError:
        raise Unusable("not found") from None
    except OSError as error:
        raise Unusable(f"cannot be read ({(error.strerror or str(error)).lower()})") from None
    if len(data) != status.st_size or (stamp is not None and stamp != (status.st_size, status.st_mtime_ns)):
        raise Unusable("changed while it was read")
    return data


def decode(data: bytes | Image.Image | npt.NDArray[Any], pre: Preprocessing) -> Pixels:
    """One image as its model wants it; `data` is a file's content, an image, or uint8 of shape (H, W) or (H, W, 1, 3 or 4).

    The shorter side becomes `pre.resize` (or `pre.size`, where that is more) and the centre is cut out, as torchvision does
    with its weights. Gray is repeated for a model that wants RGB. Raises Unusable, whatever is wrong with the data.
    """
    try:
        with quiet():
            image, width, height, special = upright(data, pre)
            image, more = plain(image)
            words = {*special, *more}
            gray = image.convert("L") if pre.channels == 1 else image
            cut = np.asarray(shrink(gray, pre))
            return Pixels(
                image=np.ascontiguousarray(cut.transpose(2, 0, 1)) if cut.ndim == 3 else np.repeat(cut[None], pre.channels, 0),
                thumbnail=np.asarray(squeeze(image)),
                width=width,
                height=height,
                special=tuple(word for word in SPECIAL if word in words),
            )
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise Unusable(too_large(int(count[0])) if count else f"more than {MEGAPIXELS} megapixels") from None
    except UnidentifiedImageError:
        kind = foreign(data) if isinstance(data, bytes) else ""
        raise Unusable(cannot(kind) if kind else "not an image") from None
    except MemoryError:
        raise Unusable(NO_MEMORY) from None
    except Exception as error:  # decoders raise anything on damaged data
        text = " ".join(str(error).split())[:80] or type(error).__name__
        raise Unusable("truncated" if "truncated" in text.lower() else f"damaged ({text})") from None


def upright(data: bytes | Image.Image | npt.NDArray[Any], pre: Preprocessing) -> tuple[Image.Image, int, int, list[str]]:
    """The loaded image as it is to be looked at, its original width and height, and what was special; the first of several frames."""
    special = []
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.size == 0 or data.ndim not in (2, 3) or data.shape[2:] not in ((), (1,), (3,), (4,)):
            raise Unusable(f"{data.dtype} pixels of shape {data.shape}, not uint8 (H, W) or (H, W, 3)")
        image: Image.Image = Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    else:
        image = open_bytes(data) if isinstance(data, bytes) else data
    if isinstance(data, bytes) and image.format == "TIFF" and camera_raw(image, data):
        raise Unusable(cannot("camera raw"))
    width, height = image.size
    if width * height > MEGAPIXELS * 1e6:
        raise Unusable(too_large(width * height))
    if getattr(image, "is_animated", False) and image.format != "MPO":  # an MPO is a photograph and its previews
        special.append("animated")
    turned = orientation(image) in UPRIGHT
    if isinstance(data, bytes):  # decode a large JPEG at 1/2, 1/4 or 1/8, never below twice what is needed
        shorter = 2 * max(pre.resize, pre.size)
        image.draft(None, (shorter, shorter))
    image.load()
    left = orientation(image)  # Pillow turns a TIFF by itself, in load, and reports the size it then has
    if left in UPRIGHT:
        image = image.transpose(UPRIGHT[left])
        if left >= 5:
            width, height = height, width
    return image, width, height, [*special, *(["rotated"] if turned else [])]


def open_bytes(data: bytes) -> Image.Image:
    """The image in a file's content, not yet decoded."""
    if not data:
        raise Unusable("empty file")
    if data.startswith(b"version https://git-lfs"):
        raise Unusable("a Git LFS pointer, run git lfs pull")
    return Image.open(io.BytesIO(data), formats=formats())


def foreign(data: bytes) -> str:
    """What kind of image a file is that Pillow does not know; "" for no image."""
    return next((kind for pattern, kind in MAGIC if re.match(pattern, data[:4096])), "")


def camera_raw(image: Image.Image, data: bytes) -> bool:
    """Whether a TIFF is a camera's raw file, of which Pillow would read the preview."""
    tags = getattr(image, "tag_v2", {})
    return foreign(data) == "camera raw" or DNG in tags or (SUB_IMAGES in tags and tags.get(KIND) == 1)


def cannot(kind: str) -> str:
    """Why an image of a kind that is not read cannot be used."""
    return f"{kind} cannot be read; convert to {'PNG' if kind == 'SVG' else 'JPEG'}"


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or EXIF is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the parser raises anything; the pixels may be fine
        return 1
    return value if isinstance(value, int) else 1


def plain(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """As mode L or RGB, and what was special about it. Transparency becomes white, 16 bits are scaled to 8."""
    mode = image.mode
    special = {"CMYK": ["cmyk"], "P": ["palette"], "PA": ["palette"], "1": ["gray"], "L": ["gray"], "LA": ["gray"]}.get(mode, [])
    if mode == "F":
        raise Unusable("32-bit float pixels")
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("32-bit integer pixels")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)), ["16-bit", "gray"]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white, [*special, "rgba"]
    if mode in ("1", "L"):
        return image.convert("L"), special
    return lab_to_rgb(image) if mode == "LAB" else image.convert("RGB"), special


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's `convert` cannot do this one."""
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    result = ImageCms.applyTransform(image, transform)
    assert result is not None
    return result


def shrink(image: Image.Image, pre: Preprocessing) -> Image.Image:
    """Resized and cut to (size, size) in one step, which gives the same pixels and survives a panorama of 5000 x 3."""
    shorter = max(pre.resize, pre.size)
    box = [0.0, 0.0, 0.0, 0.0]
    for axis, side in enumerate(image.size):
        resized = int(shorter * side / min(image.size))
        start = round((resized - pre.size) / 2)
        box[axis], box[axis + 2] = start * side / resized, min(side, (start + pre.size) * side / resized)
    return image.resize((pre.size, pre.size), INTERPOLATION[pre.interpolation], box=(box[0], box[1], box[2], box[3]))


def squeeze(image: Image.Image) -> Image.Image:
    """The whole image as a small square, in RGB."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("RGB")


def as_picture(value: Any) -> Image.Image | Bytes:
    """What a data set yields, as `decode` takes it: an image, or an array or tensor (H, W), (H, W, C), (C, H, W), uint8 or in [0, 1].

    Raises Unusable for anything else.
    """
    if isinstance(value, Image.Image):
        return value
    tensor = hasattr(value, "detach")
    array = value.detach().cpu().numpy() if tensor else value
    if not isinstance(array, np.ndarray):
        raise Unusable(f"a {type(value).__name__} instead of an image")
    last, first = array.ndim == 3 and array.shape[2] in (1, 3, 4), array.ndim == 3 and array.shape[0] in (1, 3, 4)
    if first and (tensor or not last):
        array = array.transpose(1, 2, 0)
    elif array.ndim != 2 and not last:
        raise Unusable(f"pixels of shape {tuple(array.shape)} instead of (H, W), (H, W, 3) or (3, H, W)")
    if array.dtype.kind == "f":
        if not (array.size and array.min() >= 0 and array.max() <= 1):
            raise Unusable("float pixels outside [0, 1]; do not normalise them")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise Unusable(f"{array.dtype} pixels instead of uint8, or float in [0, 1]")
    return np.ascontiguousarray(array)


def too_large(pixels: int) -> str:
    """Why an image of so many pixels is refused."""
    return f"{pixels / 1e6:.0f} megapixels, more than {MEGAPIXELS}"


_quiet_lock = threading.Lock()
_quiet_stack: list[warnings.catch_warnings[None]] = []
_quiet_depth = 0


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings from Pillow: about corrupt EXIF, large images, palettes. `warnings.catch_warnings` alone is not for threads."""
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            _quiet_stack.append(warnings.catch_warnings())
            _quiet_stack[0].__enter__()
            warnings.filterwarnings("ignore", module="PIL")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_stack.pop().__exit__(None, None, None)
