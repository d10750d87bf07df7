"""Outlines of the shapes, as polygons in the unit disc, (x right, y down)."""

import math
from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

Outline = npt.NDArray[np.float64]


def regular(corners: int, radius: float = 1.0, phase: float = -math.pi / 2) -> Outline:
    """A regular polygon; `phase` is the direction of its first corner, in radians."""
    angles = phase + np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def _polygon(points: Iterable[tuple[float, float]]) -> Outline:
    return np.array(list(points), np.float64)


def _star(inner: float) -> Outline:
    outline = regular(10)
    outline[1::2] *= inner
    return outline


def _cross(arm: float) -> Outline:
    a = arm
    corner = [(-a, -1), (a, -1), (a, -a)]
    turns = [
        corner,
        [(-y, x) for x, y in corner],
        [(-x, -y) for x, y in corner],
        [(y, -x) for x, y in corner],
    ]
    return _polygon(point for turn in turns for point in turn)


def _heart() -> Outline:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16.5


# Thick limbs and a small hole: a click that is a few pixels off must still land on the object.
OUTLINES: dict[str, tuple[Outline, ...]] = {
    "circle": (regular(48),),
    "square": (regular(4, 1.15, math.pi / 4),),
    "triangle": (regular(3, 1.1),),
    "star": (_star(0.56),),
    "ring": (regular(48), regular(48, 0.42)),
    "cross": (_cross(0.44),),
    "heart": (_heart(),),
}

# Largest turn either way, in degrees, that leaves the shape what it is called.
TURNS: dict[str, float] = {"square": 12, "triangle": 15, "star": 15, "cross": 12, "heart": 15}


@cache
def area(shape: str) -> float:
    """Area of a shape of radius 1 (shoelace formula; a second outline is a hole)."""

    def shoelace(outline: Outline) -> float:
        x, y = outline.T
        return abs(float(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1)))) / 2

    outer, *holes = OUTLINES[shape]
    return shoelace(outer) - sum(shoelace(hole) for hole in holes)


def placed(
    shape: str, radius: float, centre: tuple[float, float], degrees: float
) -> tuple[Outline, ...]:
    """The outlines of a shape at its place, in pixels."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[c, s], [-s, c]]) * radius
    # Not a matrix product: BLAS may sum in another order on another machine.
    return tuple(
        outline[:, :1] * turn[0] + outline[:, 1:] * turn[1] + np.array(centre)
        for outline in OUTLINES[shape]
    )
