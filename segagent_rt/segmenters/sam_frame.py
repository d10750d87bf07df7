"""How a picture is laid into the square that a SAM encoder sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.types import RgbImage, Size

Resize: TypeAlias = Literal["longest", "squash"]
Channels: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture of size `image` in a square of `side` pixels, laid in by the rule `resize`."""

    image: Size
    side: int
    resize: Resize

    @property
    def inside(self) -> Size:
        """Height and width of the picture within the square; it starts at the top left."""
        if self.resize == "squash":
            return self.side, self.side
        scale = self.side / max(self.image)
        height, width = (max(1, int(length * scale + 0.5)) for length in self.image)
        return height, width


def pixels(image: RgbImage, frame: Frame, mean: Channels, std: Channels) -> npt.NDArray[np.float32]:
    """The encoder's input, float32 [1, 3, side, side]: resized, normalised, then padded with 0.

    Pillow's bilinear filter widens when shrinking; SAM was trained on it, and OpenCV has none.
    """
    from PIL import Image

    height, width = frame.inside
    how = Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(image).resize((width, height), how))
    square = np.zeros((1, 3, frame.side, frame.side), np.float32)
    levels = np.arange(256, dtype=np.float64)
    for channel in range(3):
        table = ((levels - mean[channel]) / std[channel]).astype(np.float32)
        square[0, channel, :height, :width] = table[resized[..., channel]]
    return square
