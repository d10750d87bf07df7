"""The simulated annotator: given the true mask, where would a person click next?

The rule of the interactive-segmentation field (RITM's clicker; SegAgent section 4.1, algorithm 3,
uses the same): the point deepest inside the larger of the two error regions, what is missing and
what is too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.metrics import iou
from segagent_rt.reply import ReplyProtocol
from segagent_rt.types import (
    GREEDY,
    Click,
    Finish,
    Mask,
    Prediction,
    Rating,
    Request,
    RgbImage,
    Sampling,
    Turn,
)

Depth: TypeAlias = npt.NDArray[np.float32]


def next_click(
    target: Mask, mask: Mask, *, clicked: Mask | None = None, ignored: Mask | None = None
) -> Click | None:
    """The click that corrects `mask` (bool [H, W]) towards `target` (bool [H, W]), or None when
    nothing is left to correct.

    Positive if the deepest missing pixel lies strictly deeper than the deepest superfluous one. Of
    equally deep pixels the first in row-major order. Pixels set in `clicked` are not chosen again;
    those set in `ignored` are right whatever the mask says.
    """
    wrong = target ^ mask if ignored is None else (target ^ mask) & ~ignored
    missing, x, y = deepest(wrong & target, clicked)
    surplus, u, v = deepest(wrong & mask, clicked)
    if missing == surplus == 0:
        return None
    return Click(x, y, positive=True) if missing > surplus else Click(u, v, positive=False)


def deepest(region: Mask, clicked: Mask | None = None) -> tuple[float, int, int]:
    """Depth, x and y of the pixel of a region that is farthest from its border; depth 0 if there is
    none.

    The picture's edge counts as border.
    """
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    if width == 0:
        return 0.0, 0, 0
    window = (slice(y, y + height), slice(x, x + width))
    padded = np.pad(region[window], 1).astype(np.uint8)
    depth: Depth = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1])
    if clicked is not None:
        depth = depth * ~clicked[window]
    row, column = divmod(int(depth.argmax()), width)
    return float(depth[row, column]), x + column, y + row


@dataclass(frozen=True, slots=True)
class OracleAnnotator:
    """Clicks as the rule says and rates masks by their true IoU: what a segmenter could do at best.

    It knows one object, whatever the expression.
    """

    target: Mask
    reply: ReplyProtocol = field(default_factory=ReplyProtocol)

    def check(self, expression: str) -> str:
        return expression

    def look(self, image: RgbImage) -> OracleView:
        return OracleView(self)


@dataclass(frozen=True, slots=True)
class OracleView:
    """The image, of which only the target matters."""

    annotator: OracleAnnotator

    def propose(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[list[Turn]]:
        return [[self._turn(request.prediction)] * sampling.count for request in requests]

    def rate(self, requests: Sequence[Request]) -> list[Rating]:
        turns = [self._turn(request.prediction) for request in requests]
        return [Rating(turn.rating, turn.reply) for turn in turns]

    def _turn(self, prediction: Prediction | None) -> Turn:
        target = self.annotator.target
        mask = np.zeros_like(target) if prediction is None else prediction.mask()
        rating = iou(mask, target)
        click = next_click(target, mask)
        if click is None:
            return Turn("Finish", Finish(), rating)
        reply = self.annotator.reply.write(click, target.shape, iou=rating)
        return Turn(reply, click, rating)
