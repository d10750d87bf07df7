"""How far a long piece of work has come, and how long the rest of it will take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from segagent_rt.types import ProgressReporter

if TYPE_CHECKING:
    from segagent_rt.bench.scenario import Scenario

STEPS = 10
"""How often progress is told."""


class Progress:
    """Tells the share of a piece of work that is done, and the time that the rest will take.

    Attributes:
        done: how much is finished for good; `show` counts from here.
    """

    def __init__(self, report_progress: ProgressReporter, what: str, total: int) -> None:
        self.done = 0
        self._report_progress, self._what, self._total = report_progress, what, max(total, 1)
        self._start: tuple[float, int] | None = None
        self._reported = -1

    def step(self) -> None:
        """One more is finished."""
        self.done += 1
        self.show(0)

    def show(self, more: int) -> None:
        """Say how far it is, if that is news: `more` has been done beside `done`."""
        now, done = time.monotonic(), min(self.done + more, self._total)
        self._start = self._start or (now, done)
        step = STEPS * done // self._total
        if step > self._reported:
            self._reported = step
            self._report_progress(f"{self._what}, {step / STEPS:.0%}{self._left(now, done)}")

    def _left(self, now: float, done: int) -> str:
        """What was there at the beginning, as after an interrupted download, took no time."""
        assert self._start is not None
        began, before = self._start
        if done <= before or done == self._total or now - began < 2:
            return ""
        return f", about {duration((now - began) / (done - before) * (self._total - done))} left"


def run_progress(report_progress: ProgressReporter, scenario: Scenario, more: str = "") -> Progress:
    """Of one run of all scenes of a scenario, those for warming up included."""
    total = scenario.warm_up + scenario.scenes
    return Progress(report_progress, f"{scenario.name}{more}", total)


def duration(seconds: float) -> str:
    """A time in words: `40 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
