"""How far a long piece of work has come, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from segagent_rt.bench.progress import duration

T = TypeVar("T")

STEPS = 10
"""How often progress is told."""


class Progress:
    """Tells the share of a piece of work that is done, and the time that the rest will take.

    Attributes:
        done: how much is finished for good; `show` counts from here.
    """

    def __init__(self, report_progress: Callable[[str], None], what: str, total: int) -> None:
        self.done = 0
        self._report_progress, self._what, self._total = report_progress, what, max(total, 1)
        self._start: tuple[float, int] | None = None
        self._reported = -1

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


class Counted(Mapping[str, T], Generic[T]):
    """A mapping that tells the share of it that has been looked up, by the weight of its items."""

    def __init__(
        self, items: Mapping[str, T], weigh: Callable[[T], int], progress: Progress
    ) -> None:
        self._items, self._weigh, self._progress = items, weigh, progress
        self._seen: set[str] = set()

    def __getitem__(self, name: str) -> T:
        item = self._items[name]
        if name not in self._seen:
            self._seen.add(name)
            self._progress.show(0)
            self._progress.done += self._weigh(item)
        return item

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
