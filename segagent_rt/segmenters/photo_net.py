"""Our own promptable net for photos: encode once, decode per prompt; takes clicks and a box.

The image is resized so that its longer side fills a square, and padded on the right and below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.backends.checked_session import CheckedSession
from segagent_rt.bounds import Side, Slope
from segagent_rt.families import SegmenterFamily
from segagent_rt.segmenters.prediction import KEPT, LogitsPrediction
from segagent_rt.types import Box, Click, Prediction, RgbImage, Session, Size

Floats: TypeAlias = npt.NDArray[np.float32]

MAPS = ("coarse", "fine", "coarse_keys", "fine_keys")
"""The encoder's outputs, which every decoding reads: the image's part of two sums, float32 [1,
side/8, side/8, 64] and [1, side/4, side/4, 32], and the features that clicked places are compared
by, [1, 32, side/8, side/8] and [1, 24, side/4, side/4], of length 1 at each place."""

STRIDE = 2
"""Pixels of the encoded square for one logit."""

PADDING = 127
"""Grey beside the image: zero after normalisation."""

CERTAIN = 20.0
"""Logit of a mask that is given, not predicted; no mask at all is -CERTAIN everywhere."""

STEEP = 4.0
"""How much higher a logit may be for each logit that lies between it and the edge of the box."""

NO_CLICK, NO_BOX = (0.0, 0.0, -1.0), (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PhotoNetSettings:
    """The host's side of the family.

    Attributes:
        side: of the square that the encoder sees, in pixels.
        iou_scale: factor of the IoU estimate's logit, fitted on validation photos.
        iou_offset: what is added to it, fitted likewise.
    """

    side: Side = 512
    iou_scale: Slope = 1.0
    iou_offset: Slope = 0.0


@dataclass(frozen=True, slots=True)
class Letterbox:
    """An image of size `image` at the top left of a square of `side` pixels."""

    image: Size
    side: int

    @property
    def inside(self) -> Size:
        """Height and width of the image within the square, whole logits of it."""
        scale = self.side / max(self.image) / STRIDE
        height, width = (max(1, round(length * scale)) * STRIDE for length in self.image)
        return height, width

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the square for a pixel of the image: across and down."""
        return self.inside[1] / self.image[1], self.inside[0] / self.image[0]

    def pixels(self, image: RgbImage) -> npt.NDArray[np.uint8]:
        """The encoder's input, uint8 [1, side, side, 3]."""
        height, width = self.inside
        shrinks = self.scale[0] < 1
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        square = np.full((1, self.side, self.side, 3), PADDING, np.uint8)
        square[0, :height, :width] = cv2.resize(image, (width, height), interpolation=method)
        return square


@dataclass(frozen=True, slots=True)
class PhotoNetEmbedding:
    """`MAPS`, wherever the backend keeps them, and where the image lies in the square."""

    maps: Mapping[str, Any]
    letterbox: Letterbox

    @property
    def size(self) -> Size:
        """Height and width of the image."""
        return self.letterbox.image


class PhotoNet:
    """Late fusion: the encoder sees only the image, the decoder everything else."""

    def __init__(self, encoder: Session, decoder: Session, settings: PhotoNetSettings) -> None:
        self._encoder, self._settings = encoder, settings
        low = settings.side // STRIDE
        shapes = {"logits": (1, 1, low, low), "iou": (1,)}
        self._decoder = CheckedSession(decoder, "decoder", shapes)

    def encode(self, image: RgbImage) -> PhotoNetEmbedding:
        """Everything that depends on the image alone; `image` is uint8 [H, W, 3] RGB."""
        letterbox = Letterbox(image.shape[:2], self._settings.side)
        maps = self._encoder.run({"image": letterbox.pixels(image)}, MAPS, keep=MAPS)
        return PhotoNetEmbedding(maps, letterbox)

    def decode(
        self,
        embedding: PhotoNetEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> LogitsPrediction:
        """The mask for all clicks so far, the box if there is one, and the mask before.

        A box alone is decoded twice, the second time with its own mask, as in training; and its
        mask stays inside it. Clicks may leave it.
        """
        if box is None or clicks or prior is not None:
            return self._decode(embedding, clicks, prior, box)
        first = self._decode(embedding, (), None, box)
        second = self._decode(embedding, (), first, box)
        edges = prompt_box(box, embedding.letterbox)[0]
        return replace(second, logits=within_box(second.logits, edges))

    def _decode(
        self,
        embedding: PhotoNetEmbedding,
        clicks: Sequence[Click],
        prior: Prediction | None,
        box: Box | None,
    ) -> LogitsPrediction:
        letterbox = embedding.letterbox
        feeds = {
            **embedding.maps,
            "points": prompt_points(clicks, letterbox),
            "box": prompt_box(box, letterbox),
            "prior_logits": prior_logits(prior, letterbox),
        }
        out = self._decoder.run(feeds, ("logits", "iou"))
        height, width = (length // STRIDE for length in letterbox.inside)
        logits = np.ascontiguousarray(out["logits"][0, 0, :height, :width])
        score = calibrated_iou(float(out["iou"][0]), self._settings)
        return LogitsPrediction(logits, letterbox.image, score)


def within_box(logits: Floats, box: Floats) -> Floats:
    """Bound logits so that a mask ends at the edges of a box.

    The bound is a slope, because logits are interpolated before they are compared with zero:
    a step would move the edge.

    Args:
        logits: float32 [h, w], one for `STRIDE` x `STRIDE` pixels of the square.
        box: left, top, right and bottom edge, float32 [4], in pixels of the square.

    Returns:
        float32 [h, w], below zero outside the box, unchanged well inside it.
    """
    left, top, right, bottom = box / STRIDE
    rows, columns = (np.arange(length, dtype=np.float32) + 0.5 for length in logits.shape)
    down, across = (
        np.minimum(rows - top, bottom - rows),
        np.minimum(columns - left, right - columns),
    )
    bounded: Floats = np.minimum(logits, STEEP * np.minimum(down[:, None], across))
    return bounded


def calibrated_iou(iou: float, settings: PhotoNetSettings) -> float:
    """The net's IoU estimate, scaled and shifted in logits."""
    bounded = min(max(iou, 1e-6), 1 - 1e-6)
    logit = math.log(bounded / (1 - bounded))
    return 1 / (1 + math.exp(-settings.iou_scale * logit - settings.iou_offset))


def prompt_points(clicks: Sequence[Click], letterbox: Letterbox) -> Floats:
    """Pixel centres in the square, and 1 (positive), 0 (negative) or -1 (no click): [1, N, 3]."""
    across, down = letterbox.scale
    rows = [((c.x + 0.5) * across, (c.y + 0.5) * down, float(c.positive)) for c in clicks]
    return np.array([rows or [NO_CLICK]], np.float32)


def prompt_box(box: Box | None, letterbox: Letterbox) -> Floats:
    """Left, top, right and bottom edge in the square, or zeros if there is no box: [1, 4]."""
    if box is None:
        return np.array([NO_BOX], np.float32)
    across, down = letterbox.scale
    edges = (box.x0 * across, box.y0 * down, (box.x1 + 1) * across, (box.y1 + 1) * down)
    return np.array([edges], np.float32)


def prior_logits(prior: Prediction | None, letterbox: Letterbox) -> Floats:
    """The mask before, over the whole square: [1, 1, side / 2, side / 2]."""
    cells = letterbox.side // STRIDE
    square = np.full((1, 1, cells, cells), -CERTAIN, np.float32)
    height, width = (length // STRIDE for length in letterbox.inside)
    if isinstance(prior, LogitsPrediction) and prior.logits.shape == (height, width):
        square[0, 0, :height, :width] = prior.logits
    elif prior is not None:
        given = prior.mask((height, width))
        square[0, 0, :height, :width] = np.where(given, np.float32(CERTAIN), np.float32(-CERTAIN))
    return square


def buffers(settings: PhotoNetSettings) -> int:
    """Bytes of the graphs' inputs and outputs. One image's feature maps count twice: they pass
    through staging memory, and are kept."""
    area = settings.side**2
    maps = 4 * ((64 + 32) * area // 64 + (32 + 24) * area // 16)
    return 3 * area + 2 * maps + 4 * (2 + KEPT) * area // STRIDE**2


FAMILY = SegmenterFamily(("encoder", "decoder"), PhotoNetSettings, PhotoNet, buffers=buffers)
