"""HTTP connections whose request heads have to arrive in time, and are bounded."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING or not find_spec("httptools"):
    from uvicorn.protocols.http.h11_impl import H11Protocol as Connection
else:  # written in C, and faster
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Connection

LARGEST_HEAD = 64 << 10
"""Bytes. httptools sets no bound itself; h11's is the same."""


class JoinedWrites:
    """A transport that sends together what is written in one turn of the event loop.

    uvicorn writes the head and the body of an answer one after the other. Sent apart, they wake the
    client twice.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._held = transport, loop, list[bytes]()

    def write(self, data: bytes) -> None:
        """Send it at the end of this turn."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Send what is left, and close the connection."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TimedConnection(Connection):
    """Is closed if a request's head takes too long, or is too large.

    uvicorn waits for it without an end, so a few slow clients could hold every connection.

    Attributes:
        seconds: from the connection's first byte, or from the end of the last request.
    """

    seconds = 10.0
    _late: asyncio.TimerHandle | None = None
    _arrived = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))
        self._late = self.loop.call_later(self.seconds, self._close_if_late)

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._late = self.loop.call_later(self.seconds, self._close_if_late)
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a whole head has arrived
            self._disarm()
        elif self._late is not None:
            self._arrived += len(data)
            if self._arrived > LARGEST_HEAD:
                self._close_if_late()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _disarm(self) -> None:
        self._arrived = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_if_late(self) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.transport.close()


def timed_connection(seconds: float) -> type[TimedConnection]:
    """The class of connections that uvicorn is to use, with the seconds that a head may take."""
    return type("ServerConnection", (TimedConnection,), {"seconds": seconds})
