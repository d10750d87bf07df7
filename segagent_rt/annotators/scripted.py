"""An annotator that says what it was told to say: for tests, demonstrations, replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from segagent_rt.types import Click, Finish, Request, RgbImage, Turn


@dataclass(frozen=True, slots=True)
class ScriptedAnnotator:
    """Gives the same turns to every image, one after the other, then `Finish`.

    `ratings` are the predicted IoUs of the masks shown, in the same order; 0.0 where they end.
    Asked for another first click in the middle of a walk, it repeats its first one.
    """

    clicks: Sequence[Click]
    ratings: Sequence[float] = ()

    def check(self, expression: str) -> str:
        return expression

    def look(self, image: RgbImage) -> ScriptedView:
        return ScriptedView(self)


@dataclass(slots=True)
class ScriptedView:
    """One walk through the script; `seen` keeps what was asked."""

    script: ScriptedAnnotator
    seen: list[Request] = field(default_factory=list)
    _rated: Request | None = None

    def propose(
        self,
        requests: Sequence[Request],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> list[list[Turn]]:
        return [[self._turn(request, temperature)] * samples for request in requests]

    def rate(self, requests: Sequence[Request]) -> list[Turn]:
        turns = [self._turn(request, 0.0) for request in requests]
        self._rated = requests[-1]
        return [Turn("", Finish(), turn.predicted_iou) for turn in turns]

    def _turn(self, request: Request, temperature: float) -> Turn:
        first = temperature > 0 and request.prediction is None and bool(self.seen)
        known = self._rated is not None and self._rated.prediction is request.prediction
        at = 0 if first else len(self.seen) - known
        self.seen += [] if first or known else [request]
        self._rated = None
        clicks, ratings = self.script.clicks, self.script.ratings
        rating = ratings[at] if at < len(ratings) else 0.0
        if at >= len(clicks):
            return Turn("Finish", Finish(), rating)
        return Turn(f"click {at + 1}", clicks[at], rating)
