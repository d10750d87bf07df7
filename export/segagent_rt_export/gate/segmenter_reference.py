"""What a family's authors show their nets, and how they draw masks: written with torch alone, so
that the runtime's own host rules have something to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segagent_rt.bundle.manifest import Manifest
from segagent_rt.types import Click, Mask, RgbImage, Size

Floats: TypeAlias = npt.NDArray[np.float32]

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, in levels of 255, as every family here has them."""

SQUASHED = ("sam2", "edgetam")
"""Families that fill the square whatever the aspect."""


class Host(Protocol):
    """A family's rules for one click on an image."""

    @property
    def role(self) -> str:
        """The graph that sees the picture."""

    def picture(self, image: RgbImage) -> Floats:
        """What that graph is shown, [3, side, side]."""

    def prompt(self, click: Click, size: Size) -> dict[str, Floats]:
        """Further inputs that say where the click is, by name."""

    def mask(self, outputs: Mapping[str, Any], size: Size) -> Mask:
        """The mask that a graph's outputs mean."""


def host_of(manifest: Manifest) -> Host:
    """A family's host; of the settings only sizes and the threshold are taken over."""
    settings, side = manifest.settings, manifest.settings["side"]
    if manifest.family == "simple_click":
        return SimpleClickHost(side, settings["radius"], settings["threshold"])
    return SamHost(side, manifest.family in SQUASHED)


@dataclass(frozen=True, slots=True)
class SamHost:
    """SAM: the longest side to `side`, padded; SAM 2: squashed. Antialiased, as Pillow does it."""

    side: int
    squashed: bool
    role: str = "encoder"

    def inside(self, size: Size) -> Size:
        """Height and width of the picture within the square."""
        if self.squashed:
            return self.side, self.side
        scale = self.side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def picture(self, image: RgbImage) -> Floats:
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        resized = interpolate(planes, self.inside(_size(image)), mode="bilinear", antialias=True)
        square = torch.zeros(3, self.side, self.side)
        square[:, : resized.shape[2], : resized.shape[3]] = _normalised(resized[0].float())
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
        low = torch.from_numpy(np.array(outputs["masks"]))[:, best : best + 1]
        square = interpolate(low, (self.side, self.side), mode="bilinear", align_corners=False)
        height, width = self.inside(size)
        whole = interpolate(square[..., :height, :width], size, mode="bilinear")
        return np.asarray(whole[0, 0].numpy() > 0)


@dataclass(frozen=True, slots=True)
class SimpleClickHost:
    """SimpleClick's first click: the whole image, corners on corners, without antialiasing."""

    side: int
    radius: int
    threshold: float
    role: str = "net"

    def picture(self, image: RgbImage) -> Floats:
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        resized = self._stretched(planes, (self.side, self.side))
        return np.asarray(_normalised(resized[0]).numpy())

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


def _size(image: RgbImage) -> Size:
    return image.shape[0], image.shape[1]


def _normalised(planes: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (planes - mean) / std


def levels_apart(found: Floats, wanted: Floats) -> float:
    """Mean difference of two normalised pictures [3, side, side], in levels of 255."""
    return float((np.abs(found - wanted).mean((1, 2)) * np.array(STD)).mean())


def prompts_apart(found: Sequence[Floats], wanted: Sequence[Floats]) -> float:
    """Largest difference of what says where a click is."""
    return max(
        float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")
        for one, other in zip(found, wanted, strict=True)
    )
