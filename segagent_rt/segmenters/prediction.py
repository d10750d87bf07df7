"""Masks that are kept small and drawn when asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.image import resize_logits, resize_mask
from segagent_rt.types import Mask, Prediction, Size

KEPT = 2
"""Predictions in memory during a click: the mask before, and the one that is made."""

STABILITY_OFFSET = 1.0
"""How far the thresholds of a stability score lie from the mask's, as in SAM's mask generator."""


def stability_score(logits: npt.NDArray[np.float32], threshold: float = 0.0) -> float:
    """IoU, 0..1, of the masks at a slightly higher and a slightly lower threshold; 0 if the larger
    one is empty.

    Args:
        logits: float32 [h, w].
        threshold: of the mask.
    """
    larger = int(np.count_nonzero(logits > threshold - STABILITY_OFFSET))
    return int(np.count_nonzero(logits > threshold + STABILITY_OFFSET)) / max(1, larger)


@dataclass(frozen=True, slots=True, eq=False)
class LogitsPrediction:
    """Logits float32 [h, w] over the whole image; the mask is where they exceed `threshold`."""

    logits: npt.NDArray[np.float32]
    size: Size
    score: float | None = None
    threshold: float = 0.0

    @property
    def stability(self) -> float:
        return stability_score(self.logits, self.threshold)

    def mask(self, size: Size | None = None) -> Mask:
        return np.asarray(resize_logits(self.logits, size or self.size) > self.threshold)

    def agrees(self, other: Prediction) -> bool:
        if not isinstance(other, LogitsPrediction):
            return np.array_equal(self.mask(), other.mask())
        return np.array_equal(self.logits > self.threshold, other.logits > other.threshold)


@dataclass(frozen=True, slots=True, eq=False)
class GivenMask:
    """A mask from elsewhere, bool [H, W] of the original image, to start from or to rate."""

    full: Mask
    score: float | None = None
    stability: float | None = None

    def mask(self, size: Size | None = None) -> Mask:
        return resize_mask(self.full, size or self.full.shape)

    def agrees(self, other: Prediction) -> bool:
        return np.array_equal(self.full, other.mask())
