"""Makes trajectories: the simulated annotator clicks until a segmenter has the mask that is wanted.

And replays them: the same clicks through a segmenter must give the same masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segagent_rt.annotators.oracle import next_click
from segagent_rt.choices import AfterLoss
from segagent_rt.data.record import RunLengths, corners
from segagent_rt.data.trajectories import Demonstration, ShownClick, Start, StartKind
from segagent_rt.metrics import iou
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Click, Mask, Prediction, Segmenter

GRID = 2
"""Points along a side of the grid that a start may be made of."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a demonstration ends.

    Attributes:
        most: clicks that may be tried (20 in SegAgent's code).
        good: a mask of this IoU is good enough (tau_stop).
        least_gain: a click has to gain more than nothing, and at least this (tau_diff).
        after_loss: what a click that gains less does: end the demonstration, as SegAgent's code
            has it, or be taken back and another one tried, as its paper says.
    """

    most: int = 20
    good: float = 0.98
    least_gain: float = 0.0
    after_loss: AfterLoss = "end"

    def gains(self, before: float, after: float) -> bool:
        """Whether a click that changed the IoU so was a good one."""
        return after > before and after - before >= self.least_gain


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A segmenter with an image that it has encoded."""

    segmenter: Segmenter
    encoded: Any

    def decode(self, clicks: Sequence[Click], prior: Prediction | None) -> Prediction:
        return self.segmenter.decode(self.encoded, clicks, prior=prior)


def begin(kind: StartKind, target: Mask, bench: EncodedImage, rng: DeterministicRng) -> Start:
    """The mask that a demonstration starts from.

    `box` is the object's bounding box, filled. `random` is what the segmenter makes of a positive
    click anywhere in that box, `grid` what it makes of GRID x GRID of them, evenly spread.
    """
    if kind == "empty" or not target.any():
        return Start("empty", RunLengths.empty((target.shape[0], target.shape[1])))
    box = corners(target)
    if kind == "box":
        mask = np.zeros_like(target)
        mask[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = True
        return Start(kind, RunLengths.of(mask), iou(mask, target))
    if kind == "random":
        columns, rows = [rng.integer(box.x0, box.x1 + 1)], [rng.integer(box.y0, box.y1 + 1)]
    else:
        columns, rows = _spread(box.x0, box.x1), _spread(box.y0, box.y1)
    clicks = [Click(x, y, positive=True) for y in rows for x in columns]
    mask = list(masks_after(clicks, bench, None))[-1].mask()
    return Start(kind, RunLengths.of(mask), iou(mask, target))


def _spread(first: int, last: int) -> list[int]:
    return [round(first + (last - first) * n / (GRID + 1)) for n in range(1, GRID + 1)]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A click, what the segmenter made of it, and how good that is."""

    click: Click
    prediction: Prediction
    mask: Mask
    iou: float


class TrajectoryBuilder:
    """A demonstration as it grows: the clicks that were kept, and the mask that they made.

    A click that is only tried leaves no trace: neither the segmenter nor the record knows it.
    """

    def __init__(self, target: Mask, start: Start, bench: EncodedImage) -> None:
        self._target, self._bench = target, bench
        self.prediction: Prediction | None = given(start)
        self.mask, self.iou = start.mask.mask(), start.iou
        self.kept = list[ShownClick]()

    def attempt(self, click: Click) -> Attempt:
        """What a further click would make."""
        clicks = [*(made.click for made in self.kept), click]
        prediction = self._bench.decode(clicks, self.prediction)
        mask = prediction.mask()
        return Attempt(click, prediction, mask, iou(mask, self._target))

    def keep(self, tried: Attempt) -> None:
        """Go on from the mask that was made."""
        self.prediction, self.mask, self.iou = tried.prediction, tried.mask, tried.iou
        self.kept.append(ShownClick(tried.click, RunLengths.of(tried.mask), tried.iou))


def demonstrate(
    target: Mask, start: Start, bench: EncodedImage, limits: Limits
) -> list[ShownClick]:
    """Click from a start to the target; every click that was kept, with its mask and IoU.

    The pixels around a click that is taken back are not tried again.
    """
    builder, spent = TrajectoryBuilder(target, start, bench), np.zeros_like(target)
    for _ in range(limits.most):
        click = next_click(target, builder.mask, clicked=spent)
        if builder.iou >= limits.good or click is None:
            break
        tried = builder.attempt(click)
        spent[click.y, click.x] = True
        if limits.gains(builder.iou, tried.iou):
            builder.keep(tried)
        elif limits.after_loss == "end":
            break
        else:
            spent |= _around(click, target.shape)
    return builder.kept


def given(start: Start) -> Prediction | None:
    """A start as a segmenter takes it."""
    return None if start.kind == "empty" else GivenMask(start.mask.mask())


def masks_after(
    clicks: Sequence[Click], bench: EncodedImage, prior: Prediction | None
) -> Iterator[Prediction]:
    """The prediction after each click."""
    for count in range(1, len(clicks) + 1):
        prior = bench.decode(clicks[:count], prior)
        yield prior


def same_masks(demonstration: Demonstration, bench: EncodedImage) -> int:
    """How many of a demonstration's masks a replay of its clicks gives again, pixel for pixel."""
    clicks = [made.click for made in demonstration.clicks]
    replayed = masks_after(clicks, bench, given(demonstration.start))
    pairs = zip(demonstration.clicks, replayed, strict=True)
    return sum(made.mask == RunLengths.of(again.mask()) for made, again in pairs)


NEAR = 5
"""Pixels around a click that was taken back: the radius of the disc that SimpleClick is shown."""


def _around(click: Click, shape: tuple[int, ...]) -> Mask:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - click.y) ** 2 + (columns - click.x) ** 2 <= NEAR**2)
