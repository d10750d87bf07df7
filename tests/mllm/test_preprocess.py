"""From photos to pictures for vision encoders: sizes, pixels, and what part of a photo is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segagent_rt.bundle.manifest import parse, to_json
from segagent_rt.errors import ImageUnreadable
from segagent_rt.mllm.preprocess import (
    CenterCrop,
    PadToSquare,
    Resize,
    SmartResize,
    SquareResize,
    Window,
    bicubic,
)
from segagent_rt.types import Box, Click, Finish

RNG = np.random.default_rng(0)
RULES = (
    SquareResize(64), SquareResize(64, "area"), SmartResize(28, 3136, 100_000),
    CenterCrop(72, 64), CenterCrop(64, 64),
    PadToSquare(64, (122, 116, 104)),
)  # fmt: skip

GOLDEN = {  # (image, unit, least, most): transformers' smart_resize
    (140, 196, 28, 3136, 12845056): (140, 196),
    (480, 640, 28, 3136, 12845056): (476, 644),
    (1080, 1920, 28, 3136, 1003520): (728, 1316),
    (1080, 1920, 32, 65536, 16777216): (1088, 1920),
    (20, 30, 28, 3136, 12845056): (56, 84),
    (3, 500, 28, 3136, 12845056): (28, 728),
    (70, 98, 28, 3136, 12845056): (56, 112),  # halves go to even numbers
    (42, 42, 28, 3136, 12845056): (56, 56),
    (2000, 11, 28, 3136, 100000): (756, 28),
    (4032, 3024, 28, 3136, 1003520): (1148, 840),
    (333, 1000, 32, 65536, 262144): (288, 864),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_sizes_are_smart_resizes(case):
    height, width, unit, least, most = case
    assert SmartResize(unit, least, most).target((height, width)) == GOLDEN[case]


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_any_size_becomes_a_multiple_within_the_limits(height, width):
    rule = SmartResize(28, 3136, 1003520)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageUnreadable, match="too narrow"):
            rule.target((height, width))
        return
    rows, columns = rule.target((height, width))
    assert rows % 28 == columns % 28 == 0
    assert min(rows, columns) >= 28
    assert rows * columns <= max(1003520, 28 * max(rows, columns))


def test_pixels_are_pillows():
    image = RNG.integers(0, 256, (50, 70, 3), np.uint8)
    wanted = Image.fromarray(image).resize((64, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(bicubic(image, (32, 64)), np.asarray(wanted))
    assert bicubic(image, (50, 70)) is image


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_pictures_are_sized_and_manifests_keep_the_rule(rule):
    for size in ((50, 90), (90, 50), (64, 64), (200, 130)):
        picture = rule.resize(RNG.integers(0, 256, (*size, 3), np.uint8))
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        if not isinstance(rule, SmartResize):
            assert picture.shape == (64, 64, 3)
    assert parse(to_json(rule), Resize, "here") == rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
@pytest.mark.parametrize("size", [(100, 160), (160, 100), (128, 128)])
def test_a_mark_in_the_picture_is_where_the_window_says(rule, size):
    """A bright square is found in the picture; read as a click, it is the square's place."""
    image = np.zeros((*size, 3), np.uint8)
    y, x = 60, 70
    image[y - 6 : y + 6, x - 6 : x + 6] = 255
    picture = rule.resize(image).astype(float)
    if isinstance(rule, PadToSquare):  # the padding is not black
        picture = np.where((picture > 200).all(-1)[..., None], picture, 0)
    weight = picture.sum(-1)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]]
    row = ((rows + 0.5) * weight).sum() / weight.sum() / weight.shape[0]
    column = ((columns + 0.5) * weight).sum() / weight.sum() / weight.shape[1]
    window = rule.window(size)
    click = Click(round(column * window.size[1]), round(row * window.size[0]), True)
    found = window.action(click, size)
    assert abs(found.x - x) <= 2
    assert abs(found.y - y) <= 2


def test_what_lies_outside_the_image_is_drawn_to_its_edge():
    window = PadToSquare(64, (0, 0, 0)).window((100, 160))
    assert window == Window(0, -30, (160, 160))
    assert window.action(Click(5, 10, False), (100, 160)) == Click(5, 0, False)
    assert window.action(Click(159, 159, True), (100, 160)) == Click(159, 99, True)
    assert window.box(Box(0, 0, 159, 159), (100, 160)) == Box(0, 0, 159, 99)
    assert window.box(None, (100, 160)) is None
    assert window.action(Finish(), (100, 160)) == Finish()


def test_a_crop_shows_the_middle():
    assert CenterCrop(64, 64).window((100, 160)) == Window(30, 0, (100, 100))
    assert CenterCrop(64, 64).window((160, 100)) == Window(0, 30, (100, 100))
