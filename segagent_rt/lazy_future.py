"""A future without a thread: whoever first asks for the result computes it, under its deadline."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Any


class LazyFuture(Future[Any]):
    """A future that no other thread works on. If the work fails, the next caller tries again."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work, self._lock = work, Lock()

    def result(self, timeout: float | None = None) -> Any:
        with self._lock:
            if not self.done():
                self.set_result(self._work())
        return super().result(timeout)
