"""How far the writing of a graph has come, told by the tensors that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from segagent_rt_export.mllm.source import MllmSource
from segagent_rt_export.mllm.weights import Stored

STEPS = 5
"""How often progress is told."""


class Counted(Mapping[str, Stored]):
    """Tensors by name; tells the share of them that has been looked up."""

    def __init__(self, tensors: Mapping[str, Stored], tell: Callable[[float], None]) -> None:
        self._tensors, self._tell = tensors, tell
        self._seen: set[str] = set()
        self._told = -1

    def __getitem__(self, name: str) -> Stored:
        self._seen.add(name)
        step = STEPS * len(self._seen) // len(self._tensors)
        if step > self._told:
            self._told = step
            self._tell(step / STEPS)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def counted(source: MllmSource, tell: Callable[[float], None]) -> MllmSource:
    """The same source, telling how much of it has been read."""
    return replace(
        source, weights=replace(source.weights, tensors=Counted(source.weights.tensors, tell))
    )
