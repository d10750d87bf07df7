"""What a vision graph must know of a picture's grid of patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.bounds import Count, Theta, check_theta
from segagent_rt.types import Array

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

MASKED = -30000.0
"""Added to attention scores that must not count; a 16-bit float holds it."""


@dataclass(frozen=True, slots=True)
class VisionRope2D:
    """Rotary positions of patches: half of the head's frequencies turn with the row, half with the
    column."""

    head_dim: Count
    theta: Theta = 10000.0

    def __post_init__(self) -> None:
        check_theta(self.theta)

    def angles(self, row: Indices, column: Indices) -> tuple[Floats, Floats]:
        """Cosines and sines for patches at these places, float32 [N, head_dim / 2] each."""
        half = self.head_dim // 2
        share = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
        speed = (1 / self.theta**share).astype(np.float32)
        places = np.stack([row, column], 1).astype(np.float32)
        turned = (places[:, :, None] * speed).reshape(len(row), -1)
        return np.cos(turned), np.sin(turned)


def merge_order(rows: int, columns: int, merge: int) -> tuple[Indices, Indices]:
    """Row and column of every patch, int64 [M, merge^2], tokens row by row."""
    index = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    row, column = np.divmod(index.transpose(0, 2, 1, 3).reshape(-1, merge**2), columns)
    return row, column


@dataclass(frozen=True, slots=True)
class AttentionWindows:
    """Tokens sorted into windows that attend to themselves only (Qwen2.5-VL).

    `order` int64 [M] sorts the tokens by window. With their patches in that order, `members`
    int64 [W, L] names the patches of each window, filled up to L; `mask` float32 [W, 1, L] is very
    negative on the filling; `places` int64 [N] finds each patch again in the flattened windows;
    `back` int64 [M] undoes `order`.
    """

    order: Indices
    members: Indices
    mask: Floats
    places: Indices
    back: Indices

    def feeds(self) -> dict[str, Array]:
        """The graph's inputs."""
        return {
            "windows": self.members,
            "window_mask": self.mask,
            "places": self.places,
            "back": self.back,
        }


def sort_windows(rows: int, columns: int, side: int, merge: int) -> AttentionWindows:
    """Windows of `side` x `side` tokens over `rows` x `columns` tokens of merge^2 patches each.

    Windows at the right and lower edge are smaller where the grid is no multiple.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    window = row // side * -(-columns // side) + column // side
    order = np.argsort(window, kind="stable")
    counts = np.bincount(window)[:, None] * merge**2
    starts = np.cumsum(counts, axis=0) - counts
    inside = np.arange(side**2 * merge**2)
    filled = inside < counts
    members = starts + np.where(filled, inside, 0)
    mask = np.where(filled, 0, MASKED).astype(np.float32)[:, None]
    return AttentionWindows(order, members, mask, np.flatnonzero(filled), np.argsort(order))


def interpolate_positions(row: Indices, column: Indices, side: int) -> tuple[Indices, Floats]:
    """Where patches of a grid fall in a table of `side` x `side` entries whose corners are the
    grid's corners: four entries and their bilinear weights, [N, 4] each."""
    (r0, r1, rf), (c0, c1, cf) = (_axis_taps(place, side) for place in (row, column))
    taps = [r * side + c for r in (r0, r1) for c in (c0, c1)]
    weights = [r * c for r in (1 - rf, rf) for c in (1 - cf, cf)]
    return np.stack(taps, 1), np.stack(weights, 1)


def _axis_taps(place: Indices, side: int) -> tuple[Indices, Indices, Floats]:
    last = np.float32(max(place.max(), 1))
    at = place.astype(np.float32) * np.float32(side - 1) / last
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, side - 1), (at - low).astype(np.float32)
