"""The stopwatch, and the deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from segagent_rt.errors import InputError, Interrupted


class Stopwatch:
    """Adds up seconds by stage: `with watch("encode"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add_stages(self, seconds: Mapping[str, float]) -> None:
        """Add what another stopwatch has measured."""
        for stage, spent in seconds.items():
            self.add(stage, spent)


def check_seconds(seconds: float, what: str) -> float:
    """The seconds, if a clock can count them.

    Args:
        seconds: a time to wait.
        what: names it in the message.

    Raises:
        InputError: they are negative, infinite or not a number.
    """
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise InputError(
            f"{what} of {seconds} seconds cannot be kept",
            hint="give a number that is not negative, or leave it out to wait without an end",
        )
    return seconds


AHEAD = 0.004
"""Seconds before its deadline at which a call is stopped: where all cores are busy, the thread that
stops it wakes up that much too late."""


class Deadline:
    """A moment by which running calls are stopped; with None, never.

    Code under `with deadline.active():` wraps each long call in `stopping(stop)`. When time is up,
    `stop` is called from another thread, and the call, or the next one, ends in `Interrupted`.
    A deadline without an end leaves the one around it in effect.

    Raises:
        InputError: the seconds are negative, infinite or not a number.
    """

    def __init__(self, seconds: float | None) -> None:
        left = float("inf")
        if seconds is not None:
            left = max(0.0, check_seconds(seconds, "a deadline") - AHEAD)
        self._at = time.monotonic() + left
        self._lock = threading.Lock()
        self._running: dict[int, Callable[[], None]] = {}
        self._timer: threading.Timer | None = None
        if seconds is not None:
            self._timer = threading.Timer(left, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def expire(self) -> None:
        """Time is up now; without an end, nothing happens."""
        if self._timer is not None:
            self._at = time.monotonic()
            self._expire()

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least 0; None if there is no end."""
        return None if self._timer is None else max(0.0, self._at - time.monotonic())

    def close(self) -> None:
        """Nothing will be stopped any more."""
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the deadline of the calls inside."""
        token = _CURRENT.set(_CURRENT.get() if self._timer is None else self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` if the deadline passes inside."""
        with self._lock:
            if self.remaining == 0.0:
                raise Interrupted("the deadline has passed")
            self._running[id(stop)] = stop
        try:
            yield
        finally:
            with self._lock:
                del self._running[id(stop)]

    def _expire(self) -> None:
        with self._lock:
            for stop in self._running.values():
                stop()


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current_deadline() -> Deadline | None:
    """The deadline that this code runs under, if any."""
    return _CURRENT.get()
