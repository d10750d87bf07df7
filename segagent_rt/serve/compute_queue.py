"""Who computes next: requests take turns, a piece of work at a time, and too many are refused."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from segagent_rt.errors import Interrupted, ServerBusy
from segagent_rt.timing import Deadline

T = TypeVar("T")


class ComputeQueue:
    """Lets so many pieces of work run at a time, in the order in which they were asked for.

    A request is admitted once and then runs one piece of work after the other: a click is one
    piece, and so is each step of the loop. So a click waits for a step, not for a whole run.

    Args:
        workers: pieces of work at a time.
        waiting: requests that may be admitted beyond that.

    Attributes:
        admitted: requests that were taken in so far.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self._most = workers + waiting
        self._lock = threading.Lock()
        self._free = workers
        self._line = deque[threading.Event]()
        self._present = self.admitted = 0

    @property
    def load(self) -> int:
        """Requests that are admitted and not finished."""
        return self._present

    def admit(self, seconds: float) -> Job:
        """Take a request in.

        Args:
            seconds: after which its work is interrupted.

        Returns:
            The job, to be used in a `with` block.

        Raises:
            ServerBusy: too many were taken in already.
        """
        with self._lock:
            if self._present >= self._most:
                raise ServerBusy("the server is busy: its queue is full", retry_after=2)
            self._present += 1
            self.admitted += 1
        return Job(self, seconds)

    def leave(self) -> None:
        """One request less."""
        with self._lock:
            self._present -= 1

    def wait_for_turn(self, deadline: Deadline) -> None:
        """Wait until a worker is free.

        Raises:
            Interrupted: the deadline passed first.
        """
        if deadline.remaining == 0.0:
            raise _stopped()
        with self._lock:
            if self._free and not self._line:
                self._free -= 1
                return
            place = threading.Event()
            self._line.append(place)
        with suppress(Interrupted), deadline.stopping(place.set):
            place.wait()
        with self._lock:
            called = place not in self._line
            if not called:
                self._line.remove(place)
        if not called:
            raise _stopped()

    def end_turn(self) -> None:
        """Pass the worker on to whoever waits the longest."""
        with self._lock:
            if self._line:
                self._line.popleft().set()
            else:
                self._free += 1


class Job:
    """A request that was admitted; leave its `with` block to make room for another."""

    def __init__(self, queue: ComputeQueue, seconds: float) -> None:
        self._queue, self._deadline = queue, Deadline(seconds)
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Stop what runs and what waits; called from another thread."""
        self._cancelled = True
        self._deadline.expire()

    def run(self, work: Callable[[], T]) -> T:
        """Wait for a turn, and do a piece of work in this thread.

        Raises:
            Interrupted: the time is up, or the job was cancelled.
        """
        self._queue.wait_for_turn(self._deadline)
        try:
            with self._deadline.active():
                return work()
        finally:
            self._queue.end_turn()

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadline.close()
        self._queue.leave()


def _stopped() -> Interrupted:
    """Made where it is raised: an error in a local variable of a frame that its own traceback holds
    would keep the request, and the image that it works on, until a search for garbage."""
    return Interrupted("the request was stopped before its turn came")
