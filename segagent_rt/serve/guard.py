"""What happens to a request before any code of the API sees it: who sent it, how much, how fast.

In this order: the name that it was sent to, the page that it comes from, the token, the rate, the
size and speed of its body. Whoever fails gets one sentence and an HTTP status.
"""

from __future__ import annotations

import base64
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from anyio import fail_after

from segagent_rt.io import json_bytes
from segagent_rt.serve.metrics import Metrics
from segagent_rt.serve.server_settings import ServerSettings

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("segagent_rt.serve")

OPEN_PATHS = ("/", "/health", "/ready")
"""What needs no token, beside the page's own files: nothing of a user is in it."""

OPEN_FOLDERS = ("/static/", "/examples/")

HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
"""Of every answer: the page runs its own scripts only, and stands in no other site's frame."""

MISTAKE = "the server made a mistake; its log names the place"

CLIENTS = 4096
"""Addresses whose rates are remembered."""


class RefusedRequest(Exception):
    """A request that goes no further.

    Args:
        status: of HTTP.
        message: one sentence.
        hint: what to do.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.hint, self.headers = status, message, hint, headers


class Guard:
    """Middleware around the whole application, in plain ASGI."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._rates = RateLimit(settings.limits.rate)
        self._bodies = BodyReader(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        try:
            check_request(scope, self._settings)
            self._rates.check((scope.get("client") or ("unknown",))[0])
            async with self._bodies.reading(scope, receive) as replay:
                await self._app(scope, replay, send_guarded)
        except RefusedRequest as refused:
            self._metrics.add("segagent_refused_total", status=str(refused.status))
            await refuse(send_guarded, refused)
        except ClientGone:
            status = 499
        except Exception as error:  # a mistake of ours: the client learns that, and no more
            LOG.error("%s %s failed: %s", scope["method"], _route(scope), error_place(error))
            if not status:
                await refuse(send_guarded, RefusedRequest(500, MISTAKE))
        finally:
            spent = time.perf_counter() - start
            self._metrics.add_request(_route(scope), scope["method"], status, spent)


def check_request(scope: Scope, settings: ServerSettings) -> None:
    """Check the name that a request was sent to, the page that it comes from, and its token.

    Raises:
        RefusedRequest: one of them is wrong.
    """
    hosts = _values(scope, b"host")
    host = hosts[0] if len(hosts) == 1 else ""
    if not settings.knows_name(_name_of(host)):
        raise RefusedRequest(
            421,
            "this server is not known by the name that the request was sent to",
            "start it with --name NAME if it has this name",
        )
    origins, sites = _values(scope, b"origin"), _values(scope, b"sec-fetch-site")
    foreign = any(_site_of(origin) != host.lower() for origin in origins)
    changes = scope["method"] not in ("GET", "HEAD")
    if foreign or (changes and not origins and sites and sites[0] in ("cross-site", "same-site")):
        raise RefusedRequest(403, "pages of other sites may not use this server")
    path = scope["path"]
    if settings.token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
        return
    if not hmac.compare_digest(_given_token(scope), settings.token.encode()):
        raise RefusedRequest(
            401,
            "this server needs a token",
            "send it as `Authorization: Bearer TOKEN`",
            ((b"www-authenticate", b"Bearer"),),
        )


def _given_token(scope: Scope) -> bytes:
    """The token that a client sent.

    As `Authorization: Bearer TOKEN`; as the password of `Authorization: Basic`, which Label Studio
    can send; or as the header `Token`, which X-AnyLabeling sends.
    """
    sent = _values(scope, b"authorization") or [f"Bearer {t}" for t in _values(scope, b"token")]
    kind, _, value = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    if kind == "Basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return value.strip().encode("latin-1", "replace") if kind == "Bearer" else b""


class RateLimit:
    """So many requests per second of each client address, and two seconds' worth at once.

    Args:
        rate: requests per second; 0 for any number.
        clock: seconds that only grow.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._left = OrderedDict[str, tuple[float, float]]()

    def check(self, client: str) -> None:
        """Count a request.

        Raises:
            RefusedRequest: the client sends too many.
        """
        if not self._rate:
            return
        now, most = self._clock(), 2 * self._rate
        left, seen = self._left.pop(client, (most, now))
        left = min(most, left + (now - seen) * self._rate)
        self._left[client] = (max(left - 1, 0.0), now)
        while len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            raise RefusedRequest(
                429, "too many requests from this address", headers=((b"retry-after", b"1"),)
            )


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class BodyReader:
    """Reads bodies whole before the application runs, within bounds of size and time."""

    def __init__(self, settings: ServerSettings) -> None:
        limits = settings.limits
        self._most, self._most_together = limits.upload_bytes, limits.all_uploads_bytes
        self._seconds, self._held = limits.upload_seconds, 0

    def reading(self, scope: Scope, receive: Receive) -> HeldBody:
        """A context in which the body is held in memory; it gives what to receive it from."""
        return HeldBody(self, scope, receive)

    def take(self, size: int) -> None:
        """Count bytes that are held.

        Raises:
            RefusedRequest: all bodies together are too large.
        """
        if self._held + size > self._most_together:
            raise RefusedRequest(
                503, "the server is busy: too much is uploaded", headers=((b"retry-after", b"2"),)
            )
        self._held += size

    def release(self, size: int) -> None:
        """Count bytes that are no longer held."""
        self._held -= size

    def check_length(self, length: int) -> None:
        """Check the size of one body.

        Raises:
            RefusedRequest: it is too large.
        """
        if length > self._most:
            raise RefusedRequest(
                413,
                f"the request is too large: at most {self._most / 1e6:.0f} MB are taken",
                "send a smaller picture, or start the server with a larger --max-upload",
            )

    async def read(self, held: HeldBody) -> None:
        """Read a body into `held`.

        Raises:
            RefusedRequest: it is too large, or comes too slowly.
            ClientGone: the connection ended first.
        """
        declared = _values(held.scope, b"content-length")
        if declared and declared[0].isdigit() and len(declared[0]) < 20:
            self.check_length(int(declared[0]))
        elif not _values(held.scope, b"transfer-encoding"):
            return
        try:
            with fail_after(self._seconds):
                await self._read_all(held)
        except TimeoutError:
            raise RefusedRequest(408, "the request did not arrive in time") from None

    async def _read_all(self, held: HeldBody) -> None:
        while True:
            message = await held.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            block = message.get("body", b"")
            self.check_length(len(held.content) + len(block))
            self.take(len(block))
            held.content += block
            if not message.get("more_body"):
                return


class HeldBody:
    """One request's body; use it in an `async with` block."""

    def __init__(self, reader: BodyReader, scope: Scope, receive: Receive) -> None:
        self._reader, self.scope, self.receive = reader, scope, receive
        self.content = bytearray()
        self._given = False

    async def __aenter__(self) -> Receive:
        try:
            await self._reader.read(self)
        except BaseException:
            self._reader.release(len(self.content))
            raise
        return self._replay

    async def __aexit__(self, *_: object) -> None:
        self._reader.release(len(self.content))

    async def _replay(self) -> Message:
        """The body in one piece; after that, whatever else the connection tells."""
        if self._given:
            return await self.receive()
        self._given = True
        return {"type": "http.request", "body": bytes(self.content), "more_body": False}


async def refuse(send: Send, refused: RefusedRequest) -> None:
    """Answer with an error, and end the connection: there may be more of a body to come."""
    body = json_bytes({"error": refused.message, "hint": refused.hint})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        *refused.headers,
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _name_of(host: str) -> str:
    """A `Host` header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _site_of(origin: str) -> str | None:
    """The host and port of an `Origin` header; None for `null` and what is no URL."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _route(scope: Scope) -> str:
    """The pattern that the path matched, so that metrics and logs have few names."""
    return str(getattr(scope.get("route"), "path", "other"))


def error_place(error: BaseException) -> str:
    """Class of an error, and where it was raised: never its text, which may hold anything."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"
