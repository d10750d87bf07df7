"""Random choices that come out the same on every platform, Python and NumPy version."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class DeterministicRng:
    """Draws built on `random.Random.random` alone, whose sequence for a seed is guaranteed by
    Python.

    The key may mix strings and integers: `DeterministicRng("layout", 7)` and
    `DeterministicRng("paint", 7)` are independent.
    """

    def __init__(self, *key: str | int) -> None:
        self._random = random.Random("/".join(str(part) for part in key)).random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def normal(self, sigma: float) -> float:
        """Roughly Gaussian (a sum of four uniforms): no logarithm whose last bit depends on the C
        library."""
        draw = self._random
        return sigma * 1.7320508 * (draw() + draw() + draw() + draw() - 2.0)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        return low + int(self._random() * (high - low))

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        mark = self._random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        rest, out = list(items), []
        while rest:
            out.append(rest.pop(int(self._random() * len(rest))))
        return out
