"""A simulated annotator: clicks, boxes and spoiled masks as the net meets them in use."""

from __future__ import annotations

import random

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.types import Mask

Floats = npt.NDArray[np.float32]


def depth_of(region: Mask) -> Floats:
    """Each pixel's distance to the region's border, the array's edge included."""
    padded = np.pad(region.view(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def next_prompt(
    target: Mask, mask: Mask, ignored: Mask, rng: random.Random
) -> tuple[float, float, float] | None:
    """A correcting click (x, y, label) in pixels of the arrays, or None if nothing is wrong.

    Usually deep inside the deeper of the two error regions, as the oracle annotator clicks;
    sometimes anywhere in it, or slightly beside.
    """
    wrong = (target ^ mask) & ~ignored
    missing, surplus = depth_of(wrong & target), depth_of(wrong & mask)
    positive = bool(missing.max() > surplus.max())
    depth = missing if positive else surplus
    most = float(depth.max())
    if most <= 0:
        return None
    manner = rng.random()
    least = 1.0 if manner < 0.4 else 0.6 if manner < 0.75 else 0.25 if manner < 0.93 else 0.0
    rows, columns = np.nonzero((depth >= least * most) & (depth > 0))
    at = rng.randrange(len(rows))
    return float(columns[at]) + 0.5, float(rows[at]) + 0.5, float(positive)


def jittered_box(target: Mask, rng: random.Random) -> tuple[float, float, float, float]:
    """The box round a target, its edges moved by up to about 10 % of its sides: left, top, right
    and bottom in pixels of the array."""
    x, y, width, height = cv2.boundingRect(target.view(np.uint8))
    strength = rng.choice((0.0, 0.0, 0.02, 0.05, 0.1))

    def moved(edge: float, length: float, most: float) -> float:
        return min(max(edge + rng.gauss(0, strength) * length, 0.0), most)

    rows, columns = target.shape
    left, right = moved(x, width, columns), moved(x + width, width, columns)
    top, bottom = moved(y, height, rows), moved(y + height, height, rows)
    if right - left < 2 or bottom - top < 2:
        return float(x), float(y), float(x + width), float(y + height)
    return left, top, right, bottom


def spoiled_mask(target: Mask, other: Mask, rng: random.Random) -> Mask:
    """A mask that went wrong: a part is missing, another object is covered, or its edge is off."""
    manner = rng.random()
    if manner < 0.3:
        return target | other
    if manner < 0.6:
        size = rng.randint(2, 12)
        change = cv2.dilate if rng.random() < 0.5 else cv2.erode
        return np.asarray(change(target.astype(np.uint8), np.ones((size, size)))).astype(np.bool_)
    rows, columns = np.nonzero(target)
    if len(rows) == 0:
        return target
    along = columns * rng.uniform(-1, 1) + rows * rng.uniform(-1, 1)
    kept = along <= np.quantile(along, rng.uniform(0.3, 0.9))
    out = np.zeros_like(target)
    out[rows[kept], columns[kept]] = True
    return out
