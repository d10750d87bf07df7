"""Whether two runtimes do the same: the gate that every speed-up has to pass first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas
from segagent_rt.types import Action, Click, Prediction, Request, Trajectory


@dataclass(frozen=True, slots=True)
class ParityGate:
    """How alike is alike enough.

    Attributes:
        near: two clicks of one sign are the same up to this distance, in shares of the longer side.
        clicks: least share of states in which both make the same click.
        masks: least mean IoU of the two masks after the same clicks.
        accuracy: most that the mean IoU of final masks may lie below the other's.
    """

    near: float = 0.015
    clicks: float = 0.95
    masks: float = 0.95
    accuracy: float = 0.005


@dataclass(frozen=True, slots=True)
class ParityState:
    """One state of a trajectory, in which both were asked: whether they click alike, how alike the
    masks after the same clicks are (None behind the last click)."""

    same_click: bool
    overlap: float | None


def replay(canvas: Canvas, found: Trajectory, gate: ParityGate) -> Iterator[ParityState]:
    """Ask our runtime in every state of another's trajectory, with the masks that the other had."""
    shown: Prediction | None = None
    clicks, size = list[Click](), (canvas.image.shape[0], canvas.image.shape[1])
    for step in found.steps:
        if step.turn is None:
            shown = step.prediction
            continue
        turn = canvas.view.propose([Request(shown, found.expression)])[0][0]
        alike = same_action(turn.action, step.turn.action, gate.near * max(size))
        if step.click is None or step.prediction is None:
            yield ParityState(alike, None)
            return
        clicks.append(step.click)
        embedding = canvas.embedding.result()
        ours = canvas.runtime.segmenter.decode(embedding, clicks, prior=shown, box=step.box)
        yield ParityState(alike, iou(ours.mask(), step.prediction.mask()))
        shown = step.prediction


def same_action(ours: Action, theirs: Action, near: float) -> bool:
    """Clicks of one sign at most `near` pixels apart; or no click on either side."""
    if isinstance(ours, Click) and isinstance(theirs, Click):
        apart = math.hypot(ours.x - theirs.x, ours.y - theirs.y)
        return ours.positive == theirs.positive and apart <= near
    return type(ours) is type(theirs)


def parity_figures(states: Sequence[ParityState], gate: ParityGate) -> dict[str, Any]:
    """Shares over all states, and what the gate asks for; `passed` is the verdict.

    A trajectory that never got a mask has nothing to compare, and does not pass.
    """
    overlaps = [state.overlap for state in states if state.overlap is not None]
    clicks = float(np.mean([state.same_click for state in states])) if states else 0.0
    masks = float(np.mean(overlaps)) if overlaps else 0.0
    return {
        "states": len(states),
        "same_clicks": round(clicks, 4),
        "mask_iou": round(masks, 4),
        "gate": asdict(gate),
        "passed": clicks >= gate.clicks and masks >= gate.masks,
    }
