"""Pictures for people."""

import io

import numpy as np
import pytest
from PIL import Image

from segagent_rt import draw
from segagent_rt.draw import LONGEST_SIDE, NEGATIVE, POSITIVE, draw_overlay, png, undrawable
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


def test_the_mask_is_outlined_and_lightly_filled_and_nothing_else_is_touched():
    difference = np.abs(draw_overlay(GREY, MASK, []).astype(int) - GREY).sum(-1)
    assert difference[30, 60] > 150
    assert difference[60, 40] > 150
    assert 0 < difference[60, 70] < 120
    assert difference[5, 5] == 0


def test_a_caption_is_added_below_and_wrapped():
    short = draw_overlay(GREY, MASK, [], "the cup")
    long = draw_overlay(GREY, MASK, [], "the cup " * 20)
    assert short.shape[1] == long.shape[1] == 160
    assert 120 < short.shape[0] < long.shape[0]


@pytest.fixture
def fonts(monkeypatch):
    """Two fonts on this machine, with few letters each."""
    from PIL import ImageFont

    known = {"latin.ttf": "abcdefghijklmnopqrstuvwxyz", "chinese.ttf": "the 狗猫"}

    plain = ImageFont.load_default(24)

    class Font:
        def __init__(self, path, size):
            self.letters = known[path]

        def getmask(self, text):
            return plain.getmask("x" if text in self.letters else "\uffff")

    monkeypatch.setattr(ImageFont, "load_default", lambda size: plain)
    monkeypatch.setattr(ImageFont, "truetype", Font)
    monkeypatch.setattr(draw, "_font_files", lambda: tuple(known))


def test_the_font_is_taken_that_has_the_captions_letters(fonts):
    assert undrawable("the cup") == ""
    assert undrawable("the 狗") == ""
    assert undrawable("the 狗 \N{DOG FACE} \N{DOG FACE}") == "\N{DOG FACE}"


def test_letters_that_no_font_has_are_left_out_and_not_drawn_as_boxes(monkeypatch):
    monkeypatch.setattr(draw, "_font_files", lambda: ())
    assert undrawable("狗 the cup") == "狗"
    with_dog = draw_overlay(GREY, MASK, [], "狗the cup")
    assert np.array_equal(with_dog, draw_overlay(GREY, MASK, [], "the cup"))


def test_scripts_that_need_shaping_are_left_out_without_it(monkeypatch):
    from PIL import features

    monkeypatch.setattr(features, "check", lambda name: False)
    assert set(undrawable("قدح")) == set("قدح")


def test_a_caption_without_spaces_is_wrapped():
    long = draw_overlay(GREY, MASK, [], "w" * 60)
    assert long.shape[1] == 160
    assert long.shape[0] > draw_overlay(GREY, MASK, [], "w" * 5).shape[0]


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
