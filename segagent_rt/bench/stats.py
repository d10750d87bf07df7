"""Percentiles of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segagent_rt.bench.figures import Percentiles, RatioPercentiles


def percentiles(values: Sequence[float], scale: float = 1000.0) -> Percentiles:
    """Percentiles of seconds, as milliseconds by default."""
    ordered = np.asarray(values, np.float64) * scale
    spread = (*np.percentile(ordered, (50, 90, 99)), ordered.max(), ordered.mean())
    p50, p90, p99, most, mean = (round(float(value), 4) for value in spread)
    return Percentiles(p50, p90, p99, most, mean, n=len(ordered))


def ratio_percentiles(slow: Sequence[float], fast: Sequence[float]) -> RatioPercentiles:
    """Ratios of measurements made in turn, pair by pair: how many times as long `slow` takes."""
    ratios = np.asarray(slow, np.float64) / np.asarray(fast, np.float64)
    median, p10, p90 = (round(float(v), 3) for v in np.percentile(ratios, (50, 10, 90)))
    return RatioPercentiles(median, p10, p90, n=len(ratios))
