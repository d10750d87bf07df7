"""The runtime file of a family of segmenters: discs around clicks, larger where it is bright."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.bounds import Side
from segagent_rt.families import SegmenterFamily
from segagent_rt.segmenters.prediction import LogitsPrediction
from segagent_rt.types import Box, Click, Prediction, RgbImage, Session, Size

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


@dataclass(frozen=True, slots=True)
class ToySettings:
    side: Side = 64


@dataclass(frozen=True, slots=True)
class ToyEmbedding:
    """float32 [1, 3, side, side], of a picture of `size`."""

    pixels: npt.NDArray[np.float32]
    size: Size


class Toy:
    def __init__(self, net: Session, settings: ToySettings) -> None:
        self._net, self._side = net, settings.side

    def encode(self, image: RgbImage) -> ToyEmbedding:
        nearest = (np.arange(self._side) + 0.5) / self._side
        rows, columns = ((nearest * length).astype(int) for length in image.shape[:2])
        pixels = (image[rows[:, None], columns] - MEAN) / STD
        return ToyEmbedding(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), image.shape[:2])

    def decode(
        self,
        embedding: ToyEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> LogitsPrediction:
        height, width = embedding.size
        scale = self._side / width, self._side / height
        points = [(c.x * scale[0], c.y * scale[1], float(c.positive)) for c in clicks]
        feeds = {"image": embedding.pixels, "points": np.array([points], np.float32)}
        logits = self._net.run(feeds, ("logits",))["logits"]
        return LogitsPrediction(logits[0, 0], embedding.size)


FAMILY = SegmenterFamily(("net",), ToySettings, Toy)
