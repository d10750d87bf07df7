"""From the event loop to the service: work in a thread, and its end if the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from segagent_rt.errors import SegagentError
from segagent_rt.io import dump_json
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.guard import LOG, MISTAKE, Receive, Scope, Send, error_place
from segagent_rt.serve.service import SegmentationService

T = TypeVar("T")

ASIDE = 8
"""Threads for what is not admitted, such as undo."""


class JobRunner:
    """Runs what requests ask of a service.

    Args:
        service: what is served.
    """

    def __init__(self, service: SegmentationService) -> None:
        self.service = service
        most = service.limits.workers + service.limits.waiting + ASIDE
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="request")

    async def run(
        self, request: Request, work: Callable[[Job], T], *, seconds: float | None = None
    ) -> T:
        """Admit a request, and work for it in a thread. The work is cancelled if the client goes.

        Args:
            request: its body has been read.
            work: is given the job; see `SegmentationService`.
            seconds: the request's time, within the server's limit.

        Raises:
            ServerBusy: too much is waiting.
            SegagentError: whatever `work` raises.
        """
        with self.service.admit(seconds) as job:
            watcher = asyncio.create_task(cancel_when_gone(request.receive, job))
            try:
                return await self.in_thread(lambda: work(job))
            except asyncio.CancelledError:  # the server ends; its threads are waited for
                job.cancel()
                raise
            finally:
                watcher.cancel()

    async def stream(
        self,
        work: Callable[[Job], Iterator[T]],
        describe: Callable[[T], dict[str, Any]],
        *,
        seconds: float | None = None,
    ) -> EventStream:
        """Admit a request, and answer with an event for each item that its work yields.

        Args:
            work: is given the job.
            describe: an item as the data of its event.
            seconds: the request's time, within the server's limit.

        Raises:
            ServerBusy: too much is waiting.
            SegagentError: whatever `work` raises before its first item.
        """
        job = self.service.admit(seconds)
        try:
            items = await self.in_thread(lambda: work(job))
        except BaseException:
            with job:
                raise
        return EventStream(self, job, items, describe)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Call a function in a thread; there are as many as requests that may be admitted.

        anyio's threads would let the event loop go round twice more before they begin.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """No further work is taken."""
        self._threads.shutdown(wait=False)


class EventStream(Response):
    """Server-sent events: `step` for each step, then `done`; or `error`, and nothing more."""

    media_type = "text/event-stream"

    def __init__(
        self,
        runner: JobRunner,
        job: Job,
        items: Iterator[Any],
        describe: Callable[[Any], dict[str, Any]],
    ) -> None:
        self._runner, self._job, self._items, self._describe = runner, job, items, describe
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events while the client is there."""
        with self._job:
            watcher = asyncio.create_task(cancel_when_gone(receive, self._job))
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                async for event, data in self._events():
                    body = f"event: {event}\ndata: {dump_json(data)}\n\n".encode()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                self._job.cancel()
                watcher.cancel()

    async def _events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        last = dict[str, Any]()
        try:
            while (data := await self._runner.in_thread(self._next)) is not None:
                last = data
                yield "step", data
            yield "done", last
        except SegagentError as error:
            yield "error", {"error": str(error), "hint": error.hint}
        except Exception as error:  # a mistake of ours, too late for a status
            LOG.error("a stream failed: %s", error_place(error))
            yield "error", {"error": MISTAKE, "hint": None}

    def _next(self) -> dict[str, Any] | None:
        for item in self._items:
            return self._describe(item)
        return None


async def cancel_when_gone(receive: Receive, job: Job) -> None:
    """Wait for the client to close the connection, and cancel its job."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()
