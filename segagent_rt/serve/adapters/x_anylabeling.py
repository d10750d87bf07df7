"""X-AnyLabeling's remote server: `GET /v1/models` and `POST /v1/predict`.

In X-AnyLabeling, choose `Remote-Server` and set its `server_url` to this server. The contract is
that of X-AnyLabeling-Server (docs/router.md and app/schemas there). Points of shapes are pixels of
the image, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from segagent_rt.data.record import corners
from segagent_rt.errors import InputError
from segagent_rt.serve.adapters.known_images import KnownImages, box_at, click_at, score_of
from segagent_rt.serve.bundle_card import takes_words
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.image_content import decode_base64
from segagent_rt.serve.image_routes import ERRORS
from segagent_rt.serve.job_runner import JobRunner
from segagent_rt.serve.mask_formats import mask_to_polygons
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.types import Mask, ObjectPrompt, Size

BOXES = "-boxes"
"""Ends the name of a model that answers with rectangles instead of polygons."""

OBJECT = "AUTOLABEL_OBJECT"
"""The label of an object that was shown by hand; X-AnyLabeling asks for its class."""

BY_WORDS = ("edit_text", "button_send")
BY_HAND = (
    "button_add_point", "button_remove_point", "button_add_rect", "button_clear",
    "button_finish_object", "mask_fineness_slider", "mask_fineness_value_label",
)  # fmt: skip
"""Names of X-AnyLabeling's widgets, by what a bundle takes."""

Number = Annotated[float, Field(ge=-1e7, le=1e7, allow_inf_nan=False)]


class Mark(BaseModel):
    """A point or a rectangle; `label` 1 belongs to the object, 0 does not."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["point", "rectangle"]
    data: Annotated[list[Number], Field(min_length=2, max_length=4)]
    label: Annotated[int, Field(ge=0, le=1)] = 1


class Params(BaseModel):
    """What X-AnyLabeling sends beside the image; the rest is about other models."""

    model_config = ConfigDict(extra="ignore")
    text_prompt: Annotated[str, Field(max_length=2000)] = ""
    marks: Annotated[list[Mark], Field(max_length=200)] = []
    conf_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    epsilon_factor: Annotated[float, Field(ge=0, le=1)] = 0.001


class PredictBody(BaseModel):
    """A request of X-AnyLabeling."""

    model_config = ConfigDict(extra="ignore")
    model: Annotated[str, Field(max_length=255)]
    image: str
    params: Params = Params()


def x_anylabeling_router(runner: JobRunner) -> APIRouter:
    """The routes for X-AnyLabeling.

    Args:
        runner: of the service.
    """
    router = APIRouter(prefix="/v1", responses=ERRORS, tags=["X-AnyLabeling"])
    images = KnownImages(runner.service)

    @router.get("/models", summary="Models, as X-AnyLabeling lists them")
    async def models() -> dict[str, Any]:
        return {"success": True, "data": dict(_models(images))}

    @router.post("/predict", summary="Segment, as X-AnyLabeling asks", response_class=JSONResponse)
    async def predict(request: Request, body: PredictBody) -> Response:
        def work(job: Job) -> Response:
            shapes = list(_predict(images, job, body))
            return JSONResponse({"success": True, "data": {"shapes": shapes, "description": ""}})

        return await runner.run(request, work)

    return router


def _models(images: KnownImages) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, runtime in images.service.bundles.items():
        words = takes_words(runtime)
        names = (*(BY_WORDS if words else ()), *BY_HAND, "toggle_preserve_existing_annotations")
        values = {"mask_fineness_slider": 10, "toggle_preserve_existing_annotations": False}
        about: dict[str, Any] = {
            "widgets": [{"name": each, "value": values.get(each)} for each in names],
            "batch_processing_mode": "text_prompt" if words else None,
            "params": {},
        }
        yield name, {"display_name": f"segagent-rt {name}", **about}
        yield f"{name}{BOXES}", {"display_name": f"segagent-rt {name}, rectangles", **about}


def _predict(images: KnownImages, job: Job, body: PredictBody) -> Iterator[dict[str, Any]]:
    """The shapes of all objects that are asked for."""
    bundle, boxes = body.model, False
    if bundle not in images.service.bundles and bundle.endswith(BOXES):
        bundle, boxes = bundle.removesuffix(BOXES), True
    images.service.runtime(bundle)
    image = images.open(job, decode_base64(body.image, "the image"), bundle)
    height, width = image.canvas.image.shape[:2]
    for number, prompt in enumerate(prompts_of(body.params, (height, width)), 1):
        state = images.segment(job, image, prompt)
        mask = None if state.prediction is None else state.prediction.mask()
        score = score_of(state)
        if mask is None or not mask.any():
            continue
        if score is not None and score < body.params.conf_threshold:
            continue
        outlines = [] if boxes else polygons(mask, body.params.epsilon_factor)
        for points in outlines or [_rectangle(mask)]:
            yield {
                "label": prompt.expression or OBJECT,
                "shape_type": "polygon" if outlines else "rectangle",
                "points": points,
                "score": score,
                "description": _description(state),
                "group_id": number if len(outlines) > 1 else None,
                "attributes": {},
                "difficult": False,
                "direction": 0,
                "flags": None,
                "kie_linking": [],
            }


def prompts_of(params: Params, size: Size) -> list[ObjectPrompt]:
    """What objects are meant.

    Marks go before text. Points are about one object, with the last rectangle around it.
    Rectangles without a point are an object each. Commas separate expressions.

    Args:
        params: of the request.
        size: of the image, height and width.

    Raises:
        InputError: a rectangle is negative, which no segmenter here takes.
    """
    points = [each for each in params.marks if each.type == "point"]
    rectangles = [each for each in params.marks if each.type == "rectangle" and len(each.data) == 4]
    if any(not each.label for each in rectangles):
        raise InputError("negative rectangles are not taken", hint="use negative points")
    boxes = [box_at(each.data, size) for each in rectangles]
    if points:
        clicks = tuple(
            click_at(each.data[0], each.data[1], size, positive=each.label == 1) for each in points
        )
        return [ObjectPrompt("", clicks, boxes[-1] if boxes else None)]
    if boxes:
        return [ObjectPrompt(box=box) for box in boxes]
    texts = [text.strip() for text in params.text_prompt.split(",")]
    return [ObjectPrompt(text) for text in dict.fromkeys(texts) if text]


def polygons(mask: Mask, fineness: float) -> list[list[list[float]]]:
    """Outlines of the parts of a mask, each closed by its first point.

    Args:
        mask: bool [H, W].
        fineness: how far an outline may be from the mask's, as a share of its length; but never
            more than one pixel.
    """
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    longest = max((cv2.arcLength(each, True) for each in contours), default=0.0)
    outlines = mask_to_polygons(mask, min(fineness * longest, 1.0))
    return [[*points, points[0]] for points in outlines]


def _rectangle(mask: Mask) -> list[list[float]]:
    """The corners of the bounding box, clockwise from the first pixel."""
    box = corners(mask)
    return [
        [float(x), float(y)]
        for x, y in ((box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1))
    ]


def _description(state: ObjectState) -> str:
    """How the mask came about, in a line."""
    clicks = sum(step.click is not None for step in state.steps)
    stop = state.steps[-1].stop if state.steps else None
    parts = [f"{clicks} click{'' if clicks == 1 else 's'}", *([] if stop is None else [stop])]
    return ", ".join(parts)
