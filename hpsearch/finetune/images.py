"""From image files to pixels: what a model expects of its input, and reading any image as that. Knows Pillow and NumPy, not torch."""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from hpsearch.finetune.roots import leads_out, open_inside

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
    (rb"(?s).{128}DICM", "DICOM"),
    (rb"\x93NUMPY", "NumPy array"),
    (rb"\0\x05\x16\x07", "AppleDouble"),
    (rb"(?s)(\xef\xbb\xbf)?\s*(<(\?xml|!--|!DOCTYPE svg).*?)?<svg\b", "SVG"),
)
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DNG, SUB_IMAGES, KIND = 0xC612, 0x14A, 0xFE  # TIFF tags: version of DNG; other images inside; 1: a preview
BITS, PHOTOMETRIC, BANDS, PLANAR, EXTRA, FORMAT = 258, 262, 277, 284, 338, 339  # TIFF tags
WHITE_IS_ZERO, RGB, INKS = 0, 2, 5  # photometric
COLOURS = {RGB: 3, 6: 3, 8: 3, 9: 3, INKS: 4}  # photometric -> bands without alpha, where not one: RGB, YCbCr, Lab, CMYK
SPECIAL = ("rgba", "cmyk", "palette", "16-bit", "rotated", "animated", "gray")  # what may be special about an image
DECODER = 2  # changes when the same file gives other pixels
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
Region = tuple[float, float, float, float]  # left, top, right, bottom [pixels]


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
        if leads_out(path):
            raise Unusable("not found")
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unusable("not a file")
        with open_inside(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise Unusable("empty file")
            if status.st_size > MEGABYTES * 2**20:
                raise Unusable(f"larger than {MEGABYTES} MB")
            data: bytes = file.read()
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
            image, region, width, height, special = upright(data, pre)
            image, more = plain(image)
            words = {*special, *more}
            gray = image.convert("L") if pre.channels == 1 else image
            cut = np.asarray(shrink(gray, pre, region))
            return Pixels(
                image=np.ascontiguousarray(cut.transpose(2, 0, 1)) if cut.ndim == 3 else np.repeat(cut[None], pre.channels, 0),
                thumbnail=np.asarray(squeeze(image, region)),
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
        raise Unusable(unidentified(data) if isinstance(data, bytes) else "not an image") from None
    except MemoryError:
        raise Unusable(NO_MEMORY) from None
    except Exception as error:  # decoders raise anything on damaged data
        text = " ".join(str(error).split())[:80] or type(error).__name__
        packed = "or packed in a way that is not read, " if text.startswith("decoder error") else ""
        raise Unusable("truncated" if "truncated" in text.lower() else f"damaged ({packed}{text})") from None


def upright(data: bytes | Image.Image | npt.NDArray[Any], pre: Preprocessing) -> tuple[Image.Image, Region, int, int, list[str]]:
    """The loaded image as it is to be looked at, the part of it that is picture, its original width and height, and what was special.

    Of several frames the first. A JPEG that is decoded at a part of its size gets whole pixels for what is left over at its edges.
    """
    special = []
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.size == 0 or data.ndim not in (2, 3) or data.shape[2:] not in ((), (1,), (3,), (4,)):
            raise Unusable(f"{data.dtype} pixels of shape {data.shape}, not uint8 (H, W) or (H, W, 3)")
        image: Image.Image = Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    else:
        image = open_bytes(data) if isinstance(data, bytes) else data
    if isinstance(data, bytes) and image.format == "TIFF":
        if camera_raw(image, data):
            raise Unusable(cannot("camera raw"))
        if problem := tiff_problem(image.tag_v2):  # type: ignore[attr-defined]
            raise Unusable(problem)
        silence_libtiff()
    width, height = image.size
    if width * height > MEGAPIXELS * 1e6:
        raise Unusable(too_large(width * height))
    if getattr(image, "is_animated", False) and image.format != "MPO":  # an MPO is a photograph and its previews
        special.append("animated")
    turned = orientation(image) in UPRIGHT
    drafted = None
    if isinstance(data, bytes):  # decode a large JPEG at 1/2, 1/4 or 1/8, never below twice what is needed
        shorter = 2 * max(pre.resize, pre.size)
        drafted = image.draft(None, (shorter, shorter))
    image.load()
    right, bottom = drafted[1][2:] if drafted else image.size
    region: Region = (0.0, 0.0, float(right), float(bottom))
    left = orientation(image)  # Pillow turns a TIFF by itself, in load, and reports the size it then has
    if left in UPRIGHT:
        region = turn_region(region, image.size, left)
        image = image.transpose(UPRIGHT[left])
        if left >= 5:
            width, height = height, width
    return image, region, width, height, [*special, *(["rotated"] if turned else [])]


def turn_region(region: Region, size: tuple[int, int], orientation: int) -> Region:
    """Where a region of an image of that size lies after UPRIGHT has turned the image."""
    (left, top, right, bottom), (width, height) = region, size
    if orientation in (2, 3, 7, 8):  # those that turn left and right round; 7 and 8 before x and y change places
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def open_bytes(data: bytes) -> Image.Image:
    """The image in a file's content, not yet decoded."""
    if not data:
        raise Unusable("empty file")
    if data.startswith(b"version https://git-lfs"):
        raise Unusable("a Git LFS pointer, run git lfs pull")
    return Image.open(io.BytesIO(data), formats=formats())


def unidentified(data: bytes) -> str:
    """Why no image could be opened."""
    if kind := foreign(data):
        return cannot(kind)
    if data.startswith(TIFF):
        with suppress(Exception):
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2] == 43 or data[3] == 43 else data[:8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            return tiff_problem(tags) or cannot(tiff_kind(tags))
        big = data.startswith(b"MM\0+")  # which Pillow does not tell from a TIFF of the other size
        return cannot("big-endian BigTIFF") if big else "damaged (a TIFF whose list of contents cannot be read)"
    if data.startswith(PNG):
        part = bad_part(data)
        return f"damaged (the checksum of the PNG's part {part} is wrong)" if part else "damaged (a PNG whose parts make no image)"
    if kind := other_format(data):
        return f"damaged (it begins as {kind})" if kind in FORMATS else cannot(kind)
    return "not an image"


def other_format(data: bytes) -> str:
    """Which of Pillow's formats, also those that are not read, claims a file by its beginning; "" for none."""
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        with suppress(Exception):
            if accept is None or accept(data[:16]) is not True:
                continue
            if name not in FORMATS and name != "EPS":  # which has another program run
                Image.open(io.BytesIO(data), formats=(name,)).close()
            return name
    return ""


def kind_of_file(path: Path) -> str:
    """What kind of picture a file holds, by how it begins or by its ending: readable (one of FORMATS) or not; "" for none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open_inside(path, "rb") as file:
            data = file.read(4096)
    except OSError:
        return ""
    ending = path.suffix.lower()
    with quiet():
        return foreign(data) or other_format(data) or (Image.registered_extensions().get(ending, "") if ending not in SUFFIXES else "")


def bad_part(data: bytes) -> str:
    """The first part of a PNG whose checksum is wrong; "" for none."""
    at = len(PNG)
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + length
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return name.decode("ascii", "replace") if name.isalpha() else "?"
        at = end + 4
    return ""


def tiff_kind(tags: Mapping[int, Any]) -> str:
    """What a TIFF holds, in words: "planar 16-bit RGB TIFF"."""
    bands, bits = int(tags.get(BANDS, 1)), max(as_tuple(tags.get(BITS, 1)))
    numbers = {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}.get(as_tuple(tags.get(FORMAT, 1))[0], "")
    photometric = tags.get(PHOTOMETRIC)
    colours = COLOURS.get(photometric, 1) if photometric is not None else 1
    names = {0: "gray", 1: "gray", RGB: "RGB", 3: "palette", INKS: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab"}
    told = f"{bands}-band" if bands > colours + 1 else names.get(photometric, "") if photometric is not None else ""
    alpha = " with alpha" if bands == colours + 1 else ""
    planar = "planar " if tags.get(PLANAR) == 2 and bands > 1 else ""
    return " ".join(f"{planar}{bits}-bit {numbers}{told} TIFF{alpha}".split())


def tiff_problem(tags: Mapping[int, Any]) -> str | None:
    """Why a TIFF is not read, although Pillow may make something of it: the wrong pixels."""
    bands, bits = int(tags.get(BANDS, 1)), as_tuple(tags.get(BITS, 1))
    photometric = tags.get(PHOTOMETRIC)
    numbers = {*as_tuple(tags.get(FORMAT, 1))}
    planar = tags.get(PLANAR) == 2 and bands > 1
    wide = bands == 1 and bits == (32,) and numbers == {2}  # what Pillow writes of its mode "I"
    multiplied = 1 in as_tuple(tags.get(EXTRA, 0))  # colours by their alpha
    right = (numbers <= {1, 4} or wide) and (not planar or (photometric in (RGB, INKS) and {*bits} == {8} and not multiplied))
    return None if right else cannot(tiff_kind(tags))


def as_tuple(value: Any) -> tuple[int, ...]:
    """The values of a TIFF's tag."""
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)


@functools.cache
def silence_libtiff() -> None:
    """Has libtiff, which Pillow loads, write nothing to the terminal: its errors come as exceptions too."""
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text()
        for path in {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libtiff" in line}:
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                getattr(library, name)(None)


def foreign(data: bytes) -> str:
    """What kind of image a file is that Pillow does not know; "" for no image."""
    return next((kind for pattern, kind in MAGIC if re.match(pattern, data[:4096])), "")


def camera_raw(image: Image.Image, data: bytes) -> bool:
    """Whether a TIFF is a camera's raw file, of which Pillow would read the preview."""
    tags = getattr(image, "tag_v2", {})
    return foreign(data) == "camera raw" or DNG in tags or (SUB_IMAGES in tags and tags.get(KIND) == 1)


def cannot(kind: str) -> str:
    """Why an image of a kind that is not read cannot be used."""
    if kind == "AppleDouble":
        return "macOS's notes on a file (AppleDouble) and no image; remove it"
    return f"{kind} cannot be read; convert to {'JPEG' if kind in ('HEIC', 'AVIF', 'camera raw', 'JPEG XL', 'PSD') else 'PNG'}"


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
    special = {"CMYK": ["cmyk"], "P": ["palette"], "PA": ["palette"], "1": ["gray"], "L": ["gray"], "LA": ["gray"], "La": ["gray"]}.get(
        mode, []
    )
    if mode == "F":
        raise Unusable("32-bit float pixels")
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("32-bit integer pixels")
        tags = getattr(image, "tag_v2", {})
        if as_tuple(tags.get(BITS, 16)) == (12,):  # which Pillow leaves as they are
            values = (values.astype(np.uint32) * 65535 + 2047) // 4095
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds for 8 bits only
            values = 65535 - values
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)), ["16-bit", "gray"]
    if mode in ("La", "RGBa"):  # colours multiplied by their alpha
        image = image.convert(mode.upper())
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


def shrink(image: Image.Image, pre: Preprocessing, region: Region) -> Image.Image:
    """Resized and cut to (size, size) in one step, which gives the same pixels and survives a panorama of 5000 x 3."""
    shorter = max(pre.resize, pre.size)
    box = [0.0, 0.0, 0.0, 0.0]
    sides = region[2] - region[0], region[3] - region[1]
    for axis, side in enumerate(sides):
        resized = int(shorter * side / min(sides))
        start = round((resized - pre.size) / 2)
        box[axis] = region[axis] + start * side / resized
        box[axis + 2] = min(region[axis + 2], region[axis] + (start + pre.size) * side / resized)
    return image.resize((pre.size, pre.size), INTERPOLATION[pre.interpolation], box=(box[0], box[1], box[2], box[3]))


def squeeze(image: Image.Image, region: Region) -> Image.Image:
    """The whole image as a small square, in RGB."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, box=region, reducing_gap=2.0).convert("RGB")


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
_quiet_level = logging.NOTSET


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines from Pillow: about corrupt EXIF, large images, palettes, odd TIFFs.

    `warnings.catch_warnings` alone is not for threads.
    """
    global _quiet_depth, _quiet_level
    logger = logging.getLogger("PIL")
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            _quiet_stack.append(warnings.catch_warnings())
            _quiet_stack[0].__enter__()
            warnings.filterwarnings("ignore", module="PIL")
            _quiet_level = logger.level
            logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_stack.pop().__exit__(None, None, None)
                logger.setLevel(_quiet_level)
