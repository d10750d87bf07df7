"""Time spent inside graphs, by role."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from segagent_rt.types import Feed, Resident, Session


@dataclass(slots=True)
class GraphMeter:
    """Counts calls and seconds of the sessions that it wraps."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, role: str, session: Session) -> Session:
        """The same session, measured."""
        return MeteredSession(session, role, self)

    def add(self, role: str, seconds: float) -> None:
        """Count one call."""
        with self._lock:
            self.seconds[role] = self.seconds.get(role, 0.0) + seconds
            self.calls[role] = self.calls.get(role, 0) + 1

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and calls since the last time, by role."""
        with self._lock:
            taken = dict(self.seconds), dict(self.calls)
            self.seconds.clear()
            self.calls.clear()
        return taken


@dataclass(frozen=True, slots=True)
class MeteredSession:
    """A session that tells a meter about its calls."""

    session: Session
    role: str
    meter: GraphMeter

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str],
        *,
        into: Mapping[str, Resident] | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            return self.session.run(feeds, outputs, into=into, keep=keep)
        finally:
            self.meter.add(self.role, time.perf_counter() - start)

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Resident:
        return self.session.allocate(shape, dtype)

    def close(self) -> None:
        self.session.close()
