"""What is true of every object of a scene under a mask: the answers the MLLM must be able to give
about it.

A visual token cannot depend on the question, which comes after the image. But *what the answer
would be if this object were meant* is a property of the object, and so can be taught to its tokens:
its name, its rank among its likes, how well the mask covers it, which click would help it next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.annotators.oracle import deepest
from segagent_rt.scenes.expressions import SIDES, Noun, along
from segagent_rt.scenes.layout import COLOURS, SHAPES, SIZES, SceneObject
from segagent_rt.scenes.paint import Bytes
from segagent_rt.types import Mask

COLOUR_NAMES, SIZE_NAMES = tuple(COLOURS), tuple(SIZES)
LEVELS = 4
"""Groups in which an object is ranked: all, same colour, same shape, same both."""
RANKS = 4
"""First, second, third, further in."""

UNTOUCHED = 0.05
"""Below this IoU the next click is a positive one on the object, whatever else the mask covers."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ObjectTargets:
    """One row for each of the n objects; points in 0..1 of the picture, (x, y)."""

    colour: Ints
    shape: Ints
    size: Ints
    radius: Floats
    ranks: Ints  # [n, LEVELS, 4 sides], -100 where the object is alone in its group
    extremes: Floats  # [n, LEVELS, 2] largest, smallest: 1, 0 or -1 for alone
    iou: Floats
    missing: Floats  # [n, 2] the point to add, were the object meant
    surplus: Floats  # [n, 2] the point to take away
    has_surplus: Floats
    lean: Floats  # 0: surely a positive click next, 1: surely a negative one
    negative: Mask


def compute_object_targets(
    objects: Sequence[SceneObject], labels: Bytes, mask: Mask
) -> ObjectTargets:
    """Facts of the objects of `labels` (uint8 [S, S]) when `mask` (bool [S, S]) is painted over the
    picture."""
    count, side = len(objects), labels.shape[0]
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(labels[mask], minlength=count + 1)[1:]
    iou = covered / np.maximum(areas + mask.sum() - covered, 1)
    missing, surplus = np.zeros((count, 2), np.float32), np.zeros((count, 2), np.float32)
    has_surplus, lean, negative = (
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.bool_),
    )
    whole = deepest(mask)
    for i in range(count):
        own = labels == i + 1
        lack = deepest(own & ~mask) if covered[i] else deepest(own)
        extra = deepest(mask & ~own) if covered[i] else whole
        inside = lack if lack[0] else deepest(own)
        missing[i] = (inside[1] + 0.5) / side, (inside[2] + 0.5) / side
        surplus[i] = (extra[1] + 0.5) / side, (extra[2] + 0.5) / side
        has_surplus[i] = extra[0] > 0
        if iou[i] >= UNTOUCHED:
            negative[i] = extra[0] >= lack[0] and extra[0] > 0
            lean[i] = np.clip(
                0.5 + 1.5 * (extra[0] - lack[0]) / max(extra[0] + lack[0], 1e-6), 0, 1
            )
    ranks, extremes = _orders(objects)
    return ObjectTargets(
        colour=np.array([COLOUR_NAMES.index(o.colour) for o in objects]),
        shape=np.array([SHAPES.index(o.shape) for o in objects]),
        size=np.array([SIZE_NAMES.index(o.size) for o in objects]),
        radius=np.array([o.radius / 50 for o in objects], np.float32),
        ranks=ranks, extremes=extremes, iou=iou.astype(np.float32),
        missing=missing, surplus=surplus, has_surplus=has_surplus, lean=lean, negative=negative,
    )  # fmt: skip


def _orders(objects: Sequence[SceneObject]) -> tuple[Ints, Floats]:
    count = len(objects)
    ranks = np.full((count, LEVELS, len(SIDES)), -100, np.int64)
    extremes = np.full((count, LEVELS, 2), -1, np.float32)
    for i, item in enumerate(objects):
        groups = (
            Noun(),
            Noun(colour=item.colour),
            Noun(shape=item.shape),
            Noun(item.colour, item.shape),
        )
        for level, group in enumerate(groups):
            others = [o for j, o in enumerate(objects) if j != i and group.holds(o)]
            if not others:
                continue
            for s, side in enumerate(SIDES):
                before = sum(along(side, o) < along(side, item) for o in others)
                ranks[i, level, s] = min(before, RANKS - 1)
            extremes[i, level, 0] = all(o.extent < item.extent for o in others)
            extremes[i, level, 1] = all(o.extent > item.extent for o in others)
    return ranks, extremes


def cell_shares(labels: Bytes, count: int, cells: int) -> Floats:
    """Share of each object in each cell of a grid, float32 [count, cells, cells]."""
    size = labels.shape[0] // cells
    onehot = labels == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
    blocks = onehot.reshape(count, cells, size, cells, size).sum((2, 4), dtype=np.int32)
    return np.asarray(blocks / size**2, np.float32)
