"""Bilinear sampling where the corners of two grids coincide ("align_corners"), on the CPU.

OpenCV's resize aligns edges, not corners, and its warps round positions to 1/32 of a pixel before
version 5. This is exact, works band by band so that nothing leaves the cache, and can draw any part
of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.types import Array

Indices = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]

BAND = 16
"""Rows computed together: 16 rows of 4000 floats fit into the second-level cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Samples along one axis: each is `low` of the cells, plus `share` of the way to `high`."""

    low: Indices
    high: Indices
    share: Floats

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, part: slice) -> Taps:
        return Taps(self.low[part], self.high[part], self.share[part])

    def shifted(self, cells: int) -> Taps:
        """The same samples of an axis that has so many cells more before its first."""
        return Taps(self.low + cells, self.high + cells, self.share)

    def by_channel(self, channels: int) -> Taps:
        """For an axis whose cells hold several values: all of the first channel, then the next."""
        offsets = np.arange(channels)[:, None]
        low, high = self.low * channels + offsets, self.high * channels + offsets
        return Taps(low.ravel(), high.ravel(), np.tile(self.share, channels))

    def touching(self, cells: npt.NDArray[np.bool_]) -> slice:
        """The shortest range of samples outside of which none uses any of the marked cells."""
        used = np.flatnonzero(cells[self.low] | cells[self.high])
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)


def corners(cells: int, samples: int, at: Array | None = None) -> Taps:
    """Taps for `samples` positions from the first cell to the last, or for some of them.

    `at` are positions in units of samples, 0 to samples - 1, fractions allowed. Float32 throughout,
    as torch computes it: on a side of 4000 pixels the rounding is worth 1e-4 of a pixel.
    """
    scale = np.float32(cells - 1) / np.float32(max(samples - 1, 1))
    where = np.arange(samples) if at is None else at
    exact = where.astype(np.float32) * scale
    low = np.minimum(exact.astype(np.intp), cells - 1)
    return Taps(low, np.minimum(low + 1, cells - 1), exact - low.astype(np.float32))


def bands(values: Array, rows: Taps, columns: Taps) -> Iterator[tuple[slice, Floats]]:
    """Sample [h, w] at rows × columns, a few rows at a time: which rows, and their float32 values.

    `rows` must not change direction.
    """
    needed, places = np.unique(np.concatenate([rows.low, rows.high]), return_inverse=True)
    low, high = places.reshape(2, -1)
    for start in range(0, len(rows), BAND):
        part = slice(start, min(start + BAND, len(rows)))
        first = min(low[part][0], low[part][-1])
        last = max(high[part][0], high[part][-1])
        strip = _across(values[needed[first : last + 1]], columns)
        yield part, _between(strip, low[part] - first, high[part] - first, rows.share[part])


def resample(values: Array, rows: Taps, columns: Taps) -> Floats:
    """Sample [h, w] at rows × columns."""
    sampled = np.empty((len(rows), len(columns)), np.float32)
    for part, band in bands(values, rows, columns):
        sampled[part] = band
    return sampled


def _across(strip: Array, columns: Taps) -> Floats:
    left = strip.take(columns.low, 1).astype(np.float32, copy=False)
    right = strip.take(columns.high, 1).astype(np.float32, copy=False)
    right -= left
    right *= columns.share
    left += right
    return left


def _between(strip: Floats, low: Indices, high: Indices, share: Floats) -> Floats:
    above, below = strip[low], strip[high]
    below -= above
    below *= share[:, None]
    above += below
    return above
