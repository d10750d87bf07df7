"""The stopwatch, and the deadline."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from segagent_rt.errors import InputError, Interrupted

_LOG = logging.getLogger("segagent_rt")


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

    Attributes:
        at: the moment, on the clock of `time.monotonic`; infinity without an end.

    Raises:
        InputError: the seconds are negative, infinite or not a number.
    """

    def __init__(self, seconds: float | None) -> None:
        self.at = math.inf
        self._lock = threading.Lock()
        self._running: dict[int, Callable[[], None]] = {}
        if seconds is not None:
            left = max(0.0, check_seconds(seconds, "a deadline") - AHEAD)
            self.at = time.monotonic() + left
            _WATCHDOG.watch(self)

    def expire(self) -> None:
        """Time is up now; without an end, nothing happens."""
        if self.at < math.inf:
            self.at = time.monotonic()
            self.close()
            self.stop_running()

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least 0; None if there is no end."""
        return None if self.at == math.inf else max(0.0, self.at - time.monotonic())

    def close(self) -> None:
        """Nothing will be stopped any more."""
        _WATCHDOG.forget(self)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the deadline of the calls inside."""
        token = _CURRENT.set(_CURRENT.get() if self.at == math.inf else self)
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

    def stop_running(self) -> None:
        """Stop every call that runs under the deadline."""
        with self._lock:
            for stop in self._running.values():
                try:
                    stop()
                except Exception:  # the other calls are stopped all the same
                    _LOG.exception("a call could not be stopped at its deadline")


class _Watchdog:
    """Stops what runs when a deadline passes: one thread for all deadlines of the process.

    A server sets a deadline for each request. A `threading.Timer` for each would start a thread
    each, and would be kept alive by a cycle of references until a search for garbage.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched = set[Deadline]()
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, deadline: Deadline) -> None:
        """Stop what runs under a deadline when it passes."""
        with self._changed:
            self._watched.add(deadline)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif deadline.at < self._wakes:
                self._changed.notify()

    def forget(self, deadline: Deadline) -> None:
        """Watch a deadline no longer."""
        with self._changed:
            self._watched.discard(deadline)

    def _run(self) -> None:
        while True:
            self._stop_passed()

    def _stop_passed(self) -> None:
        for passed in self._wait():
            passed.stop_running()

    def _wait(self) -> list[Deadline]:
        """Those that have passed, after a wait for the next one."""
        with self._changed:
            self._wakes = min((each.at for each in self._watched), default=math.inf)
            left = self._wakes - time.monotonic()
            if left > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            now = time.monotonic()
            passed = [each for each in self._watched if each.at <= now]
            self._watched.difference_update(passed)
            return passed


_WATCHDOG = _Watchdog()


def _watch_after_fork() -> None:
    """A forked process has none of its parent's threads."""
    global _WATCHDOG
    _WATCHDOG = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch_after_fork)


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current_deadline() -> Deadline | None:
    """The deadline that this code runs under, if any."""
    return _CURRENT.get()
