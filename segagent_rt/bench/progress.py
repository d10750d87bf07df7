"""How many runs of a scenario are done, and how long the others will take."""

from __future__ import annotations

import time

from segagent_rt.bench.scenario import Scenario
from segagent_rt.types import ProgressReporter


class RunProgress:
    """Tells `one: 3 of 40, about 2 min left` after each run."""

    def __init__(self, report_progress: ProgressReporter, what: str, total: int) -> None:
        self._report_progress, self._what, self._total = report_progress, what, total
        self._start, self._done = time.monotonic(), 0

    def step(self) -> None:
        """Another run is done."""
        self._done += 1
        text = f"{self._what}: {self._done} of {self._total}"
        left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        self._report_progress(f"{text}, about {duration(left)} left" if left > 0 else text)


def run_progress(
    report_progress: ProgressReporter, scenario: Scenario, more: str = ""
) -> RunProgress:
    """Of one run of all scenes of a scenario, those for warming up included."""
    total = scenario.warm_up + scenario.scenes
    return RunProgress(report_progress, f"{scenario.name}{more}", total)


def duration(seconds: float) -> str:
    """A time in words: `40 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
