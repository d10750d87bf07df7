"""Finds the objects that an everyday expression names: a check on the grammar that made it.

It shares only the nouns with `expressions`. It compares boxes and needs no margins, where the
grammar compares centres of mass, so an expression that both understand alike leaves little doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segagent_rt_training.words.vocabulary import NOUNS


@dataclass(frozen=True, slots=True)
class ObjectOutline:
    """Where an object is, in longer sides of the photo.

    Attributes:
        label: its value in the label map.
        category: as in the index.
        centre: x and y of the mask's centre of mass.
        box: left, top, right and bottom.
        area: share of the photo's pixels.
    """

    label: int
    category: str
    centre: tuple[float, float]
    box: tuple[float, ...]
    area: float


def named_objects(text: str, objects: Sequence[ObjectOutline]) -> set[int]:
    """The labels of all objects that a text can mean; none if a noun is unknown."""
    words = f" {text} "
    spoken = [
        (len(word), noun.category) for noun in NOUNS for word in noun.words if f" {word} " in words
    ]
    if not spoken:
        return set()
    _, category = max(spoken)  # the longest noun, as "computer mouse"
    left = [item for item in objects if item.category == category]
    rest = text.replace("most", "").split()
    if {"biggest", "largest"} & set(rest):
        return _extreme(left, 1)
    if {"smallest", "tiniest"} & set(rest):
        return _extreme(left, -1)
    rank = 2 if "second" in rest else 3 if "third" in rest else 1
    for word, (axis, first) in {
        "left": (0, True), "right": (0, False), "top": (1, True), "bottom": (1, False),
    }.items():  # fmt: skip
        if word in rest:
            order = sorted(left, key=lambda item: item.box[axis] + item.box[axis + 2])
            chosen = order[rank - 1 : rank] if first else order[len(order) - rank :][:1]
            return {item.label for item in chosen}
    if "middle" in rest:
        order = sorted(left, key=lambda item: item.box[0] + item.box[2])
        return {order[len(order) // 2].label} if len(order) % 2 else set()
    return {item.label for item in left}


def _extreme(objects: Sequence[ObjectOutline], sign: int) -> set[int]:
    """The object with the biggest (1) or smallest (-1) box."""

    def size(item: ObjectOutline) -> float:
        left, top, right, bottom = item.box
        return sign * (right - left) * (bottom - top)

    return {max(objects, key=size).label} if objects else set()
