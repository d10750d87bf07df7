"""What the gate measures, and where it draws the line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from segagent_rt.types import Click, Size, Turn

Numbers: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Gate:
    """What an export must reach.

    Attributes:
        graph_error: largest error of a graph against torch, as a share of the largest magnitude
            (segmenters) or in standard deviations (MLLMs).
        picture_error: mean error of what a segmenter's encoder is shown, in levels of 255.
        agreement: share of the states in which a variant does what the reference does: the same
            kind of action, and clicks of the same sign.
        distance: median distance of such clicks, in thousandths of the picture's sides.
        mask_iou: mean IoU of final masks, variant against reference.
        range_misfit: how many times too wide or too narrow the ranges of integers may be, on the
            median, for other pictures than those that they were measured on.
        scenes: how many scenes the states are taken from, where no pictures are given.
    """

    graph_error: float = 1e-4
    picture_error: float = 0.3
    agreement: float = 0.95
    distance: float = 5.0
    mask_iou: float = 0.98
    range_misfit: float = 3.0
    scenes: int = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that was measured of a part, and each sentence that speaks against it."""

    numbers: Numbers = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    def and_also(self, other: Verdict) -> Verdict:
        """Both together."""
        return Verdict({**self.numbers, **other.numbers}, self.failures + other.failures)

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        gate = "passed" if self.passed else "below, allowed"
        return {"gate": gate, **self.numbers} | (
            {"failures": list(self.failures)} if self.failures else {}
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded state: what it is, and what the reference and the variant said to it."""

    state: str
    wanted: Turn
    found: Turn
    size: Size
    mask_iou: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether both do the same thing, wherever they click."""
        return _kind(self.wanted) == _kind(self.found)

    @property
    def distance(self) -> float | None:
        """Between the clicks, in thousandths of the sides; None unless both click alike."""
        one, other = self.wanted.action, self.found.action
        if not (self.agrees and isinstance(one, Click) and isinstance(other, Click)):
            return None
        height, width = self.size
        return 1000 * float(np.hypot((one.x - other.x) / width, (one.y - other.y) / height))

    def describe(self) -> dict[str, Any]:
        """For the list of worst cases."""
        told = {"state": self.state, "reference": self.wanted.reply, "variant": self.found.reply}
        return told | {"distance": _rounded(self.distance), "mask_iou": _rounded(self.mask_iou)}


def _kind(turn: Turn) -> tuple[type, bool]:
    action = turn.action
    return type(action), isinstance(action, Click) and action.positive


def summarise(cases: Sequence[Case], worst: int = 3) -> dict[str, Any]:
    """Click agreement and mask IoU over all states, and the worst of these."""
    distances = [case.distance for case in cases if case.distance is not None]
    ious = [case.mask_iou for case in cases if case.mask_iou is not None]
    differing = [case for case in cases if not case.agrees or case.distance]
    ordered = sorted(differing, key=lambda case: (case.agrees, -(case.distance or 0)))
    return {
        "states": len(cases),
        "agreement": _rounded(sum(case.agrees for case in cases) / len(cases)),
        "distance_median": _rounded(float(np.median(distances)) if distances else None),
        "distance_worst": _rounded(max(distances, default=None)),
        "mask_iou_mean": _rounded(float(np.mean(ious)) if ious else None),
        "mask_iou_worst": _rounded(min(ious, default=None)),
        "worst": [case.describe() for case in ordered[:worst]],
    }


def shortfalls(numbers: Numbers, gate: Gate) -> Iterator[str]:
    """What speaks against a variant, in words."""
    if (share := numbers.get("agreement")) is not None and share < gate.agreement:
        yield f"it agrees in {share:.0%} of the states, {gate.agreement:.0%} are asked for"
    apart = numbers.get("distance_median")
    if apart is not None and apart > gate.distance:
        yield f"its clicks are {apart:.1f}/1000 away, {gate.distance:.1f} are allowed"
    iou = numbers.get("mask_iou_mean")
    if iou is not None and iou < gate.mask_iou:
        yield f"its masks have an IoU of {iou:.3f}, {gate.mask_iou:.3f} is asked for"
    off = numbers.get("range_misfit")
    if off is not None and off > gate.range_misfit:
        yield f"its ranges are {off:.1f} times off, {gate.range_misfit:.1f} are allowed"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
