"""Polygons are drawn as COCO's own code draws them, pixel for pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.data.polygons import fill_polygons
from segagent_rt.image import mask_to_rle

# Run lengths by pycocotools 2.0.11 (merge of frPyObjects) for 30 x 40 pixels.
GOLDEN = {
    "triangle": ([[2, 2, 30, 5, 12, 25]],
                 "n11m02N3M2N2O2M2N2N2N3M00O1O1O2N1O1O1O1N2O1O1O1O2N1O1O1OV:"),
    "the other way round": ([[12, 25, 30, 5, 2, 2]],
                            "n11m02N3M2N2O2M2N2N2N3M00O1O1O2N1O1O1O1N2O1O1O1O2N1O1O1OV:"),
    "thin": ([[5.5, 5.5, 38.2, 6.1, 38.0, 7.9, 5.2, 7.0]],
             "l41m0000000000000000000000000000000001O00000000000000000000000000000f1"),
    "outside": ([[-10, -6, 25, 4, 50, 40, 10, 20]],
                "08f01O1O1O2N1O1O2N1O1O1O1O010O0010O01O0010O01O010O0100O101N101N1O2N1O2N1O1O2N1O2N"),
    "two": ([[1, 1, 10, 1, 10, 10, 1, 10], [20.4, 15.6, 35.5, 15.2, 36.1, 27.7, 21.3, 26.6]],
            "o09e0000000000000000k9H]F:F000O1000000000000000001O000Y3"),
    "star that crosses itself": (
        [[20, 1, 25, 28, 3, 10, 38, 11, 12, 28]],
        "R41m01O1O1O001O1O1O1AJ47HK9<1FF0:MJ16MN1021ML6?ODL30L150G28;OIGJ859O100O1O100O100O1O100O`2"),
    "the whole picture": ([[0.4, 0.4, 39.6, 0.4, 39.6, 29.6, 0.4, 29.6]], "0`U1"),
    "a point twice": ([[5, 5, 5, 5, 20, 5, 20, 20, 5, 20]], "k4??000000000000000000000000000cb0"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_run_lengths(name):
    polygons, counts = GOLDEN[name]
    assert mask_to_rle(fill_polygons(polygons, (30, 40)))["counts"] == counts


coordinates = st.floats(-50, 90, allow_nan=False)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_turning_a_polygon_round_changes_nothing(points):
    flat = [n for point in points for n in point]
    back = [n for point in reversed(points) for n in point]
    assert np.array_equal(fill_polygons([flat], (30, 40)), fill_polygons([back], (30, 40)))
