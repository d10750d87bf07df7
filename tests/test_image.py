"""Pixels: every kind of file, the overlay's arithmetic, masks at other sizes, run lengths."""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from segagent_rt.data.masks import load_mask
from segagent_rt.errors import ImageUnreadable, InputError
from segagent_rt.image import (
    decode_image,
    jpeg_round_trip,
    load_image,
    mask_to_rle,
    overlay,
    resize_mask,
    rle_to_mask,
    squash,
)

RNG = np.random.default_rng(0)
masks = arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_overlay_is_the_mean_with_green_cut_to_whole_numbers():
    """Golden: SegAgent's overlay_mask truncates 0.5 I + 0.5 (0, 255, 0)."""
    pixel = np.array([[[201, 100, 7]]], np.uint8)
    assert overlay(pixel, np.array([[True]])).tolist() == [[[100, 177, 3]]]


@given(masks)
def test_overlay_equals_the_integer_rule_and_leaves_the_rest(mask):
    image = RNG.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    wanted = image.copy()
    wanted[mask] = (image[mask].astype(int) + np.array([0, 255, 0])) >> 1
    before = image.copy()
    assert np.array_equal(overlay(image, mask), wanted)
    assert np.array_equal(image, before), "the image itself is not painted"


def test_the_overlay_paints_every_column_of_a_narrow_mask():
    """OpenCV before 4.10 cut columns off: `boundingRect` depended on the row's address."""
    for height in range(1, 9):
        for width in range(2, 20):
            for start in range(8):
                mask = np.zeros(height * width + 8, np.bool_)[start:][: height * width]
                mask = mask.reshape(height, width)
                mask[-1, : min(width, 3)] = True
                image = np.zeros((height, width, 3), np.uint8)
                assert (overlay(image, mask)[..., 1] > 0).sum() == mask.sum()


@pytest.mark.parametrize("colour", [0, (136, 208, 195)])
def test_the_band_a_of_lab_is_a_colour_and_no_alpha(colour):
    """L*a*b* stores the colour axis a* as a band `A`; without alpha, nothing becomes white."""
    picture = Image.new("LAB", (4, 4), colour)

    assert (load_image(picture) == np.asarray(picture.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    grey = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
    picture = Image.fromarray(grey).convert("RGB").convert(mode)
    content = encoded(picture, "TIFF" if mode == "CMYK" else "PNG")
    image = decode_image(content)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.asarray(picture.convert("RGB")))
    assert np.array_equal(load_image(picture), image)
    assert np.array_equal(load_image(content), image)


RGB = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (9, 7), dtype=np.uint8)


class Tensor:
    """Anything that can be turned into an array, such as a tensor."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


CLEAR = {
    "RGB": (RGB, RGB),
    "grey": (RGB[..., 0], RGB[..., :1].repeat(3, 2)),
    "one channel": (RGB[..., :1], RGB[..., :1].repeat(3, 2)),
    "bool": (RGB[..., 0] > 99, (RGB[..., :1] > 99).repeat(3, 2) * np.uint8(255)),
    "a view that is no block": (RGB[::2, ::-1], RGB[::2, ::-1]),
    "a tensor": (Tensor(RGB), RGB),
    "a Pillow image": (Image.fromarray(RGB), RGB),
    "transparent": (np.dstack([RGB, ALPHA * 0]), RGB * 0 + 255),
    "opaque": (np.dstack([RGB, ALPHA * 0 + 255]), RGB),
}


@pytest.mark.parametrize("name", CLEAR)
def test_what_can_mean_one_thing_only_is_converted(name):
    source, wanted = CLEAR[name]
    image = load_image(source)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, wanted)


@pytest.mark.parametrize(("mode", "plain"), [("RGBa", "RGBA"), ("La", "LA")])
def test_colours_that_are_multiplied_by_alpha_are_what_they_show(mode, plain):
    """Such images exist in Pillow only; taken as they are, what is transparent would be black."""
    layered = Image.fromarray(np.dstack([RGB, ALPHA])).convert(plain)
    multiplied = layered.convert(mode)
    assert np.array_equal(load_image(multiplied), load_image(multiplied.convert(plain)))
    assert (load_image(Image.new(mode, (4, 4))) == 255).all()


def test_a_half_transparent_array_is_what_its_picture_is():
    pixels = np.dstack([RGB, ALPHA])
    assert np.array_equal(load_image(pixels), decode_image(encoded(Image.fromarray(pixels))))


UNCLEAR = {
    "float": (RGB / 255, "float64 values"),
    "uint16": (RGB.astype(np.uint16) * 257, "uint16 values"),
    "int64, all below 256": (RGB.astype(np.int64), "int64 values"),
    "a 16-bit PNG": (encoded(Image.fromarray(RGB[..., 0].astype(np.uint16))), "16-bit values"),
    "a float TIFF": (encoded(Image.fromarray(np.float32(RGB[..., 0])), "TIFF"), "floating-point"),
    "a 16-bit Pillow image": (Image.fromarray(RGB[..., 0].astype(np.uint16)), "16-bit values"),
    "a 16-bit PNG with colours": (
        cv2.imencode(".png", RGB.astype(np.uint16))[1].tobytes(), "16-bit values"),
    "a 16-bit TIFF with colours": (
        cv2.imencode(".tiff", RGB.astype(np.uint16))[1].tobytes(), "16-bit values"),
    "channels first": (np.moveaxis(RGB, -1, 0), r"\[3, 9, 7\]"),
    "a batch": (RGB[None], r"\[1, 9, 7, 3\]"),
    "two channels": (RGB[..., :2], r"\[9, 7, 2\]"),
    "no pixels": (RGB[:0], r"\[0, 7, 3\]"),
    "a number": (np.float32(3), r"shape \[\]"),
    "complex": (RGB[..., 0] * 1j, "complex128"),
    "text": (np.array([["a"]]), "not of numbers"),
    "a list": (RGB.tolist(), "given as list"),
    "nothing": (None, "NoneType"),
    "a tensor on another device": (Tensor(None), "turned into an array"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_clear_is_refused_in_a_sentence(name):
    source, said = UNCLEAR[name]
    with pytest.raises(ImageUnreadable, match=said) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_stated_range_is_spread_over_the_greys(channels, packed):
    """Twelve bits in sixteen: without the range they would be nearly black."""
    values = RNG.integers(0, 4096, (9, 7, channels), dtype=np.uint16)
    values[..., 3:] = 4095
    values[0, 0, :3], values[0, 1, :3] = 0, 4095
    order = [0] if channels == 1 else [2, 1, 0, 3][:channels]
    source = cv2.imencode(".png", values[..., order])[1].tobytes() if packed else values
    image = load_image(source, value_range=(0, 4095))
    wanted = np.rint(values[..., :3] * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(image, np.broadcast_to(wanted, (9, 7, 3)))


def test_values_outside_of_a_stated_range_are_clipped_and_nan_is_refused():
    values = np.array([[-0.1, 0.0, 0.5, 1.0, 1.1]])
    assert load_image(values, value_range=(0, 1))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    for odd in (np.nan, np.inf):
        values[0, 2] = odd
        with pytest.raises(ImageUnreadable, match="not finite"):
            load_image(values, value_range=(0, 1))


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, np.nan), (-np.inf, 1)])
def test_a_range_that_is_none_is_refused(value_range):
    with pytest.raises(InputError, match="is none"):
        load_image(RGB, value_range=value_range)


def test_a_bitmap_of_five_bits_for_each_colour_is_an_ordinary_picture():
    """Pillow calls its mode `BGR;15`, which is not the one of 16 bits for each colour."""
    head = struct.pack("<2sIHHI", b"BM", 58, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 0, 4, 0, 0, 0, 0)
    image = decode_image(head + info + struct.pack("<HH", 0x7FFF, 0x7C00))
    assert image.tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_portable_graymap_says_itself_what_is_white():
    content = b"P5 2 1 4095\n" + struct.pack(">HH", 4095, 0)
    assert decode_image(content)[0, :, 0].tolist() == [255, 0]


def test_transparency_shows_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    assert decode_image(encoded(picture)).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_exif_orientation_is_applied():
    picture = Image.new("RGB", (4, 2), (10, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(picture, "JPEG", exif=exif)).shape == (4, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(RGB), "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as picture:
        wanted = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(decode_image(content), wanted)


def test_a_large_picture_is_the_same_in_bands(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG", exif=exif)
    whole = decode_image(content)
    monkeypatch.setattr("segagent_rt.image._BAND", 20)
    assert np.array_equal(decode_image(content), whole)


def test_webp_is_read():
    assert decode_image(encoded(Image.new("RGB", (5, 3)), "WEBP")).shape == (3, 5, 3)


def test_a_path_with_other_letters_is_read(tmp_path):
    path = tmp_path / "Füße 狗.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 3))))
    assert load_image(path).shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"just text", "is not an image"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:200], "is damaged"),
        (encoded(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8)))[:900], "is damaged"),
    ],
)
def test_unreadable_files_are_named_and_explained(tmp_path, content, said):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageUnreadable, match=said) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(ImageUnreadable, match="no file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageUnreadable, match="folder"):
        load_image(tmp_path)


def test_a_picture_above_the_limit_is_refused_before_it_is_unpacked():
    huge = bytearray(encoded(Image.new("1", (8, 8))))
    huge[16:24] = struct.pack(">2I", 20000, 20000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    with pytest.raises(ImageUnreadable, match="400 megapixels") as caught:
        decode_image(bytes(huge))
    assert "--max-megapixels" in caught.value.hint


def test_the_limit_of_the_whole_process_stays(monkeypatch):
    """Other code in the process relies on Pillow's own limit; ours is not bound by it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(encoded(Image.fromarray(RGB))).shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 10


def test_postscript_is_no_picture_whatever_it_is_called(tmp_path, monkeypatch):
    """Pillow would have Ghostscript run it."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n")
    with pytest.raises(ImageUnreadable, match="not an image"):
        load_image(path)
    assert not (tmp_path / "started").exists()


def damaged_avif():
    """A picture whose header is whole, and whose colours are not."""
    content = bytearray(encoded(Image.fromarray(RGB.repeat(8, 0).repeat(8, 1)), "AVIF"))
    at = content.index(b"mdat") + 4
    content[at:] = bytes(len(content) - at)
    return bytes(content)


@pytest.mark.skipif(
    ".avif" not in Image.registered_extensions(), reason="this Pillow knows no AVIF"
)
def test_a_damaged_avif_is_refused_in_a_sentence():
    """Pillow raises a RuntimeError."""
    with pytest.raises(ImageUnreadable, match="is damaged"):
        decode_image(damaged_avif())


@pytest.mark.parametrize("source", [load_image, load_mask])
def test_only_regular_files_are_opened(tmp_path, source):
    """A pipe would wait for ever, and a device never end."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="not a regular file"):
            source(path)


def test_files_that_are_too_long_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("segagent_rt.image.MAX_BYTES", 1 << 20)
    with (tmp_path / "long.png").open("wb") as stream:
        stream.truncate((1 << 20) + 1)
    with pytest.raises(ImageUnreadable, match="more than 1 MiB"):
        load_image(tmp_path / "long.png")
    with Path("/dev/zero").open("rb") as endless:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(endless))
        with pytest.raises(ImageUnreadable, match="standard input is too long"):
            load_image("-")


def test_standard_input_is_read_on_request(monkeypatch):
    content = io.BytesIO(encoded(Image.fromarray(RGB)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
    assert np.array_equal(load_image("-"), RGB)


def test_jpeg_round_trip_is_pillow_with_its_defaults():
    image = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG")
    with Image.open(stream) as picture:
        assert np.array_equal(jpeg_round_trip(image), np.asarray(picture))


def test_squash_halves_by_the_mean_of_four():
    image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mean = image.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(squash(image, 4).astype(float) - mean).max() <= 0.5


@given(masks)
def test_a_mask_drawn_twice_as_large_and_back_is_itself(mask):
    height, width = mask.shape
    large = np.repeat(np.repeat(mask, 2, 0), 2, 1)
    assert np.array_equal(resize_mask(large, (height, width)), mask)


@given(masks)
def test_run_lengths_are_read_back(mask):
    assert np.array_equal(rle_to_mask(mask_to_rle(mask)), mask)


def test_run_lengths_are_cocos():
    """Golden, from pycocotools 2.0.11: column-major, differences from the third count on."""
    mask = np.zeros((5, 6), np.bool_)
    mask[1:4, 2:5] = True
    assert mask_to_rle(mask) == {"size": [5, 6], "counts": ";320004"}
    assert np.array_equal(rle_to_mask({"size": [5, 6], "counts": [11, 3, 2, 3, 2, 3, 6]}), mask)
    noisy = np.random.RandomState(0).rand(37, 53) < 0.5
    noisy[:, 10:30], noisy[:20, 40:] = True, False
    digest = hashlib.sha256(mask_to_rle(noisy)["counts"].encode()).hexdigest()
    assert digest == "35488aa7bce7b7e2d6078b70891822c51e531c2cdd5b3232e57891812cc54e9e"


@pytest.mark.parametrize("counts", [[1, 2], [31], [-1, 31], "~~~", "o", [10, 25]], ids=str)
def test_run_lengths_that_do_not_fill_the_picture_are_refused(counts):
    with pytest.raises(ValueError, match="run lengths"):
        rle_to_mask({"size": [5, 6], "counts": counts})
