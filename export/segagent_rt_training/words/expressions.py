"""Expressions about labelled objects of a photo, each of which names exactly one of them.

As with the generated scenes, a grammar makes expressions with a margin, and an independent reader
(`reading`) has to find the same object.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from segagent_rt_training.photo.photos import Bytes
from segagent_rt_training.words.reading import ObjectOutline, named_objects
from segagent_rt_training.words.vocabulary import INDEX, NOUNS

PhraseKind: TypeAlias = Literal["bare", "position", "size", "ordinal"]

EVERYTHING = "all COCO instances"
FACADES = "windows, balcony fences, fences, cars"
"""How the annotation scope of facades begins; of the nouns, only cars are labelled there."""

MOST_IGNORED = 0.002
"""Share of a photo that may be ignored: more of it may hide a crowd of a labelled category."""

LEAST_SHARE = 0.01
"""Share of the photo that the target of an expression covers at least."""

MARGIN, SIZE_RATIO = 0.03, 1.3
"""Neighbours in an order are this far apart, in longer sides of the photo; the biggest is this much
bigger than the next."""

MOST_ORDERED = 6
"""Nobody counts in a larger crowd."""

SIDES = ("left", "right", "top", "bottom")
CHOICES = (
    "bare", *SIDES, "middle", "biggest", "smallest",
    *(f"{rank} {side}" for rank in ("second", "third") for side in SIDES),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EverydayExpression:
    """A text that names the object with label `target`; `noun` is its place in `NOUNS` and `choice`
    its place in `CHOICES`. An absent noun has target 0, which labels no object."""

    text: str
    target: int
    noun: int
    choice: int

    @property
    def kind(self) -> PhraseKind:
        """How the object is chosen among those of its noun; `bare` if it is the only one."""
        name = CHOICES[self.choice]
        if name == "bare":
            return "bare"
        if " " in name:
            return "ordinal"
        return "size" if name in ("biggest", "smallest") else "position"


def fully_labelled(entry: Mapping[str, Any]) -> frozenset[str]:
    """The categories of which a photo's annotators labelled every object, as its index says."""
    scope = entry.get("annotation_scope", "")
    if scope == EVERYTHING:
        return frozenset(INDEX) if entry.get("ignore_share", 0.0) <= MOST_IGNORED else frozenset()
    return frozenset({"car"}) if scope.startswith(FACADES) else frozenset()


def outlines(labels: Bytes, categories: Mapping[int, str]) -> list[ObjectOutline]:
    """Where the labelled objects of a label map uint8 [H, W] are; hidden ones are left out."""
    found = []
    height, width = labels.shape
    for label, category in categories.items():
        rows, columns = np.nonzero(labels == label)
        if len(rows) < 16:
            continue
        unit = max(height, width)
        box = (columns.min() / unit, rows.min() / unit,
               (columns.max() + 1) / unit, (rows.max() + 1) / unit)  # fmt: skip
        centre = (float(columns.mean() + 0.5) / unit, float(rows.mean() + 0.5) / unit)
        area = len(rows) / labels.size
        found.append(ObjectOutline(label, category, centre, tuple(map(float, box)), area))
    return found


def make_expressions(
    objects: Sequence[ObjectOutline], labelled: frozenset[str], rng: random.Random
) -> tuple[list[EverydayExpression], int]:
    """One phrase for each way to name a large enough object of a fully labelled category.

    Returns:
        The expressions that the reader understands as meant, and the number that it does not.
    """
    made, misread = [], 0
    for category in sorted({item.category for item in objects} & labelled & INDEX.keys()):
        members = [item for item in objects if item.category == category]
        for choice, target in _meanings(members):
            if target.area < LEAST_SHARE:
                continue
            text = _phrase(category, CHOICES[choice], rng)
            if named_objects(text, objects) == {target.label}:
                made.append(EverydayExpression(text, target.label, INDEX[category], choice))
            else:
                misread += 1
    return made, misread


def absent_expressions(
    objects: Sequence[ObjectOutline], labelled: frozenset[str], count: int, rng: random.Random
) -> list[EverydayExpression]:
    """Nouns of which a photo shows no object for sure: `count` of the fully labelled ones."""
    missing = sorted((labelled & INDEX.keys()) - {item.category for item in objects})
    chosen = rng.sample(missing, min(count, len(missing)))
    return [EverydayExpression(_phrase(c, "bare", rng), 0, INDEX[c], 0) for c in chosen]


def _meanings(members: Sequence[ObjectOutline]) -> Iterator[tuple[int, ObjectOutline]]:
    """Ways to choose one of a category's objects, as places in `CHOICES`."""
    if len(members) == 1:
        yield 0, members[0]
    if len(members) < 2:
        return
    for side in SIDES:
        axis, sign = (0 if side in ("left", "right") else 1), (1 if side in ("left", "top") else -1)
        order = sorted(members, key=lambda item: sign * item.centre[axis])
        places = [sign * item.centre[axis] for item in order]
        apart = [b - a >= MARGIN for a, b in pairwise(places)]
        if apart[0]:
            yield CHOICES.index(side), order[0]
        for rank, name in ((2, "second"), (3, "third")):
            if rank <= len(order) <= MOST_ORDERED and all(apart[:rank]):
                yield CHOICES.index(f"{name} {side}"), order[rank - 1]
        if side == "left" and len(order) == 3 and all(apart):
            yield CHOICES.index("middle"), order[1]
    small, *_, large = ranked = sorted(members, key=lambda item: item.area)
    if large.area >= SIZE_RATIO * ranked[-2].area:
        yield CHOICES.index("biggest"), large
    if ranked[1].area >= SIZE_RATIO * small.area:
        yield CHOICES.index("smallest"), small


def _phrase(category: str, choice: str, rng: random.Random) -> str:
    """One way to say a choice among a category's objects."""
    noun = NOUNS[INDEX[category]]
    one, many = rng.choice((category, category, *noun.synonyms)), noun.plural
    if choice == "bare":
        return rng.choice((f"the {one}", one))
    if " " in choice:
        rank, side = choice.split()
        forms = [f"the {rank} {one} from the {side}", f"the {one} that is {rank} from the {side}"]
    elif choice == "middle":
        forms = [f"the {one} in the middle", f"the middle {one}", f"the middle one of the {many}"]
    elif choice in ("biggest", "smallest"):
        word = rng.choice((choice, {"biggest": "largest", "smallest": "tiniest"}[choice]))
        forms = [f"the {word} {one}", f"the {word} of the {many}"]
    else:
        at = "at" if choice in ("top", "bottom") else "on"
        forms = [f"the {one} {at} the {choice}", f"the {choice}most {one}",
                 f"the {choice}most of the {many}"]  # fmt: skip
    return rng.choice(forms)
