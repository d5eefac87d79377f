"""Any image file becomes the pixels that a model expects, or says why not."""

import io
import os
import struct
import warnings

import numpy as np
import pytest
from image_files import declared_png, encoded, picture
from PIL import Image, ImageOps, TiffImagePlugin, features

from hpsearch.finetune import images
from hpsearch.finetune.images import ORIENTATION, Preprocessing, Unusable, as_picture, decode, read_file

RGB = Preprocessing(size=24, resize=24, mean=(0, 0, 0), std=(1, 1, 1))
GRAY = Preprocessing(size=24, resize=24, mean=(0,), std=(1,))


def plain_crop(array, pre=RGB):
    """What an upright RGB image of these pixels decodes to."""
    return decode(np.ascontiguousarray(array), pre).image.astype(int)


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (201, 333), (64, 64), (30, 47), (257, 256)])
@pytest.mark.parametrize(("size", "resize"), [(56, 64), (48, 48)])
def test_pixels_agree_with_the_transforms_that_come_with_torchvisions_weights(interpolation, width, height, size, resize):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    image = Image.fromarray(picture(1, width, height))
    theirs = ImageClassification(
        crop_size=size, resize_size=resize, mean=(0, 0, 0), std=(1, 1, 1), interpolation=InterpolationMode(interpolation)
    )
    ours = decode(encoded(image, "PNG"), Preprocessing(size, resize, (0, 0, 0), (1, 1, 1), interpolation))
    assert np.abs(ours.image.astype(int) - (theirs(image).numpy() * 255).round().astype(int)).max() <= 1
    assert (ours.width, ours.height) == (width, height)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5000, 3), (3, 5000), (7, 2), (24, 24)])
@pytest.mark.parametrize(("size", "resize"), [(24, 32), (24, 8)])
def test_the_output_has_its_size_whatever_the_input_has(width, height, size, resize):
    color = np.full((height, width, 3), (10, 200, 90), dtype=np.uint8)
    done = decode(encoded(color, "PNG"), Preprocessing(size, resize, (0, 0, 0), (1, 1, 1)))
    assert done.image.shape == (3, size, size)
    assert done.thumbnail.shape == (32, 32, 3)
    assert (done.image == np.array([10, 200, 90])[:, None, None]).all()
    assert (done.thumbnail == (10, 200, 90)).all()


def test_the_thumbnail_shows_the_whole_image_where_the_crop_does_not():
    wide = np.zeros((30, 300, 3), dtype=np.uint8)
    wide[:, :20] = 255
    done = decode(wide, RGB)
    assert done.image.max() == 0
    assert done.thumbnail[:, 0].min() > 200


def test_a_large_jpeg_is_decoded_small_and_never_below_twice_the_target(monkeypatch):
    large = picture(2, 1600, 1200)
    loaded = []
    original = images.plain
    monkeypatch.setattr(images, "plain", lambda image: (loaded.append(image.size), original(image))[1])
    drafted = decode(encoded(large, "JPEG", quality=95), RGB)
    assert loaded == [(200, 150)]  # 1/8, and 150 >= 2 * 24
    whole = plain_crop(large)
    loaded.clear()
    assert (drafted.width, drafted.height) == (1600, 1200)
    assert np.abs(drafted.image.astype(int) - whole).mean() < 2
    decode(encoded(large, "JPEG"), Preprocessing(200, 320, (0, 0, 0), (1, 1, 1)))
    decode(encoded(large, "JPEG"), Preprocessing(200, 300, (0, 0, 0), (1, 1, 1)))
    assert loaded == [(1600, 1200), (800, 600)]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(1281, 963), (965, 1283)])
def test_a_jpeg_decoded_small_shows_the_same_part_of_the_picture_whatever_its_size_and_turn(width, height, turn):
    """Against the whole decoded and turned by Pillow. 1281 pixels are 160.125 at 1/8, and the decoder gives 161."""
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    stripes = np.asarray(Image.fromarray(picture(3, 160, 160)).resize((width, height), Image.Resampling.NEAREST))
    data = encoded(stripes, "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        whole = decode(np.asarray(ImageOps.exif_transpose(opened)), RGB)
    small = decode(data, RGB)
    assert (small.width, small.height) == (whole.width, whole.height)
    assert np.abs(small.image.astype(int) - whole.image).max() <= 3
    assert np.abs(small.thumbnail.astype(int) - whole.thumbnail).max() <= 6


# ---------------------------------------------------------------- kinds of images


def test_gray_is_repeated_for_an_rgb_model_and_rgb_becomes_luminance_for_a_gray_one():
    gray, rgb = picture(3, channels=0), picture(4)
    for pre, channels in ((RGB, 3), (GRAY, 1)):
        done = decode(encoded(gray, "PNG"), pre)
        assert done.special == ("gray",)
        assert done.image.shape == (channels, 24, 24)
        assert (done.image == done.image[:1]).all()
    red = decode(np.full((9, 9, 3), (255, 0, 0), dtype=np.uint8), GRAY)
    assert (red.image == 76).all()
    assert decode(rgb, RGB).special == ()


@pytest.mark.parametrize("kind", ["RGBA", "LA", "PA", "P with one transparent colour", "P with alphas", "RGB with a transparent colour"])
def test_transparency_becomes_white(kind):
    left = np.zeros((30, 40), dtype=bool)
    left[:, :20] = True
    alpha = Image.fromarray(np.where(left, 0, 255).astype(np.uint8))
    options = {}
    if kind == "RGBA":
        image = Image.new("RGBA", (40, 30), (200, 0, 0, 255))
        image.putalpha(alpha)
    elif kind == "LA":
        image = Image.new("LA", (40, 30), (90, 255))
        image.putalpha(alpha)
    elif kind == "PA":
        image = Image.new("P", (40, 30))
        image.putpalette([200, 0, 0])
        image.putalpha(alpha)
    elif kind.startswith("RGB"):
        image = Image.fromarray(np.where(left[..., None], (1, 2, 3), (200, 0, 0)).astype(np.uint8))
        options = {"transparency": (1, 2, 3)}
    else:
        image = Image.fromarray(left.astype(np.uint8)).convert("P")
        image.putpalette([200, 0, 0, 9, 9, 9])
        options = {"transparency": 1 if kind.endswith("colour") else b"\xff\x00"}
    done = decode(image if kind == "PA" else encoded(image, "PNG", **options), RGB)
    assert "rgba" in done.special
    assert ("palette" in done.special) == kind.startswith("P")
    assert ("gray" in done.special) == (kind == "LA")
    assert (done.image[:, :, :10] == 255).all()
    assert done.image[1, :, 14:].max() < 120
    assert (done.thumbnail[:, :14] == 255).all()


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (30, 30), (200, 0, 0, 128))
    assert np.abs(decode(encoded(image, "PNG"), RGB).image[:, 5, 5].astype(int) - (227, 127, 127)).max() <= 1


def test_cmyk_and_other_colour_spaces_become_rgb():
    cmyk = Image.new("CMYK", (30, 30), (0, 255, 255, 0))
    done = decode(encoded(cmyk, "JPEG", quality=95), RGB)
    assert done.special == ("cmyk",)
    assert np.abs(done.image[:, 9, 9].astype(int) - (255, 0, 0)).max() <= 4
    for mode in ("YCbCr", "HSV"):
        assert np.abs(plain_crop(picture(5)) - decode(Image.fromarray(picture(5)).convert(mode), RGB).image).mean() < 3
    lab = Image.new("LAB", (30, 30), (255, 128, 128))
    assert decode(encoded(lab, "TIFF"), RGB).image.min() > 250
    assert decode(encoded(Image.new("1", (30, 30), 1), "PNG"), RGB).image.min() == 255


def test_a_palette_without_transparency():
    image = Image.fromarray(picture(6)).quantize(16)
    done = decode(encoded(image, "PNG"), RGB)
    assert done.special == ("palette",)
    assert (done.image == decode(image.convert("RGB"), RGB).image).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM", "big-endian", "I"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pre = Preprocessing(64, 64, (0,), (1,))
    if kind == "I":
        given = Image.fromarray(wide.astype(np.int32))
    elif kind == "big-endian":
        given = Image.frombytes("I;16B", (64, 64), wide.astype(">u2").tobytes())
    elif kind == "PGM":
        given = b"P5 64 64 65535\n" + wide.astype(">u2").tobytes()
    else:
        given = encoded(Image.fromarray(wide), kind)
    done = decode(given, pre)
    assert done.special == ("16-bit", "gray")
    assert (done.image[0] == np.rint(wide / 257)).all()


def test_floats_and_wide_integers_are_refused():
    with pytest.raises(Unusable, match="32-bit float gray TIFF cannot be read"):
        decode(encoded(Image.fromarray(np.zeros((9, 9), dtype=np.float32)), "TIFF"), RGB)
    with pytest.raises(Unusable, match="32-bit float pixels"):
        decode(b"Pf\n4 4\n-1.0\n" + np.zeros(16, np.float32).tobytes(), RGB)
    with pytest.raises(Unusable, match="32-bit integer pixels"):
        decode(encoded(Image.fromarray(np.full((9, 9), 70000, dtype=np.int32)), "TIFF"), RGB)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_turned_as_exif_says(turn, kind):
    stored = Image.fromarray(picture(7, 60, 40))
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    done = decode(data, RGB)
    assert (done.image == decode(np.ascontiguousarray(upright), RGB).image).all()
    assert done.special == (("rotated",) if turn > 1 else ())
    assert (done.width, done.height) == ((40, 60) if turn >= 5 else (60, 40))
    if turn == 6:  # known by hand: the stored top left is seen at the top right
        corner = np.asarray(stored)[0, 0].astype(int)
        assert np.abs(upright[0, -1].astype(int) - corner).max() < 12


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_frame_of_several(kind, options):
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    done = decode(data, RGB)
    assert "animated" in done.special
    assert (done.image == np.array([255, 0, 0])[:, None, None]).all()
    assert "animated" not in decode(encoded(frames[0], kind, **options), RGB).special


def test_a_photograph_with_a_preview_inside_is_no_animation():
    frames = [Image.fromarray(picture(8)), Image.fromarray(picture(9))]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert decode(data, RGB).special == ()


# ---------------------------------------------------------------- what is no image


def reason(data):
    with pytest.raises(Unusable) as caught:
        decode(data, RGB)
    return str(caught.value)


def test_reasons_are_short_and_say_what_is_wrong():
    jpeg, png = (encoded(picture(10, 400, 300), kind) for kind in ("JPEG", "PNG"))
    assert reason(b"") == "empty file"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(png[: len(png) // 2]) == "truncated"
    assert reason(b"hello, this is no image") == "not an image"
    assert reason(b"<html><body>404</body></html>") == "not an image"
    assert reason(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").startswith("a Git LFS pointer")
    assert reason(declared_png(60000, 60000)) == "3600 megapixels, more than 100"
    assert reason(declared_png(11000, 10000)) == "110 megapixels, more than 100"
    assert reason(declared_png(100, 100)).startswith(("damaged", "truncated"))
    assert "bomb" not in reason(declared_png(9500, 10000))  # Pillow warns of 90 megapixels
    assert reason(np.zeros((4, 4), dtype=np.float64)).startswith("float64 pixels")
    assert reason(np.zeros((0, 4), dtype=np.uint8)).startswith("uint8 pixels of shape (0, 4)")


def test_postscript_is_never_run(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "__init__", lambda *_: pytest.fail("opened"))
    said = reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert said == "EPS cannot be read; convert to PNG"


def test_files_under_another_name_are_called_what_they_are():
    assert reason(encoded(picture(1, 64, 48), "ICO")) == "ICO cannot be read; convert to PNG"
    assert reason(encoded(picture(1), "PCX")) == "PCX cannot be read; convert to PNG"
    assert reason(b"\0" * 128 + b"DICM" + bytes(300)) == "DICOM cannot be read; convert to PNG"
    assert reason(b"\x93NUMPY\1\0" + bytes(100)) == "NumPy array cannot be read; convert to PNG"
    assert reason(b"\0\x05\x16\x07\0\2\0\0Mac OS X").startswith("macOS's notes on a file")
    png = encoded(picture(1), "PNG")
    text = struct.pack(">I", 5) + b"tEXta\0bcd" + bytes(4)
    assert reason(png[:33] + text + png[33:]) == "damaged (the checksum of the PNG's part tEXt is wrong)"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_anywhere_is_a_reason_or_an_image_never_another_error(kind):
    whole = np.frombuffer(encoded(picture(11), kind), dtype=np.uint8)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        data = whole.copy()
        places = rng.integers(0, min(len(data), 400), 4)
        data[places] = rng.integers(0, 256, 4)
        try:
            outcomes.add(decode(data[: rng.integers(1, len(data) + 1)].tobytes(), RGB).image.shape)
        except Unusable as error:
            assert 0 < len(str(error)) < 120
            outcomes.add("refused")
    assert "refused" in outcomes


def test_corrupt_exif_costs_a_warning_to_nobody():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(picture(12), "JPEG", exif=exif)
    at = data.index(b"Exif\0\0") + 6
    damaged = data[:at] + b"II*\0\x08\0\0\0\x40\0" + data[at + 10 :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(damaged, RGB).image.shape == (3, 24, 24)
    with pytest.raises(RuntimeWarning):  # the filters are as before
        warnings.warn("still an error", RuntimeWarning, stacklevel=1)


def test_files_that_are_not_to_be_read(tmp_path):
    def why(path, stamp=None):
        with pytest.raises(Unusable) as caught:
            read_file(path, stamp)
        return str(caught.value)

    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(257 * 2**20)  # sparse
    (tmp_path / "some.jpg").write_bytes(b"some")
    status = (tmp_path / "some.jpg").stat()
    assert why(tmp_path / "missing.jpg") == "not found"
    assert why(tmp_path / "empty.jpg") == "empty file"
    assert why(tmp_path / "folder.jpg") == "not a file"
    assert why(tmp_path / "pipe.jpg") == "not a file"
    assert why(tmp_path / "huge.jpg") == "larger than 256 MB"
    assert why(tmp_path / "some.jpg", (4, status.st_mtime_ns - 1)) == "changed while it was read"
    assert read_file(tmp_path / "some.jpg", (4, status.st_mtime_ns)) == b"some"


# ---------------------------------------------------------------- arrays and tensors


def test_arrays_and_tensors_of_any_order_are_the_same_picture():
    import torch

    array = picture(13)
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    for given in (array, first, torch.from_numpy(first), torch.from_numpy(array.copy()), (array / 255).astype(np.float32), first / 255):
        assert (as_picture(given) == array).all()
    assert as_picture(torch.zeros(1, 5, 6)).shape == (5, 6, 1)
    assert as_picture(np.zeros((5, 6), dtype=np.uint8)).shape == (5, 6)
    image = Image.fromarray(array)
    assert as_picture(image) is image


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "a NoneType instead"),
        ("cat.jpg", "a str instead"),
        (np.zeros((2, 3, 4, 5), dtype=np.uint8), "shape"),
        (np.zeros((5, 6, 7), dtype=np.uint8), "shape"),
        (np.zeros((5, 6), dtype=np.int64), "int64 pixels"),
        (np.full((5, 6), 1.5), "outside"),
        (np.full((5, 6), np.nan), "outside"),
    ],
)
def test_what_is_no_picture(value, why):
    with pytest.raises(Unusable, match=why):
        as_picture(value)


# ---------------------------------------------------------------- kinds that are not read


def raw_tiff():
    """A TIFF as cameras write it: a preview first, with the picture in a sub-image."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0xFE], tags[0x14A] = 1, (8,)
    return encoded(picture(1), "TIFF", tiffinfo=tags)


NOT_READ = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
    "HEIC (mif1)": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40),
    "camera raw (cr2)": b"II*\0\x10\0\0\0CR\x02\0" + bytes(40),
    "camera raw (cr3)": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(40),
    "camera raw (raf)": b"FUJIFILMCCD-RAW 0201" + bytes(40),
    "camera raw (orf)": b"IIRO\x08\0\0\0" + bytes(40),
    "camera raw (rw2)": b"IIU\0\x18\0\0\0" + bytes(40),
    "camera raw (nef)": raw_tiff(),
    "JPEG XL": b"\xff\x0a" + bytes(40),
    "JPEG XL (box)": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
    "PSD": b"8BPS\0\1" + bytes(40),
    "SVG": b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG (bare)": b"\xef\xbb\xbf<svg></svg>",
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_kinds_that_are_not_read_say_what_they_are_and_what_to_do(kind):
    with pytest.raises(Unusable, match=rf"^{kind.partition(' (')[0]} cannot be read; convert to (JPEG|PNG)$"):
        decode(NOT_READ[kind], RGB)


@pytest.mark.parametrize("data", [b"<?xml version='1.0'?><html></html>", b"<!DOCTYPE html><svg>", b"ftypheic", b"8BP"])
def test_what_is_no_image_is_not_taken_for_one(data):
    with pytest.raises(Unusable, match=r"^not an image$"):
        decode(data, RGB)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_jpeg_2000_and_avif_and_plain_tiff_are_read():
    for kind in ("JPEG2000", "TIFF", *(["AVIF"] if features.check("avif") else [])):
        assert np.abs(decode(encoded(picture(5), kind), RGB).image.astype(int) - plain_crop(picture(5))).mean() < 6
    assert {".jp2", ".avif", ".tif"} <= {*images.SUFFIXES}
