"""Our own net in use: frames, priors, sharing."""

import numpy as np
import pytest

from segagent_rt.metrics import iou
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.click_net import ClickNet
from segagent_rt.segmenters.prediction import GivenMask, LogitsPrediction
from segagent_rt.types import Click

SCENE = make_scene(7, 512)


@pytest.fixture(scope="module")
def segmenter():
    with load(threads=2) as runtime:
        yield runtime.segmenter


def centre(mask, positive=True):
    rows, columns = np.nonzero(mask)
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return Click(int(columns[middle]), int(rows[middle]), positive)


def test_a_click_selects_the_object_under_it(segmenter):
    """x and y, not row and column: a transposed click would land on another object."""
    embedding = segmenter.encode(SCENE.image)
    found = []
    for index in range(len(SCENE.objects)):
        target = SCENE.mask(index)
        prediction = segmenter.decode(embedding, [centre(target)])
        found.append(iou(prediction.mask(), target))
    assert np.mean(found) > 0.8


def test_points_are_pixel_centres_as_shares_of_the_sides():
    points = ClickNet._points([Click(0, 9, True), Click(19, 0, False)], (10, 20))
    assert np.allclose(points, [[[0.025, 0.95, 1], [0.975, 0.05, 0]]])
    assert ClickNet._points([], (10, 20)).tolist() == [[[0, 0, -1]]]


def test_a_negative_click_takes_away(segmenter):
    embedding = segmenter.encode(SCENE.image)
    first, second = SCENE.mask(0), SCENE.mask(1)
    both = segmenter.decode(embedding, [centre(first)], prior=GivenMask(first | second))
    less = segmenter.decode(embedding, [centre(first), centre(second, False)], prior=both)
    assert iou(less.mask(), first) > iou(first | second, first)


def test_predictions_do_not_change_and_may_be_taken_up_again(segmenter):
    """Undo and branching are free: the same prior and clicks give the same mask."""
    embedding = segmenter.encode(SCENE.image)
    clicks = [centre(SCENE.mask(0)), centre(SCENE.mask(1))]
    one = segmenter.decode(embedding, clicks[:1])
    kept = one.logits.copy()
    two = segmenter.decode(embedding, clicks, prior=one)
    again = segmenter.decode(embedding, clicks, prior=one)
    assert np.array_equal(one.logits, kept)
    assert np.array_equal(two.logits, again.logits)


def test_the_mask_is_drawn_at_the_images_size_and_at_any_other(segmenter):
    image = np.repeat(SCENE.image[:300], 2, 1)
    prediction = segmenter.decode(segmenter.encode(image), [Click(200, 100, True)])
    assert prediction.mask().shape == (300, 1024)
    assert prediction.mask((30, 40)).shape == (30, 40)
    assert 0.0 <= prediction.score <= 1.0


def test_predictions_agree_when_their_masks_do():
    logits = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    assert LogitsPrediction(logits, (8, 8)).agrees(LogitsPrediction(logits * 2, (8, 8)))
    assert not LogitsPrediction(logits, (8, 8)).agrees(LogitsPrediction(-logits, (8, 8)))
    given = GivenMask(LogitsPrediction(logits, (8, 8)).mask())
    assert given.agrees(LogitsPrediction(logits, (8, 8)))
    assert LogitsPrediction(logits, (8, 8)).agrees(given)


def test_stability_is_the_iou_of_a_higher_and_a_lower_threshold():
    logits = np.array([[-3.0, -0.5, 0.5, 1.5, 4.0]], np.float32)
    assert LogitsPrediction(logits, (1, 5)).stability == 2 / 4
    assert LogitsPrediction(logits, (1, 5), threshold=2.0).stability == 1 / 2
    assert LogitsPrediction(np.full((2, 2), -9.0, np.float32), (2, 2)).stability == 0.0
