"""Spoils masks on purpose, to see what refining them gains."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.metrics import iou
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.types import Mask

LOWEST, HIGHEST = 0.5, 0.7
"""IoU of a spoilt mask with the true one."""


def degraded(target: Mask, rng: DeterministicRng) -> Mask | None:
    """The mask, bool [H, W], grown, shrunk, moved or cut until its IoU is between LOWEST and
    HIGHEST; None if the object is too small for that.
    """
    for kind in rng.shuffled([_shrunk, _grown, _moved, _cut]):
        for mask in kind(target, rng):
            value = iou(mask, target)
            if LOWEST <= value <= HIGHEST:
                return mask
            if value < LOWEST:
                break
    return None


def _shrunk(target: Mask, rng: DeterministicRng) -> Iterator[Mask]:
    depth = _distance(target)
    for radius in range(1, max(target.shape)):
        yield np.asarray(depth > radius)


def _grown(target: Mask, rng: DeterministicRng) -> Iterator[Mask]:
    distance = _distance(~target)
    for radius in range(1, max(target.shape)):
        yield np.asarray(distance <= radius)


def _moved(target: Mask, rng: DeterministicRng) -> Iterator[Mask]:
    x, y = _direction(rng)
    height, width = target.shape
    for step in range(1, max(target.shape)):
        shift = np.array([[1, 0, round(step * x)], [0, 1, round(step * y)]], np.float32)
        moved = cv2.warpAffine(
            target.astype(np.uint8), shift, (width, height), flags=cv2.INTER_NEAREST
        )
        yield np.asarray(moved > 0)


def _cut(target: Mask, rng: DeterministicRng) -> Iterator[Mask]:
    """One side is missing."""
    rows, columns = np.nonzero(target)
    x, y = _direction(rng)
    along = columns * x + rows * y
    mask = np.zeros_like(target)
    if len(along):
        keep = along <= np.quantile(along, rng.uniform(LOWEST, HIGHEST))
        mask[rows[keep], columns[keep]] = True
    yield mask


def _direction(rng: DeterministicRng) -> tuple[float, float]:
    angle = rng.uniform(0, 2 * math.pi)
    return math.cos(angle), math.sin(angle)


def _distance(region: Mask) -> npt.NDArray[np.float32]:
    """Of each pixel of a region to its border, float32 [H, W]; the picture's edge is none."""
    return np.asarray(cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 0), np.float32)
