"""Bilinear sampling, corners on corners: against torch's values, and in parts as in one."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.segmenters.resampling import BAND, bands, corners, resample

GOLDEN = Path(__file__).parents[1] / "golden" / "simple_click" / "bilinear.json"
CASES = json.loads(GOLDEN.read_text("utf-8"))["cases"]
SIDES = st.integers(1, 70)


@pytest.mark.parametrize("case", [case for case in CASES if "cells" in case])
def test_maps_are_resized_as_torch_does(case):
    cells, expected = np.array(case["cells"], np.float32), np.array(case["samples"])
    (height, width), (tall, wide) = cells.shape, expected.shape
    found = resample(cells, corners(height, tall), corners(width, wide))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if "length" in case])
def test_positions_on_long_sides_are_rounded_as_torch_does(case):
    """In float64 the positions would differ by 1e-4 of a cell, the values by a hundred times that
    of the tolerance.
    """
    row = (np.arange(case["length"]) * 37 % 256).astype(np.float32)[None]
    found = resample(row, corners(1, 1), corners(case["length"], case["count"]))[0, case["at"]]
    np.testing.assert_allclose(found, case["samples"], atol=2e-5)


def test_float64_positions_would_be_noticed():
    case = max((case for case in CASES if "length" in case), key=lambda case: case["length"])
    exact = np.array(case["at"]) * ((case["length"] - 1) / (case["count"] - 1))
    row = np.arange(case["length"]) * 37 % 256
    found = np.interp(exact, np.arange(case["length"]), row)
    assert np.abs(found - case["samples"]).max() > 2e-4


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_sampling_keeps_corners_and_range(height, width, tall, wide, seed):
    cells = np.random.default_rng(seed).random((height, width), np.float32)
    found = resample(cells, corners(height, tall), corners(width, wide))
    assert found.shape == (tall, wide)
    assert found[0, 0] == cells[0, 0]
    if tall > 1 and wide > 1:
        np.testing.assert_allclose(found[-1, -1], cells[-1, -1], atol=1e-4)
    assert cells.min() - 1e-6 <= found.min() <= found.max() <= cells.max() + 1e-6


@given(SIDES, st.integers(1, 200), st.data())
def test_any_part_equals_that_part_of_the_whole(cells, samples, data):
    """Parts, also those taken backwards, are what prediction windows are drawn and searched by."""
    values = np.random.default_rng(cells).random((cells, 9), np.float32)
    rows, columns = corners(cells, samples), corners(9, 20)
    whole = resample(values, rows, columns)
    first = data.draw(st.integers(0, samples - 1))
    last = data.draw(st.integers(first, samples - 1))
    part = rows[first : last + 1]
    np.testing.assert_allclose(resample(values, part, columns), whole[first : last + 1], atol=1e-6)
    np.testing.assert_allclose(
        resample(values, part[::-1], columns), whole[first : last + 1][::-1], atol=1e-6
    )


def test_bands_cover_all_rows_once():
    rows = corners(7, 3 * BAND + 5)
    parts = [part for part, _ in bands(np.zeros((7, 4), np.float32), rows, corners(4, 4))]
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(53))


def test_channels_come_one_after_the_other():
    """Pixels [h, w, 3] are read as rows of 3 w cells, and leave as planes."""
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    rows, columns = corners(6, 4), corners(5, 8)
    planes = resample(image.reshape(6, 15), rows, columns.by_channel(3)).reshape(4, 3, 8)
    for channel in range(3):
        alone = resample(np.ascontiguousarray(image[..., channel]), rows, columns)
        np.testing.assert_array_equal(planes[:, channel], alone)


@given(SIDES, st.integers(1, 200), st.lists(st.booleans(), min_size=70, max_size=70))
def test_touching_finds_every_sample_of_the_marked_cells(cells, samples, marks):
    marked, taps = np.array(marks[:cells]), corners(cells, samples)
    uses = marked[taps.low] | marked[taps.high]
    reached = taps.touching(marked)
    assert not uses[: reached.start].any()
    assert not uses[reached.stop :].any()
    assert len(uses[reached]) == 0 or (uses[reached][0] and uses[reached][-1])
