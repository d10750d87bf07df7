"""Calibration: from where on a bundle's masks are good without a look that rates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.bundle.manifest import UnratedAcceptance
from segagent_rt.eval.scenes import SceneSuite, looks_of, questions
from segagent_rt.loop import StoppingRules, UnratedLimits
from segagent_rt.metrics import iou
from segagent_rt.runtime import Runtime
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Step

Floats: TypeAlias = npt.NDArray[np.float64]

STABILITIES = tuple(round(0.7 + 0.02 * step, 2) for step in range(14))
CONFIDENCES = tuple(round(0.05 * step, 2) for step in range(20))
LATER_STABILITIES = (0.5, 0.6, 0.7, 0.8, 0.9)

MAX_LOSS = 0.003
"""The mean IoU is not to fall by more: the mean loss and its standard error together."""

MAX_WRONG = 0.15
"""Of first masks with an IoU below 0.5, no larger share is accepted. The mean IoU alone would hide
them, because a few scenes that luck decides weigh as much."""


@dataclass(frozen=True, slots=True)
class RatedTrajectory:
    """What the loop did about one expression while every mask was rated.

    Attributes:
        steps: those whose masks would be accepted if they needed no rating.
        ious: of their masks.
        looks: how many pictures the MLLM was shown.
        returned: IoU of the returned mask.
    """

    steps: tuple[Step, ...]
    ious: tuple[float, ...]
    looks: int
    returned: float

    def under(self, rules: StoppingRules) -> tuple[int, float]:
        """Looks, and IoU of the returned mask, if masks were accepted unrated by these rules."""
        for at, step in enumerate(self.steps):
            if rules.accepts_unrated(step, self.steps[:at]):
                return 1 + at, self.ious[at]
        return self.looks, self.returned


def calibrate(
    runtime: Runtime, suite: SceneSuite, report_progress: Callable[[int], None]
) -> UnratedAcceptance | None:
    """Find the limits that save most looks within `MAX_LOSS` and `MAX_WRONG`.

    Args:
        runtime: what is calibrated.
        suite: the scenes; others than those of an evaluation.
        report_progress: called with the number of scenes done.

    Returns:
        The limits and what they save; None if none save a look within the bound.
    """
    rules = replace(runtime.completed_rules(None), accept_unrated=False)
    trajectories = list(_trajectories(runtime, suite, rules, report_progress))
    rated_looks, rated_ious = _measure(trajectories, rules)
    best: UnratedAcceptance | None = None
    wrong = [
        trajectory for trajectory in trajectories if trajectory.ious and trajectory.ious[0] < 0.5
    ]
    for values in product(STABILITIES, CONFIDENCES, LATER_STABILITIES):
        limits = UnratedLimits(*values)
        trial = replace(rules, accept_unrated=limits)
        missed = [
            trajectory for trajectory in wrong if trial.accepts_unrated(trajectory.steps[0], ())
        ]
        if len(missed) > MAX_WRONG * len(wrong):
            continue
        looks, ious = _measure(trajectories, trial)
        fewest = rated_looks.mean() if best is None else best.looks
        if looks.mean() >= fewest or loss_bound(rated_ious - ious) > MAX_LOSS:
            continue
        best = UnratedAcceptance(
            *values,
            rating=limits.rating,
            samples=len(trajectories),
            looks=round(float(looks.mean()), 4),
            looks_rated=round(float(rated_looks.mean()), 4),
            miou=round(float(ious.mean()), 4),
            miou_rated=round(float(rated_ious.mean()), 4),
            digest=runtime.bundle.digest,
        )
    return best


def loss_bound(losses: Floats) -> float:
    """Mean of losses, one for each expression, plus its standard error."""
    error = losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else np.inf
    return float(losses.mean() + error)


def _trajectories(
    runtime: Runtime,
    suite: SceneSuite,
    rules: StoppingRules,
    report_progress: Callable[[int], None],
) -> Iterator[RatedTrajectory]:
    for done, (scene, expression) in enumerate(questions(suite), 1):
        target = scene.mask(scene.expressions[0].target)
        found = runtime.open(scene.image).annotate(expression, rules=rules)
        made = [step.prediction for step in found.masks if step.prediction is not None]
        ious = [iou(each.mask(), target) for each in made]
        returned = 0.0 if found.prediction is None else iou(found.prediction.mask(), target)
        asked = found.masks[:-1] if found.stop == "unchanged" else found.masks
        steps = tuple(_without_pixels(step) for step in asked)
        yield RatedTrajectory(steps, tuple(ious), looks_of(found), returned)
        report_progress(done)


def _without_pixels(step: Step) -> Step:
    """A step with nothing of its mask but the stability: thousands are kept."""
    stability = None if step.prediction is None else step.prediction.stability
    return replace(step, prediction=GivenMask(np.zeros((1, 1), np.bool_), stability=stability))


def _measure(
    trajectories: Sequence[RatedTrajectory], rules: StoppingRules
) -> tuple[Floats, Floats]:
    """Looks and IoU of the returned mask, for each trajectory."""
    pairs = np.array([trajectory.under(rules) for trajectory in trajectories], np.float64)
    return pairs[:, 0], pairs[:, 1]
