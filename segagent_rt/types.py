"""The nouns, and the three seams: who clicks, what segments, where graphs run.

Frames: a click is a pixel of the original image, x to the right and y down, inside the picture.
Masks are bool [H, W], images uint8 [H, W, 3] in RGB order, sizes (height, width).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
RgbImage: TypeAlias = npt.NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
Array: TypeAlias = npt.NDArray[Any]
Seconds: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Click:
    """A point that belongs to the object (positive) or does not (negative)."""

    x: int
    y: int
    positive: bool


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle from (x0, y0) to (x1, y1), in pixels of the original image."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The annotator has nothing left to correct."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A reply in which no action can be read; `why` says what is missing."""

    why: str


Action: TypeAlias = Click | Box | Finish | Malformed


@dataclass(frozen=True, slots=True)
class Turn:
    """What an annotator said about one mask: the raw reply, and what was understood.

    `predicted_iou` (0..1) rates the mask that was shown, not the one that the click will make.
    `boxes` are all objects that a grounding reply lists; its action is the first of them.
    """

    reply: str
    action: Action
    predicted_iou: float | None = None
    box: Box | None = None
    seconds: Seconds = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()

    def after(self, rated: Turn) -> Turn:
        """This turn, which went on from a rating, with the time of both."""
        first, then = rated.seconds, self.seconds
        both = {stage: first.get(stage, 0.0) + then.get(stage, 0.0) for stage in {**first, **then}}
        return replace(self, seconds=both)


class Prediction(Protocol):
    """A mask as a segmenter left it, with whatever its next click needs. Immutable."""

    @property
    def score(self) -> float | None:
        """The segmenter's own estimate of the mask's IoU, 0..1, if it makes one."""

    def mask(self, size: Size | None = None) -> Mask:
        """The mask at the original image's size, or drawn at another."""

    def agrees(self, other: Prediction) -> bool:
        """Whether another prediction of the same segmenter draws the same mask."""


Stop: TypeAlias = Literal[
    "accepted", "finished", "malformed", "budget", "unchanged", "no gain", "deadline"
]


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of a walk, and the mask after it.

    A step without a click ends the walk; its turn rates the last mask. With a click `anew` the
    earlier ones are put away, and its mask is made of nothing else.
    """

    turn: Turn
    click: Click | None
    prediction: Prediction | None
    seconds: Seconds
    stop: Stop | None = None
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All steps for one expression; `prior` is the mask they started from, if any."""

    expression: str
    steps: tuple[Step, ...]
    prior: Prediction | None = None

    @property
    def stop(self) -> Stop | None:
        return self.steps[-1].stop if self.steps else None

    @property
    def clicks(self) -> tuple[Click, ...]:
        return tuple(step.click for step in self.steps if step.click is not None)

    @property
    def candidates(self) -> tuple[tuple[Prediction, float | None], ...]:
        """Every mask with its predicted IoU: the prior if there is one, then one for each click.

        A turn rates the mask that it was shown, so each mask has its rating from the turn after it.
        """
        shown = [self.prior, *(step.prediction for step in self.steps if step.click is not None)]
        said = [step.turn.predicted_iou for step in self.steps]
        if self.stop == "unchanged":
            said.append(said[-1])
        said += [None] * (len(shown) - len(said))
        pairs = zip(shown, said, strict=False)
        return tuple((mask, rating) for mask, rating in pairs if mask is not None)

    @property
    def best(self) -> int | None:
        """Index of the best-rated candidate; of the last if none is rated; None if there is none.

        Of equal ratings the earlier wins (SegAgent, algorithm 2, the last mask rated too).
        """
        rated = [
            (rating, -at) for at, (_, rating) in enumerate(self.candidates) if rating is not None
        ]
        if rated:
            return -max(rated)[1]
        return len(self.candidates) - 1 if self.candidates else None

    @property
    def prediction(self) -> Prediction | None:
        """The mask to return: the best-rated one."""
        return None if self.best is None else self.candidates[self.best][0]

    @property
    def predicted_iou(self) -> float | None:
        """The annotator's rating of the returned mask."""
        return None if self.best is None else self.candidates[self.best][1]


@dataclass(frozen=True, slots=True)
class Request:
    """A question to an annotator: this expression, with this mask painted over the image.

    No prediction means no mask yet.
    """

    prediction: Prediction | None
    expression: str


class View(Protocol):
    """One image as an annotator sees it; holds whatever its questions have in common."""

    def propose(
        self,
        requests: Sequence[Request],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> list[list[Turn]]:
        """`samples` turns for each request, greedy at temperature 0."""

    def rate(self, requests: Sequence[Request]) -> list[Turn]:
        """The rating of each request's mask alone, without a next click.

        Asked for the click then, a view goes on from there: no mask is looked at twice.
        """


class Annotator(Protocol):
    """Whoever chooses the next action: an MLLM, a server, a script, an oracle."""

    def check(self, expression: str) -> str:
        """The expression as the annotator takes it.

        Raises:
            ExpressionRefused: it cannot take it.
        """

    def look(self, image: RgbImage) -> View: ...


class Embedding(Protocol):
    """What a segmenter keeps of an image. Immutable; walks and threads may share it."""

    @property
    def size(self) -> Size: ...


class Segmenter(Protocol):
    """Encodes an image once and turns clicks into masks."""

    def encode(self, image: RgbImage) -> Embedding: ...

    def decode(
        self,
        embedding: Any,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> Prediction:
        """The mask for all clicks so far; `prior` is the mask before the last of them."""


class Resident(Protocol):
    """An array that stays where a backend put it: a GPU, or a buffer that is reused."""

    def numpy(self) -> Array:
        """Its content, copied to the host if it is elsewhere."""


Feed: TypeAlias = Array | Resident


class Session(Protocol):
    """A loaded graph."""

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str],
        *,
        into: Mapping[str, Resident] | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Any]:
        """Run the graph.

        Args:
            feeds: every input by name.
            outputs: names of the outputs wanted.
            into: further outputs, written into these buffers.
            keep: outputs that are to stay where they are and come back as `Resident`.
        """

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Resident:
        """A zeroed buffer that inputs and outputs may be bound to."""

    def close(self) -> None: ...
