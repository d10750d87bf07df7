"""Predictions over a window of the image: kept at the net's resolution, drawn when asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.segmenters.resampling import Floats, Taps, bands, corners, resample
from segagent_rt.segmenters.zoom import Roi, Span
from segagent_rt.types import Mask, Prediction, Size


@dataclass(frozen=True, slots=True, eq=False)
class WindowPrediction:
    """Probabilities float32 [side, side] of a window of the image; outside of it they are 0.

    The map over the image is this one stretched over the window, bilinear, corners on corners. It
    is never kept: what is asked of it, the mask, the mask's bounds, the view through another
    window, is computed from the pixels that this needs.
    """

    probability: Floats
    roi: Roi
    size: Size
    threshold: float

    @property
    def score(self) -> float:
        """How decided the net is, mean |2p - 1| over the window. A confidence, not an IoU."""
        return float(np.abs(2 * self.probability - 1).mean())

    @property
    def stability(self) -> None:
        """Not defined: probabilities have no common offset."""

    def mask(self, size: Size | None = None) -> Mask:
        height, width = size or self.size
        top, rows = self._centres(self.roi.rows, self.size[0], height)
        left, columns = self._centres(self.roi.columns, self.size[1], width)
        tall, wide = _reached(self.probability > self.threshold, rows, columns)
        drawn = np.zeros((height, width), np.bool_)
        window = drawn[top:, left:][tall, wide]
        for part, values in bands(self.probability, rows[tall], columns[wide]):
            np.greater(values, self.threshold, out=window[part])
        return drawn

    def agrees(self, other: Prediction) -> bool:
        """Whether both draw the same mask; within one window, at the net's resolution."""
        if isinstance(other, WindowPrediction) and other.roi == self.roi:
            ours, theirs = self.probability > self.threshold, other.probability > other.threshold
            return np.array_equal(ours, theirs)
        return np.array_equal(self.mask(), other.mask())

    def bounds(self, threshold: float) -> Roi | None:
        """Bounding box of the image's pixels with a probability above a threshold."""
        side, roi = len(self.probability), self.roi
        rows, columns = corners(side, roi.rows.length), corners(side, roi.columns.length)
        tall, wide = _reached(self.probability > threshold, rows, columns)
        upright, lying = self.probability, np.ascontiguousarray(self.probability.T)
        down = _extent(upright, rows[tall], columns[wide], threshold)
        across = _extent(lying, columns[wide], rows[tall], threshold)
        if down is None or across is None:
            return None
        return Roi(
            down.shifted(roi.rows.first + tall.start),
            across.shifted(roi.columns.first + wide.start),
        )

    def seen_through(self, roi: Roi) -> Floats:
        """The map over the image, cut to another window and resized to [side, side]."""
        side = len(self.probability)
        rows, tall, y = _pixels_read(roi.rows, self.roi.rows, side)
        columns, wide, x = _pixels_read(roi.columns, self.roi.columns, side)
        pixels = np.zeros((1 + rows.high[-1], 1 + columns.high[-1]), np.float32)
        window = pixels[tall, wide]
        for part, values in bands(self.probability, y, x):
            window[part] = values
        return resample(pixels, rows, columns)

    def _centres(self, span: Span, side: int, samples: int) -> tuple[int, Taps]:
        """Where the centres of `samples` pixels along the image fall in the window: the first that
        does, and taps for it and those after it.
        """
        centres = (np.arange(samples) + 0.5) * (side / samples) - 0.5 - span.first
        inside = np.flatnonzero((centres > -0.5) & (centres < span.length - 0.5))
        at = np.clip(centres[inside], 0, span.length - 1)
        start = int(inside[0]) if len(inside) else 0
        return start, corners(len(self.probability), span.length, at)


def _reached(marked: npt.ArrayLike, rows: Taps, columns: Taps) -> tuple[slice, slice]:
    """The part of rows × columns outside of which no sample uses a marked cell."""
    cells = np.asarray(marked)
    return rows.touching(np.asarray(cells.any(1))), columns.touching(np.asarray(cells.any(0)))


def _extent(values: Floats, rows: Taps, columns: Taps, threshold: float) -> Span | None:
    """First and last of `rows` with a sample above the threshold, looked for from both ends."""
    first = _first_above(values, rows, columns, threshold)
    last = _first_above(values, rows[::-1], columns, threshold)
    return None if first is None or last is None else Span(first, len(rows) - 1 - last)


def _first_above(values: Floats, rows: Taps, columns: Taps, threshold: float) -> int | None:
    for part, band in bands(values, rows, columns):
        above = (band > threshold).any(1)
        if above.any():
            return int(part.start + above.argmax())
    return None


def _pixels_read(window: Span, before: Span, side: int) -> tuple[Taps, slice, Taps]:
    """One axis of a map that is drawn over `before` and read through `window`.

    Returns:
        taps on the pixels read, which of these lie in `before`, and taps that draw those.
    """
    wanted = corners(window.length, side).shifted(window.first)
    read, places = np.unique(np.concatenate([wanted.low, wanted.high]), return_inverse=True)
    low, high = places.reshape(2, -1)
    first, end = np.searchsorted(read, [before.first, before.last + 1])
    pixels = corners(side, before.length, read[first:end] - before.first)
    return Taps(low, high, wanted.share), slice(first, end), pixels
