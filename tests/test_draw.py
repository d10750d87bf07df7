"""Pictures for people."""

import io

import numpy as np
from PIL import Image

from segagent_rt.draw import LONGEST_SIDE, NEGATIVE, POSITIVE, draw_overlay, png
from segagent_rt.types import Click

GREY = np.full((120, 160, 3), 128, np.uint8)
MASK = np.zeros((120, 160), np.bool_)
MASK[30:90, 40:100] = True


def has(image, colour):
    return bool((np.abs(image.astype(int) - colour).sum(-1) < 12).any())


def test_clicks_have_two_colours_and_the_image_is_not_touched():
    before = GREY.copy()
    drawn = draw_overlay(GREY, MASK, [Click(60, 60, True), Click(130, 100, False)])
    assert has(drawn, POSITIVE)
    assert has(drawn, NEGATIVE)
    assert np.array_equal(GREY, before)
    assert drawn.shape == GREY.shape


def test_the_outline_is_on_the_masks_edge_and_nowhere_else():
    changed = (draw_overlay(GREY, MASK, []) != GREY).any(-1)
    assert changed[30, 60]
    assert changed[60, 40]
    assert not changed[60, 70]
    assert not changed[5, 5]


def test_a_caption_is_added_below_and_wrapped():
    short = draw_overlay(GREY, MASK, [], "the cup")
    long = draw_overlay(GREY, MASK, [], "the cup " * 20)
    assert short.shape[1] == long.shape[1] == 160
    assert 120 < short.shape[0] < long.shape[0]


def test_captions_in_other_letters_are_drawn():
    assert draw_overlay(GREY, MASK, [], "die Tasse für Ümit 狗").shape[0] > 120


def test_large_pictures_come_back_smaller():
    large = np.zeros((10, 2 * LONGEST_SIDE, 3), np.uint8)
    drawn = draw_overlay(large, np.ones(large.shape[:2], np.bool_), [Click(0, 0, True)])
    assert drawn.shape[1] == LONGEST_SIDE


def test_masks_are_written_as_0_and_255():
    with Image.open(io.BytesIO(png(MASK))) as picture:
        assert np.array_equal(np.asarray(picture), MASK * np.uint8(255))


def test_tiny_pictures_can_be_drawn_on():
    for size in ((1, 1), (1, 50), (50, 1)):
        image, mask = np.zeros((*size, 3), np.uint8), np.ones(size, np.bool_)
        assert draw_overlay(image, mask, [Click(0, 0, True)], "it").shape[1] == size[1]
