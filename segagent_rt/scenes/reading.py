"""An independent reader of expressions: text and objects in, the objects it can mean out.

It shares neither the generator's grammar nor its margins, so that a test with it can tell an
ambiguous expression.
"""

from collections.abc import Sequence

from segagent_rt.scenes.layout import COLOURS, SHAPES, SceneObject

_SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
_NUMBERS = {"second": 2, "third": 3}
_SUPERLATIVES = {"largest": -1, "biggest": -1, "smallest": 1, "tiniest": 1}
_FILLERS = {"the", "object", "thing", "that", "is", "to", "of", "on", "at", "from", "nearest"}
_OUTER = {"leftmost": "left", "rightmost": "right", "topmost": "top", "bottommost": "bottom"}
_BETWEEN = {"above": "top", "over": "top", "below": "bottom", "under": "bottom"}
_DIRECTIONS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}

VOCABULARY = frozenset(
    {
        *COLOURS,
        *SHAPES,
        *_SIZES,
        *_NUMBERS,
        *_SUPERLATIVES,
        *_FILLERS,
        *_OUTER,
        *_BETWEEN,
        *_DIRECTIONS,
    }
)
"""Every word of the generator's language."""


def unknown_words(text: str) -> list[str]:
    """The words of a text that the generator's language does not have, in order, each once."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    return [word for word in dict.fromkeys(words) if word not in VOCABULARY]


def meanings(text: str, objects: Sequence[SceneObject]) -> set[int]:
    """The objects that the text can mean: exactly one for an unambiguous expression."""
    words = text.split()
    for at in range(1, len(words)):
        direction = _relation(words, at)
        if direction is not None:
            return _beside(words[:at], direction, words[at + 1 :], objects)
    return _select(words, objects)


def _relation(words: list[str], at: int) -> str | None:
    if words[at] in _BETWEEN:
        return _BETWEEN[words[at]]
    is_relation = words[at] in ("left", "right") and words[at + 1 : at + 2] == ["of"]
    return words[at] if is_relation else None


def _beside(
    words: list[str], direction: str, anchor: list[str], objects: Sequence[SceneObject]
) -> set[int]:
    axis, sign = _DIRECTIONS[direction]
    anchors = _select(anchor, objects)
    if len(anchors) != 1:
        return set()
    limit = sign * _place(objects[anchors.pop()])[axis]
    return {i for i in _select(words, objects) if sign * _place(objects[i])[axis] < limit}


def _select(words: list[str], objects: Sequence[SceneObject]) -> set[int]:
    left = set(range(len(objects)))
    for word in words:
        if word in COLOURS:
            left = {i for i in left if objects[i].colour == word}
        elif word in SHAPES:
            left = {i for i in left if objects[i].shape == word}
        elif word in _SIZES:
            left = {i for i in left if objects[i].size == _SIZES[word]}
    for word in words:
        if word in _SUPERLATIVES and left:
            best = min(_SUPERLATIVES[word] * objects[i].extent for i in left)
            left = {i for i in left if _SUPERLATIVES[word] * objects[i].extent == best}
    side = next((_OUTER.get(w, w) for w in words if w in _OUTER or w in _DIRECTIONS), None)
    if side is None:
        return left
    axis, sign = _DIRECTIONS[side]
    order = sorted(left, key=lambda i: sign * _place(objects[i])[axis])
    rank = next((_NUMBERS[word] for word in words if word in _NUMBERS), 1)
    return set(order[rank - 1 : rank])


def _place(item: SceneObject) -> tuple[float, float]:
    return item.x, item.y
