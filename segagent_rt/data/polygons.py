"""Polygons to masks as COCO's own code draws them, pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.types import Mask, Size

Integers: TypeAlias = npt.NDArray[np.int64]

FINE = 5
"""Outlines are traced on a grid this much finer than the pixels (COCO API, rleFrPoly)."""


def fill_polygons(polygons: Sequence[Sequence[float]], size: Size) -> Mask:
    """The union of polygons, each a flat list x, y, x, y, ..., as a mask bool [H, W]."""
    mask = np.zeros(size, np.bool_)
    for polygon in polygons:
        mask |= fill_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), size)
    return mask


def fill_polygon(points: npt.NDArray[np.float64], size: Size) -> Mask:
    """One polygon, float64 [N, 2] of x and y.

    The outline is walked on the fine grid. Wherever it crosses the middle of a column of pixels,
    the pixels below change sides.
    """
    height, width = size
    corners = (FINE * points + 0.5).astype(np.int64)
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    traced = np.concatenate([_trace(start, end) for start, end in edges])
    columns, rows = _crossings(traced, height, width)
    flips = np.bincount(columns * height + rows, minlength=height * width + 1)
    inside = np.cumsum(flips[: height * width]) % 2 == 1
    return np.ascontiguousarray(inside.reshape(width, height).T)


def _trace(start: Integers, end: Integers) -> Integers:
    """The points of the fine grid along an edge, int64 [N, 2], in its own direction."""
    reach = np.abs(end - start)
    along = 0 if reach[0] >= reach[1] else 1  # the axis that takes one step at a time
    backwards = bool(start[along] > end[along])
    low, high = (end, start) if backwards else (start, end)
    steps = np.arange(reach[along] + 1)
    slope = (high - low)[1 - along] / reach[along] if reach[along] else 0.0
    traced = np.empty((len(steps), 2), np.int64)
    traced[:, along] = low[along] + steps
    traced[:, 1 - along] = (low[1 - along] + slope * steps + 0.5).astype(np.int64)
    return traced[::-1] if backwards else traced


def _crossings(traced: Integers, height: int, width: int) -> tuple[Integers, Integers]:
    """Columns that the outline crosses in their middle, and the rows where it does."""
    before, after = traced[:-1], traced[1:]
    moved = before[:, 0] != after[:, 0]
    left = np.where(after[:, 0] < before[:, 0], after[:, 0], after[:, 0] - 1)
    columns = (left + 0.5) / FINE - 0.5
    whole = moved & (columns == np.floor(columns)) & (columns >= 0) & (columns <= width - 1)
    high = np.minimum(before[:, 1], after[:, 1])[whole]
    rows = np.ceil(np.clip((high + 0.5) / FINE - 0.5, 0, height))
    return columns[whole].astype(np.int64), rows.astype(np.int64)
