"""Maps over a window: what is drawn, searched or cut is what a full map would give."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.segmenters.resampling import corners, resample
from segagent_rt.segmenters.window import WindowPrediction
from segagent_rt.segmenters.zoom import Roi, Span

SIDE = 24


def spans(side):
    ends = st.tuples(st.integers(0, side - 1), st.integers(0, side - 1))
    return ends.map(lambda pair: Span(*sorted(pair)))


@st.composite
def predictions(draw):
    """Smooth and rough maps, over windows larger and smaller than the map, down to one pixel."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    roi = Roi(draw(spans(height)), draw(spans(width)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = rng.random((draw(st.integers(2, SIDE)),) * 2, np.float32)
    stretch = corners(len(coarse), SIDE)
    level = draw(st.floats(-0.5, 0.5))
    values = np.clip(resample(coarse, stretch, stretch) + np.float32(level), 0, 1)
    return WindowPrediction(values, roi, (height, width), 0.49)


def full_map(prediction):
    """As the reference keeps it: float32 over the image, zero outside the window."""
    rows, columns = prediction.roi.rows, prediction.roi.columns
    full = np.zeros(prediction.size, np.float32)
    full[rows.first : rows.last + 1, columns.first : columns.last + 1] = resample(
        prediction.probability, corners(SIDE, rows.length), corners(SIDE, columns.length)
    )
    return full


def near(values, threshold):
    """Where rounding may decide."""
    return np.abs(values - threshold) < 1e-5


@given(predictions())
def test_the_mask_is_the_full_map_above_the_threshold(prediction):
    full, mask = full_map(prediction), prediction.mask()
    assert mask.dtype == np.bool_
    assert not ((mask != (full > 0.49)) & ~near(full, 0.49)).any()


@given(predictions(), st.floats(0.05, 0.95))
def test_bounds_are_those_of_the_full_map(prediction, threshold):
    full = full_map(prediction)
    if near(full, threshold).any():
        return
    rows, columns = (np.flatnonzero((full > threshold).any(axis)) for axis in (1, 0))
    found = prediction.bounds(threshold)
    if len(rows) == 0:
        assert found is None
    else:
        assert found == Roi(Span(rows[0], rows[-1]), Span(columns[0], columns[-1]))


@given(predictions(), st.data())
def test_another_window_sees_the_full_map(prediction, data):
    """The reference crops its full map and resizes the crop."""
    height, width = prediction.size
    rows, columns = data.draw(spans(height)), data.draw(spans(width))
    crop = full_map(prediction)[rows.first : rows.last + 1, columns.first : columns.last + 1]
    expected = resample(crop, corners(rows.length, SIDE), corners(columns.length, SIDE))
    np.testing.assert_allclose(prediction.seen_through(Roi(rows, columns)), expected, atol=2e-6)


@given(predictions(), st.integers(1, 60), st.integers(1, 60))
def test_other_sizes_sample_the_same_surface(prediction, tall, wide):
    """At a pixel's centre, in the frame of the image; outside the window nothing is set."""
    drawn, (height, width) = prediction.mask((tall, wide)), prediction.size
    assert drawn.shape == (tall, wide)
    rows, columns = prediction.roi.rows, prediction.roi.columns
    for row, column in product(range(0, tall, 7), range(0, wide, 7)):
        y = (row + 0.5) * height / tall - 0.5 - rows.first
        x = (column + 0.5) * width / wide - 0.5 - columns.first
        if not (-0.5 < y < rows.length - 0.5 and -0.5 < x < columns.length - 0.5):
            assert not drawn[row, column] or min(abs(y + 0.5), abs(x + 0.5)) < 1e-9
            continue
        ys = corners(SIDE, rows.length, np.clip([y], 0, rows.length - 1))
        xs = corners(SIDE, columns.length, np.clip([x], 0, columns.length - 1))
        value = resample(prediction.probability, ys, xs)[0, 0]
        assert drawn[row, column] == (value > 0.49) or near(value, 0.49)


def test_a_larger_picture_of_the_mask_keeps_its_place():
    values = np.zeros((SIDE, SIDE), np.float32)
    values[:, : SIDE // 2] = 1
    prediction = WindowPrediction(values, Roi(Span(10, 29), Span(20, 59)), (50, 100), 0.49)
    twice = prediction.mask((100, 200))
    rows, columns = np.flatnonzero(twice.any(1)), np.flatnonzero(twice.any(0))
    assert (rows[0], rows[-1], columns[0]) == (20, 59, 40)
    assert abs(columns[-1] - 79) <= 2


def test_the_mask_and_the_zoom_have_thresholds_of_their_own():
    """Between 0.49 and 0.50 a pixel is in the mask, and does not count for the window."""
    values = np.full((SIDE, SIDE), 0.495, np.float32)
    prediction = WindowPrediction(values, Roi.whole((30, 40)), (30, 40), 0.49)
    assert prediction.mask().all()
    assert prediction.bounds(0.5) is None
    assert prediction.bounds(0.49) == Roi.whole((30, 40))


@pytest.mark.parametrize(("value", "score"), [(0.0, 1.0), (0.5, 0.0), (0.75, 0.5), (1.0, 1.0)])
def test_the_score_is_how_decided_the_net_is(value, score):
    values = np.full((SIDE, SIDE), value, np.float32)
    assert WindowPrediction(values, Roi.whole((9, 9)), (9, 9), 0.49).score == score


def test_predictions_agree_if_they_draw_the_same_mask():
    rng = np.random.default_rng(1)
    values = rng.random((SIDE, SIDE), np.float32)
    size, whole = (40, 60), Roi.whole((40, 60))
    one = WindowPrediction(values, whole, size, 0.49)
    bolder = np.where(values > 0.49, np.float32(0.9), values)
    other = values.copy()
    other[3, 4] = 1 - other[3, 4]
    narrower = WindowPrediction(values, Roi(Span(0, 39), Span(0, 50)), size, 0.49)
    assert one.agrees(WindowPrediction(bolder, whole, size, 0.49))
    assert not one.agrees(WindowPrediction(other, whole, size, 0.49))
    assert not one.agrees(narrower)
    assert one.agrees(GivenMask(one.mask()))
    assert not one.agrees(GivenMask(~one.mask()))
