"""What the HTTP API takes and gives, as pydantic models: they check requests and make the docs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segagent_rt.serve.mask_formats import MaskFormat
from segagent_rt.serve.service import RunSettings
from segagent_rt.types import Box, Click, ObjectPrompt

Pixel = Annotated[int, Field(ge=0, le=1 << 24)]
Words = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(max_length=255)]


class ApiModel(BaseModel):
    """Unknown fields are refused: a misspelt one would have no effect."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ClickBody(ApiModel):
    """A click, in pixels of the image."""

    x: Pixel
    y: Pixel
    positive: bool = True

    def click(self) -> Click:
        """As the library has it."""
        return Click(self.x, self.y, positive=self.positive)


class BoxBody(ApiModel):
    """A box from its first to its last column and row, in pixels of the image."""

    x0: Pixel
    y0: Pixel
    x1: Pixel
    y1: Pixel

    def box(self) -> Box:
        """As the library has it."""
        return Box(self.x0, self.y0, self.x1, self.y1)


class RunBody(ApiModel):
    """How a model's run goes."""

    max_clicks: Annotated[int, Field(ge=1, le=20)] = 7
    candidates: Annotated[int, Field(ge=1, le=8)] = 1
    seconds: Annotated[float, Field(ge=0.01, le=3600)] | None = None

    def settings(self) -> RunSettings:
        """As the service has it."""
        return RunSettings(self.max_clicks, self.candidates)


class PromptBody(ApiModel):
    """What says which object is meant: an expression; or clicks, a box or both."""

    expression: Words = ""
    clicks: Annotated[list[ClickBody], Field(max_length=100)] = []
    box: BoxBody | None = None
    run: RunBody = Field(default_factory=RunBody)

    def prompt(self) -> ObjectPrompt:
        """As the library has it."""
        clicks = tuple(each.click() for each in self.clicks)
        return ObjectPrompt(self.expression, clicks, self.box.box() if self.box else None)


class RleBody(ApiModel):
    """COCO's run lengths, compressed or as a list."""

    size: tuple[Pixel, Pixel]
    counts: str | Annotated[list[Pixel], Field(max_length=4_000_000)]


class SegmentBody(PromptBody):
    """All that a stateless request needs. `image` and a PNG `mask` are base64 or data URLs."""

    image: str
    bundle: Name | None = None
    mask: RleBody | str | None = None
    format: MaskFormat = "png"


class OpenBody(ApiModel):
    """An image to open: its content, in base64 or as a data URL, or a path on the server."""

    image: str | None = None
    path: Annotated[str, Field(max_length=4096)] | None = None
    bundle: Name | None = None
    name: Name = "image"


class FromState(ApiModel):
    """`state` is the `undoable` of the answer that the client acts on; the current one if left out.

    While the model works the client may see a mask that is no longer the last one.
    """

    state: Annotated[int, Field(ge=0, le=1 << 20)] | None = None


class ClicksBody(FromState):
    """Clicks to add."""

    clicks: Annotated[list[ClickBody], Field(min_length=1, max_length=100)]


class CountBody(FromState):
    """How many states to go back or forward."""

    count: Annotated[int, Field(ge=1, le=1000)] = 1


class RefineBody(ApiModel):
    """A further run of the model."""

    expression: Words | None = None
    run: RunBody = Field(default_factory=RunBody)


class ScoreBody(ApiModel):
    """What a mask should cover; the object's own expression if left out."""

    expression: Words | None = None


class StepAnswer(BaseModel):
    """One step of an object."""

    by: Literal["model", "person"]
    click: ClickBody | None
    box: BoxBody | None
    rating: float | None
    reply: str | None
    problem: str | None
    restarted: bool
    has_mask: bool
    seconds: dict[str, float]


class MaskAnswer(BaseModel):
    """A mask. `value` is a data URL, run lengths or polygons, as `format` says."""

    format: MaskFormat
    value: Any


class ObjectAnswer(BaseModel):
    """An object as it is."""

    object: int
    expression: str
    steps: list[StepAnswer]
    shown: int | None
    rating: float | None
    estimate: float | None
    stop: str | None
    pixels: int | None
    bounds: BoxBody | None
    undoable: int
    redoable: int
    mask: MaskAnswer | None


class ImageAnswer(BaseModel):
    """An open image."""

    image: str
    name: str
    bundle: str
    height: int
    width: int
    seconds: dict[str, float]
    objects: list[ObjectAnswer]


class ScoreAnswer(BaseModel):
    """Predicted IoU, 0 to 1; null if the model does not rate masks."""

    rating: float | None


class ErrorAnswer(BaseModel):
    """Why a request failed, and what to do."""

    error: str
    hint: str | None = None
