"""How images are treated: by a batch, and by a run on one image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from segagent_rt.image import MAX_MEGAPIXELS, Range
from segagent_rt.search import SearchConfig


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How every image of a batch is treated.

    Attributes:
        config: how widely to search, and when to stop.
        all_objects: a mask for every object that the first look lists.
        kinds: what is saved of each result; see `SaveKind`.
        max_megapixels: larger images are refused.
        value_range: the values that stand for black and white in float and 16-bit images.
        overwrite: do everything again, and replace files that we did not write.
    """

    config: SearchConfig = field(default_factory=lambda: SearchConfig(candidates=1))
    all_objects: bool = False
    kinds: tuple[str, ...] = ("mask", "overlay")
    max_megapixels: float = MAX_MEGAPIXELS
    value_range: Range | None = None
    overwrite: bool = False

    def described(self) -> dict[str, Any]:
        """All that results depend on, as plain data."""
        plain = asdict(self)
        del plain["overwrite"]
        return plain
