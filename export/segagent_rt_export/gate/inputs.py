"""States that both sides of a comparison are put into: of generated scenes, or of anybody's photos
(`photos`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from segagent_rt.annotators.oracle import next_click
from segagent_rt.scenes import Scene, make_scene
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Click, Mask, Prediction, RgbImage, Segmenter, Size

SIDE, SEED = 448, 40_000
"""How large scenes are in pixels, and the first one's seed."""

MEASURED, MEASURED_SEED = 8, 39_000
"""How many scenes ranges are measured on, and the first one's seed: others than those judged."""

CLICKS = 4
"""Clicks on each object when segmenters are compared."""


@dataclass(frozen=True, slots=True)
class GateState:
    """A question to an MLLM: an image, an expression, and the mask so far."""

    name: str
    image: RgbImage
    expression: str
    prediction: Prediction | None


@dataclass(frozen=True, slots=True)
class ClickedImage:
    """An image, clicks on it, and the last mask that they led the reference to."""

    image: RgbImage
    clicks: tuple[Click, ...]
    mask: Mask


class GateInputs(Protocol):
    """Pictures for the gate, and what is done on them."""

    def measured(self) -> Iterator[RgbImage]:
        """Pictures on which the ranges of values are measured."""

    def drawn(self, reference: Segmenter) -> Iterator[ClickedImage]:
        """What a segmenter is asked."""

    def states(self, segmenter: Segmenter | None) -> Iterator[GateState]:
        """What an MLLM is asked; `segmenter` is its bundle's, if there is one."""

    def record(self) -> dict[str, Any]:
        """For the manifest."""


@dataclass(frozen=True, slots=True)
class SceneInputs:
    """Generated scenes, always the same."""

    count: int

    def measured(self) -> Iterator[RgbImage]:
        return (scene.image for scene in scenes(MEASURED, first=MEASURED_SEED))

    def drawn(self, reference: Segmenter) -> Iterator[ClickedImage]:
        """One object of each scene, clicked where the reference is most wrong about it."""
        for scene in scenes(self.count):
            target = scene.mask(scene.expressions[0].target)
            embedding, prediction = reference.encode(scene.image), None
            mask, clicks = np.zeros_like(target), list[Click]()
            for _ in range(CLICKS):
                click = next_click(target, mask)
                if click is None:
                    break
                clicks.append(click)
                prediction = reference.decode(embedding, clicks, prior=prediction)
                mask = prediction.mask()
            yield ClickedImage(scene.image, tuple(clicks), mask)

    def states(self, segmenter: Segmenter | None) -> Iterator[GateState]:
        """Three of each scene: no mask, that of another object, and half of the right one."""
        for scene in scenes(self.count):
            meant = scene.expressions[0]
            right = scene.mask(meant.target)
            other = scene.mask((meant.target + 1) % len(scene.objects))
            half = right.copy()
            half[:, : int(np.median(np.nonzero(right)[1]))] = False
            for name, mask in (("no mask", None), ("another object", other), ("half of it", half)):
                prediction = None if mask is None else GivenMask(mask)
                yield GateState(f"scene {scene.seed}, {name}", scene.image, meant.text, prediction)

    def record(self) -> dict[str, Any]:
        return {"pictures": "generated scenes", "judged": self.count, "measured": MEASURED}


def scenes(count: int, side: int = SIDE, first: int = SEED) -> Iterator[Scene]:
    """The scenes from a seed on."""
    for number in range(count):
        yield make_scene(first + number, side)


def pictures(sizes: tuple[Size, ...]) -> Iterator[RgbImage]:
    """Pieces of scenes, of sizes that no grid divides."""
    for scene, (height, width) in zip(scenes(len(sizes)), sizes, strict=True):
        yield np.ascontiguousarray(scene.image[:height, :width])
