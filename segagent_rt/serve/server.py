"""Runs the application with uvicorn until it is asked to stop, and then lets requests finish."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

from segagent_rt.errors import ServeError
from segagent_rt.serve.connection import timed_connection
from segagent_rt.serve.guard import App
from segagent_rt.serve.server_settings import ServerSettings

DRAIN_SECONDS = 30
"""For requests in progress when the server is asked to stop."""

KEEP_ALIVE_SECONDS = 15
"""For the next request on a connection."""

CONNECTIONS = 512
"""At a time; more get 503."""


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens where the settings say; port 0 takes any free one.

    Raises:
        ServeError: the address is taken, or is not of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(CONNECTIONS)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ServeError(
            f"the server cannot listen on {settings.host}, port {settings.port}: {reason}",
            hint="choose another --port; 0 takes a free one",
        ) from None
    return listener


def configure(app: App, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn serves the application: no log of requests, no trust in proxies.

    Args:
        app: the application.
        settings: of the server.
    """
    return uvicorn.Config(
        app,
        http=timed_connection(settings.limits.header_seconds),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def run_server(
    app: App, listener: socket.socket, settings: ServerSettings, started: Callable[[], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C; then take no further connections and let requests finish.

    Args:
        app: the application.
        listener: see `listen`.
        settings: of the server.
        started: called once it answers.
    """
    server = _Server(configure(app, settings), started)
    before = {each: signal.signal(each, _ignore) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([listener])  # it raises the signal again once it has stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()


def _ignore(*_: object) -> None:
    """The server has stopped already."""
