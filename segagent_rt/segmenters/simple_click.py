"""SimpleClick (Liu et al., ICCV 2023), the segmenter of SegAgent's released configuration.

Image, clicks and the mask so far enter the net together, before its first block, so an image has no
embedding that clicks could share: every click runs the whole net. What the net needs of earlier
clicks, its probability map and the window it looked through, travels in the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from segagent_rt.backends.checked_session import CheckedSession
from segagent_rt.bounds import Scale, Share, Side
from segagent_rt.families import SegmenterFamily
from segagent_rt.segmenters.prediction import KEPT
from segagent_rt.segmenters.resampling import Floats, Taps, bands, corners, resample
from segagent_rt.segmenters.window import WindowPrediction
from segagent_rt.segmenters.zoom import Roi, Span, ZoomRules, choose_roi
from segagent_rt.types import Box, Click, Prediction, RgbImage, Session, Size

Point: TypeAlias = tuple[float, float, bool]
"""Row and column in the net's frame, and whether the click is positive."""

ZOOM = ZoomRules()


@dataclass(frozen=True, slots=True)
class SimpleClickSettings:
    """How the net was trained and is used.

    Attributes:
        side: the window is squashed to `side` x `side`.
        flip: average the logits with those of the mirrored window; twice the work.
        threshold: a pixel belongs to the mask if its probability is above this. 0.49 in SegAgent;
            the zoom has a threshold of its own.
        radius: of the disk drawn for a click, in pixels of the net's frame.
        mean: subtracted from red, green and blue in 0..1.
        std: what remains is divided by this.
        zoom: how the window is chosen.
    """

    side: Side = 448
    flip: bool = True
    threshold: Share = 0.49
    radius: Side = 5
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Scale, Scale, Scale] = (0.229, 0.224, 0.225)
    zoom: ZoomRules = ZOOM


@dataclass(frozen=True, slots=True, eq=False)
class SimpleClickEmbedding:
    """The image itself: nothing can be computed of it before the first click."""

    image: RgbImage

    @property
    def size(self) -> Size:
        return self.image.shape[:2]


class SimpleClick:
    """Early fusion: one graph takes the image, the mask so far and all clicks."""

    def __init__(self, net: Session, settings: SimpleClickSettings) -> None:
        self._settings = settings
        shapes = {"logits": (1 + settings.flip, 1, "side", "side")}
        self._net = CheckedSession(net, "net", shapes)

    def encode(self, image: RgbImage) -> SimpleClickEmbedding:
        """Keep the image; it must not be changed while it is in use."""
        return SimpleClickEmbedding(np.ascontiguousarray(image))

    def decode(
        self,
        embedding: SimpleClickEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> WindowPrediction:
        """The mask after `clicks`.

        This net takes no boxes: one without clicks counts as a click in its middle. A prior from
        elsewhere is shown to the net as a map of zeros and ones over the whole image.
        """
        if box is not None and not clicks:
            clicks = [box.centre]
        settings, size = self._settings, embedding.size
        own = prior if isinstance(prior, WindowPrediction) else None
        if own and (own.size, len(own.probability)) != (size, settings.side):
            own = None
        mask = own.bounds(settings.zoom.threshold) if own else None
        roi = choose_roi(own.roi if own else None, mask, clicks, size, settings.zoom)
        before = own.seen_through(roi) if own else self._given(prior, roi, size)
        feeds = self._feeds(embedding.image, roi, before, clicks)
        logits = self._net.run(feeds, ("logits",))["logits"][:, 0]
        return WindowPrediction(self._probability(logits), roi, size, settings.threshold)

    def _feeds(
        self, image: RgbImage, roi: Roi, before: Floats, clicks: Sequence[Click]
    ) -> dict[str, Floats]:
        """The window and, if wanted, the mirrored window, as a batch."""
        side, flip, radius = self._settings.side, self._settings.flip, self._settings.radius
        images = np.empty((1 + flip, 3, side, side), np.float32)
        guides = np.zeros((1 + flip, 3, side, side), np.float32)
        points = _points(clicks, roi, side)
        self._paint_pixels(images[0], image, roi)
        _paint_guide(guides[0], before, points, radius)
        if flip:
            mirrored = [(row, side - column - 1, positive) for row, column, positive in points]
            images[1] = images[0, :, :, ::-1]
            _paint_guide(guides[1], before[:, ::-1], mirrored, radius)
        return {"image": images, "guide": guides}

    def _paint_pixels(self, canvas: Floats, image: RgbImage, roi: Roi) -> None:
        """The window resized, then normalised, into [3, side, side]."""
        (channels, side, _), (height, width, _) = canvas.shape, image.shape
        rows, columns = self._taps(roi.rows), self._taps(roi.columns).by_channel(channels)
        mean = 255 * np.repeat(np.array(self._settings.mean, np.float32), side)
        std = 255 * np.repeat(np.array(self._settings.std, np.float32), side)
        for part, band in bands(image.reshape(height, width * channels), rows, columns):
            band -= mean
            band /= std
            canvas[:, part] = band.reshape(-1, channels, side).transpose(1, 0, 2)

    def _given(self, prior: Prediction | None, roi: Roi, size: Size) -> Floats:
        """A mask from elsewhere, or none, in the net's frame."""
        if prior is None:
            return np.zeros((self._settings.side, self._settings.side), np.float32)
        return resample(prior.mask(size), self._taps(roi.rows), self._taps(roi.columns))

    def _taps(self, span: Span) -> Taps:
        """Taps on one axis of the image that squash a window to the net's side."""
        return corners(span.length, self._settings.side).shifted(span.first)

    def _probability(self, logits: Floats) -> Floats:
        """From logits [B, h, w] to probabilities [side, side]: the mean before the sigmoid."""
        mean = 0.5 * (logits[0] + logits[1, :, ::-1]) if self._settings.flip else logits[0]
        side = self._settings.side
        sampled = resample(mean, corners(mean.shape[0], side), corners(mean.shape[1], side))
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-sampled)), np.float32)


def _points(clicks: Sequence[Click], roi: Roi, side: int) -> list[Point]:
    """Clicks in the net's frame. The reference maps them edge on edge, unlike the pixels."""
    return [
        (
            side * (click.y - roi.rows.first) / roi.rows.length,
            side * (click.x - roi.columns.first) / roi.columns.length,
            click.positive,
        )
        for click in clicks
    ]


def _paint_guide(canvas: Floats, before: Floats, points: Sequence[Point], radius: int) -> None:
    """Three maps: the probabilities so far, positive clicks, negative clicks."""
    canvas[0] = before
    for row, column, positive in points:
        _add_disk(canvas[1 if positive else 2], row, column, radius)


def _add_disk(plane: Floats, row: float, column: float, radius: int) -> None:
    """Set the pixels no farther than `radius` from a click.

    A click both above and left of the frame leaves no trace: to the reference it is padding.
    """
    if max(row, column) < 0:
        return
    ys, down = _near(row, radius, plane.shape[0])
    xs, across = _near(column, radius, plane.shape[1])
    disk = plane[ys, xs]
    np.maximum(disk, down[:, None] + across <= radius**2, out=disk)


def _near(position: float, radius: int, side: int) -> tuple[slice, Floats]:
    """The part of an axis that a disk may touch, and its squared distances from the click."""
    first = max(int(position) - radius - 1, 0)
    end = max(min(int(position) + radius + 2, side), first)
    distances = np.arange(first, end, dtype=np.float32) - np.float32(position)
    return slice(first, end), np.square(distances)


def buffers(settings: SimpleClickSettings) -> int:
    """Bytes of the graph's inputs, pixels and guides, and of its logits."""
    return 4 * ((1 + settings.flip) * (3 + 3 + 1) + KEPT) * settings.side**2


FAMILY = SegmenterFamily(
    ("net",), SimpleClickSettings, SimpleClick, attention_patch=16, buffers=buffers
)
