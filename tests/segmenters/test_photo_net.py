"""The photo segmenter's host side: letterbox, prompts, priors; no weights are needed."""

import numpy as np
import pytest

from segagent_rt.segmenters.photo_net import (
    CERTAIN,
    MAPS,
    Letterbox,
    PhotoNet,
    PhotoNetSettings,
    calibrated_iou,
    prior_logits,
    prompt_box,
    prompt_points,
)
from segagent_rt.segmenters.prediction import GivenMask, LogitsPrediction
from segagent_rt.types import Box, Click

SIDE = 64
WIDE = Letterbox((30, 120), SIDE)


class RecordingSession:
    """Returns fixed outputs and keeps what it was fed with."""

    def __init__(self, outputs):
        self.outputs, self.feeds = outputs, []

    def run(self, feeds, outputs, *, into=None, keep=()):
        self.feeds.append(dict(feeds))
        return {name: self.outputs[name] for name in outputs}

    def close(self):
        pass


@pytest.fixture
def sessions():
    encoder = RecordingSession({name: np.zeros(1, np.float32) for name in MAPS})
    logits = np.arange(32 * 32, dtype=np.float32).reshape(1, 1, 32, 32)
    return encoder, RecordingSession({"logits": logits, "iou": np.array([0.5], np.float32)})


@pytest.mark.parametrize("size", [(30, 120), (120, 30), (64, 64), (1, 500), (333, 1000)])
def test_any_aspect_ratio_lies_inside_the_square_on_whole_logits(size):
    letterbox = Letterbox(size, SIDE)
    assert max(letterbox.inside) == SIDE
    assert all(2 <= length <= SIDE and length % 2 == 0 for length in letterbox.inside)
    pixels = letterbox.pixels(np.full((*size, 3), 200, np.uint8))
    height, width = letterbox.inside
    assert pixels.shape == (1, SIDE, SIDE, 3)
    assert (pixels[0, :height, :width] == 200).all()
    assert (pixels[0, height:] == 127).all()
    assert (pixels[0, :, width:] == 127).all()


def test_clicks_are_pixel_centres_in_the_square():
    """x and y, not row and column; 120 pixels become 64."""
    points = prompt_points([Click(0, 29, True), Click(119, 0, False)], WIDE)
    scale = 64 / 120
    wanted = [[[0.5 * scale, 29.5 * 16 / 30, 1], [119.5 * scale, 0.5 * 16 / 30, 0]]]
    np.testing.assert_allclose(points, wanted, rtol=1e-6)
    assert prompt_points([], WIDE).tolist() == [[[0, 0, -1]]]


def test_a_box_reaches_to_the_far_edges_of_its_last_pixels():
    assert prompt_box(Box(0, 0, 119, 29), WIDE).tolist() == [[0, 0, 64, 16]]
    assert prompt_box(None, WIDE).tolist() == [[0, 0, 0, 0]]


def test_the_padding_belongs_to_no_mask():
    nothing = prior_logits(None, WIDE)
    assert nothing.shape == (1, 1, 32, 32)
    assert (nothing == -CERTAIN).all()
    given = prior_logits(GivenMask(np.ones((30, 120), np.bool_)), WIDE)
    assert (given[0, 0, :8] == CERTAIN).all()
    assert (given[0, 0, 8:] == -CERTAIN).all()
    own = LogitsPrediction(np.full((8, 32), 3.0, np.float32), (30, 120))
    again = prior_logits(own, WIDE)
    assert (again[0, 0, :8] == 3).all()
    assert (again[0, 0, 8:] == -CERTAIN).all()


def test_a_prediction_covers_the_image_without_the_padding(sessions):
    encoder, decoder = sessions
    net = PhotoNet(encoder, decoder, PhotoNetSettings(SIDE))
    embedding = net.encode(np.zeros((30, 120, 3), np.uint8))
    prediction = net.decode(embedding, [Click(3, 4, True)], box=Box(1, 2, 30, 20))
    assert prediction.logits.shape == (8, 32)
    assert prediction.mask().shape == (30, 120)
    assert prediction.logits[7, 31] == 7 * 32 + 31
    assert set(decoder.feeds[0]) == {*MAPS, "points", "box", "prior_logits"}
    assert embedding.size == (30, 120)


def test_predictions_do_not_change_and_the_image_is_encoded_once(sessions):
    encoder, decoder = sessions
    net = PhotoNet(encoder, decoder, PhotoNetSettings(SIDE))
    embedding = net.encode(np.zeros((30, 120, 3), np.uint8))
    first = net.decode(embedding, [Click(3, 4, True)])
    kept = first.logits.copy()
    net.decode(embedding, [Click(3, 4, True), Click(9, 9, False)], prior=first)
    np.testing.assert_array_equal(first.logits, kept)
    assert len(encoder.feeds) == 1


@pytest.fixture
def everything():
    """A net whose masks cover the whole image."""
    encoder = RecordingSession({name: np.zeros(1, np.float32) for name in MAPS})
    logits = np.full((1, 1, 32, 32), 9, np.float32)
    decoder = RecordingSession({"logits": logits, "iou": np.array([0.5], np.float32)})
    return PhotoNet(encoder, decoder, PhotoNetSettings(SIDE)), decoder


def test_a_box_alone_is_decoded_again_with_its_own_mask(everything):
    net, decoder = everything
    net.decode(net.encode(np.zeros((30, 120, 3), np.uint8)), [], box=Box(10, 5, 69, 19))
    before, after = (feeds["prior_logits"][0, 0, :8] for feeds in decoder.feeds)
    assert (before == -CERTAIN).all()
    assert (after == 9).all()


@pytest.mark.parametrize("box", [Box(10, 5, 69, 19), Box(0, 0, 119, 29), Box(31, 7, 52, 11)])
def test_the_mask_of_a_box_alone_ends_at_its_edges(everything, box):
    net, _ = everything
    mask = net.decode(net.encode(np.zeros((30, 120, 3), np.uint8)), [], box=box).mask()
    rows, columns = np.nonzero(mask)
    found = Box(columns.min(), rows.min(), columns.max(), rows.max())
    assert found == box
    assert mask[box.y0 + 2 : box.y1 - 1, box.x0 + 2 : box.x1 - 1].all()


def test_clicks_may_leave_the_box_and_are_decoded_once(everything):
    net, decoder = everything
    embedding, box = net.encode(np.zeros((30, 120, 3), np.uint8)), Box(10, 5, 69, 19)
    first = net.decode(embedding, [], box=box)
    decoder.feeds.clear()
    clicked = net.decode(embedding, [Click(90, 20, True)], box=box, prior=first)
    assert len(decoder.feeds) == 1
    assert clicked.mask().all()


def test_the_iou_estimate_is_calibrated_in_logits():
    same = PhotoNetSettings(SIDE)
    assert calibrated_iou(0.3, same) == pytest.approx(0.3)
    steeper = PhotoNetSettings(SIDE, iou_scale=2.0, iou_offset=1.0)
    assert calibrated_iou(0.5, steeper) == pytest.approx(1 / (1 + np.exp(-1)))
    assert 0 <= calibrated_iou(0.0, steeper) < calibrated_iou(1.0, steeper) <= 1
