"""Which mask of a recorded trajectory counts."""

from __future__ import annotations

from collections.abc import Sequence

from segagent_rt.choices import Rule
from segagent_rt.data.predictions import RecordedStep, Recording
from segagent_rt.data.segagent import reference_best


def select(recording: Recording, rule: Rule, click: int | None = None) -> int | None:
    """Index of the step whose mask counts; None if there is no step.

    Args:
        rule: `full` takes the best-rated mask, the last one rated too; `ref` does as SegAgent's
            own evaluation does; `last` takes the last mask.
        click: a step's number, counted from 0, in place of the rule. A trajectory that ended before
            it keeps its last mask.
    """
    last = len(recording.steps) - 1
    if last < 0:
        return None
    if click is not None:
        return min(click, last)
    if rule == "last":
        return last
    if rule == "ref":
        return reference_best([step.reply for step in recording.steps])
    return best_rated([step.rating for step in recording.steps])


def best_rated(ratings: Sequence[float | None]) -> int:
    """Index of the highest rating, the earliest of equals; of the last mask if none is rated."""
    rated = [(rating, -at) for at, rating in enumerate(ratings) if rating is not None]
    return -max(rated)[1] if rated else len(ratings) - 1


def shortened(steps: Sequence[RecordedStep], accept: float) -> Sequence[RecordedStep]:
    """The steps up to the first mask that is rated at least `accept`; all if there is none."""
    for count, step in enumerate(steps, 1):
        if step.rating is not None and step.rating >= accept:
            return steps[:count]
    return steps
