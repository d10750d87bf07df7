"""Seconds of work: on the wall, and of the processor, which other programs do not lengthen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from segagent_rt.bench.stats import percentiles


@dataclass(slots=True)
class Clock:
    """Collects how long its `with` blocks take."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def milliseconds(self) -> dict[str, Any]:
        """Percentiles of both."""
        return {"wall": percentiles(self.wall), "cpu": percentiles(self.cpu)}
