"""States that both sides of a comparison are put into, from generated scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from segagent_rt.scenes import Scene, make_scene
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Prediction, RgbImage, Size

SIDE, SEED = 448, 40_000
"""How large scenes are in pixels, and the first one's seed."""


@dataclass(frozen=True, slots=True)
class State:
    """A question to an MLLM: an image, an expression, and the mask so far."""

    name: str
    image: RgbImage
    expression: str
    prediction: Prediction | None


def scenes(count: int, side: int = SIDE) -> Iterator[Scene]:
    """The scenes, always the same."""
    for number in range(count):
        yield make_scene(SEED + number, side)


def states(count: int) -> Iterator[State]:
    """Three states of each scene: no mask, that of another object, and half of the right one."""
    for scene in scenes(count):
        meant = scene.expressions[0]
        right = scene.mask(meant.target)
        other = scene.mask((meant.target + 1) % len(scene.objects))
        half = right.copy()
        half[:, : int(np.median(np.nonzero(right)[1]))] = False
        for name, mask in (("no mask", None), ("another object", other), ("half of it", half)):
            prediction = None if mask is None else GivenMask(mask)
            yield State(f"scene {scene.seed}, {name}", scene.image, meant.text, prediction)


def pictures(sizes: tuple[Size, ...]) -> Iterator[RgbImage]:
    """Pieces of scenes, of sizes that no grid divides."""
    for scene, (height, width) in zip(scenes(len(sizes)), sizes, strict=True):
        yield np.ascontiguousarray(scene.image[:height, :width])
