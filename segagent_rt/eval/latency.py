"""How long trajectories took, by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def latencies(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds by stage, for each turn of a trajectory, and for whole trajectories.

    `annotate` and `segment` add up to the whole; other stages are parts of them. The first
    trajectory of every run, which loads the graphs, is left out.
    """
    warm = [entry["seconds"] for entry in entries if not entry["cold"]]
    stages = dict.fromkeys(stage for turns in warm for turn in turns for stage in turn)
    by_stage = {
        stage: [turn[stage] for turns in warm for turn in turns if stage in turn]
        for stage in stages
    }
    whole = [sum(t.get("annotate", 0) + t.get("segment", 0) for t in turns) for turns in warm]
    found = {"walk": whole, **by_stage}
    return {stage: _percentiles(values) for stage, values in found.items() if values}


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(np.asarray(seconds) * 1000, (50, 90, 99))
    return {
        "p50": round(float(p50), 3),
        "p90": round(float(p90), 3),
        "p99": round(float(p99), 3),
        "n": len(seconds),
    }
