"""The API of open images: open one, segment objects in it by words and by hand, fetch masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from segagent_rt.draw import png
from segagent_rt.errors import InputError
from segagent_rt.result_pictures import cutout
from segagent_rt.serve import schemas
from segagent_rt.serve.answers import image_answer, image_coco, image_document, object_answer
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.direct_route import DirectRoute, is_json, parse_body
from segagent_rt.serve.image_content import decode_base64, mask_of_picture, mask_of_rle
from segagent_rt.serve.job_runner import JobRunner
from segagent_rt.serve.mask_formats import MaskFormat
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.serve.open_images import OpenImage
from segagent_rt.serve.service import shown_mask
from segagent_rt.types import Prediction, RgbImage

Responses: TypeAlias = dict[int | str, dict[str, Any]]
"""Answers of an operation by status, as FastAPI documents them."""

ImageId = Annotated[str, Path(max_length=64)]
Number = Annotated[int, Path(ge=1, le=1 << 31, description="The object's number.")]
Form = Annotated[MaskFormat, Query(description="How masks come: see the schema of the answer.")]

STREAM = "text/event-stream"
DISPLAY_QUALITY = 90
"""Of the JPEG that browsers are shown of an image that they cannot show themselves."""

ERRORS: Responses = {
    status: {"model": schemas.ErrorAnswer, "description": about}
    for status, about in {
        400: "The request is no valid HTTP or JSON.",
        401: "The token is missing or wrong.",
        403: "The request comes from a page of another site.",
        404: "There is no such image, object or bundle, or no longer.",
        408: "The request did not arrive in time.",
        413: "The request is too large.",
        421: "The request was sent to a name that is not this server's.",
        422: "The request cannot be done; the answer says why.",
        429: "Too many requests from this address.",
        502: "The server that runs the language model failed.",
        503: "Too much is waiting; `Retry-After` says when to try again.",
    }.items()
}

_OPENING = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/OpenBody"}},
        },
    }
}


def _one(model: type[BaseModel]) -> Responses:
    return {200: {"model": model}}


_STEPS: Responses = {
    200: {
        "model": schemas.ObjectAnswer,
        "description": "The object. With `Accept: text/event-stream`, server-sent events: `step` "
        "with the object after each step, then `done`, or `error`.",
        "content": {STREAM: {"schema": {"type": "string"}}},
    }
}
_ANY: Responses = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}


class PngAnswer(Response):
    """A PNG file."""

    media_type = "image/png"


class JpegAnswer(Response):
    """A JPEG file."""

    media_type = "image/jpeg"


def _binary(kind: type[Response]) -> Responses:
    return {200: {"content": {kind.media_type: {"schema": {"type": "string", "format": "binary"}}}}}


@dataclass(frozen=True, slots=True)
class Route:
    """An operation of the API, as it is documented."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    summary: str
    responses: Responses = field(default_factory=dict)
    extra: dict[str, Any] | None = None

    def add_to(self, router: APIRouter) -> None:
        """Add it to a router."""
        deletes = self.method == "DELETE"
        router.add_api_route(
            self.path,
            self.endpoint,
            methods=[self.method],
            responses=self.responses,
            summary=self.summary,
            openapi_extra=self.extra,
            response_model=None,
            status_code=204 if deletes else 200,
            response_class=Response if deletes else JSONResponse,
        )


class ImageRoutes:
    """The routes below `/v1/images`, and `/v1/segment`.

    Args:
        runner: of the service.
    """

    def __init__(self, runner: JobRunner) -> None:
        self._runner, self._service = runner, runner.service

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(prefix="/v1", responses=ERRORS, tags=["images"], route_class=DirectRoute)
        one, number = "/images/{image}", "/images/{image}/objects/{number}"
        image, state = _one(schemas.ImageAnswer), _one(schemas.ObjectAnswer)
        rating = _one(schemas.ScoreAnswer)
        for route in (
            # Routes are tried in this order: those of a click come first.
            Route("POST", f"{number}/clicks", self.click, "Add clicks", state),
            Route("POST", f"{one}/objects", self.add_object, "Segment a new object", _STEPS),
            Route("POST", f"{number}/undo", self.undo, "Undo steps", state),
            Route("POST", "/images", self.open_image, "Open an image", image, extra=_OPENING),
            Route("GET", one, self.show_image, "Show an open image", image),
            Route("DELETE", one, self.close_image, "Close an image"),
            Route("GET", f"{one}/picture", self.show_picture, "The picture", _binary(JpegAnswer)),
            Route("GET", f"{one}/results", self.show_results, "All objects as results", _ANY),
            Route("GET", f"{one}/coco", self.show_coco, "All objects in COCO's format", _ANY),
            Route("GET", number, self.show_object, "Show an object", state),
            Route("DELETE", number, self.delete_object, "Delete an object"),
            Route("POST", f"{number}/box", self.box, "Start anew from a box", state),
            Route("POST", f"{number}/redo", self.redo, "Redo steps", state),
            Route("POST", f"{number}/refine", self.refine, "Let the model correct it", _STEPS),
            Route("POST", f"{number}/score", self.score, "Let the model rate it", rating),
            Route("GET", f"{number}/mask", self.show_mask, "The mask", _binary(PngAnswer)),
            Route("GET", f"{number}/cutout", self.show_cutout, "The cut-out", _binary(PngAnswer)),
            Route("POST", "/segment", self.segment_once, "Segment in one request", state),
        ):
            route.add_to(router)
        return router

    async def open_image(
        self,
        request: Request,
        bundle: Annotated[str | None, Query(max_length=255)] = None,
        name: Annotated[str, Query(max_length=255)] = "image",
    ) -> Response:
        """The body is the picture itself (JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, PPM), or JSON.

        The image is encoded once; every click after that is quick. It is closed when nobody uses it
        for a while, or when memory is short.
        """
        content = await request.body()
        if not is_json(request):
            if not content:
                raise InputError("the request has no body", hint="send a picture, or JSON")
            made = await self._runner.run(
                request,
                lambda job: self._service.open_image(job, content, bundle=bundle, name=name),
            )
            return JSONResponse(image_answer(made))
        body = parse_body(content, schemas.OpenBody)
        made = await self._runner.run(request, lambda job: self._open(job, body))
        return JSONResponse(image_answer(made))

    def _open(self, job: Job, body: schemas.OpenBody) -> OpenImage:
        if (body.image is None) == (body.path is None):
            raise InputError("give either an image or a path", hint="`image` or `path`")
        if body.path is not None:
            return self._service.open_path(job, body.path, bundle=body.bundle)
        content = decode_base64(body.image or "", "the image")
        return self._service.open_image(job, content, bundle=body.bundle, name=body.name)

    async def show_image(self, request: Request, image: ImageId, mask: Form = "none") -> Response:
        """Its size, and all its objects."""
        return await self._answer(
            request, lambda: JSONResponse(image_answer(self._service.images.get(image), mask))
        )

    async def close_image(self, image: ImageId) -> Response:
        """Its objects go with it."""
        self._service.close_image(image)
        return Response(status_code=204)

    async def show_picture(self, request: Request, image: ImageId) -> Response:
        """A JPEG, upright, at full size."""
        return await self._answer(
            request,
            lambda: Response(
                _jpeg(self._service.images.get(image).canvas.image), 200, None, "image/jpeg"
            ),
        )

    async def show_results(self, request: Request, image: ImageId) -> Response:
        """The document that `segagent-rt run` writes, with who made each step."""
        return await self._answer(
            request, lambda: JSONResponse(image_document(self._service.images.get(image)))
        )

    async def show_coco(self, request: Request, image: ImageId) -> Response:
        """One annotation for each object that has a mask."""
        return await self._answer(
            request, lambda: JSONResponse(image_coco(self._service.images.get(image)))
        )

    async def add_object(
        self, request: Request, image: ImageId, body: schemas.PromptBody, mask: Form = "png"
    ) -> Response:
        """By clicks or a box; or by an expression, and then the model works step by step."""
        prompt = body.prompt()
        if not prompt.by_hand:
            return await self._steps(
                request,
                body.run,
                lambda job: self._service.segment(
                    job, image, body.expression, settings=body.run.settings()
                ),
                mask,
            )

        def work(job: Job) -> ObjectState:
            number, state = None, None
            if prompt.box is not None:
                state = self._service.box(
                    job, image, None, prompt.box, expression=prompt.expression
                )
                number = state.number
            if prompt.clicks:
                state = self._service.click(
                    job, image, number, prompt.clicks, expression=prompt.expression
                )
            assert state is not None
            return state

        return await self._object(request, work, mask)

    async def show_object(
        self, request: Request, image: ImageId, number: Number, mask: Form = "png"
    ) -> Response:
        """As it is now."""
        return await self._answer(
            request, lambda: JSONResponse(object_answer(self._service.state(image, number), mask))
        )

    async def delete_object(self, image: ImageId, number: Number) -> Response:
        """The numbers of the others stay."""
        await self._runner.in_thread(lambda: self._service.remove_object(image, number))
        return Response(status_code=204)

    async def click(
        self,
        request: Request,
        image: ImageId,
        number: Number,
        body: schemas.ClicksBody,
        mask: Form = "png",
    ) -> Response:
        """The mask that is shown is corrected. A run of the model on this object ends."""
        clicks = [each.click() for each in body.clicks]
        return await self._object(
            request,
            lambda job: self._service.click(job, image, number, clicks, state=body.state),
            mask,
        )

    async def box(
        self,
        request: Request,
        image: ImageId,
        number: Number,
        body: schemas.BoxBody,
        mask: Form = "png",
    ) -> Response:
        """Earlier clicks no longer count. A run of the model on this object ends."""
        return await self._object(
            request, lambda job: self._service.box(job, image, number, body.box()), mask
        )

    async def undo(
        self, image: ImageId, number: Number, body: schemas.CountBody, mask: Form = "png"
    ) -> Response:
        """Steps of the model and of a person alike. A run of the model on this object ends."""
        return await self._moved(image, number, body.count, body, mask)

    async def redo(
        self, image: ImageId, number: Number, body: schemas.CountBody, mask: Form = "png"
    ) -> Response:
        """What was undone, until something new is done."""
        return await self._moved(image, number, -body.count, body, mask)

    async def refine(
        self,
        request: Request,
        image: ImageId,
        number: Number,
        body: schemas.RefineBody,
        mask: Form = "png",
    ) -> Response:
        """From the mask that is shown; it stays if no click makes one that is rated higher."""
        return await self._steps(
            request,
            body.run,
            lambda job: self._service.refine(
                job, image, number, body.expression, settings=body.run.settings()
            ),
            mask,
        )

    async def score(
        self, request: Request, image: ImageId, number: Number, body: schemas.ScoreBody
    ) -> Response:
        """How well the mask that is shown fits an expression."""
        rating = await self._runner.run(
            request, lambda job: self._service.score(job, image, number, body.expression)
        )
        return JSONResponse({"rating": None if rating is None else round(rating, 4)})

    async def show_mask(self, request: Request, image: ImageId, number: Number) -> Response:
        """White on black, of the image's size."""
        return await self._answer(
            request, lambda: PngAnswer(png(shown_mask(self._service.state(image, number)).mask()))
        )

    async def show_cutout(self, request: Request, image: ImageId, number: Number) -> Response:
        """Cropped to the object; the rest is transparent."""

        def work() -> Response:
            pixels = self._service.images.get(image).canvas.image
            mask = shown_mask(self._service.state(image, number)).mask()
            if not mask.any():
                raise InputError("the mask is empty", hint="click the object first")
            return PngAnswer(png(cutout(pixels, mask)))

        return await self._answer(request, work)

    async def segment_once(self, request: Request, body: schemas.SegmentBody) -> Response:
        """Image, prompt and previous mask in one request; nothing is kept."""

        def work(job: Job) -> Response:
            content = decode_base64(body.image, "the image")
            _, state = self._service.segment_once(
                job,
                content,
                body.prompt(),
                bundle=body.bundle,
                prior=prior_of(body.mask, self._service.limits.megapixels),
                settings=body.run.settings(),
            )
            return JSONResponse(object_answer(state, body.format))

        return await self._runner.run(request, work, seconds=body.run.seconds)

    async def _moved(
        self, image: str, number: int, back: int, body: schemas.FromState, form: MaskFormat
    ) -> Response:
        def work() -> Response:
            state = self._service.undo(image, number, back, state=body.state)
            return JSONResponse(object_answer(state, form))

        return await self._runner.in_thread(work)

    async def _answer(self, request: Request, work: Callable[[], Response]) -> Response:
        """What takes a while to encode waits for its turn, too."""
        return await self._runner.run(request, lambda job: job.run(work))

    async def _object(
        self, request: Request, work: Callable[[Job], ObjectState], form: MaskFormat
    ) -> Response:
        return await self._runner.run(
            request, lambda job: JSONResponse(object_answer(work(job), form))
        )

    async def _steps(
        self, request: Request, run: schemas.RunBody, work: Callable[[Job], Any], form: MaskFormat
    ) -> Response:
        """The states of a model's run: each as an event, or the last one as JSON."""
        if STREAM in request.headers.get("accept", ""):
            return await self._runner.stream(
                work, lambda state: object_answer(state, form), seconds=run.seconds
            )

        def last(job: Job) -> Response:
            *_, state = work(job)
            return JSONResponse(object_answer(state, form))

        return await self._runner.run(request, last, seconds=run.seconds)


def prior_of(mask: schemas.RleBody | str | None, megapixels: float) -> Prediction | None:
    """The mask that a request starts from.

    Args:
        mask: run lengths, or a picture in base64 or as a data URL; None if there is none.
        megapixels: the most that it may have.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    if mask is None:
        return None
    if isinstance(mask, str):
        return mask_of_picture(mask, megapixels)
    return mask_of_rle(mask.size, mask.counts, megapixels)


def _jpeg(pixels: RgbImage) -> bytes:
    import cv2

    quality = [cv2.IMWRITE_JPEG_QUALITY, DISPLAY_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
