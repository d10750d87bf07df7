"""What every exporter of a segmenter hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segagent_rt.types import Array
from segagent_rt_export.graphs.precision import Device


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: the graph of `role`, run on `feeds`, against what torch said."""

    role: str
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class ExportedSegmenter:
    """Graphs in full precision by role, what they must compute, and where the weights came from.

    `settings` is the dataclass of the family's runtime class; `for_gpu` are graphs that compute the
    same in another form, which GPUs take in their place.
    """

    family: str
    settings: Any
    graphs: Mapping[str, Path]
    checks: Sequence[Check]
    provenance: Mapping[str, Any]
    for_gpu: Mapping[str, Path] = field(default_factory=dict)

    def graphs_for(self, device: Device) -> dict[str, Path]:
        """The graphs by role, in the form for a device."""
        return {**self.graphs, **(self.for_gpu if device == "gpu" else {})}
