"""Progress of work on many tensors, which differ in size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from segagent_rt.bench.progress import Progress

T = TypeVar("T")


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
