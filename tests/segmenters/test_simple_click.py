"""SimpleClick's host side: what the net is shown, and what is made of its answer."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.bundle.manifest import parse, to_json
from segagent_rt.segmenters import simple_click
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.segmenters.resampling import corners, resample
from segagent_rt.segmenters.simple_click import SimpleClick, SimpleClickSettings
from segagent_rt.segmenters.zoom import Roi, Span
from segagent_rt.types import Click

SIDE = 56
SETTINGS = SimpleClickSettings(side=SIDE)
PLAIN = SimpleClickSettings(side=SIDE, flip=False)
RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 256, (300, 420, 3), np.uint8)


class Painter:
    """A net that keeps what was there, adds a square round each positive click and takes one away
    round each negative. It remembers what it was fed.
    """

    def __init__(self, tilt=0.0):
        self.tilt, self.fed = tilt, []

    def run(self, feeds, outputs, *, into=None, keep=()):
        self.fed.append(feeds)
        before, positive, negative = np.moveaxis(feeds["guide"], 1, 0)
        grown = [_grown(plane, 2 * SIDE // 14) for plane in (positive, negative)]
        kept = np.maximum(before, grown[0]) * (1 - grown[1])
        ramp = self.tilt * np.linspace(-1, 1, SIDE // 4, dtype=np.float32)
        return {"logits": (8 * kept[:, 2::4, 2::4] - 4 + ramp)[:, None]}

    def allocate(self, shape, dtype):
        raise NotImplementedError

    def close(self):
        self.fed.clear()


def _grown(planes, by):
    rows = np.lib.stride_tricks.sliding_window_view(
        np.pad(planes, ((0, 0), (by, by), (by, by))), (2 * by + 1, 2 * by + 1), (1, 2)
    )
    return rows.max((-1, -2))


def clicks(*points):
    return [Click(x, y, sign > 0) for x, y, sign in points]


def walk(segmenter, image, points):
    """A prediction after each click."""
    embedding, prediction, steps = segmenter.encode(image), None, []
    for count in range(1, len(points) + 1):
        prediction = segmenter.decode(embedding, clicks(*points[:count]), prior=prediction)
        steps.append(prediction)
    return steps


def test_the_net_is_shown_the_window_normalised_and_mirrored():
    net = Painter()
    SimpleClick(net, SETTINGS).decode(SimpleClick(net, SETTINGS).encode(IMAGE), clicks((9, 9, 1)))
    image = net.fed[0]["image"]
    assert image.shape == (2, 3, SIDE, SIDE)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[1], image[0, :, :, ::-1])
    rows, columns = corners(300, SIDE), corners(420, SIDE)
    for channel in range(3):
        plane = resample(IMAGE[..., channel].astype(np.float32) / 255, rows, columns)
        expected = (plane - SETTINGS.mean[channel]) / SETTINGS.std[channel]
        np.testing.assert_allclose(image[0, channel], expected, atol=2e-6)
    corner = (IMAGE[-1, -1] / 255 - SETTINGS.mean) / SETTINGS.std
    np.testing.assert_allclose(image[0, :, -1, -1], corner, atol=1e-4)


def test_without_flip_there_is_one_window():
    net = Painter()
    SimpleClick(net, PLAIN).decode(SimpleClick(net, PLAIN).encode(IMAGE), clicks((9, 9, 1)))
    assert net.fed[0]["image"].shape == net.fed[0]["guide"].shape == (1, 3, SIDE, SIDE)


def test_maps_are_probability_positive_negative():
    net = Painter()
    steps = walk(SimpleClick(net, SETTINGS), IMAGE, [(100, 50, 1), (120, 60, -1)])
    first, second = (feeds["guide"] for feeds in net.fed)
    assert not first[:, 0].any()
    assert not first[:, 2].any()
    row, column = 50 * SIDE / 300, 100 * SIDE / 420
    assert first[0, 1, round(row), round(column)] == 1
    assert first[1, 1, round(row), round(SIDE - column - 1)] == 1
    _, (row, column, _) = simple_click._points(
        clicks((100, 50, 1), (120, 60, -1)), steps[1].roi, SIDE
    )
    assert second[0, 2, round(row), round(column)] == 1
    assert second[0, 1, round(row), round(column)] == 0
    assert second[0, 0].max() > 0.9
    np.testing.assert_array_equal(second[1, 0], second[0, 0, :, ::-1])


@given(st.floats(-9, 70), st.floats(-9, 70), st.integers(1, 7))
def test_a_disk_is_every_pixel_no_farther_than_the_radius(row, column, radius):
    """The reference computes the distance of every pixel of the plane, in float32."""
    plane = np.zeros((56, 64), np.float32)
    simple_click._add_disk(plane, row, column, radius)
    ys, xs = np.ogrid[:56, :64]
    away = (ys.astype(np.float32) - np.float32(row)) ** 2
    away = away + (xs.astype(np.float32) - np.float32(column)) ** 2
    expected = (away <= radius**2) & (max(row, column) >= 0)
    np.testing.assert_array_equal(plane, expected)


def test_a_disk_of_five_pixels_has_81():
    plane = np.zeros((40, 40), np.float32)
    simple_click._add_disk(plane, 20.0, 20.0, 5)
    assert plane.sum() == 81


def test_clicks_above_and_left_of_the_window_are_padding():
    """Both coordinates negative: no trace, and the net's answer does not change. With one negative
    coordinate the part of the disk that is inside is drawn.
    """
    window = Roi(Span(100, 299), Span(200, 399))
    inside, near, padding = clicks((300, 150, 1), (195, 180, -1), (195, 95, -1))
    plain, padded, partial = (np.zeros((3, SIDE, SIDE), np.float32) for _ in range(3))
    nothing = np.zeros((SIDE, SIDE), np.float32)
    for canvas, seen in ((plain, [inside]), (padded, [inside, padding]), (partial, [inside, near])):
        points = simple_click._points(seen, window, SIDE)
        simple_click._paint_guide(canvas, nothing, points, 5)
    np.testing.assert_array_equal(plain, padded)
    assert 0 < partial[2].sum() < 81


def test_clicks_are_mapped_edge_on_edge():
    """448 (r - rmin) / length: the last pixel of a window lies before the last of the frame."""
    window = Roi(Span(100, 299), Span(0, 99))
    points = simple_click._points(clicks((50, 100, 1), (99, 299, -1)), window, 448)
    assert points == [(0.0, 224.0, True), (448 * 199 / 200, 448 * 99 / 100, False)]


def test_the_mean_of_the_two_views_is_taken_before_the_sigmoid():
    """A logit of 10 and one of -2 make sigmoid(4), not the mean of two probabilities."""
    segmenter = SimpleClick(Painter(), SETTINGS)
    logits = np.zeros((2, 14, 14), np.float32)
    logits[0, :, :7], logits[1, :, 7:] = 10, -2
    found = segmenter._probability(logits)
    one, other = 1 / (1 + np.exp(-10)), 1 / (1 + np.exp(2))
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    assert abs(found[0, 0] - (one + other) / 2) > 0.4
    assert found[0, -1] == pytest.approx(0.5)


def test_probabilities_are_enlarged_after_the_sigmoid_only_to_the_frame():
    """Logits reach the frame's size before the sigmoid, the image's size after it."""
    segmenter = SimpleClick(Painter(), PLAIN)
    logits = np.zeros((1, 14, 14), np.float32)
    logits[0, :, 7:] = 8
    stretch = corners(14, SIDE)
    expected = 1 / (1 + np.exp(-resample(logits[0], stretch, stretch).astype(np.float64)))
    np.testing.assert_allclose(segmenter._probability(logits), expected, atol=1e-6)


def test_extreme_logits_make_no_warning():
    segmenter = SimpleClick(Painter(), PLAIN)
    logits = np.full((1, 14, 14), -500, np.float32)
    assert segmenter._probability(logits).max() == 0
    assert segmenter._probability(-logits).min() == 1


def test_a_mirrored_picture_has_a_mirrored_mask():
    """With flip, and a net that leans to one side: neither orientation is preferred."""
    segmenter = SimpleClick(Painter(tilt=5), SETTINGS)
    mask = walk(segmenter, IMAGE, [(100, 50, 1)])[0].mask()
    mirrored = walk(segmenter, IMAGE[:, ::-1], [(419 - 100, 50, 1)])[0].mask()
    assert mask.any()
    assert np.mean(mask != mirrored[:, ::-1]) < 0.02


def test_the_window_follows_the_mask():
    steps = walk(
        SimpleClick(Painter(), SETTINGS), IMAGE, [(90, 60, 1), (110, 70, 1), (400, 280, 1)]
    )
    first, second, third = (step.roi for step in steps)
    assert first == Roi.whole((300, 420))
    assert second.rows.length < 300
    assert second.columns.length < 420
    assert third.columns.last == 419
    assert steps[2].mask()[280, 400]


def test_only_the_prediction_carries_state():
    """Undo and branching are free: a prior can be taken up again, and is not changed by it."""
    segmenter = SimpleClick(Painter(), SETTINGS)
    embedding = segmenter.encode(IMAGE)
    points = clicks((90, 60, 1), (110, 70, 1))
    one = segmenter.decode(embedding, points[:1])
    kept = one.probability.copy()
    two = segmenter.decode(embedding, points, prior=one)
    segmenter.decode(embedding, clicks((90, 60, 1), (300, 200, -1)), prior=one)
    again = segmenter.decode(embedding, points, prior=one)
    np.testing.assert_array_equal(one.probability, kept)
    np.testing.assert_array_equal(two.probability, again.probability)
    assert two.roi == again.roi


def test_a_given_mask_is_the_map_before_the_first_click():
    """Shown as zeros and ones over the whole image; the window starts with the whole image."""
    given_mask = np.zeros((300, 420), bool)
    given_mask[100:200, 150:300] = True
    net = Painter()
    segmenter = SimpleClick(net, SETTINGS)
    embedding = segmenter.encode(IMAGE)
    after = segmenter.decode(embedding, clicks((20, 20, 1)), prior=GivenMask(given_mask))
    shown = net.fed[0]["guide"][0, 0]
    expected = resample(given_mask.astype(np.float32), corners(300, SIDE), corners(420, SIDE))
    np.testing.assert_array_equal(shown, expected)
    assert after.roi == Roi.whole((300, 420))
    assert after.mask()[150, 220]
    assert after.mask()[20, 20]


def test_predictions_of_another_net_or_image_are_masks_like_any_other():
    small = SimpleClickSettings(side=SIDE // 2, flip=False)
    other = SimpleClick(Shrunk(), small)
    prior = other.decode(other.encode(IMAGE), clicks((90, 60, 1)))
    segmenter = SimpleClick(Painter(), SETTINGS)
    after = segmenter.decode(segmenter.encode(IMAGE), clicks((90, 60, 1)), prior=prior)
    assert after.probability.shape == (SIDE, SIDE)
    assert after.roi == Roi.whole((300, 420))


class Shrunk(Painter):
    """The same net for half the side."""

    def run(self, feeds, outputs, *, into=None, keep=()):
        return {"logits": feeds["guide"][:, :1, 2::4, 2::4] - 1}


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (199, 201), (200, 200)])
def test_pictures_smaller_than_the_smallest_window_work(size):
    image = np.full((*size, 3), 128, np.uint8)
    last = (size[1] - 1, size[0] - 1, 1)
    for step in walk(SimpleClick(Painter(), SETTINGS), image, [last, (0, 0, 1), last]):
        assert step.mask().shape == size
        assert step.roi == Roi.whole(size)


def test_views_of_larger_arrays_are_images_too():
    """A crop, or BGR turned round, is no contiguous array."""
    segmenter = SimpleClick(Painter(), SETTINGS)
    view = IMAGE[10:200, 5:300, ::-1]
    found = walk(segmenter, view, [(90, 60, 1)])[0]
    copied = walk(segmenter, view.copy(), [(90, 60, 1)])[0]
    np.testing.assert_array_equal(found.probability, copied.probability)


def test_settings_survive_the_manifest():
    settings = SimpleClickSettings(side=672, flip=False, radius=7, mean=(0.1, 0.2, 0.3))
    plain = json.loads(json.dumps(to_json(settings)))
    assert parse(plain, SimpleClickSettings, "settings") == settings


def test_defaults_are_the_released_configuration():
    assert to_json(SimpleClickSettings()) == {
        "side": 448,
        "flip": True,
        "threshold": 0.49,
        "radius": 5,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "zoom": {"threshold": 0.5, "expansion": 1.4, "least": 200, "keep": 0.5},
    }
