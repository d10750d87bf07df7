"""YOLO segmentation labels: one line for each object, its class and its outline.

An outline has no holes, so they are filled; the parts of an object are joined by lines of no width,
as Ultralytics' own converter does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.types import Mask

Points = npt.NDArray[np.int64]


def yolo_labels(objects: Iterable[tuple[int, Mask]]) -> bytes:
    """The content of a label file.

    Args:
        objects: a class number and a mask, bool [H, W], for each. Empty masks are left out.

    Returns:
        Lines `class x y x y ...`, coordinates of the middle of outline pixels as a share of the
        image's width and height.
    """
    lines = []
    for number, mask in objects:
        points = outline(mask)
        if len(points):
            shares = (points + 0.5) / (mask.shape[1], mask.shape[0])
            lines.append(f"{number} {' '.join(f'{share:.6f}' for share in shares.ravel())}\n")
    return "".join(lines).encode()


def outline(mask: Mask) -> Points:
    """One closed outline around all parts of a mask.

    Args:
        mask: bool [H, W].

    Returns:
        int64 [N, 2], x and y of pixels; N is at least 3, or 0 if the mask is empty.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = sorted((part.reshape(-1, 2).astype(np.int64) for part in found), key=len, reverse=True)
    if not parts:
        return np.zeros((0, 2), np.int64)
    joined = parts[0]
    for part in parts[1:]:
        joined = _bridged(joined, part)
    short = max(0, 3 - len(joined))
    return np.concatenate([joined, np.repeat(joined[-1:], short, axis=0)])


def _bridged(outer: Points, part: Points) -> Points:
    """Go along one outline, over to the nearest point of another, around it, and back."""
    middle = part.mean(axis=0)
    start = int(np.argmin(((outer - middle) ** 2).sum(axis=1)))
    there = int(np.argmin(((part - outer[start]) ** 2).sum(axis=1)))
    around = np.roll(part, -there, axis=0)
    pieces = (outer[: start + 1], around, around[:1], outer[start:])
    return np.asarray(list(chain.from_iterable(pieces)), np.int64)
