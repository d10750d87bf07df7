"""Our own promptable net: encode once, decode per click, 256 x 256 logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.checked_session import CheckedSession
from segagent_rt.bounds import Side
from segagent_rt.families import SegmenterFamily
from segagent_rt.image import squash
from segagent_rt.segmenters.prediction import KEPT, LogitsPrediction
from segagent_rt.types import Box, Click, Prediction, RgbImage, Session, Size

MAPS = ("keys", "coarse", "fine")
"""What the encoder makes of a picture, and every decoding reads: keys float32 [1, 24, side/4,
side/4], with which that of a clicked place is compared, and the picture's part of two sums, [1,
side/4, side/4, 40] and [1, side/2, side/2, 24]."""

CERTAIN = 20.0
"""Logit of a mask that is given, not predicted; no mask at all is -CERTAIN everywhere."""


@dataclass(frozen=True, slots=True)
class ClickNetSettings:
    """The picture is squashed to `side` x `side`."""

    side: Side = 256


@dataclass(frozen=True, slots=True)
class ClickNetEmbedding:
    """`MAPS`, wherever the backend keeps them, of a picture of `size`."""

    maps: Mapping[str, Any]
    size: Size


class ClickNet:
    """Late fusion: the encoder sees only the image, the decoder everything else."""

    def __init__(self, encoder: Session, decoder: Session, settings: ClickNetSettings) -> None:
        self._encoder, self._side = encoder, settings.side
        shapes = {"logits": (1, 1, settings.side, settings.side), "iou": (1,)}
        self._decoder = CheckedSession(decoder, "decoder", shapes)

    def encode(self, image: RgbImage) -> ClickNetEmbedding:
        pixels = squash(image, self._side)[None]
        maps = self._encoder.run({"image": pixels}, MAPS, keep=MAPS)
        return ClickNetEmbedding(maps, image.shape[:2])

    def decode(
        self,
        embedding: ClickNetEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> LogitsPrediction:
        """The mask after `clicks`. This net takes no boxes: one without clicks counts as a click in
        its middle."""
        if box is not None and not clicks:
            clicks = [box.centre]
        feeds = {
            **embedding.maps,
            "points": self._points(clicks, embedding.size),
            "prior_logits": self._prior(prior),
        }
        out = self._decoder.run(feeds, ("logits", "iou"))
        return LogitsPrediction(out["logits"][0, 0], embedding.size, float(out["iou"][0]))

    @staticmethod
    def _points(clicks: Sequence[Click], size: Size) -> npt.NDArray[np.float32]:
        """x and y of pixel centres as shares of the sides, and 1, 0 or (no click) -1."""
        height, width = size
        rows = [((c.x + 0.5) / width, (c.y + 0.5) / height, float(c.positive)) for c in clicks]
        return np.array([rows or [(0.0, 0.0, -1.0)]], np.float32)

    def _prior(self, prior: Prediction | None) -> npt.NDArray[np.float32]:
        if isinstance(prior, LogitsPrediction) and prior.logits.shape == (self._side, self._side):
            return prior.logits[None, None]
        if prior is None:
            return np.full((1, 1, self._side, self._side), -CERTAIN, np.float32)
        given = prior.mask((self._side, self._side))[None, None]
        return np.where(given, np.float32(CERTAIN), np.float32(-CERTAIN))


def buffers(settings: ClickNetSettings) -> int:
    """Bytes of the graphs' inputs and outputs. One image's feature maps count twice: they pass
    through staging memory, and are kept."""
    area = settings.side**2
    maps = 4 * ((24 + 40) * area // 16 + 24 * area // 4)
    return 3 * area + 2 * maps + 4 * (2 + KEPT) * area


FAMILY = SegmenterFamily(("encoder", "decoder"), ClickNetSettings, ClickNet, buffers=buffers)
