"""The processor's cores: how many there are for us, and whether two graphs should share them."""

from __future__ import annotations

import os

FEW = 2
"""With so many, encoding beside the MLLM takes longer than encoding behind it
(docs/decisions.md); with more that was not measured."""


def usable_cores() -> int:
    """Cores that this process may use: in a container often fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def crowded(threads: int | None) -> bool:
    """Whether two graphs at a time, with so many threads each, would be in each other's way."""
    cores = usable_cores()
    return cores <= FEW and 2 * (threads or cores) > cores
