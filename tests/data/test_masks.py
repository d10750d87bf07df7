"""Masks kept as pictures and arrays: read where only one meaning is possible, refused elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from segagent_rt.data.masks import load_mask
from segagent_rt.errors import DataInvalid, SegagentWarning

DRAWN = np.zeros((24, 30), np.bool_)
DRAWN[6:18, 5:20] = True
OTHER = np.zeros_like(DRAWN)
OTHER[2:22, 22:28] = True
SCENE = np.random.default_rng(0).integers(0, 256, (*DRAWN.shape, 3), dtype=np.uint8)


def png(values, palette=None, **options):
    picture = values if isinstance(values, Image.Image) else Image.fromarray(values)
    if palette is not None:
        picture = picture.convert("P")
        picture.putpalette(palette)
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def painted(colour, ground=(0, 0, 0), alpha=None):
    pixels = np.where(DRAWN[..., None], np.array(colour, np.uint8), np.array(ground, np.uint8))
    return pixels if alpha is None else np.dstack([pixels, alpha.astype(np.uint8)])


CUT_OUT = np.dstack([SCENE, 255 * DRAWN.astype(np.uint8)])
BLACK_RED = [0, 0, 0, 128, 0, 0, *[0] * 750]
WHITE_BLACK = [255, 255, 255, *[0] * 765]

CLEAR = {
    "white": DRAWN.astype(np.uint8) * 255,
    "ones": DRAWN.astype(np.uint8),
    "twos": DRAWN.astype(np.uint8) * 2,
    "dark grey": DRAWN.astype(np.uint8) * 38,
    "red": painted((255, 0, 0)),
    "blue": painted((0, 0, 255)),
    "cut out of a photo": CUT_OUT,
    "black, transparent around": painted((0, 0, 0), alpha=255 * DRAWN),
    "white, transparent around": painted((255, 255, 255), (255, 255, 255), 255 * DRAWN),
    "opaque": painted((255, 255, 255), alpha=np.full(DRAWN.shape, 255)),
    "16 bits": DRAWN.astype(np.uint16) * 65535,
    "16 bits of 1000": DRAWN.astype(np.uint16) * 1000,
}


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("kind", ["bytes", "Pillow", "array"])
def test_black_and_one_other_value_is_a_mask(name, kind):
    """Whatever the value: luminance would lose red, blue and dark grey."""
    picture = Image.fromarray(CLEAR[name])
    source = {"bytes": png(picture), "Pillow": picture, "array": CLEAR[name]}[kind]
    assert np.array_equal(load_mask(source), DRAWN)


BITS = DRAWN.astype(np.uint8)
OTHER_KINDS = {
    "bool": DRAWN,
    "one channel": DRAWN[..., None],
    "float": DRAWN.astype(float),
    "int64": DRAWN.astype(np.int64) * 7,
    "one bit": Image.fromarray(DRAWN),
    "palette": png(BITS, palette=BLACK_RED),
    "palette without black": png(BITS * 3, palette=[n % 256 for n in range(768)]),
    "palette with a transparent colour": png(BITS, palette=WHITE_BLACK, transparency=0),
    "PNG of one bit": png(Image.fromarray(DRAWN)),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_two_values(name):
    assert np.array_equal(load_mask(OTHER_KINDS[name]), DRAWN)


def test_the_colours_of_a_palette_count_not_its_numbers():
    indices = (~DRAWN).astype(np.uint8)  # 0 inside
    palette = [255, 255, 255, 0, 0, 0, *[0] * 762]
    assert np.array_equal(load_mask(png(indices, palette=palette)), DRAWN)


def test_soft_edges_are_cut_at_the_middle():
    large = Image.fromarray(DRAWN.astype(np.uint8) * 255).resize((60, 48), Image.Resampling.BICUBIC)
    soft = np.asarray(large.resize((41, 33), Image.Resampling.BILINEAR))
    assert np.array_equal(load_mask(png(soft)), soft >= 128)


LABELS = {
    "classes 1 and 2": DRAWN * np.uint8(1) + OTHER * np.uint8(2),
    "class 1, ignored 255": DRAWN * np.uint8(1) + OTHER * np.uint8(255),
    "a trimap": DRAWN * np.uint8(128) + OTHER * np.uint8(255),
    "instances in 16 bits": DRAWN * np.uint16(1) + OTHER * np.uint16(1003),
    "classes as int64": DRAWN * np.int64(1) + OTHER * np.int64(2),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("packed", [True, False])
def test_label_maps_are_refused_unless_a_label_is_named(name, packed):
    values = LABELS[name]
    if packed and values.dtype == np.int64:
        pytest.skip("no picture has such values")
    source = png(values) if packed else values
    with pytest.raises(DataInvalid, match="label map") as caught:
        load_mask(source)
    assert "--mask-label" in caught.value.hint
    assert np.array_equal(load_mask(source, label=int(values[10, 10])), DRAWN)


def test_a_label_map_with_a_palette_is_refused_unless_a_label_is_named():
    """As PASCAL VOC writes it: 1 is the object, 255 its border, and every other colour is black."""
    source = png(LABELS["class 1, ignored 255"], palette=BLACK_RED)
    with pytest.raises(DataInvalid, match="label map"):
        load_mask(source)
    assert np.array_equal(load_mask(source, label=1), DRAWN)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SCENE, "several colours"),
        (painted((255, 255, 255), (255, 0, 0)), "several colours"),
        (np.where(DRAWN, np.nan, 0.0), "no finite numbers"),
        (np.zeros((3, 24, 30)), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.array(["a"]), "shape"),
        ("no such file.png", "there is no file"),
        ([[0, 1]], "list"),
        (b"text", "not a mask"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_clearly_a_mask_is_refused_in_a_sentence(source, said):
    with pytest.raises(DataInvalid, match=said) as caught:
        load_mask(source)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_an_empty_mask_is_read_with_a_warning():
    with pytest.warns(SegagentWarning, match="empty"):
        assert not load_mask(np.zeros((4, 5), np.uint8)).any()


def test_a_bomb_is_refused_before_it_is_unpacked():
    with pytest.raises(DataInvalid, match="196 megapixels"):
        load_mask(png(Image.new("1", (14000, 14000))))
