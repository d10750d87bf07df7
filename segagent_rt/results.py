"""What is said about a finished annotation: one plain document, for files, pipes and servers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from segagent_rt.image import mask_to_rle
from segagent_rt.types import Click, Malformed, Step, Trajectory


def describe_clicks(clicks: Iterable[Click]) -> list[dict[str, Any]]:
    """Clicks as JSON objects, in pixels of the original image."""
    return [{"x": c.x, "y": c.y, "positive": c.positive} for c in clicks]


def describe_step(step: Step) -> dict[str, Any]:
    """One turn: the reply as it came, the click taken, the rating of the mask shown."""
    action = step.turn.action
    return {
        "reply": step.turn.reply,
        "click": describe_clicks([step.click])[0] if step.click else None,
        "anew": step.anew,
        "predicted_iou": _rounded(step.turn.predicted_iou),
        "problem": action.why if isinstance(action, Malformed) else None,
        "seconds": {k: round(v, 6) for k, v in {**step.turn.seconds, **step.seconds}.items()},
    }


def describe(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory with its mask, `mask` being COCO run lengths or null if there is none.

    `returned` is the number of clicks whose mask is returned, the best-rated one.
    """
    prediction = trajectory.prediction
    best = trajectory.best
    started = trajectory.prior is not None
    return {
        "expression": trajectory.expression,
        "clicks": describe_clicks(trajectory.clicks),
        "returned": None if best is None else best + (not started),
        "predicted_iou": _rounded(trajectory.predicted_iou),
        "stop": trajectory.stop,
        "steps": [describe_step(step) for step in trajectory.steps],
        "seconds": total_seconds(trajectory),
        "mask": None if prediction is None else mask_to_rle(prediction.mask()),
    }


def total_seconds(trajectory: Trajectory) -> dict[str, float]:
    """Seconds by stage over all turns; `annotate` and `segment` add up to the whole."""
    totals: dict[str, float] = {}
    for step in trajectory.steps:
        for stage, seconds in {**step.turn.seconds, **step.seconds}.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return {stage: round(seconds, 6) for stage, seconds in totals.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
