"""HTTP connections whose request heads have to arrive in time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_connection(seconds: float) -> type[H11Protocol]:
    """A connection for uvicorn that is closed if a request's head takes too long.

    uvicorn waits for it without an end, so a few slow clients could hold every connection.

    Args:
        seconds: from the connection's first byte, or from the end of the last request.
    """

    class TimedConnection(H11Protocol):
        """See `timed_connection`."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, self._close_if_late)

        def data_received(self, data: bytes) -> None:
            if self._late is None and (self.cycle is None or self.cycle.response_complete):
                self._late = self.loop.call_later(seconds, self._close_if_late)
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:  # a whole head has arrived
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _disarm(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _close_if_late(self) -> None:
            self._late = None
            if not self.transport.is_closing():
                self.transport.close()

    return TimedConnection
