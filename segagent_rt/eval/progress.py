"""How far a long run is, in words."""

from __future__ import annotations

import time


class RemainingTime:
    """Counts from the moment it is made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._said = 0.0

    def says(self, done: int, total: int) -> str:
        """`12 of 340, 3 min left`; nothing if it has just said something, except at the end."""
        passed = time.monotonic() - self._start
        if done < total and passed - self._said < 1:
            return ""
        self._said = passed
        left = passed / done * (total - done) if done else 0.0
        return f"{done} of {total}, {in_words(left)} left"


def in_words(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
