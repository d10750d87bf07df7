"""The figures of a data set, from its recorded trajectories alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import numpy as np

from segagent_rt.choices import Rule
from segagent_rt.data.predictions import Recording
from segagent_rt.data.tables import Overlap
from segagent_rt.eval.figures import (
    DataSetFigures,
    EarlyFigures,
    IouFigures,
    OneShotFigures,
    RefinedFigures,
)
from segagent_rt.eval.selection import best_rated, select, shortened
from segagent_rt.loop import StoppingRules
from segagent_rt.metrics import (
    cumulative_iou,
    generalised_iou,
    intersection_union,
    number_of_clicks,
)

Pair: TypeAlias = tuple[int, int]

NOC_TARGETS = (0.80, 0.85, 0.90)

EARLY = StoppingRules().accept_above or 1.0
"""The rating at which a mask is accepted unless told otherwise."""


@dataclass(frozen=True, slots=True)
class MaskChoice:
    """Which mask of a trajectory is its result: by a rule, or after a click, counted from 0."""

    rule: Rule = "full"
    click: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A recording with the intersection and union of every step's mask, and of no mask at all."""

    recording: Recording
    pairs: tuple[Pair, ...]
    nothing: Pair

    def after(self, step: int | None) -> Pair:
        """The pair of a step's mask. A trajectory that ended before it keeps its last mask."""
        if step is None or not self.pairs:
            return self.nothing
        return self.pairs[min(step, len(self.pairs) - 1)]

    @property
    def first(self) -> int:
        """Index of the first step that clicked: a mask given at the start is not one."""
        return int(self.recording.started)

    @property
    def best(self) -> Pair:
        """The pair of the mask that is truly the best."""
        return max(self.pairs, key=lambda pair: _share(*pair), default=self.nothing)

    @property
    def ious(self) -> list[float]:
        return [_share(both, either) for both, either in self.pairs]


def _share(both: int, either: int) -> float:
    return both / either if either else 1.0


def measure(recording: Recording) -> Measured:
    """Compare every mask of a trajectory with the one wanted; a step without one made nothing."""
    target = recording.target.mask()
    nothing = (0, int(np.count_nonzero(target)))
    pairs = tuple(
        nothing if step.mask is None else intersection_union(step.mask.mask(), target)
        for step in recording.steps
    )
    return Measured(recording, pairs, nothing)


def figures(measured: Sequence[Measured], choice: MaskChoice, budget: int) -> DataSetFigures:
    """The figures of runs with a budget of clicks."""
    chosen = [(m, select(m.recording, choice.rule, choice.click)) for m in measured]
    kept = [(m, at) for m, at in chosen if not _dropped(m, at, choice)]
    noc = {
        f"{100 * target:.0f}": _mean(
            number_of_clicks(m.ious[m.first :], target, budget) for m in measured
        )
        for target in NOC_TARGETS
    }
    boxes = sum(bool(m.recording.steps and m.recording.steps[0].box) for m in measured)
    by_click = [[m.after(m.first + at) for m in measured] for at in range(budget)]
    return DataSetFigures(
        *_ious([m.after(at) for m, at in kept]),
        samples=len(measured),
        select=choice.rule,
        click_id=choice.click,
        left_out=len(measured) - len(kept),
        one_shot=OneShotFigures(*_ious([m.after(m.first) for m in measured]), boxes),
        loop_gain=_loop_gain(kept),
        truth_best=IouFigures(*_ious([m.best for m in measured])),
        early=_early(measured, EARLY),
        by_click=tuple(IouFigures(*_ious(pairs)) for pairs in by_click),
        noc=noc,
        clicks_mean=_mean(len(m.pairs) - m.first for m in measured),
        refined=_refined([(m, at) for m, at in kept if m.first]),
        predicted_iou_mae=_mean(abs(error) for m in measured for error in _errors(m)),
        stops=dict(Counter(m.recording.stop or "unknown" for m in measured).most_common()),
    )


def _loop_gain(kept: Sequence[tuple[Measured, int | None]]) -> float | None:
    return _mean(_share(*m.after(at)) - _share(*m.after(m.first)) for m, at in kept)


def overlaps(measured: Sequence[Measured], choice: MaskChoice) -> list[Overlap]:
    """The chosen masks as SegAgent's tables take them."""
    found = []
    for m in measured:
        at = select(m.recording, choice.rule, choice.click)
        if not _dropped(m, at, choice):
            image = PurePosixPath(m.recording.image.replace("\\", "/")).name
            found.append(Overlap(image, m.recording.expression, *m.after(at)))
    return found


def _dropped(measured: Measured, at: int | None, choice: MaskChoice) -> bool:
    if choice.rule != "ref":
        return False
    return at is None or measured.recording.steps[at].mask is None


LOST = 0.02
"""A mask that was there already is worse if its IoU fell by more than this."""


def _refined(chosen: Sequence[tuple[Measured, int | None]]) -> RefinedFigures | None:
    if not chosen:
        return None
    gains = [_share(*m.after(at)) - _share(*m.after(0)) for m, at in chosen]
    return RefinedFigures(
        start=IouFigures(*_ious([m.after(0) for m, _ in chosen])),
        gain=round(float(np.mean(gains)), 6),
        worse=round(float(np.mean([gain < -LOST for gain in gains])), 6),
    )


def _early(measured: Sequence[Measured], accept: float) -> EarlyFigures:
    short = [shortened(m.recording.steps, accept) for m in measured]
    clicks = (len(steps) - m.first for m, steps in zip(measured, short, strict=True))
    best = [best_rated([step.rating for step in steps]) if steps else None for steps in short]
    returned = [m.after(at) for m, at in zip(measured, best, strict=True)]
    return EarlyFigures(*_ious(returned), accept=accept, clicks_mean=_mean(clicks))


def _errors(measured: Measured) -> list[float]:
    rated = zip(measured.ious, measured.recording.steps, strict=True)
    return [100 * (step.rating - true) for true, step in rated if step.rating is not None]


def _ious(pairs: list[Pair]) -> tuple[float, float]:
    """cIoU and gIoU."""
    return round(cumulative_iou(pairs), 6), round(generalised_iou(pairs), 6)


def _mean(values: Any) -> float | None:
    collected = [float(value) for value in values]
    return round(float(np.mean(collected)), 6) if collected else None
