"""How good a mask is, and comparisons that no NaN passes. Masks are bool [H, W]."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from segagent_rt.types import Array, Mask


def max_error(found: Array, wanted: Array, scale: float | None = None) -> float:
    """The largest difference of two arrays of numbers.

    Args:
        found: numbers of any shape.
        wanted: what they should be.
        scale: the unit of the error; the largest magnitude in `wanted` if left out.

    Returns:
        The error; infinity if the shapes differ, or if a number on either side is not finite.
    """
    if found.shape != wanted.shape or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return math.inf
    exact = np.asarray(wanted, np.float64)
    unit = float(np.abs(exact).max(initial=0.0)) if scale is None else float(scale)
    error = float(np.abs(found - exact).max(initial=0.0)) / max(unit, 1e-12)
    return error if math.isfinite(error) else math.inf


def meets(value: float | None, *, at_least: float = -math.inf, at_most: float = math.inf) -> bool:
    """Whether a figure was measured, is finite, and lies within its bounds."""
    return value is not None and math.isfinite(value) and at_least <= value <= at_most


def intersection_union(mask: Mask, target: Mask) -> tuple[int, int]:
    """Pixels in both, and pixels in either."""
    both = int(np.count_nonzero(mask & target))
    return both, int(np.count_nonzero(mask)) + int(np.count_nonzero(target)) - both


def iou(mask: Mask, target: Mask) -> float:
    """Intersection over union, 0..1; two empty masks agree perfectly."""
    both, either = intersection_union(mask, target)
    return both / either if either else 1.0


def cumulative_iou(pairs: Iterable[tuple[int, int]]) -> float:
    """cIoU: the summed intersections over the summed unions; large objects weigh more."""
    both = either = 0
    for intersection, union in pairs:
        both, either = both + intersection, either + union
    return both / either if either else 1.0


def generalised_iou(pairs: Iterable[tuple[int, int]]) -> float:
    """gIoU as in referring segmentation: the mean IoU of the samples, an empty union counting 1."""
    values = [both / either if either else 1.0 for both, either in pairs]
    return float(np.mean(values)) if values else 0.0


def number_of_clicks(ious: Sequence[float], target: float, most: int = 20) -> int:
    """NoC: the first click (counted from 1) whose IoU reaches `target`; `most` if none does."""
    for number, value in enumerate(ious[:most], 1):
        if value >= target:
            return number
    return most
