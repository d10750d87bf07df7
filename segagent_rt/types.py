"""The data types, and the three protocols: who clicks, what segments, where graphs run.

Frames: a click is a pixel of the original image, x to the right and y down, inside the image.
Masks are bool [H, W], images uint8 [H, W, 3] in RGB order, sizes (height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
RgbImage: TypeAlias = npt.NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
Array: TypeAlias = npt.NDArray[Any]
Seconds: TypeAlias = Mapping[str, float]

ProgressReporter: TypeAlias = Callable[[str], None]
"""Is called with a sentence about what a long run does."""


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

    @property
    def centre(self) -> Click:
        """A positive click in the middle."""
        return Click((self.x0 + self.x1) // 2, (self.y0 + self.y1) // 2, positive=True)


@dataclass(frozen=True, slots=True)
class Finish:
    """The annotator has nothing left to correct."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A reply from which no action can be read; `why` says what is missing."""

    why: str


Action: TypeAlias = Click | Box | Finish | Malformed
"""What an annotator decides. A `Box` is the first look of a model that grounds objects in boxes."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An annotator's answer to a request: the raw reply, and what was understood.

    Attributes:
        reply: the text as it came.
        action: the next action; the first box of a grounding reply.
        rating: predicted IoU, 0..1, of the mask that the annotator was shown, if the reply has one.
        box: a box that the reply states beside its click, for the segmenter.
        seconds: time by stage (`paint`, `vision`, `language`, ...).
        boxes: all objects that a grounding reply lists.
        confidence: how certain the click is: probability, 0..1, of the less certain first digit of
            its coordinates; None if the annotator does not know it.
    """

    reply: str
    action: Action
    rating: float | None = None
    box: Box | None = None
    seconds: Seconds = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Rating:
    """An annotator's rating of a mask that it was shown.

    Attributes:
        value: predicted IoU, 0..1; None if this annotator does not rate masks.
        reply: the text as it came; it may end behind the rating.
        seconds: time by stage.
    """

    value: float | None
    reply: str = ""
    seconds: Seconds = field(default_factory=dict)


class Prediction(Protocol):
    """A mask as a segmenter left it, with whatever its next click needs. Immutable."""

    @property
    def score(self) -> float | None:
        """The segmenter's own estimate of the mask's IoU, 0..1, if it makes one."""

    @property
    def stability(self) -> float | None:
        """IoU, 0..1, of the masks at a slightly higher and a slightly lower threshold (SAM's
        stability score); None if the mask was not made by a threshold."""

    def mask(self, size: Size | None = None) -> Mask:
        """The mask at the original image's size, or drawn at another."""

    def agrees(self, other: Prediction) -> bool:
        """Whether another prediction of the same segmenter draws the same mask."""


Stop: TypeAlias = Literal[
    "accepted",
    "accepted unrated",
    "finished",
    "malformed",
    "budget",
    "unchanged",
    "no gain",
    "one-shot",
    "deadline",
    "tracked",
]


@dataclass(frozen=True, slots=True)
class Step:
    """One mask of a trajectory: how it was made, and the rating of this very mask.

    A step without a mask can only be the last one; its `stop` says why there is none.

    Attributes:
        click: the click that was added; None for a mask made of a box alone, or given.
        prediction: the mask.
        rating: predicted IoU of `prediction`, 0..1; None if nobody rated it.
        turn: the annotator's answer that proposed the action; None if the mask was given.
        box: the box that the segmenter was given.
        rating_reply: the text in which the annotator rated `prediction`, if it was asked.
        restarted: whether this click replaced all earlier ones: a retry of a bad first click.
        seconds: time by stage. `annotate` (propose and rate) and `segment` add up to the step; the
            other stages are parts of them.
        stop: why the trajectory ends with this step; None if it goes on.
    """

    click: Click | None = None
    prediction: Prediction | None = None
    rating: float | None = None
    turn: Turn | None = None
    box: Box | None = None
    rating_reply: str | None = None
    restarted: bool = False
    seconds: Seconds = field(default_factory=dict)
    stop: Stop | None = None

    @property
    def given(self) -> bool:
        """Whether the mask is the one that the trajectory started from."""
        return self.prediction is not None and self.click is None and self.box is None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All steps for one expression, beginning with the mask that it started from, if any."""

    expression: str
    steps: tuple[Step, ...]

    @property
    def stop(self) -> Stop | None:
        """Why it ended."""
        return self.steps[-1].stop if self.steps else None

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Every click, including those that a restart discarded."""
        return tuple(step.click for step in self.steps if step.click is not None)

    @property
    def masks(self) -> tuple[Step, ...]:
        """The steps that have a mask."""
        return tuple(step for step in self.steps if step.prediction is not None)

    @property
    def one_shot(self) -> Step | None:
        """The step of the first mask that was segmented: the result without a loop."""
        return next((step for step in self.masks if not step.given), None)

    @property
    def best(self) -> Step | None:
        """The step whose mask is returned: the best-rated one, the earliest of equals.

        The last one if it was accepted unrated, or if no mask is rated; None if there is no mask
        (SegAgent, algorithm 2, with the last mask rated too).
        """
        if self.stop == "accepted unrated":
            return self.steps[-1]
        rated = [step for step in self.masks if step.rating is not None]
        if rated:
            return max(rated, key=lambda step: step.rating or 0.0)
        return self.masks[-1] if self.masks else None

    @property
    def further_boxes(self) -> tuple[Box, ...]:
        """The boxes of other objects that the first look listed; this trajectory is about one."""
        turn = self.steps[0].turn if self.steps else None
        boxes = () if turn is None else turn.boxes
        return boxes[1:] if boxes and self.steps[0].box == boxes[0] else ()

    @property
    def prediction(self) -> Prediction | None:
        """The mask to return."""
        return None if self.best is None else self.best.prediction

    @property
    def rating(self) -> float | None:
        """The annotator's rating of the returned mask, 0..1."""
        return None if self.best is None else self.best.rating


@dataclass(frozen=True, slots=True)
class ObjectPrompt:
    """What says which object is meant: an expression, or clicks and a box.

    Attributes:
        expression: the object in words. Beside clicks or a box it only names the object.
        clicks: in pixels of the image; the annotator is not asked.
        box: in pixels of the image; the annotator is not asked.
    """

    expression: str = ""
    clicks: tuple[Click, ...] = ()
    box: Box | None = None

    @property
    def by_hand(self) -> bool:
        """Whether the object is shown by clicks or a box."""
        return bool(self.clicks) or self.box is not None


@dataclass(frozen=True, slots=True)
class AnnotationItem:
    """An image and the objects to segment in it.

    Attributes:
        image: a path, or whatever else `load_image` takes.
        prompts: what says which objects are meant.
    """

    image: Any
    prompts: tuple[ObjectPrompt, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What an annotator is shown: the expression, and the mask painted over the image.

    No prediction means no mask yet.
    """

    prediction: Prediction | None
    expression: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        count: answers to each request.
        temperature: 0 takes the most likely answer; above it, answers are sampled with `rng`.
    """

    count: int = 1
    temperature: float = 0.0
    rng: np.random.Generator | None = None


GREEDY = Sampling()


class View(Protocol):
    """One image as an annotator sees it; it keeps whatever its requests have in common."""

    def propose(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[list[Turn]]:
        """Ask for the next action.

        Args:
            requests: the masks to look at.
            sampling: how many answers to each, and how they are drawn.

        Returns:
            `sampling.count` turns for each request.
        """

    def rate(self, requests: Sequence[Request]) -> list[Rating]:
        """Rate each request's mask, without a next action.

        If `propose` follows, it continues from the cached rating, so no mask is looked at twice.
        """


class Annotator(Protocol):
    """Whoever chooses the next action: an MLLM, a server, a script, an oracle."""

    def check(self, expression: str) -> str:
        """The expression in the form that the annotator takes.

        Raises:
            ExpressionRefused: it cannot take it.
        """

    def look(self, image: RgbImage) -> View:
        """Take an image in, once for all expressions about it.

        Args:
            image: uint8 [H, W, 3] RGB.

        Returns:
            What proposes actions about this image, in its pixels.
        """


class Embedding(Protocol):
    """What a segmenter keeps of an image. Immutable; trajectories and threads may share it."""

    @property
    def size(self) -> Size:
        """Height and width of the image in pixels."""


class Segmenter(Protocol):
    """Encodes an image once and turns clicks into masks."""

    def encode(self, image: RgbImage) -> Embedding:
        """Encode an image, once for all clicks into it.

        Args:
            image: uint8 [H, W, 3] RGB.
        """

    def decode(
        self,
        embedding: Any,
        clicks: Sequence[Click],
        *,
        prior: Prediction | None = None,
        box: Box | None = None,
    ) -> Prediction:
        """Segment.

        Args:
            embedding: what `encode` returned.
            clicks: all clicks so far, in pixels of the image; may be empty if there is a box.
            prior: the mask before the last click.
            box: a box prompt, in pixels of the image.

        Returns:
            The mask for all of them.
        """


class DeviceTensor(Protocol):
    """An array that stays where a backend put it: a GPU, or a buffer that is reused."""

    def numpy(self) -> Array:
        """Its content, copied to the host if it is elsewhere."""


Feed: TypeAlias = Array | DeviceTensor
Feeds: TypeAlias = Mapping[str, Feed]
Buffers: TypeAlias = Mapping[str, DeviceTensor]
Names: TypeAlias = Sequence[str]
"""Inputs, device tensors, and names of inputs and outputs of a graph."""


class Session(Protocol):
    """A loaded graph."""

    @property
    def inputs(self) -> Names:
        """Names of the graph's inputs."""

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        """Run the graph.

        Args:
            feeds: every input by name.
            outputs: names of the outputs wanted.
            into: further outputs, written into these buffers.
            keep: outputs that are to stay where they are and come back as `DeviceTensor`.
        """

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceTensor:
        """A zeroed buffer that inputs and outputs may be bound to."""

    def close(self) -> None:
        """Release the graph. Closing twice does no harm."""
