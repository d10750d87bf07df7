"""Small stand-ins for models, for tests and examples: a scripted annotator and a disc segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import (
    GREEDY,
    Action,
    Box,
    Click,
    Finish,
    Prediction,
    Rating,
    Request,
    RgbImage,
    Sampling,
    Size,
    Turn,
)


@dataclass(frozen=True, slots=True)
class ScriptedAnnotator:
    """Gives the same answers about every image.

    Attributes:
        actions: the next actions, in order; then `Finish`.
        ratings: of the masks that it is asked to rate, in order; then 0.
        samples: the actions that it gives at a temperature above 0; its first one if empty.
        confidence: of every action; see `Turn`.
    """

    actions: Sequence[Action]
    ratings: Sequence[float | None] = ()
    samples: Sequence[Action] = ()
    confidence: float | None = None

    def check(self, expression: str) -> str:
        return expression

    def look(self, image: RgbImage) -> ScriptedView:
        return ScriptedView(self)


@dataclass(slots=True)
class ScriptedView:
    """One run through the script.

    Attributes:
        seen: the masks that were looked at, each once per look.
        calls: what was called: `propose`, `rate` or `sample`.
    """

    script: ScriptedAnnotator
    seen: list[Request] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def propose(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[list[Turn]]:
        if sampling.temperature > 0:
            self.calls.append("sample")
            drawn = [*self.script.samples, *self.script.actions[:1]]
            turns = [Turn("sample", action) for action in drawn]
            return [(turns * sampling.count)[: sampling.count] for _ in requests]
        return [[self._turn(request)] * sampling.count for request in requests]

    def rate(self, requests: Sequence[Request]) -> list[Rating]:
        return [self._rating(request) for request in requests]

    def _turn(self, request: Request) -> Turn:
        self._look(request, "propose")
        number, actions = self.calls.count("propose"), self.script.actions
        if number > len(actions):
            return Turn("Finish", Finish())
        confidence = self.script.confidence
        return Turn(f"action {number}", actions[number - 1], confidence=confidence)

    def _rating(self, request: Request) -> Rating:
        self._look(request, "rate")
        number, ratings = self.calls.count("rate"), self.script.ratings
        return Rating(ratings[number - 1] if number <= len(ratings) else 0.0, f"rating {number}")

    def _look(self, request: Request, call: str) -> None:
        self.calls.append(call)
        if not self.seen or self.seen[-1].prediction is not request.prediction:
            self.seen.append(request)


@dataclass(frozen=True, slots=True)
class DiscEmbedding:
    """Nothing but the image's size."""

    size: Size


@dataclass(frozen=True, slots=True)
class DiscSegmenter:
    """Adds a disc for a positive click, removes one for a negative one, and fills a box.

    Its masks can be computed by hand. Clicks count in their order. `stability` is that of every
    mask.
    """

    radius: int = 10
    stability: float | None = None

    def encode(self, image: RgbImage) -> DiscEmbedding:
        return DiscEmbedding((image.shape[0], image.shape[1]))

    def decode(
        self,
        embedding: DiscEmbedding,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> GivenMask:
        """Paint the last click over the mask so far; without clicks, fill the box."""
        rows, columns = np.ogrid[: embedding.size[0], : embedding.size[1]]
        mask = np.zeros(embedding.size, np.bool_) if prior is None else prior.mask().copy()
        if clicks:
            last = clicks[-1]
            disc = (rows - last.y) ** 2 + (columns - last.x) ** 2 <= self.radius**2
            mask[disc] = last.positive
        elif box is not None:
            mask[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = True
        return GivenMask(mask, stability=self.stability)
