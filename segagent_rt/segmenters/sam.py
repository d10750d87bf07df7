"""The SAM family: encode once, then a light decoder for every click.

SAM, SlimSAM, SAM-HQ, MobileSAM, SAM 2, EdgeTAM and SAM 3's tracker differ in their graphs and in
the few host rules that `SamSettings` names. Each click sends all clicks so far, the box if there is
one, and the logits of the last mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.checked_session import CheckedSession, Shape
from segagent_rt.bounds import Scale, Share, Side
from segagent_rt.families import SegmenterFamily
from segagent_rt.image import resize_logits, resize_mask
from segagent_rt.segmenters.prediction import KEPT, stability_score
from segagent_rt.segmenters.sam_frame import Frame, Resize, pixels
from segagent_rt.types import Box, Click, Mask, Prediction, RgbImage, Session, Size

Floats: TypeAlias = npt.NDArray[np.float32]

PAD, TOP_LEFT, BOTTOM_RIGHT = -1.0, 2.0, 3.0
"""Labels of points that are no clicks; negative and positive clicks are 0 and 1."""

CERTAIN = 10.0
"""Logit of a mask that is given, not predicted (SAM 2 scales given masks to this, too)."""


@dataclass(frozen=True, slots=True)
class SamSettings:
    """The host's side of a family.

    Attributes:
        side: of the square that the encoder sees.
        mask_side: of the square of logits; None for a quarter of `side`. SAM 3 has 2 in 7.
        resize: `longest` keeps the aspect and pads right and below; `squash` fills the square.
        mean: of the red, green and blue pixel values, 0..255.
        std: likewise.
        features: outputs of the encoder that are inputs of the decoder.
        pads_with_box: the padding point follows even when a box is given, as in SAM 2.
        choice: the best-scored of masks 1 to 3, as SegAgent does; mask 0; or mask 0 unless it is
            unstable, SAM 2's rule for a single mask.
        stability_delta: how far the threshold moves to see whether mask 0 is stable.
        stability_threshold: IoU of the two masks that is stable enough.
        feedback_limit: logits are clipped to this before they are fed back, as in SAM 2.
    """

    side: Side = 1024
    mask_side: Side | None = None
    resize: Resize = "longest"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[Scale, Scale, Scale] = (58.395, 57.12, 57.375)
    features: tuple[str, ...] = ("embedding",)
    pads_with_box: bool = False
    choice: Literal["best", "single", "stable"] = "best"
    stability_delta: float = 0.05
    stability_threshold: Share = 0.98
    feedback_limit: float | None = None


@dataclass(frozen=True, slots=True)
class SamEmbedding:
    """Feature maps by name, wherever the backend keeps them, and where the picture lies."""

    features: Mapping[str, Any]
    frame: Frame

    @property
    def size(self) -> Size:
        return self.frame.image


@dataclass(frozen=True, slots=True, eq=False)
class SamPrediction:
    """Logits float32 [mask_side, mask_side] over the model's square; the mask is above 0."""

    logits: Floats
    frame: Frame
    score: float | None = None

    @property
    def stability(self) -> float:
        return stability_score(self.logits[self._inside()])

    def mask(self, size: Size | None = None) -> Mask:
        return np.asarray(resize_logits(self._over_picture(), size or self.frame.image) > 0)

    def agrees(self, other: Prediction) -> bool:
        if not isinstance(other, SamPrediction) or other.frame != self.frame:
            return np.array_equal(self.mask(), other.mask())
        window = self._inside()
        return np.array_equal(self.logits[window] > 0, other.logits[window] > 0)

    def lies_in(self, frame: Frame, mask_side: int) -> bool:
        """Whether its logits are a square of `mask_side` over this frame."""
        return self.frame == frame and self.logits.shape == (mask_side, mask_side)

    def _inside(self) -> tuple[slice, slice]:
        """The logits of the picture, without the padding."""
        mask_side, side = self.logits.shape[0], self.frame.side
        height, width = (-(-inside * mask_side // side) for inside in self.frame.inside)
        return np.s_[:height, :width]

    def _over_picture(self) -> Floats:
        """Logits without those of the padding, which SAM cuts off at the size of its square."""
        if self.frame.resize == "squash":
            return self.logits
        height, width = self.frame.inside
        return resize_logits(self.logits, (self.frame.side, self.frame.side))[:height, :width]


class Sam:
    """Late fusion: the encoder sees only the image, the decoder everything else."""

    def __init__(self, encoder: Session, decoder: Session, settings: SamSettings) -> None:
        self._encoder, self._settings = encoder, settings
        self._mask_side = settings.mask_side or settings.side // 4
        masks: Shape = (1, 4, self._mask_side, self._mask_side)
        shapes: dict[str, Shape] = {"masks": masks, "scores": (1, 4)}
        self._decoder = CheckedSession(decoder, "decoder", shapes)

    def encode(self, image: RgbImage) -> SamEmbedding:
        settings = self._settings
        frame = Frame(image.shape[:2], settings.side, settings.resize)
        feeds = {"image": pixels(image, frame, settings.mean, settings.std)}
        maps = self._encoder.run(feeds, settings.features, keep=settings.features)
        return SamEmbedding(maps, frame)

    def decode(
        self,
        embedding: SamEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> SamPrediction:
        """The mask for all clicks so far, the box if there is one, and the mask before."""
        frame = embedding.frame
        points = self._points(clicks, box, frame)
        feeds = {
            **embedding.features,
            "point_coords": np.ascontiguousarray(points[None, :, :2]),
            "point_labels": np.ascontiguousarray(points[None, :, 2]),
            "mask_input": self._prior_logits(prior, frame)[None, None],
            "has_mask": np.array([prior is not None], np.float32),
        }
        out = self._decoder.run(feeds, ("masks", "scores"))
        masks, scores = out["masks"][0], out["scores"][0]
        at = self._choose(masks, scores)
        score = float(np.clip(scores[at], 0, 1))
        return SamPrediction(np.array(masks[at], np.float32), frame, score)

    def _points(self, clicks: Sequence[Click], box: Box | None, frame: Frame) -> Floats:
        """x, y in the model's square and the label, float32 [N, 3]; N is at least 1.

        The graph adds the half pixel to a pixel's centre.
        """
        height, width = frame.image
        rows = [(click.x, click.y, float(click.positive)) for click in clicks]
        if box is not None:
            rows += [(box.x0, box.y0, TOP_LEFT), (box.x1, box.y1, BOTTOM_RIGHT)]
        if box is None or self._settings.pads_with_box:
            rows.append((0, 0, PAD))
        scale = (frame.inside[1] / width, frame.inside[0] / height, 1.0)
        return (np.array(rows, np.float64) * scale).astype(np.float32)

    def _prior_logits(self, prior: Prediction | None, frame: Frame) -> Floats:
        """The logits of a mask of this segmenter; certain ones of any other mask."""
        low = self._mask_side
        if prior is None:
            return np.zeros((low, low), np.float32)
        if isinstance(prior, SamPrediction) and prior.lies_in(frame, low):
            limit = self._settings.feedback_limit
            return prior.logits if limit is None else np.clip(prior.logits, -limit, limit)
        height, width = frame.inside
        square = np.zeros((frame.side, frame.side), np.bool_)
        square[:height, :width] = prior.mask((height, width))
        return np.where(resize_mask(square, (low, low)), np.float32(CERTAIN), np.float32(-CERTAIN))

    def _choose(self, masks: Floats, scores: Floats) -> int:
        settings = self._settings
        best = 1 + int(np.argmax(scores[1:]))
        if settings.choice == "best":
            return best
        if settings.choice == "stable" and self._stability(masks[0]) < settings.stability_threshold:
            return best
        return 0

    def _stability(self, logits: Floats) -> float:
        """IoU of the masks that a slightly higher and a slightly lower threshold give."""
        delta = self._settings.stability_delta
        union = int(np.count_nonzero(logits > -delta))
        return int(np.count_nonzero(logits > delta)) / union if union else 1.0


def buffers(settings: SamSettings) -> int:
    """Bytes of the graphs' inputs and outputs, and of one image's features.

    Maps of 256 channels with a quarter of the mask's side, of 64 with half of it (SAM 2), and of 32
    with all of it (SAM 2 and SAM-HQ). The encoder's outputs are staged and then kept.
    """
    masks = (settings.mask_side or settings.side // 4) ** 2
    channels = {1: 256 // 16, 2: 256 // 16 + 32}.get(len(settings.features), 256 // 16 + 16 + 32)
    image, logits = 3 * settings.side**2, (4 + 1 + KEPT) * masks
    return 4 * (image + 2 * channels * masks + logits)


FAMILY = SegmenterFamily(
    ("encoder", "decoder"), SamSettings, Sam, attention_patch=16, buffers=buffers
)
