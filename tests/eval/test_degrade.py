"""Masks are spoilt as much as is said, the same way every time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.eval.degrade import degraded
from segagent_rt.metrics import iou
from segagent_rt.scenes.rng import DeterministicRng

ROWS, COLUMNS = np.ogrid[:60, :80]


def disc(x, y, radius):
    return np.asarray((ROWS - y) ** 2 + (COLUMNS - x) ** 2 <= radius**2)


@given(st.integers(0, 79), st.integers(0, 59), st.integers(5, 25), st.integers(0, 10**6))
def test_the_iou_lies_where_it_should(x, y, radius, seed):
    target = disc(x, y, radius)
    mask = degraded(target, DeterministicRng("degraded", seed))
    assert mask is not None
    assert mask.shape == target.shape
    assert 0.5 <= iou(mask, target) <= 0.7
    assert np.array_equal(mask, degraded(target, DeterministicRng("degraded", seed)))


def test_masks_are_spoilt_in_several_ways():
    target = disc(40, 30, 15)
    made = [degraded(target, DeterministicRng("degraded", seed)) for seed in range(40)]
    larger = sum(mask.sum() > target.sum() * 1.05 for mask in made)
    smaller = sum(mask.sum() < target.sum() * 0.95 for mask in made)
    assert larger > 3
    assert smaller > 3
    assert len(made) - larger - smaller > 3, "moved"


def test_an_object_of_a_pixel_cannot_be_spoilt():
    assert degraded(disc(40, 30, 0), DeterministicRng("degraded", 0)) is None
    assert degraded(np.zeros((60, 80), np.bool_), DeterministicRng("degraded", 0)) is None
