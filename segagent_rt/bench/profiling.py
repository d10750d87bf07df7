"""Time spent inside graphs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from segagent_rt.backends.checked_session import SessionWrapper
from segagent_rt.types import Buffers, Feeds, Names, Session


@dataclass(frozen=True, slots=True)
class TimedCall:
    """A graph ran from `start` to `end`, by the clock of `time.perf_counter`."""

    graph: str
    start: float
    end: float


@dataclass(slots=True)
class GraphProfiler:
    """Notes the calls of the sessions that it wraps, whichever thread makes them."""

    _calls: list[TimedCall] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, graph: str, session: Session) -> Session:
        """The same session, measured."""
        return ProfiledSession(session, graph, self)

    def add(self, call: TimedCall) -> None:
        """Note a call that has ended."""
        with self._lock:
            self._calls.append(call)

    def take(self) -> list[TimedCall]:
        """The calls that ended since the last time."""
        with self._lock:
            taken, self._calls = self._calls, []
        return taken


@dataclass(frozen=True, slots=True)
class ProfiledSession(SessionWrapper):
    """A session that tells a meter about its calls."""

    session: Session
    graph: str
    meter: GraphProfiler

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            return self.session.run(feeds, outputs, into=into, keep=keep)
        finally:
            self.meter.add(TimedCall(self.graph, start, time.perf_counter()))


def seconds_by_graph(calls: Sequence[TimedCall]) -> dict[str, float]:
    """Seconds inside each graph."""
    seconds: dict[str, float] = {}
    for call in calls:
        seconds[call.graph] = seconds.get(call.graph, 0.0) + call.end - call.start
    return seconds


def count_by_graph(calls: Sequence[TimedCall]) -> dict[str, int]:
    """How often each graph ran."""
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.graph] = counts.get(call.graph, 0) + 1
    return counts


def covered_seconds(calls: Sequence[TimedCall]) -> float:
    """Seconds in which at least one graph ran; calls side by side count once."""
    total, until = 0.0, float("-inf")
    for call in sorted(calls, key=lambda call: call.start):
        total += max(0.0, call.end - max(call.start, until))
        until = max(until, call.end)
    return total
