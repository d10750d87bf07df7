"""What every exporter of a segmenter hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt.types import Array


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: the graph of `role`, run on `feeds`, against what torch said."""

    role: str
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class ExportedSegmenter:
    """Graphs in full precision by role, what they must compute, and where the weights came from.

    `settings` is the dataclass of the family's runtime class.
    """

    family: str
    settings: Any
    graphs: Mapping[str, Path]
    checks: Sequence[Check]
    provenance: Mapping[str, Any]
