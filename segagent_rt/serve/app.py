"""The web application: guard, API, page, health and metrics around one service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from segagent_rt import __version__
from segagent_rt.errors import (
    AnnotatorError,
    InputError,
    Interrupted,
    NotOpen,
    RuntimeClosed,
    SegagentError,
    ServerBusy,
)
from segagent_rt.serve.direct_route import DirectRoute, DirectRoutes, first_problem
from segagent_rt.serve.guard import LOG, MISTAKE, App, Guard, error_place
from segagent_rt.serve.image_routes import ImageRoutes
from segagent_rt.serve.job_runner import JobRunner
from segagent_rt.serve.metrics import Metrics
from segagent_rt.serve.process_memory import return_memory_regularly
from segagent_rt.serve.server_settings import ServerSettings
from segagent_rt.serve.service import SegmentationService
from segagent_rt.serve.site import site_router

STATUSES: tuple[tuple[type[SegagentError], int], ...] = (
    (ServerBusy, 503),
    (Interrupted, 503),
    (RuntimeClosed, 503),
    (NotOpen, 404),
    (InputError, 422),
    (AnnotatorError, 502),
)

MakeRouter = Callable[[JobRunner], APIRouter]
"""An adapter for an annotation tool: routes over the same service."""


def create_app(
    service: SegmentationService,
    settings: ServerSettings,
    metrics: Metrics | None = None,
    *,
    adapters: Sequence[MakeRouter] = (),
) -> App:
    """The application, with everything that checks requests around it.

    Args:
        service: what is served; it is closed when the application ends.
        settings: whom to answer.
        metrics: counters that the service was given, too.
        adapters: further routes.
    """
    counters = metrics or Metrics({})
    runner = JobRunner(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keeper = asyncio.create_task(return_memory_regularly(lambda: service.queue.admitted))
        yield
        keeper.cancel()
        runner.close()
        service.close()

    api = FastAPI(
        title="segagent-rt",
        version=__version__,
        summary="Say what you want cut out; get the mask.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for kind in (SegagentError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, answer_error)
    images = ImageRoutes(runner).router()
    api.include_router(images)
    api.include_router(_about(service, counters))
    api.include_router(site_router(service))
    for make in adapters:
        api.include_router(make(runner))
    direct = [route for route in images.routes if isinstance(route, DirectRoute)]
    return Guard(DirectRoutes(api, direct, answer_error), settings, counters)


def service_metrics(find: Callable[[], SegmentationService]) -> Metrics:
    """Counters for a service that is made after them.

    Args:
        find: gives the service.
    """
    return Metrics(
        {
            "segagent_admitted_requests": lambda: find().queue.load,
            "segagent_open_images": lambda: find().images.count,
            "segagent_open_image_bytes": lambda: find().images.bytes,
        }
    )


def _about(service: SegmentationService, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/health", summary="Whether the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @router.get("/ready", summary="Whether the server takes further requests")
    async def ready() -> Response:
        limits = service.limits
        full = service.queue.load >= limits.workers + limits.waiting
        return JSONResponse({"ready": not full}, 503 if full else 200)

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        service.images.expire()
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @router.get("/v1/bundles", summary="Loaded bundles: what they take and are for")
    async def bundles() -> list[dict[str, Any]]:
        return service.cards

    return router


async def answer_error(request: Request, error: Exception) -> Response:
    """Any error as `{"error": ..., "hint": ...}`, without what the client sent."""
    if isinstance(error, RequestValidationError):
        return _error(422, first_problem(error.errors()))
    if isinstance(error, HTTPException):
        return _error(error.status_code, str(error.detail), headers=error.headers)
    status = next((code for kind, code in STATUSES if isinstance(error, kind)), 500)
    if not isinstance(error, SegagentError) or status == 500:
        LOG.error("%s failed: %s", request.method, error_place(error))
        return _error(500, MISTAKE)
    wait = error.retry_after if isinstance(error, ServerBusy) else 1
    headers = {"Retry-After": str(wait)} if status == 503 else None
    return _error(status, str(error), error.hint, headers)


def _error(status: int, message: str, hint: str | None = None, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": message, "hint": hint}, status, headers=headers)
