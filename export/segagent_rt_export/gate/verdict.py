"""What the gate measures, and where it draws the line."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from segagent_rt.metrics import meets
from segagent_rt.types import Action, Box, Click, Size, Turn

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


REVISION = 2
"""Raised when the gate learns to see a fault: parts that passed an older one are made again."""

LEAVE_OUT = "leave the variant out, or use --allow-below-gate, which records the failure"
DAMAGED = (
    "the checkpoint's weights are damaged or diverged in training: download it again, or export "
    "an earlier training step"
)
OVERFLOW = "leave the variant out; cpu-w8 and the reference do not overflow"
WRONG_GRAPH = "--allow-below-gate writes the part all the same, and records the failure"


@dataclass(frozen=True, slots=True)
class Failure:
    """One reason why the gate refuses a part, or one variant of it.

    Attributes:
        text: what was measured, in words.
        hint: what helps against this cause.
        variant: the only variant that fails; None if the reference fails, and so the part.
        hopeless: whether the part computes numbers that are not finite; no option allows that.
    """

    text: str
    hint: str = WRONG_GRAPH
    variant: str | None = None
    hopeless: bool = False

    def __str__(self) -> str:
        return self.text if self.variant is None else f"{self.variant}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that was measured of a part, and each failure that it showed."""

    numbers: Numbers = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def refused(self) -> Failure | None:
        """The first failure that concerns the whole part; hopeless ones come first."""
        whole = [failure for failure in self.failures if failure.variant is None]
        return min(whole, key=lambda failure: not failure.hopeless, default=None)

    def failed(self, *, forgiving: bool = False) -> dict[str, list[str]]:
        """The variants that fail by themselves, and why; the forgiving gate lets those pass that
        compute finite numbers."""
        found: dict[str, list[str]] = {}
        for failure in self.failures:
            if failure.variant is not None and (failure.hopeless or not forgiving):
                found.setdefault(failure.variant, []).append(failure.text)
        return found

    def and_also(self, other: Verdict) -> Verdict:
        """Both together."""
        return Verdict({**self.numbers, **other.numbers}, self.failures + other.failures)

    def without(self, variants: Collection[str]) -> Verdict:
        """This verdict without the figures and failures of some variants."""
        numbers = dict(self.numbers)
        if "variants" in numbers:
            figures = numbers["variants"].items()
            numbers["variants"] = {n: each for n, each in figures if n not in variants}
        return Verdict(numbers, tuple(f for f in self.failures if f.variant not in variants))

    def record(self, left_out: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """For the manifest: the numbers, and the failures of what is written.

        Args:
            left_out: variants that are not written, and why.
        """
        written = [str(f) for f in self.failures if f.variant not in left_out]
        more: dict[str, Any] = {"failures": written} if written else {}
        if left_out:
            more["left_out"] = {name: list(reasons) for name, reasons in left_out.items()}
        gate = "below, allowed" if written else "passed"
        return {"gate": gate, **_plain(self.numbers), **more}


def _plain(value: Any) -> Any:
    """Figures for JSON, which has no word for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(figure) for name, figure in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(figure) for figure in value]
    return "not finite" if isinstance(value, float) and not math.isfinite(value) else value


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
        """Between the clicks, or between the boxes' farther corners, in thousandths of the sides.

        None unless both click alike, or both give a box.
        """
        if not self.agrees:
            return None
        height, width = self.size
        pairs = zip(_points(self.wanted.action), _points(self.found.action), strict=True)
        apart = [np.hypot((a[0] - b[0]) / width, (a[1] - b[1]) / height) for a, b in pairs]
        return 1000 * float(max(apart)) if apart else None

    def describe(self) -> dict[str, Any]:
        """For the list of worst cases."""
        replies = {"state": self.state, "reference": self.wanted.reply, "variant": self.found.reply}
        return replies | {"distance": _rounded(self.distance), "mask_iou": _rounded(self.mask_iou)}


def _points(action: Action) -> list[tuple[int, int]]:
    """The click, or two corners of the box."""
    if isinstance(action, Box):
        return [(action.x0, action.y0), (action.x1, action.y1)]
    return [(action.x, action.y)] if isinstance(action, Click) else []


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
    """What speaks against a variant, in words. Figures that were not measured (None, or absent)
    do not; figures that are not finite do."""
    share, apart = numbers.get("agreement"), numbers.get("distance_median")
    if share is not None and not meets(share, at_least=gate.agreement):
        yield f"it agrees in {share:.0%} of the states, {gate.agreement:.0%} are asked for"
    if apart is not None and not meets(apart, at_most=gate.distance):
        yield f"its clicks are {apart:.1f}/1000 away, {gate.distance:.1f} are allowed"
    iou, off = numbers.get("mask_iou_mean"), numbers.get("range_misfit")
    if iou is not None and not meets(iou, at_least=gate.mask_iou):
        yield f"its masks have an IoU of {iou:.3f}, {gate.mask_iou:.3f} is asked for"
    if off is not None and not meets(off, at_most=gate.range_misfit):
        yield f"its ranges are {off:.1f} times off, {gate.range_misfit:.1f} are allowed"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
