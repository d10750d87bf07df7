"""What a report shows of one object: its steps, each with mask, clicks, reply, rating and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segagent_rt.metrics import iou
from segagent_rt.types import Box, Click, Malformed, Mask, RgbImage, Seconds, Trajectory


@dataclass(frozen=True, slots=True)
class ReportStep:
    """One step of a case.

    Attributes:
        click: the click that was added, in pixels of the image; None if there was none.
        box: the box that the segmenter was given, in pixels of the image.
        mask: the mask after the step, bool [H, W]; None if there is none.
        reply: the annotator's text; None if nobody was asked.
        rating: predicted IoU of the mask, 0..1; None if no annotator rated it.
        estimate: the segmenter's own estimate of it, 0..1, if it makes one.
        iou: true IoU of the mask, 0..1; None if the true mask is unknown.
        seconds: time by stage.
        restarted: whether the click replaced all earlier ones.
        problem: what is wrong with the reply; None if nothing is.
    """

    click: Click | None = None
    box: Box | None = None
    mask: Mask | None = None
    reply: str | None = None
    rating: float | None = None
    estimate: float | None = None
    iou: float | None = None
    seconds: Seconds = field(default_factory=dict)
    restarted: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ReportCase:
    """One object of an image.

    Attributes:
        source: the image's path, or a name that stands for it.
        expression: the object in words; empty if it was shown by clicks or a box.
        image: uint8 [H, W, 3] RGB; None if it cannot be shown.
        steps: in their order.
        returned: index of the step whose mask is the result; None if there is no mask.
        stop: why the loop ended; None if no loop ran.
        target: the true mask, bool [H, W], if it is known.
        note: a sentence about the case, if there is anything to add.
    """

    source: str
    expression: str
    image: RgbImage | None
    steps: Sequence[ReportStep]
    returned: int | None
    stop: str | None = None
    target: Mask | None = None
    note: str = ""

    @property
    def result(self) -> ReportStep | None:
        """The step whose mask is the result."""
        return None if self.returned is None else self.steps[self.returned]

    @property
    def quality(self) -> float:
        """What cases are sorted by: true IoU, else rating, else estimate, else 1.

        A case without a mask, or with an empty one, comes first.
        """
        result = self.result
        if result is None or (result.mask is not None and not result.mask.any()):
            return -1.0
        known = (result.iou, result.rating, result.estimate)
        return next((value for value in known if value is not None), 1.0)

    @property
    def milliseconds(self) -> float | None:
        """Time of all steps; None if it was not measured."""
        spent = [step_milliseconds(step) for step in self.steps]
        known = [each for each in spent if each is not None]
        return sum(known) if known else None


def step_milliseconds(step: ReportStep) -> float | None:
    """Time of a step: the annotator's and the segmenter's, of which all other stages are parts."""
    parts = [step.seconds[name] for name in ("annotate", "segment") if name in step.seconds]
    return 1000 * sum(parts) if parts else None


def case_of_trajectory(
    source: str, image: RgbImage, trajectory: Trajectory, target: Mask | None = None
) -> ReportCase:
    """A finished trajectory as a case.

    Args:
        source: the image's path, or a name that stands for it.
        image: uint8 [H, W, 3] RGB.
        trajectory: its steps.
        target: the true mask, bool [H, W], if it is known.
    """
    steps = list[ReportStep]()
    for step in trajectory.steps:
        action = None if step.turn is None else step.turn.action
        mask = None if step.prediction is None else step.prediction.mask()
        steps.append(
            ReportStep(
                click=step.click,
                box=step.box,
                mask=mask,
                reply=None if step.turn is None else step.turn.reply,
                rating=step.rating,
                estimate=None if step.prediction is None else step.prediction.score,
                iou=None if mask is None or target is None else iou(mask, target),
                seconds=step.seconds,
                restarted=step.restarted,
                problem=action.why if isinstance(action, Malformed) else None,
            )
        )
    best = trajectory.best
    returned = next((n for n, step in enumerate(trajectory.steps) if step is best), None)
    return ReportCase(
        source, trajectory.expression, image, steps, returned, trajectory.stop, target
    )
