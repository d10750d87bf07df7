"""How far what the runtime shows a net is from what its authors show it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segagent_rt_export.families.authors_processing import Channels, Floats


def levels_apart(found: Floats, wanted: Floats, std: Channels) -> float:
    """Mean difference of two normalised pictures [3, side, side], in levels of 255."""
    return float((np.abs(found - wanted).mean((1, 2)) * np.array(std)).mean())


def prompts_apart(found: Sequence[Floats], wanted: Sequence[Floats]) -> float:
    """Largest difference of what says where a click is."""
    return max(
        float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")
        for one, other in zip(found, wanted, strict=True)
    )
