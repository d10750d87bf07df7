"""Referring expressions: what can be said of an object so that every word is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Literal, TypeAlias

from segagent_rt.scenes.layout import SceneObject
from segagent_rt.scenes.rng import DeterministicRng

Kind: TypeAlias = Literal[
    "colour", "shape", "size", "position", "ordinal", "superlative", "relation"
]
Side: TypeAlias = Literal["left", "right", "top", "bottom"]
Extreme: TypeAlias = Literal["largest", "smallest"]

KINDS: tuple[Kind, ...] = (
    "colour", "shape", "size", "position", "ordinal", "superlative", "relation",
)  # fmt: skip
SIDES: tuple[Side, ...] = ("left", "right", "top", "bottom")

ORDER_MARGIN = 13.0
"""Neighbours in an order are at least this far apart along its axis, in canvas pixels."""
RELATION_MARGIN = 20.0
SIZE_RATIO = 1.2
"""The largest (smallest) object's extent differs from the next one's by this factor."""


@dataclass(frozen=True, slots=True)
class Noun:
    """A set of objects: those that have every property that is named."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None

    def holds(self, item: SceneObject) -> bool:
        return (
            self.colour in (None, item.colour)
            and self.shape in (None, item.shape)
            and self.size in (None, item.size)
        )

    @property
    def words(self) -> int:
        return sum(word is not None for word in (self.colour, self.shape, self.size))

    def shorter(self) -> Iterator["Noun"]:
        """The nouns with one word less."""
        for word in ("size", "colour", "shape"):
            if getattr(self, word) is not None:
                yield replace(self, **{word: None})


@dataclass(frozen=True, slots=True)
class Query:
    """The meaning of an expression: a noun, and at most one way to choose among what it names.

    `rank` 1 is the outermost on `side`; a relation says that the object lies to the `side` of the
    anchor.
    """

    noun: Noun
    side: Side | None = None
    rank: int | None = None
    extreme: Extreme | None = None
    anchor: Noun | None = None

    @property
    def bare(self) -> bool:
        return self.side is None and self.extreme is None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expression's meaning with the object it means."""

    query: Query
    target: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Expression:
    """A phrase that means object number `target` of its scene and no other."""

    text: str
    target: int
    kind: Kind


def along(side: Side, item: SceneObject) -> float:
    """How far an object is from `side`, up to a constant: the outermost has the least."""
    if side in ("left", "right"):
        return item.x if side == "left" else -item.x
    return item.y if side == "top" else -item.y


class SceneObjects:
    """The objects of a scene, ready for many queries."""

    def __init__(self, objects: Sequence[SceneObject]) -> None:
        self.objects = objects
        self._members: dict[Noun, list[int]] = {}

    def members(self, noun: Noun) -> list[int]:
        """The objects that a noun names."""
        if noun not in self._members:
            self._members[noun] = [i for i, item in enumerate(self.objects) if noun.holds(item)]
        return self._members[noun]

    def resolve(self, query: Query) -> int | None:
        """The one object that the query means with the margins of this module, or None."""
        members = self.members(query.noun)
        if query.extreme is not None:
            return self._extreme(members, query.extreme)
        if query.side is None:
            return members[0] if len(members) == 1 else None
        if query.anchor is not None:
            return self._related(members, query.side, query.anchor)
        return self._ranked(members, query.side, query.rank or 1)

    def _ranked(self, members: list[int], side: Side, rank: int) -> int | None:
        if len(members) < max(2, rank):
            return None
        ranked = sorted((along(side, self.objects[i]), i) for i in members)
        near = [distance for distance, _ in ranked[max(0, rank - 2) : rank + 1]]
        apart = all(b - a > ORDER_MARGIN for a, b in pairwise(near))
        return ranked[rank - 1][1] if apart else None

    def _extreme(self, members: list[int], extreme: Extreme) -> int | None:
        if len(members) < 2:
            return None
        ranked = sorted(
            ((self.objects[i].extent, i) for i in members), reverse=extreme == "largest"
        )
        (first, winner), (second, _) = ranked[:2]
        return winner if max(first, second) > SIZE_RATIO * min(first, second) else None

    def _related(self, members: list[int], side: Side, anchor: Noun) -> int | None:
        anchors = self.members(anchor)
        if len(anchors) != 1:
            return None
        limit = along(side, self.objects[anchors[0]])
        gaps = [(limit - along(side, self.objects[i]), i) for i in members if i != anchors[0]]
        there = [i for gap, i in gaps if gap > RELATION_MARGIN]
        unclear = any(-4 < gap <= RELATION_MARGIN for gap, _ in gaps)
        return there[0] if len(there) == 1 and not unclear else None

    def nouns(self) -> list[Noun]:
        """Every noun that names something here, in a fixed order."""
        found = {noun: None for item in self.objects for noun in _nouns(item)}
        return list(found)

    def names(self) -> list[Noun]:
        """The nouns without size that name one object with no superfluous word."""
        return [
            noun
            for noun in self.nouns()
            if noun.size is None
            and len(self.members(noun)) == 1
            and all(len(self.members(less)) > 1 for less in noun.shorter())
        ]


def candidates(objects: Sequence[SceneObject], visible: Sequence[bool]) -> list[Candidate]:
    """Everything that can be said of the visible objects without a superfluous word."""
    board = SceneObjects(objects)
    found = []
    for query, kind in _queries(board):
        target = board.resolve(query)
        if target is None or not visible[target]:
            continue
        if all(board.resolve(less) != target for less in _reductions(query)):
            found.append(Candidate(query, target, kind))
    return found


def _queries(board: SceneObjects) -> Iterator[tuple[Query, Kind]]:
    nouns = board.nouns()
    plain = [noun for noun in nouns if noun.size is None]
    for noun in nouns:
        if noun.words:
            yield Query(noun), _bare_kind(noun)
    for noun, side in product(plain, SIDES):
        yield Query(noun, side=side), "position"
        for rank in (2, 3):
            yield Query(noun, side=side, rank=rank), "ordinal"
    for noun in plain:
        yield Query(noun, extreme="largest"), "superlative"
        yield Query(noun, extreme="smallest"), "superlative"
    for noun, side, anchor in product(plain, SIDES, board.names()):
        yield Query(noun, side=side, anchor=anchor), "relation"


def _nouns(item: SceneObject) -> Iterator[Noun]:
    sizes = (None,) if item.size == "medium" else (None, item.size)
    for colour, shape, size in product((None, item.colour), (None, item.shape), sizes):
        yield Noun(colour, shape, size)


def _bare_kind(noun: Noun) -> Kind:
    if noun.size is not None:
        return "size"
    return "colour" if noun.colour is not None else "shape"


def _reductions(query: Query) -> Iterator[Query]:
    """The query with one word, or its choice, left out: none of these may mean the same object."""
    for noun in query.noun.shorter():
        yield replace(query, noun=noun)
    if not query.bare:
        yield Query(query.noun)


def choose(found: Sequence[Candidate], rng: DeterministicRng, count: int) -> list[Candidate]:
    """Up to `count` different candidates: kinds that are possible are equally likely, rich nouns
    preferred."""
    pools = {kind: [c for c in found if c.kind == kind] for kind in KINDS}
    chosen: list[Candidate] = []
    while len(chosen) < count and any(pools.values()):
        pool = pools[rng.pick([kind for kind in KINDS if pools[kind]])]
        choice = rng.weighted(pool, [4**c.query.noun.words for c in pool])
        pool.remove(choice)
        chosen.append(choice)
    return chosen
