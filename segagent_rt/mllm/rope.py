"""Rotary positions of a prompt with one picture in it, and the angle tables that graphs take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.bounds import Count, Theta, check_theta
from segagent_rt.errors import ManifestInvalid

Positions: TypeAlias = npt.NDArray[np.int64]
"""int64 [3, T]: time, row and column of every token."""
Angles: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Cosines and sines, float32 [T, head_dim / 2] each."""


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """Rotary positions of a language model.

    `sections` says how many of the head's frequencies turn with time, row and column; `chunked`
    takes them one after the other (Qwen2-VL, Qwen2.5-VL), `interleaved` in turn (Qwen3-VL), `plain`
    turns all with time.
    """

    head_dim: Count
    theta: Theta
    layout: Literal["plain", "chunked", "interleaved"] = "plain"
    sections: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        check_theta(self.theta)
        half, parts = self.head_dim // 2, self.sections
        whole = self.layout == "plain" or (min(parts) >= 0 and sum(parts) == half)
        if self.head_dim % 2 or not whole:
            raise ManifestInvalid(
                f"rope sections {list(parts)} do not fit heads of {self.head_dim} dimensions"
            )

    def axes(self) -> npt.NDArray[np.int64]:
        """Which of time, row, column each frequency turns with, int64 [head_dim / 2]."""
        half = self.head_dim // 2
        if self.layout == "chunked":
            return np.repeat([0, 1, 2], self.sections)
        axes = np.zeros(half, np.int64)
        if self.layout == "interleaved":
            for axis in (1, 2):
                axes[axis : 3 * self.sections[axis] : 3] = axis
        return axes

    def angles(self, positions: Positions) -> Angles:
        """Angle tables for tokens at these positions."""
        axes, speed = _frequencies(self)
        turned = positions[axes].T.astype(np.float32) * speed
        return np.cos(turned), np.sin(turned)

    def before_text(self, lead: int, grid: tuple[int, int]) -> Positions:
        """Positions of `lead` text tokens and of a picture of `grid` (rows, columns) behind them.

        A plain layout knows no grid: every visual token counts like a word.
        """
        if self.layout == "plain":
            count = lead + grid[0] * grid[1]
            return np.broadcast_to(np.arange(count), (3, count))
        return prompt_positions(lead, grid, 0)


@lru_cache(maxsize=16)
def _frequencies(rope: RopeSettings) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each frequency of a head, what it turns with and how fast."""
    share = np.arange(0, rope.head_dim, 2, dtype=np.float32) / np.float32(rope.head_dim)
    speed = 1 / rope.theta**share  # in 32 bits, as the models were trained
    return rope.axes(), speed.astype(np.float32)


@lru_cache(maxsize=16)
def prompt_positions(before: int, grid: tuple[int, int], after: int) -> Positions:
    """Positions of `before` text tokens, a picture of `grid` (rows, columns), `after` text tokens.

    Text counts up alike in all three rows. A picture stands still in time and spreads over rows and
    columns; the text behind it goes on after the larger of the two (Qwen2-VL, section 2.1; the same
    in Qwen2.5-VL and Qwen3-VL).
    """
    rows, columns = grid
    lead = np.broadcast_to(np.arange(before), (3, before))
    row, column = np.divmod(np.arange(rows * columns), max(columns, 1))
    picture = before + np.stack([np.zeros_like(row), row, column])
    tail = before + max(rows, columns) + np.arange(after)
    return np.concatenate([lead, picture, np.broadcast_to(tail, (3, after))], axis=1)
