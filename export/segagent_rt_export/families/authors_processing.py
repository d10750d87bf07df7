"""What a family's authors show their nets, and how they draw masks: written with torch alone, so
that the runtime's own pre- and postprocessing has something to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segagent_rt.types import Click, Mask, RgbImage, Size

Floats: TypeAlias = npt.NDArray[np.float32]

Channels: TypeAlias = tuple[float, float, float]

MEAN: Channels = (123.675, 116.28, 103.53)
STD: Channels = (58.395, 57.12, 57.375)
"""ImageNet's, in levels of 255."""


class AuthorsProcessing(Protocol):
    """A family's rules for one click on an image."""

    @property
    def role(self) -> str:
        """The graph that sees the picture."""

    @property
    def std(self) -> Channels:
        """What the picture's channels are divided by, in levels of 255."""

    def picture(self, image: RgbImage) -> Floats:
        """What that graph is shown, [3, side, side]."""

    def prompt(self, click: Click, size: Size) -> dict[str, Floats]:
        """Further inputs that say where the click is, by name."""

    def mask(self, outputs: Mapping[str, Any], size: Size) -> Mask:
        """The mask that a graph's outputs mean."""


def planes_of(image: RgbImage) -> Tensor:
    """uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def normalised(planes: Tensor, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """Float [3, H, W] in levels of 255, as nets take it."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (planes - shift) / scale
