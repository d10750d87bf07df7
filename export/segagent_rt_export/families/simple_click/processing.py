"""What SimpleClick's authors show their net, and how they draw masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segagent_rt.types import Click, Mask, RgbImage, Size
from segagent_rt_export.families.authors_processing import (
    STD,
    Channels,
    Floats,
    normalised,
    planes_of,
)


@dataclass(frozen=True, slots=True)
class SimpleClickProcessing:
    """SimpleClick's first click: the whole image, corners on corners, without antialiasing."""

    side: int
    radius: int
    threshold: float
    std: Channels = STD
    role: str = "net"

    def picture(self, image: RgbImage) -> Floats:
        resized = self._stretched(planes_of(image).float(), (self.side, self.side))
        return np.asarray(normalised(resized[0]).numpy())

    def prompt(self, click: Click, size: Size) -> dict[str, Floats]:
        row, column = (self.side * at / of for at, of in zip((click.y, click.x), size, strict=True))
        y, x = torch.meshgrid(*[torch.arange(self.side, dtype=torch.float32)] * 2, indexing="ij")
        guide = torch.zeros(3, self.side, self.side)
        guide[1 if click.positive else 2] = (
            (y - row) ** 2 + (x - column) ** 2 <= self.radius**2
        ).float()
        return {"guide": np.asarray(guide.numpy())[None]}

    def mask(self, outputs: Mapping[str, Any], size: Size) -> Mask:
        logits = torch.from_numpy(np.array(outputs["logits"]))
        mean = logits[:1] if len(logits) == 1 else (logits[:1] + logits[1:].flip(-1)) / 2
        shown = torch.sigmoid(self._stretched(mean, (self.side, self.side)))
        return np.asarray(self._stretched(shown, size)[0, 0].numpy() > self.threshold)

    @staticmethod
    def _stretched(planes: Tensor, size: Size) -> Tensor:
        return interpolate(planes, size, mode="bilinear", align_corners=True)


def processing(settings: Mapping[str, Any]) -> SimpleClickProcessing:
    """Of the settings only sizes and the threshold are taken over."""
    return SimpleClickProcessing(settings["side"], settings["radius"], settings["threshold"])
