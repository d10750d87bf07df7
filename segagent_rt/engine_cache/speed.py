"""Whether an engine for the CPU is worth using: its time beside that of ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from segagent_rt.engine_cache.golden_example import GoldenExample
from segagent_rt.types import Session

ROUNDS = 7
"""Rounds that count; one more before them does not."""

LARGEST_SHARE = 0.9
"""An engine that takes more than this share of ONNX Runtime's time is not used."""


def milliseconds_in_turn(
    sessions: Sequence[Session], examples: Sequence[GoldenExample]
) -> list[float]:
    """What one run takes in each session, in the mean of the examples' medians.

    Sessions take turns, so that another program on the machine slows each of them down alike.
    """
    total = [0.0 for _ in sessions]
    for feeds, expected in examples:
        taken: list[list[float]] = [[] for _ in sessions]
        for _ in range(1 + ROUNDS):
            for session, times in zip(sessions, taken, strict=True):
                start = time.perf_counter()
                session.run(feeds, list(expected))
                times.append(1e3 * (time.perf_counter() - start))
        total = [so_far + median(times[1:]) for so_far, times in zip(total, taken, strict=True)]
    return [each / max(1, len(examples)) for each in total]
