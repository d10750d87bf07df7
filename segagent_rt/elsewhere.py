"""Another first click, where the mask of the one before it is doubted."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from segagent_rt.types import Click, Prediction, Request, Turn, View

DRAWS = 4
"""First clicks that are drawn at a time; more hardly find more objects (docs/decisions.md)."""


def elsewhere(
    expression: str, view: View, doubted: Turn, tried: Sequence[Prediction]
) -> Turn | None:
    """A first click outside every mask that was tried, or None where none is drawn.

    It is drawn at temperature 1, in the same way every time. It is given the rating of `doubted`:
    that of the last mask.
    """
    drawn = view.propose(
        [Request(None, expression)],
        samples=DRAWS,
        temperature=1.0,
        rng=np.random.default_rng(len(tried)),
    )
    masks = [prediction.mask() for prediction in tried]
    for turn in drawn[0]:
        at = turn.action
        if isinstance(at, Click) and at.positive and not any(mask[at.y, at.x] for mask in masks):
            return replace(turn, predicted_iou=doubted.predicted_iou)
    return None
