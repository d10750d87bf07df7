"""What the authors of SAM and its kin show their nets, and how they draw masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from segagent_rt.types import Click, Mask, RgbImage, Size
from segagent_rt_export.families.authors_processing import (
    MEAN,
    STD,
    Channels,
    Floats,
    normalised,
    planes_of,
)


@dataclass(frozen=True, slots=True)
class SamProcessing:
    """SAM: the longest side to `side`, padded; SAM 2: squashed. Antialiased, as Pillow does it."""

    side: int
    squashed: bool
    mean: Channels = MEAN
    std: Channels = STD
    role: str = "encoder"

    def inside(self, size: Size) -> Size:
        """Height and width of the picture within the square."""
        if self.squashed:
            return self.side, self.side
        scale = self.side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def picture(self, image: RgbImage) -> Floats:
        inside = self.inside((image.shape[0], image.shape[1]))
        resized = interpolate(planes_of(image), inside, mode="bilinear", antialias=True)
        square = torch.zeros(3, self.side, self.side)
        values = normalised(resized[0].float(), self.mean, self.std)
        square[:, : resized.shape[2], : resized.shape[3]] = values
        return np.asarray(square.numpy())

    def prompt(self, click: Click, size: Size) -> dict[str, Floats]:
        height, width = self.inside(size)
        place = [click.x * width / size[1], click.y * height / size[0]]
        coords = np.array([[place, [0, 0]]], np.float32)
        return {
            "point_coords": coords,
            "point_labels": np.array([[float(click.positive), -1]], np.float32),
        }

    def mask(self, outputs: Mapping[str, Any], size: Size) -> Mask:
        best = 1 + int(np.argmax(outputs["scores"][0, 1:]))
        logits = torch.from_numpy(np.array(outputs["masks"]))[:, best : best + 1]
        if not self.squashed:  # SAM cuts the padding off at the size of its square
            square = interpolate(logits, (self.side, self.side), mode="bilinear")
            height, width = self.inside(size)
            logits = square[..., :height, :width]
        whole = interpolate(logits, size, mode="bilinear")
        return np.asarray(whole[0, 0].numpy() > 0)


def padded(settings: Mapping[str, Any]) -> SamProcessing:
    """As SAM: the picture keeps its aspect."""
    return SamProcessing(settings["side"], squashed=False)


def squashed(settings: Mapping[str, Any]) -> SamProcessing:
    """As SAM 2: the picture fills the square whatever its aspect."""
    return SamProcessing(settings["side"], squashed=True)
