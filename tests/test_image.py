"""Pixels: every kind of file, the overlay's arithmetic, masks at other sizes, run lengths."""

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from segagent_rt.errors import ImageUnreadable
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


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    image = decode_image(encoded(picture, "TIFF" if mode == "CMYK" else "PNG"))
    assert image.shape == (9, 7, 3)
    assert image.dtype == np.uint8


def test_sixteen_bits_keep_their_brightness():
    values = np.array([[0, 257 * 10, 65535]], np.uint16)
    image = decode_image(encoded(Image.fromarray(values)))
    assert image[0, :, 0].tolist() == [0, 10, 255]


def test_transparency_shows_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    assert decode_image(encoded(picture)).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_exif_orientation_is_applied():
    picture = Image.new("RGB", (4, 2), (10, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(picture, "JPEG", exif=exif)).shape == (4, 2, 3)


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
        (b"just text", "is not a picture"),
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
    huge = encoded(Image.new("1", (20000, 20000)))
    with pytest.raises(ImageUnreadable, match="400 megapixels") as caught:
        decode_image(huge)
    assert "--max-megapixels" in caught.value.hint


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


@settings(max_examples=200)
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
