"""Percentiles of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentiles(values: Sequence[float], scale: float = 1000.0) -> dict[str, float]:
    """Percentiles of seconds, as milliseconds by default; `n` says of how many."""
    ordered = np.asarray(values, np.float64) * scale
    p50, p90, p99 = np.percentile(ordered, (50, 90, 99))
    figures = {"p50": p50, "p90": p90, "p99": p99, "max": ordered.max(), "mean": ordered.mean()}
    return {name: round(float(value), 4) for name, value in figures.items()} | {"n": len(ordered)}


def ratio_percentiles(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Ratios of measurements made in turn, pair by pair: how many times as long `slow` takes."""
    ratios = np.asarray(slow, np.float64) / np.asarray(fast, np.float64)
    p10, median, p90 = np.percentile(ratios, (10, 50, 90))
    figures = {"median": median, "p10": p10, "p90": p90}
    return {name: round(float(value), 3) for name, value in figures.items()} | {"n": len(ratios)}
