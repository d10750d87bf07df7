"""A segmenter that paints discs: small enough to compute by hand, for tests and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Box, Click, Prediction, RgbImage, Size


@dataclass(frozen=True, slots=True)
class DiscEmbedding:
    """Nothing but the image's size."""

    size: Size


@dataclass(frozen=True, slots=True)
class DiscSegmenter:
    """Adds a disc for a positive click, removes one for a negative, in the order of the clicks."""

    radius: int = 10

    def encode(self, image: RgbImage) -> DiscEmbedding:
        return DiscEmbedding(image.shape[:2])

    def decode(
        self,
        embedding: DiscEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> GivenMask:
        """Paint the last click over the mask so far."""
        rows, columns = np.ogrid[: embedding.size[0], : embedding.size[1]]
        mask = np.zeros(embedding.size, np.bool_) if prior is None else prior.mask().copy()
        last = clicks[-1]
        disc = (rows - last.y) ** 2 + (columns - last.x) ** 2 <= self.radius**2
        mask[disc] = last.positive
        return GivenMask(mask)
