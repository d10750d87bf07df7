"""Several ways to do the same, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(
    ways: Mapping[str, Callable[..., Any]], laps: int, seconds: float = float("inf")
) -> dict[str, list[Any]]:
    """Run every way once in each lap, beginning with another one each time; no lap begins after so
    many seconds. A way is told the number of the lap."""
    end = time.monotonic() + seconds
    names, done = list(ways), dict[str, list[Any]]((name, []) for name in ways)
    for lap in range(laps):
        if lap and time.monotonic() > end:
            break
        for turn in range(len(names)):
            name = names[(lap + turn) % len(names)]
            done[name].append(ways[name](lap))
    return done
