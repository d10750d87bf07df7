"""What is said about a finished annotation: one plain document, for files, pipes and servers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from segagent_rt.image import mask_to_rle
from segagent_rt.types import Click, Malformed, Step, Trajectory


def describe_clicks(clicks: Iterable[Click]) -> list[dict[str, Any]]:
    """Clicks as JSON objects, in pixels of the original image."""
    return [{"x": c.x, "y": c.y, "positive": c.positive} for c in clicks]


def describe_step(step: Step) -> dict[str, Any]:
    """One step: `reply` is the text that proposed the click or the box, `rating` the predicted IoU
    of the mask that this step made. `reply` is null for a mask that was given."""
    action = None if step.turn is None else step.turn.action
    return {
        "reply": None if step.turn is None else step.turn.reply,
        "click": describe_clicks([step.click])[0] if step.click else None,
        "box": None if step.box is None else asdict(step.box),
        "restarted": step.restarted,
        "rating": _rounded(step.rating),
        "problem": action.why if isinstance(action, Malformed) else None,
        "seconds": {stage: round(spent, 6) for stage, spent in step.seconds.items()},
    }


def describe(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory with its mask.

    `mask` is in COCO run lengths, or null if there is none. `returned` is the number of clicks
    after which the returned mask, the best-rated one, was made. `one_shot` is the first mask that
    was segmented, which is the result without a loop; null if there is none.
    """
    prediction, first = trajectory.prediction, trajectory.one_shot
    return {
        "expression": trajectory.expression,
        "clicks": describe_clicks(trajectory.clicks),
        "returned": _clicks_before(trajectory),
        "predicted_iou": _rounded(trajectory.rating),
        "stop": trajectory.stop,
        "steps": [describe_step(step) for step in trajectory.steps],
        "seconds": total_seconds(trajectory),
        "one_shot": None if first is None else _one_shot(first),
        "mask": None if prediction is None else mask_to_rle(prediction.mask()),
    }


def _clicks_before(trajectory: Trajectory) -> int | None:
    """How many clicks had been made when the returned mask was."""
    if trajectory.best is None:
        return None
    at = next(n for n, step in enumerate(trajectory.steps) if step is trajectory.best)
    return sum(step.click is not None for step in trajectory.steps[: at + 1])


def _one_shot(step: Step) -> dict[str, Any]:
    mask = None if step.prediction is None else mask_to_rle(step.prediction.mask())
    return {"predicted_iou": _rounded(step.rating), "mask": mask}


def total_seconds(trajectory: Trajectory) -> dict[str, float]:
    """Seconds by stage over all steps; `annotate` and `segment` add up to the whole."""
    totals: dict[str, float] = {}
    for step in trajectory.steps:
        for stage, seconds in step.seconds.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return {stage: round(seconds, 6) for stage, seconds in totals.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
