"""Counters in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping

from segagent_rt.types import Seconds

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; upper ends of the histogram of requests."""

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Numbers about a server. Threads may share one.

    Args:
        gauges: functions that are asked for their values when somebody reads the metrics, by name.
    """

    def __init__(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        self._gauges, self._lock = dict(gauges), threading.Lock()
        self._counts = defaultdict[tuple[str, Labels], float](float)
        self._buckets = [0] * (len(BUCKETS) + 1)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter; `labels` tell its parts apart."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount

    def add_stages(self, seconds: Seconds) -> None:
        """Count a piece of work by its stages."""
        for stage, spent in seconds.items():
            self.add("segagent_stage_seconds_total", spent, stage=stage)
            self.add("segagent_stage_runs_total", stage=stage)

    def add_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self.add("segagent_requests_total", route=route, method=method, status=str(status))
        at = next((n for n, most in enumerate(BUCKETS) if seconds <= most), len(BUCKETS))
        with self._lock:
            self._buckets[at] += 1
            self._counts["segagent_request_seconds_sum", ()] += seconds

    def text(self) -> str:
        """All of them, version 0.0.4 of the format."""
        with self._lock:
            counts, buckets = dict(self._counts), list(self._buckets)
        lines, total = list[str](), 0
        for name, ask in sorted(self._gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {ask():g}"]
        lines.append("# TYPE segagent_request_seconds histogram")
        for most, count in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=True):
            total += count
            lines.append(f'segagent_request_seconds_bucket{{le="{most}"}} {total}')
        lines.append(f"segagent_request_seconds_count {total}")
        spent = counts.pop(("segagent_request_seconds_sum", ()), 0.0)
        lines.append(f"segagent_request_seconds_sum {spent:g}")
        last = ""
        for (name, labels), value in sorted(counts.items()):
            if name != last:
                lines.append(f"# TYPE {name} counter")
            last = name
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            lines.append(f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
