"""What SAM 3's authors show their tracker: as SAM 2's, with values from -1 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segagent_rt_export.families.sam_processing import SamProcessing

HALF = (127.5, 127.5, 127.5)
"""Mean and standard deviation of the channels, in levels of 255."""


def processing(settings: Mapping[str, Any]) -> SamProcessing:
    """The picture fills the square whatever its aspect."""
    return SamProcessing(settings["side"], squashed=True, mean=HALF, std=HALF)
