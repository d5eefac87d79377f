"""Small image files for the tests of reading images."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(seed, width=40, height=30, channels=3):
    """A smooth random image, uint8 (height, width, channels), or (height, width) for 0 channels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, channels) if channels else (4, 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind, **options):
    """The content of a file with this image."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def declared_png(width, height):
    """The header of a PNG that claims this size, and no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write(path, seed, **options):
    """A file with a picture, made with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, **options)).save(path)
    return path


def make_folder(folder, counts, prefix="", suffix=".png"):
    """`counts` pictures a class, in folder/class; all different."""
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write(folder / name / f"{prefix}{i}{suffix}", seed=hash((number, i)) % 2**32)
    return folder
