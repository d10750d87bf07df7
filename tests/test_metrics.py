"""Metrics, against values computed by hand."""

import math

import numpy as np
import pytest

from segagent_rt.eval.statistics import spearman
from segagent_rt.metrics import (
    cumulative_iou,
    generalised_iou,
    intersection_union,
    iou,
    max_error,
    meets,
    number_of_clicks,
)

A = np.array([[1, 1, 0, 0]], np.bool_)
B = np.array([[0, 1, 1, 0]], np.bool_)
NOTHING = np.zeros((1, 4), np.bool_)


def test_iou_by_hand():
    assert intersection_union(A, B) == (1, 3)
    assert iou(A, B) == 1 / 3
    assert iou(A, A) == 1.0
    assert iou(A, NOTHING) == 0.0
    assert iou(NOTHING, NOTHING) == 1.0


def test_cumulative_iou_weighs_by_area_and_the_generalised_one_does_not():
    pairs = [(1, 2), (90, 100)]
    assert cumulative_iou(pairs) == 91 / 102
    assert generalised_iou(pairs) == pytest.approx((0.5 + 0.9) / 2)
    assert generalised_iou([(0, 0)]) == 1.0


def test_number_of_clicks_counts_from_one_and_stops_at_the_cap():
    assert number_of_clicks([0.5, 0.86, 0.84, 0.9], 0.85) == 2
    assert number_of_clicks([0.5, 0.6], 0.85) == 20


def test_spearman_with_ties_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_no_nan_passes_a_comparison():
    right = np.array([1.0, -4.0])
    assert max_error(right, right) == 0.0
    assert max_error(np.array([1.5, -4.0]), right) == 0.125
    assert max_error(np.array([1.5, -4.0]), right, scale=2.0) == 0.25
    for spoilt in (np.array([1.0, np.nan]), np.array([np.inf, -4.0])):
        assert max_error(spoilt, right) == math.inf
        assert max_error(right, spoilt) == math.inf
        assert max_error(spoilt, spoilt) == math.inf
    assert max_error(right, right, scale=math.nan) == math.inf
    assert max_error(np.zeros(3), right) == math.inf


def test_only_a_finite_figure_meets_its_bound():
    assert meets(0.95, at_least=0.95)
    assert meets(0.5, at_least=0.1, at_most=0.5)
    assert not meets(0.94, at_least=0.95)
    assert not meets(5.1, at_most=5.0)
    for value in (math.nan, math.inf, -math.inf, None):
        assert not meets(value)
        assert not meets(value, at_least=0.0)
        assert not meets(value, at_most=1.0)
