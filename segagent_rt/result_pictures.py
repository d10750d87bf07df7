"""The PNG files of a result: mask, overlay and cut-out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.draw import draw_overlay, png
from segagent_rt.types import Mask, RgbImage, Trajectory

RgbaImage: TypeAlias = npt.NDArray[np.uint8]
"""uint8 [h, w, 4]; pixels outside of the object are zero."""


def cutout(image: RgbImage, mask: Mask) -> RgbaImage:
    """The object alone, cropped to it, everything else transparent.

    Args:
        image: uint8 [H, W, 3] RGB.
        mask: bool [H, W], not empty.

    Returns:
        uint8 [h, w, 4] RGBA, as large as the bounding box of the mask. What is transparent is
        black, so that nothing of the background remains in the file.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = slice(y, y + height), slice(x, x + width)
    alpha = mask[window].astype(np.uint8)[..., None]
    return np.concatenate([image[window] * alpha, alpha * np.uint8(255)], axis=2)


def overlay_of(image: RgbImage, trajectory: Trajectory) -> RgbImage:
    """The image with the returned mask, the box, the clicks and the expression drawn into it.

    Args:
        image: uint8 [H, W, 3] RGB.
        trajectory: one that has a mask.
    """
    best = trajectory.best
    assert best is not None
    assert best.prediction is not None
    mask, caption = best.prediction.mask(), trajectory.expression
    return draw_overlay(image, mask, trajectory.clicks, caption, box=best.box)


def pictures_of(
    image: RgbImage, trajectory: Trajectory, kinds: Sequence[str]
) -> Iterable[tuple[str, bytes]]:
    """The PNG files of a trajectory by their kinds. There is no cut-out of an empty mask."""
    if trajectory.prediction is None:
        return
    mask = trajectory.prediction.mask()
    for kind in kinds:
        if kind == "mask":
            yield kind, png(mask)
        elif kind == "overlay":
            yield kind, png(overlay_of(image, trajectory))
        elif kind == "cutout" and mask.any():
            yield kind, png(cutout(image, mask))
