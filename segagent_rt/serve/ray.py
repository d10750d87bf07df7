"""`POST /v1/segment` on a Ray Serve cluster: replicas, autoscaling, and images that stay where they
were encoded.

    serve run segagent_rt.serve.ray:app bundles=photo max_replicas=4

A front takes HTTP requests and passes them to replicas, each of which holds the bundles. Requests
about one image go to the replica that has it encoded (Ray's multiplexing, by the image's SHA-256).
A request needs nothing but itself, so the front sends it again if its replica dies.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import ray.exceptions
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from segagent_rt.errors import NoMaskFound, SegagentError
from segagent_rt.serve.adapters.known_images import KnownImages
from segagent_rt.serve.answers import object_answer
from segagent_rt.serve.app import STATUSES
from segagent_rt.serve.bundles import load_bundles
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.direct_route import first_problem
from segagent_rt.serve.guard import RefusedRequest, check_request
from segagent_rt.serve.image_content import decode_base64
from segagent_rt.serve.image_routes import prior_of
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.serve.schemas import SegmentBody
from segagent_rt.serve.server_settings import ServerSettings, token_for
from segagent_rt.serve.service import SegmentationService

Outcome: TypeAlias = tuple[int, dict[str, Any]]
"""A status of HTTP, and the answer."""

TRIES = 4
"""So many replicas are tried, if one after the other dies."""

TRIED, REPLICA = "Segagent-Tries", "Segagent-Replica"
"""Headers of answers: how many replicas a request was sent to, and which one answered."""

IMAGES_PER_REPLICA = 64

LOST = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ConnectionError)
"""Errors of a request whose replica is gone."""


class RaySettings(BaseModel):
    """Arguments of the application; `serve run ... NAME=VALUE` sets them.

    Attributes:
        bundles: folders or names, separated by commas; the demo bundle and `photo` if empty.
        backend: what runs the graphs.
        threads: of the CPU, for each replica.
        cpus: that Ray reserves for a replica; as many as threads if it is 0.
        gpus: that Ray reserves for a replica.
        min_replicas: at least so many.
        max_replicas: at most so many.
        target_queue: requests per replica above which more replicas are started.
        waiting: requests that a replica takes beyond the one that it computes.
        names: names that this server is reached by, separated by commas.
        open_to_network: whether other machines reach it. A token is needed then.
    """

    model_config = ConfigDict(extra="forbid")
    bundles: str = ""
    backend: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    cpus: Annotated[float, Field(ge=0, le=1024)] = 0.0
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 4
    target_queue: Annotated[float, Field(gt=0, le=1000)] = 2.0
    waiting: Annotated[int, Field(ge=0, le=1000)] = 8
    names: str = ""
    open_to_network: bool = False


class SegmentReplica:
    """Holds the bundles and the images that it has encoded.

    Args:
        settings: of the application.
    """

    def __init__(self, settings: RaySettings) -> None:
        limits = ServeLimits(open_images=IMAGES_PER_REPLICA, waiting=settings.waiting)
        names = [name.strip() for name in settings.bundles.split(",") if name.strip()]
        loaded = load_bundles(names, settings.backend, settings.threads)
        self._images = KnownImages(SegmentationService(loaded, limits))

    async def segment(self, content: bytes) -> tuple[Outcome, str]:
        """Answer a request.

        Args:
            content: its body, see `SegmentBody`.

        Returns:
            The answer, and a name for this replica.
        """
        await self._hold(serve.get_multiplexed_model_id())
        answer = await asyncio.to_thread(self._segment, content)
        return answer, serve.get_replica_context().replica_id.unique_id

    @serve.multiplexed(max_num_models_per_replica=IMAGES_PER_REPLICA)  # type: ignore[untyped-decorator]
    async def _hold(self, digest: str) -> str:
        """Ray notes that this replica has the image, and sends further requests about it here."""
        return digest

    async def cards(self) -> list[dict[str, Any]]:
        """What people should know of each bundle."""
        return self._images.service.cards

    def _segment(self, content: bytes) -> Outcome:
        try:
            body = SegmentBody.model_validate_json(content)
            with self._images.service.admit(body.run.seconds) as job:
                return 200, object_answer(self._state(job, body), body.format)
        except ValidationError as error:
            return 422, {"error": first_problem(error.errors()), "hint": None}
        except SegagentError as error:
            status = next((code for kind, code in STATUSES if isinstance(error, kind)), 500)
            return status, {"error": str(error), "hint": error.hint}

    def _state(self, job: Job, body: SegmentBody) -> ObjectState:
        service, prompt = self._images.service, body.prompt()
        picture = decode_base64(body.image, "the image")
        settings = body.run.settings()
        if body.mask is not None:
            prior = prior_of(body.mask, service.limits.megapixels)
            return service.segment_once(
                job, picture, prompt, bundle=body.bundle, prior=prior, settings=settings
            )[1]
        image = self._images.open(job, picture, service.runtime(body.bundle)[0])
        if not (prompt.by_hand or prompt.expression):
            raise NoMaskFound("there is nothing to segment", hint="give words, clicks or a box")
        return self._images.segment(job, image, prompt, settings)


class SegmentFront:
    """Takes HTTP requests, and passes them to replicas.

    Args:
        replicas: a handle of the deployment of `SegmentReplica`.
        settings: whom to answer.
    """

    def __init__(self, replicas: Any, settings: ServerSettings) -> None:
        self._replicas, self._settings = replicas, settings

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            check_request(request.scope, self._settings)
            return await self._answer(request)
        except RefusedRequest as refused:
            return JSONResponse({"error": refused.message, "hint": refused.hint}, refused.status)

    async def _answer(self, request: Request) -> Response:
        route = request.method, request.url.path
        if route == ("GET", "/health"):
            return JSONResponse({"status": "ok"})
        if route == ("GET", "/v1/bundles"):
            return JSONResponse(await self._replicas.cards.remote())
        if route != ("POST", "/v1/segment"):
            raise RefusedRequest(404, "there is no such route", "POST /v1/segment")
        content = await self._body(request)
        return await self._ask(content)

    async def _body(self, request: Request) -> bytes:
        """The body, within the limit."""
        most, content = self._settings.limits.upload_bytes, bytearray()
        async for block in request.stream():
            content += block
            if len(content) > most:
                raise RefusedRequest(413, f"at most {most / 1e6:.0f} MB are taken")
        return bytes(content)

    async def _ask(self, content: bytes) -> Response:
        """Send a request to a replica, and to another one if that dies."""
        handle = self._replicas.options(multiplexed_model_id=image_digest(content))
        seconds = self._settings.limits.work_seconds
        for tried in range(1, TRIES + 1):
            try:
                reply = await asyncio.wait_for(handle.segment.remote(content), seconds)
            except LOST:
                continue
            except (TimeoutError, BackPressureError):
                break
            (status, answer), replica = reply
            headers = {TRIED: str(tried), REPLICA: replica}
            headers |= {"Retry-After": "2"} if status == 503 else {}
            return JSONResponse(answer, status, headers)
        busy = {"error": "no replica could answer in time", "hint": "try again"}
        return JSONResponse(busy, 503, {"Retry-After": "2"})


def image_digest(content: bytes) -> str:
    """What requests about one image have in common: a hash of the image's text in the JSON body.

    Args:
        content: a body of `POST /v1/segment`; of any other, the hash is of the whole.
    """
    start = content.find(b'"image"')
    begin = content.find(b'"', content.find(b":", start) + 1) + 1 if start >= 0 else 0
    end = content.find(b'"', begin) if begin else -1
    return hashlib.sha256(content[begin:end] if end > 0 else content).hexdigest()


def app(arguments: Mapping[str, Any] | RaySettings) -> Any:
    """The application for `serve run segagent_rt.serve.ray:app`.

    Args:
        arguments: see `RaySettings`.

    Returns:
        An application of Ray Serve.

    Raises:
        InputError: it is to be open to the network, and there is no token.
    """
    given = arguments if isinstance(arguments, RaySettings) else RaySettings(**arguments)
    host = "0.0.0.0" if given.open_to_network else "127.0.0.1"
    names = tuple(name.strip().lower() for name in given.names.split(",") if name.strip())
    server = ServerSettings(host, token=token_for(host), names=names)
    replicas = serve.deployment(
        name="segment",
        max_ongoing_requests=given.waiting + 1,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": given.cpus or given.threads, "num_gpus": given.gpus},
        autoscaling_config={
            "min_replicas": given.min_replicas,
            "max_replicas": max(given.min_replicas, given.max_replicas),
            "target_ongoing_requests": given.target_queue,
        },
    )(SegmentReplica).bind(given)
    front = serve.deployment(
        name="front", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0}
    )(SegmentFront)
    return front.bind(replicas, server)
