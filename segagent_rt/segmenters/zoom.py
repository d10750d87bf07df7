"""Which part of an image SimpleClick looks at: rows and columns, each a range of pixels.

The rule is ZoomIn of RITM and SimpleClick: a window around the last mask and the positive clicks,
kept as long as it still fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segagent_rt.bounds import Scale, Share, Side
from segagent_rt.types import Click, Size


@dataclass(frozen=True, slots=True)
class ZoomRules:
    """When and how far to zoom.

    Attributes:
        threshold: a pixel belongs to the last mask if its probability is above this.
        expansion: side of the window, relative to the mask's.
        least: shortest side of a window, in pixels.
        keep: the window changes if its overlap with the one now wanted is below this.
    """

    threshold: Share = 0.5
    expansion: Scale = 1.4
    least: Side = 200
    keep: Share = 0.5


@dataclass(frozen=True, slots=True)
class Span:
    """Pixels `first` to `last` of an axis, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1

    def holds(self, pixel: int) -> bool:
        """Whether a click is inside. One on the last pixel is not: the reference tests `<`."""
        return self.first <= pixel < self.last

    def shifted(self, pixels: int) -> Span:
        return Span(self.first + pixels, self.last + pixels)

    def including(self, pixels: Sequence[int]) -> Span:
        return Span(min(self.first, *pixels), max(self.last, *pixels)) if pixels else self

    def expanded(self, rules: ZoomRules, side: int) -> Span:
        """Longer about its centre, then cut at the ends of the image; halves round to even."""
        centre = 0.5 * (self.first + self.last)
        half = 0.5 * max(rules.expansion * self.length, rules.least)
        return Span(max(round(centre - half), 0), min(round(centre + half), side - 1))

    def iou(self, other: Span) -> float:
        """Pixels in common over the length of the shortest span that holds both."""
        shared = min(self.last, other.last) - max(self.first, other.first) + 1
        return max(shared, 0) / (max(self.last, other.last) - min(self.first, other.first) + 1)


@dataclass(frozen=True, slots=True)
class Roi:
    """The window that the net sees, squashed to a square."""

    rows: Span
    columns: Span

    @classmethod
    def whole(cls, size: Size) -> Roi:
        return cls(Span(0, size[0] - 1), Span(0, size[1] - 1))

    def around(self, clicks: Sequence[Click], rules: ZoomRules, size: Size) -> Roi:
        """A window around this one (the mask's bounding box) and the positive clicks."""
        rows = self.rows.including([click.y for click in clicks if click.positive])
        columns = self.columns.including([click.x for click in clicks if click.positive])
        return Roi(rows.expanded(rules, size[0]), columns.expanded(rules, size[1]))

    def still_fits(self, clicks: Sequence[Click], wanted: Roi, rules: ZoomRules) -> bool:
        """Whether this window may stay although `wanted` would be chosen now.

        Negative clicks may lie outside.
        """
        holds = all(
            self.rows.holds(click.y) and self.columns.holds(click.x)
            for click in clicks
            if click.positive
        )
        return holds and self.rows.iou(wanted.rows) * self.columns.iou(wanted.columns) >= rules.keep


def choose_roi(
    before: Roi | None, mask: Roi | None, clicks: Sequence[Click], size: Size, rules: ZoomRules
) -> Roi:
    """The window for the next click.

    Args:
        before: the window of the last prediction; None at the first click.
        mask: bounding box of the last mask; None if it is empty or there is none.
        clicks: all clicks so far.
        size: of the image, (height, width).
        rules: of the segmenter.
    """
    wanted = mask.around(clicks, rules, size) if mask else Roi.whole(size)
    return before if before and before.still_fits(clicks, wanted, rules) else wanted
