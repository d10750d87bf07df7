"""Label Studio's ML backend: `/health`, `/setup`, `/predict` and `/webhook`.

Add this server's address as a model of the project. Smart key points are clicks (a negative one is
placed with Alt), smart rectangles are boxes, and text areas are expressions. Without an interaction
every label of the interface is an expression. Positions in Label Studio are percent of the image.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import JSONResponse, Response

from segagent_rt.data.record import corners
from segagent_rt.errors import ExpressionRefused, InputError
from segagent_rt.serve.adapters.brush_rle import encode_brush
from segagent_rt.serve.adapters.known_images import (
    KnownImages,
    box_at,
    bundle_for,
    click_at,
    score_of,
)
from segagent_rt.serve.adapters.label_config import Control, LabelConfig, parse_label_config
from segagent_rt.serve.adapters.label_studio_media import LabelStudioMedia
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.image_routes import ERRORS
from segagent_rt.serve.job_runner import JobRunner
from segagent_rt.serve.mask_formats import mask_to_polygons
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.types import Box, Click, Mask, ObjectPrompt, Size

MOST_LABELS = 16
"""So many labels are tried as expressions, if nobody says what is meant."""

POLYGON_TOLERANCE = 0.8
"""How far a polygon may be from the mask's outline, in pixels."""

Item = dict[str, JsonValue]


class TaskBody(BaseModel):
    """A task; its data says where the image is."""

    model_config = ConfigDict(extra="ignore")
    data: Item


class ContextBody(BaseModel):
    """What a person did in the interface."""

    model_config = ConfigDict(extra="ignore")
    result: Annotated[list[Item], Field(max_length=1000)] = []


class ParamsBody(BaseModel):
    """Parameters of a request; only the context matters here."""

    model_config = ConfigDict(extra="ignore")
    context: ContextBody | None = None


class PredictTasksBody(BaseModel):
    """A request of Label Studio for predictions."""

    model_config = ConfigDict(extra="ignore")
    tasks: Annotated[list[TaskBody], Field(max_length=1000)]
    label_config: str
    params: ParamsBody | None = None


class SetupBody(BaseModel):
    """A request of Label Studio that tells of a project."""

    model_config = ConfigDict(extra="ignore")
    schema_: Annotated[str, Field(alias="schema")] = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """An object that is to be segmented, and the class that it gets."""

    prompt: ObjectPrompt
    label: str


def label_studio_router(runner: JobRunner, media: LabelStudioMedia | None = None) -> APIRouter:
    """The routes for Label Studio.

    Args:
        runner: of the service.
        media: where images of tasks come from; from the environment if left out.

    Raises:
        InputError: the environment is wrong.
    """
    router = APIRouter(responses=ERRORS, tags=["Label Studio"])
    backend = _Backend(KnownImages(runner.service), media or LabelStudioMedia.from_environment())

    @router.post("/setup", summary="A project of Label Studio uses this server")
    async def setup(body: SetupBody) -> dict[str, str]:
        if body.schema_:
            parse_label_config(body.schema_)
        return {"model_version": backend.version()}

    @router.post("/predict", summary="Predict, as Label Studio asks", response_class=JSONResponse)
    async def predict(request: Request, body: PredictTasksBody) -> Response:
        return await runner.run(request, lambda job: JSONResponse(backend.predict(job, body)))

    @router.post("/webhook", status_code=201, summary="Events of Label Studio; nothing follows")
    async def webhook() -> dict[str, str]:
        return {"status": "ignored: this model does not learn from annotations"}

    return router


class _Backend:
    """Answers for one service."""

    def __init__(self, images: KnownImages, media: LabelStudioMedia) -> None:
        self._images, self._media = images, media

    def version(self) -> str:
        """What Label Studio notes as the version of predictions."""
        names = (f"{n}-{r.bundle.digest}" for n, r in self._images.service.bundles.items())
        return f"segagent-rt {' '.join(names)}"

    def predict(self, job: Job, body: PredictTasksBody) -> dict[str, Any]:
        """The answer to a request: one prediction for each task."""
        config = parse_label_config(body.label_config)
        context = body.params.context.result if body.params and body.params.context else []
        results = [self._task(job, config, task.data, context) for task in body.tasks]
        return {"results": results, "model_version": self.version()}

    def _task(
        self, job: Job, config: LabelConfig, data: Mapping[str, Any], context: Sequence[Item]
    ) -> dict[str, Any]:
        place = data.get(config.image_key)
        if not isinstance(place, str):
            raise InputError(f"the task has no image under `{config.image_key}`")
        by_hand = any(each.get("type") in ("keypointlabels", "rectanglelabels") for each in context)
        bundle = bundle_for(self._images.service, by_hand=by_hand)
        image = self._images.open(job, self._media.read(self._images.service, place), bundle)
        height, width = image.canvas.image.shape[:2]
        results, scores = list[dict[str, Any]](), list[float]()
        for asked in wanted(config, data, context, (height, width)):
            try:
                state = self._images.segment(job, image, asked.prompt)
            except ExpressionRefused:
                if context:
                    raise
                continue  # a label that this model has no word for
            mask = None if state.prediction is None else state.prediction.mask()
            if mask is not None and mask.any():
                results += _results(mask, state, config.control, asked.label)
                scores.append(score_of(state) or 0.0)
        return {
            "result": results,
            "score": round(sum(scores) / len(scores), 4) if scores else 0.0,
            "model_version": self.version(),
        }


def wanted(
    config: LabelConfig, data: Mapping[str, Any], context: Sequence[Item], size: Size
) -> list[Asked]:
    """The objects that a request is about.

    Args:
        config: the labelling interface.
        data: of the task.
        context: what a person did: key points, rectangles, texts.
        size: of the image, height and width.

    Raises:
        InputError: an item of the context is not as Label Studio writes it.
    """
    clicks, box, text, label = list[Click](), None, "", ""
    for item in context:
        kind, value = str(item.get("type", "")), item.get("value")
        if not isinstance(value, dict):
            raise InputError("an item of the context has no value")
        label = _label(value, kind) or label
        if kind == "keypointlabels":
            x, y = (_pixels(value, *axis, size) for axis in (("x", 1), ("y", 0)))
            positive = bool(item.get("is_positive", 1))
            clicks.append(click_at(x, y, size, positive=positive))
        elif kind == "rectanglelabels":
            box = _box(value, size)
        elif kind == "textarea":
            text = _text(value.get("text"))
    labels = config.control.labels
    if clicks or box:
        return [Asked(ObjectPrompt("", tuple(clicks), box), label or _first(labels))]
    if not text and config.text_key is not None:
        text = _text(data.get(config.text_key))
    if text:
        named = next((each for each in labels if each.lower() == text.lower()), _first(labels))
        return [Asked(ObjectPrompt(text), label or named)]
    return [Asked(ObjectPrompt(each), each) for each in labels[:MOST_LABELS] if each.strip()]


def _results(
    mask: Mask, state: ObjectState, control: Control, label: str
) -> Iterator[dict[str, Any]]:
    """A mask as results of the control's kind; several if it has parts and is to be polygons."""
    height, width = mask.shape
    for value in _values(mask, control.kind):
        yield {
            "id": secrets.token_hex(5),
            "from_name": control.name,
            "to_name": control.image,
            "type": control.kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, control.kind: [label]},
            "score": score_of(state),
            "readonly": False,
        }


def _values(mask: Mask, kind: str) -> Iterator[dict[str, Any]]:
    height, width = mask.shape
    if kind == "brushlabels":
        yield {"format": "rle", "rle": encode_brush(mask)}
    elif kind == "polygonlabels":
        for points in mask_to_polygons(mask, POLYGON_TOLERANCE):
            percent = [[100 * (x + 0.5) / width, 100 * (y + 0.5) / height] for x, y in points]
            yield {"points": percent, "closed": True}
    else:
        box = corners(mask)
        yield {
            "x": 100 * box.x0 / width,
            "y": 100 * box.y0 / height,
            "width": 100 * (box.x1 - box.x0 + 1) / width,
            "height": 100 * (box.y1 - box.y0 + 1) / height,
            "rotation": 0,
        }


def _pixels(value: Mapping[str, Any], name: str, axis: int, size: Size) -> float:
    """A coordinate in pixels."""
    percent: Any = value.get(name)
    if type(percent) in (int, float) and -100 <= percent <= 200:  # which NaN is not
        return float(percent) * size[axis] / 100
    raise InputError(f"an item of the context has no percentage `{name}`")


def _box(value: Mapping[str, Any], size: Size) -> Box:
    x, width = (_pixels(value, name, 1, size) for name in ("x", "width"))
    y, height = (_pixels(value, name, 0, size) for name in ("y", "height"))
    return box_at((x, y, x + width, y + height), size)


def _label(value: Mapping[str, Any], kind: str) -> str:
    """The class that an item of the context has."""
    named = value.get(kind)
    return str(named[0]) if isinstance(named, list) and named else ""


def _text(value: object) -> str:
    """The text of a text area, which is a list in some versions."""
    if isinstance(value, list):
        value = value[-1] if value else ""
    return value.strip()[:2000] if isinstance(value, str) else ""


def _first(labels: Sequence[str]) -> str:
    return labels[0] if labels else "object"
