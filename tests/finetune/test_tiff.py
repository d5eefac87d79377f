"""TIFFs of every make, written by tifffile: the right pixels, or refused by name."""

import io
import sys

import numpy as np
import pytest
import tifffile
from image_files import encoded, picture
from PIL import TiffImagePlugin

from hpsearch.finetune.images import Preprocessing, Unusable, decode
from tests.support.commands import run_command

SIDE = 24
PRE = Preprocessing(SIDE, SIDE, (0, 0, 0), (1, 1, 1))
KINDS = {"u1": (255, np.uint8), "u2": (65535, np.uint16), "u4": (2**32 - 1, np.uint32), "i2": (32767, np.int16), "f4": (1, np.float32)}
COLOURS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "separated": 4, "ycbcr": 3}


def tiff(shares, photometric, kind, planar, order, compression):
    """A file with pixels in [0, 1], (SIDE, SIDE, bands)."""
    most, dtype = KINDS[kind]
    array = (shares * most).astype(dtype) if kind == "f4" else np.rint(shares * most).astype(dtype)
    extra = array.shape[2] - COLOURS[photometric]
    options = {"extrasamples": ["unassalpha"] if extra == 1 else ["unspecified"] * extra} if extra else {}
    if array.shape[2] == 1:
        array = array[..., 0]
    else:
        options["planarconfig"] = planar
        array = np.ascontiguousarray(array.transpose(2, 0, 1)) if planar == "separate" else array
    out = io.BytesIO()
    tifffile.imwrite(out, array, photometric=photometric, byteorder=order, compression=compression, **options)
    return out.getvalue()


def seen(shares, photometric):
    """What a person sees, in [0, 255]; alpha on white."""
    colours = COLOURS[photometric]
    shown = shares[..., :colours]
    if photometric == "miniswhite":
        shown = 1 - shown
    if photometric == "separated":
        shown = (1 - shown[..., :3]) * (1 - shown[..., 3:])
    if photometric == "ycbcr":  # ITU-R BT.601, full range
        y, blue, red = np.rint(shown * 255).transpose(2, 0, 1) - np.array([0, 128, 128])[:, None, None]
        shown = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=2).clip(0, 255) / 255
    if shares.shape[2] == colours + 1:
        shown = shown * shares[..., -1:] + 1 - shares[..., -1:]
    return 255 * np.broadcast_to(shown, (SIDE, SIDE, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("photometric", COLOURS)
def test_a_tiff_is_read_as_what_it_shows_or_refused_by_name(photometric, kind):
    read = 0
    for extra in (0, 1, 2):
        bands = COLOURS[photometric] + extra
        shares = picture(bands, SIDE, SIDE)[..., [0, 1, 2, 0, 1, 2][:bands]] / 255
        for planar in ("contig", "separate"):
            for order in "<>":
                for compression in (None, "zlib"):
                    data = tiff(shares, photometric, kind, planar, order, compression)
                    try:
                        pixels = decode(data, PRE).image.transpose(1, 2, 0)
                    except Unusable as error:
                        if str(error) == "32-bit integer pixels":  # Pillow reads them, and they may be few enough for 16 bits
                            assert (photometric, kind) == ("minisblack", "u4")
                            continue
                        assert str(error).endswith(" cannot be read; convert to PNG"), error
                        assert f"{8 * KINDS[kind][1]().itemsize}-bit" in str(error)
                        assert ("planar" in str(error)) == (planar == "separate" and bands > 1)
                        assert ("float" in str(error), "signed" in str(error)) == (kind == "f4", kind == "i2")
                    else:
                        assert np.abs(pixels - seen(shares, photometric)).max() < 1.5, (extra, planar, order, compression)
                        read += 1
    assert (read > 0) == (kind == "u1" or (kind == "u2" and photometric not in ("ycbcr",)))


@pytest.mark.parametrize(
    ("bands", "photometric", "kind", "planar", "reason"),
    [
        (3, "rgb", "u2", "separate", "planar 16-bit RGB TIFF"),
        (13, "minisblack", "u2", "contig", "16-bit 13-band TIFF"),
        (3, "rgb", "f4", "contig", "32-bit float RGB TIFF"),
        (2, "minisblack", "u2", "contig", "16-bit gray TIFF with alpha"),
        (1, "minisblack", "i2", "contig", "16-bit signed gray TIFF"),
    ],
)
def test_a_refused_tiff_is_named(bands, photometric, kind, planar, reason):
    shares = np.linspace(0, 1, SIDE * SIDE * bands).reshape(SIDE, SIDE, bands)
    with pytest.raises(Unusable, match=f"^{reason} cannot be read; convert to PNG$"):
        decode(tiff(shares, photometric, kind, planar, "<", None), PRE)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
def test_colours_multiplied_by_their_alpha_are_divided_again_or_refused(photometric, planar, kind):
    shares = picture(1, SIDE, SIDE, channels=4)[..., 3 - COLOURS[photometric] :] / 255
    alpha = np.maximum(shares[..., -1:], 0.3)
    most, dtype = KINDS[kind]
    array = np.rint(np.concatenate([shares[..., :-1] * alpha, alpha], axis=2) * most).astype(dtype)
    array = np.ascontiguousarray(array.transpose(2, 0, 1)) if planar == "separate" else array
    out = io.BytesIO()
    tifffile.imwrite(out, array, photometric=photometric, planarconfig=planar, extrasamples=["assocalpha"])
    if planar == "separate" or (photometric, kind) == ("minisblack", "u2"):
        with pytest.raises(Unusable, match="TIFF with alpha cannot be read"):
            decode(out.getvalue(), PRE)
    else:
        shown = 255 * np.broadcast_to(shares[..., :-1] * alpha + 1 - alpha, (SIDE, SIDE, 3))
        assert np.abs(decode(out.getvalue(), PRE).image.transpose(1, 2, 0) - shown).max() < 3


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_twelve_bits_are_scaled_to_eight_or_refused(photometric):
    """Two pixels in three bytes, packed here by hand."""
    values = np.linspace(0, 4095, SIDE * SIDE).round().astype(np.uint16)
    first, second = values[::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((256, SIDE), (257, SIDE), (258, 12), (259, 1), (262, int(photometric == "minisblack")), (277, 1), (278, SIDE)):
        tags[tag] = value
    tags[273], tags[279] = 0, packed.size  # Pillow counts from the end of the tags
    data = b"II*\0\x08\0\0\0" + tags.tobytes(8) + packed.tobytes()
    if photometric == "minisblack":
        assert np.abs(decode(data, PRE).image[0] - values.reshape(SIDE, SIDE) * (255 / 4095)).max() <= 0.6
    else:
        with pytest.raises(Unusable, match="12-bit gray TIFF cannot be read"):
            decode(data, PRE)


@pytest.mark.parametrize(("order", "reason"), [("<", "16-bit 13-band TIFF"), (">", "big-endian BigTIFF")])
def test_a_bigtiff_is_read_or_refused_by_name(order, reason):
    out = io.BytesIO()
    tifffile.imwrite(
        out, np.zeros((SIDE, SIDE, 13), np.uint16), photometric="minisblack", planarconfig="contig", bigtiff=True, byteorder=order
    )
    with pytest.raises(Unusable, match=f"^{reason} cannot be read"):
        decode(out.getvalue(), PRE)
    out = io.BytesIO()
    tifffile.imwrite(out, np.full((SIDE, SIDE), 7, np.uint8), photometric="minisblack", bigtiff=True)
    assert (decode(out.getvalue(), PRE).image == 7).all()


def test_lab_counts_its_colours_from_zero():
    out = io.BytesIO()
    tifffile.imwrite(out, np.full((SIDE, SIDE, 3), (255, 0, 0), dtype=np.uint8), photometric="cielab")
    assert decode(out.getvalue(), PRE).image.min() > 250


@pytest.mark.process
def test_no_library_writes_to_the_terminal():
    """Pillow's log lines and what libtiff writes by itself, seen from outside the process."""
    torn = encoded(picture(1, 200, 200), "TIFF", compression="tiff_lzw")
    many = tiff(np.zeros((SIDE, SIDE, 13)), "minisblack", "u2", "contig", "<", None)
    code = (
        "import sys\nfrom hpsearch.finetune.images import Preprocessing, Unusable, decode\n"
        "for text in sys.argv[1:]:\n    try:\n        decode(bytes.fromhex(text), Preprocessing(24, 24, (0,), (1,)))\n"
        "    except Unusable as error:\n        print(error)"
    )
    broken = bytearray(torn)
    broken[100:1000] = bytes(900)
    done = run_command([sys.executable, "-c", code, many.hex(), bytes(broken).hex()], check=True)
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""
