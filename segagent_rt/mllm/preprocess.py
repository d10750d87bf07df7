"""From a photo to the picture that a vision encoder takes: four rules of resizing.

Each gives the pixels that the family's own processor gives (Pillow's bicubic filter, 8 bits after
each pass); `squash` by area is ours, for the model that ships.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, overload

import numpy as np

from segagent_rt.bounds import Level, Pixels, Side
from segagent_rt.errors import ImageUnreadable, ManifestInvalid
from segagent_rt.image import squash
from segagent_rt.types import Action, Box, Click, RgbImage, Size

NARROWEST = 200
"""Longest side over shortest at which smart_resize gives up."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of an image that a picture shows: its corner and size, in pixels of the image.

    It reaches beyond the image where the picture is padded.
    """

    x: int
    y: int
    size: Size

    def action(self, action: Action, image: Size) -> Action:
        """An action counted from the window's corner, counted from the image's and inside it."""
        if isinstance(action, Box):
            return self.box(action, image)
        if not isinstance(action, Click):
            return action
        x, y = self._inside(action.x, action.y, image)
        return Click(x, y, action.positive)

    @overload
    def box(self, box: Box, image: Size) -> Box: ...

    @overload
    def box(self, box: Box | None, image: Size) -> Box | None: ...

    def box(self, box: Box | None, image: Size) -> Box | None:
        """As `action`, for a box."""
        if box is None:
            return None
        return Box(*self._inside(box.x0, box.y0, image), *self._inside(box.x1, box.y1, image))

    def _inside(self, x: int, y: int, image: Size) -> tuple[int, int]:
        return min(max(x + self.x, 0), image[1] - 1), min(max(y + self.y, 0), image[0] - 1)


@dataclass(frozen=True, slots=True)
class SquareResize:
    """To a square whatever the aspect: `bicubic` as Qwen-VL does, `area` as the shipped model."""

    side: Side
    filter: Literal["area", "bicubic"] = "bicubic"
    rule: Literal["squash"] = "squash"

    def resize(self, image: RgbImage) -> RgbImage:
        if self.filter == "area":
            return squash(image, self.side)
        return bicubic(image, (self.side, self.side))

    def window(self, size: Size) -> Window:
        return Window(0, 0, size)


@dataclass(frozen=True, slots=True)
class SmartResize:
    """Near the image's own size and aspect: sides are multiples of `unit`, the number of pixels
    lies between `least` and `most` (Qwen2-VL's smart_resize)."""

    unit: Side
    least: Pixels
    most: Pixels
    rule: Literal["smart"] = "smart"

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ManifestInvalid(
                f"a picture cannot have at least {self.least} and at most {self.most} pixels"
            )

    def resize(self, image: RgbImage) -> RgbImage:
        return bicubic(image, self.target((image.shape[0], image.shape[1])))

    def target(self, size: Size) -> Size:
        """The picture's size for an image of `size`.

        Raises:
            ImageUnreadable: one side is more than 200 times the other.
        """
        height, width = size
        if max(size) > NARROWEST * min(size):
            raise ImageUnreadable(
                f"the image is {width} x {height} pixels, too narrow for this model",
                hint=f"one side may be at most {NARROWEST} times the other",
            )
        rows, columns = (round(side / self.unit) * self.unit for side in size)
        if rows * columns > self.most:
            shrink = math.sqrt(height * width / self.most)
            rows, columns = (max(1, math.floor(s / shrink / self.unit)) * self.unit for s in size)
        elif rows * columns < self.least:
            grow = math.sqrt(self.least / (height * width))
            rows, columns = (math.ceil(side * grow / self.unit) * self.unit for side in size)
        return rows, columns

    def window(self, size: Size) -> Window:
        return Window(0, 0, size)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The shorter side to `edge`, then the middle `side` x `side` (CLIP's processor)."""

    edge: Side
    side: Side
    rule: Literal["crop"] = "crop"

    def __post_init__(self) -> None:
        if self.side > self.edge:
            raise ManifestInvalid(f"{self.side} pixels cannot be cut out of {self.edge}")

    def resize(self, image: RgbImage) -> RgbImage:
        whole = bicubic(image, self._whole((image.shape[0], image.shape[1])))
        top, left = ((length - self.side) // 2 for length in whole.shape[:2])
        return np.ascontiguousarray(whole[top : top + self.side, left : left + self.side])

    def _whole(self, size: Size) -> Size:
        short = min(size)
        rows, columns = (self.edge if s == short else int(self.edge * s / short) for s in size)
        return rows, columns

    def window(self, size: Size) -> Window:
        scale = min(size) / self.edge
        top, left = (round((length - self.side) // 2 * scale) for length in self._whole(size))
        side = round(self.side * scale)
        return Window(left, top, (side, side))


@dataclass(frozen=True, slots=True)
class PadToSquare:
    """Padded to a square with `colour`, then to `side` x `side` (LLaVA's processor)."""

    side: Side
    colour: tuple[Level, Level, Level]
    rule: Literal["pad"] = "pad"

    def resize(self, image: RgbImage) -> RgbImage:
        height, width = image.shape[:2]
        square = np.empty((max(height, width),) * 2 + (3,), np.uint8)
        square[:] = self.colour
        window = self.window((height, width))
        square[-window.y : height - window.y, -window.x : width - window.x] = image
        return bicubic(square, (self.side, self.side))

    def window(self, size: Size) -> Window:
        height, width = size
        side = max(size)
        return Window(-((side - width) // 2), -((side - height) // 2), (side, side))


Resize: TypeAlias = SquareResize | SmartResize | CenterCrop | PadToSquare


def bicubic(image: RgbImage, size: Size) -> RgbImage:
    """Pillow's bicubic filter (a = -0.5, antialiased)."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.uint8)
