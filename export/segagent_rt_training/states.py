"""Training examples of the loop: a scene, and a mask as it stands in the middle of it."""

from dataclasses import dataclass

import cv2
import numpy as np

from segagent_rt.image import overlay, squash
from segagent_rt.scenes.dice import Dice
from segagent_rt.scenes.layout import SceneObject, sample_layout
from segagent_rt.scenes.paint import Bytes, paint
from segagent_rt.scenes.scene import visible_objects
from segagent_rt.types import Mask, RgbImage
from segagent_rt_export.families.demo_mllm.net import SIDE
from segagent_rt_training.segmenter import spoil


@dataclass(frozen=True, slots=True)
class State:
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


def make_state(dice: Dice, painted_share: float) -> State:
    """A random scene under a random mask (none, with probability 1 - painted_share)."""
    objects, image, labels = draw_scene(dice)
    visible = visible_objects(objects, labels)
    meant = dice.pick([i for i, seen in enumerate(visible) if seen])
    mask = np.zeros((SIDE, SIDE), np.bool_)
    if dice.chance(painted_share):
        mask = invent_mask(labels, meant, visible, dice)
    return painted_state(objects, image, labels, mask, meant)


def painted_state(
    objects: list[SceneObject], image: RgbImage, labels: Bytes, mask: Mask, meant: int
) -> State:
    """The state of a scene under a mask."""
    shown = overlay(image, mask) if mask.any() else image
    return State(shown, labels, tuple(objects), visible_objects(objects, labels), mask, meant)


def draw_scene(dice: Dice) -> tuple[list[SceneObject], RgbImage, Bytes]:
    """A scene at SIDE x SIDE with a visible object; some are painted larger and squashed, as
    pictures in use are."""
    while True:
        objects = sample_layout(dice)
        large = dice.chance(0.35)
        image, labels = paint(objects, dice, 2 * SIDE if large else SIDE)
        if large:
            image, labels = squash(image, SIDE), np.ascontiguousarray(labels[::2, ::2])
        if any(visible_objects(objects, labels)):
            return objects, image, labels


def invent_mask(labels: Bytes, meant: int, visible: list[bool], dice: Dice) -> Mask:
    """A mask such as a segmenter gives after good and bad clicks on object `meant`."""
    target = labels == meant + 1
    others = [i for i, seen in enumerate(visible) if seen and i != meant]
    other = labels == dice.pick(others) + 1 if others else np.zeros_like(target)
    kind = dice.weighted(("right", "spoilt", "leak", "wrong", "anywhere"), (16, 50, 16, 12, 6))
    if kind == "leak":
        grown = np.ones((dice.pick((1, 3, 5)),) * 2, np.uint8)
        other = cv2.dilate(other.astype(np.uint8), grown).astype(np.bool_)
        kept = target if dice.chance(0.7) else spoil(target, target, dice)
        return np.asarray(kept | other)
    if kind == "wrong":
        return other if dice.chance(0.6) or not other.any() else spoil(other, target, dice)
    if kind == "anywhere":
        patch = np.zeros(target.shape, np.uint8)
        centre = (dice.integer(0, SIDE), dice.integer(0, SIDE))
        cv2.circle(patch, centre, dice.integer(8, 50), 1, -1)
        return patch.astype(np.bool_)
    return target if kind == "right" else spoil(target, other, dice)
