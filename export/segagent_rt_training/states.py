"""Training examples of the loop: a scene, and a mask as it stands in the middle of it."""

from dataclasses import dataclass

import cv2
import numpy as np

from segagent_rt.image import overlay, squash
from segagent_rt.scenes.layout import SceneObject, sample_layout
from segagent_rt.scenes.paint import Bytes, paint
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.scene import visible_objects
from segagent_rt.types import Mask, RgbImage
from segagent_rt_export.families.demo_mllm.net import SIDE
from segagent_rt_training.segmenter import spoil


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What the MLLM is shown, and the truth behind it, all at SIDE x SIDE."""

    image: RgbImage  # with the mask painted over it
    labels: Bytes
    objects: tuple[SceneObject, ...]
    visible: list[bool]
    mask: Mask
    meant: int
    """The object that the mask was made for."""
    asked: str = ""
    """What the loop was asked when it made the mask, if it did."""


def make_state(rng: DeterministicRng, painted_share: float) -> TrainingState:
    """A random scene under a random mask (none, with probability 1 - painted_share)."""
    objects, image, labels = draw_scene(rng)
    visible = visible_objects(objects, labels)
    meant = rng.pick([i for i, seen in enumerate(visible) if seen])
    mask = np.zeros((SIDE, SIDE), np.bool_)
    if rng.chance(painted_share):
        mask = invent_mask(labels, meant, visible, rng)
    return painted_state(objects, image, labels, mask, meant)


def painted_state(
    objects: list[SceneObject], image: RgbImage, labels: Bytes, mask: Mask, meant: int
) -> TrainingState:
    """The state of a scene under a mask."""
    shown = overlay(image, mask) if mask.any() else image
    return TrainingState(
        shown, labels, tuple(objects), visible_objects(objects, labels), mask, meant
    )


def draw_scene(rng: DeterministicRng) -> tuple[list[SceneObject], RgbImage, Bytes]:
    """A scene at SIDE x SIDE with a visible object; some are painted larger and squashed, as
    pictures in use are."""
    while True:
        objects = sample_layout(rng)
        large = rng.chance(0.35)
        image, labels = paint(objects, rng, 2 * SIDE if large else SIDE)
        if large:
            image, labels = squash(image, SIDE), np.ascontiguousarray(labels[::2, ::2])
        if any(visible_objects(objects, labels)):
            return objects, image, labels


def invent_mask(labels: Bytes, meant: int, visible: list[bool], rng: DeterministicRng) -> Mask:
    """A mask such as a segmenter gives after good and bad clicks on object `meant`."""
    target = labels == meant + 1
    others = [i for i, seen in enumerate(visible) if seen and i != meant]
    other = labels == rng.pick(others) + 1 if others else np.zeros_like(target)
    kind = rng.weighted(("right", "spoilt", "leak", "wrong", "anywhere"), (16, 50, 16, 12, 6))
    if kind == "leak":
        grown = np.ones((rng.pick((1, 3, 5)),) * 2, np.uint8)
        other = cv2.dilate(other.astype(np.uint8), grown).astype(np.bool_)
        kept = target if rng.chance(0.7) else spoil(target, target, rng)
        return np.asarray(kept | other)
    if kind == "wrong":
        return other if rng.chance(0.6) or not other.any() else spoil(other, target, rng)
    if kind == "anywhere":
        patch = np.zeros(target.shape, np.uint8)
        centre = (rng.integer(0, SIDE), rng.integer(0, SIDE))
        cv2.circle(patch, centre, rng.integer(8, 50), 1, -1)
        return patch.astype(np.bool_)
    return target if kind == "right" else spoil(target, other, rng)
