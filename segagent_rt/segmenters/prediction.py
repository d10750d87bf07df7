"""Masks that are kept small and drawn when asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.image import resize_logits, resize_mask
from segagent_rt.types import Mask, Prediction, Size

KEPT = 2
"""Predictions in memory during a click: the mask before, and the one that is made."""


@dataclass(frozen=True, slots=True, eq=False)
class LogitsPrediction:
    """Logits float32 [h, w] over the whole image; the mask is where they exceed `threshold`."""

    logits: npt.NDArray[np.float32]
    size: Size
    score: float | None = None
    threshold: float = 0.0

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

    def mask(self, size: Size | None = None) -> Mask:
        return resize_mask(self.full, size or self.full.shape)

    def agrees(self, other: Prediction) -> bool:
        return np.array_equal(self.full, other.mask())
