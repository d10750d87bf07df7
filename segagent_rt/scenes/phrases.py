"""From a query to words. The ways to say it vary; the meaning does not."""

from segagent_rt.scenes.expressions import Noun, Query, Side
from segagent_rt.scenes.rng import DeterministicRng

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
HEADS = ("object", "thing")
ORDINALS = {2: "second", 3: "third"}
EXTREMES = {"largest": ("largest", "biggest"), "smallest": ("smallest", "tiniest")}
OUTERMOST: dict[Side, str] = {
    "left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost",
}  # fmt: skip
RELATIONS: dict[Side, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "top": ("above", "over"),
    "bottom": ("below", "under"),
}


def say(query: Query, rng: DeterministicRng) -> str:
    """One way to say the query, e.g. `the second star from the left`."""
    words = _say(query, rng)
    return words if rng.chance(0.15) else f"the {words}"


def _say(query: Query, rng: DeterministicRng) -> str:
    noun = _noun(query.noun, rng)
    if query.extreme is not None:
        return f"{rng.pick(EXTREMES[query.extreme])} {noun}"
    if query.side is None:
        return _described(query.noun, rng) or noun
    if query.anchor is not None:
        return f"{noun} {rng.pick(RELATIONS[query.side])} the {_noun(query.anchor, rng)}"
    if query.rank is not None:
        number = ORDINALS[query.rank]
        if rng.chance(0.25):
            return f"{noun} that is {number} from the {query.side}"
        return f"{number} {noun} from the {query.side}"
    at = "at" if query.side in ("top", "bottom") else "on"
    return rng.pick(
        (
            f"{OUTERMOST[query.side]} {noun}",
            f"{noun} {at} the {query.side}",
            f"{noun} nearest the {query.side}",
        )
    )


def _noun(noun: Noun, rng: DeterministicRng) -> str:
    words = []
    if noun.size is not None:
        words.append(rng.pick(SIZE_WORDS[noun.size]))
    if noun.colour is not None:
        words.append(noun.colour)
    words.append(noun.shape or rng.pick(HEADS))
    return " ".join(words)


def _described(noun: Noun, rng: DeterministicRng) -> str | None:
    """`star that is red`: the same noun, with its colour behind."""
    if noun.colour is None or not rng.chance(0.2):
        return None
    return f"{_noun(Noun(shape=noun.shape, size=noun.size), rng)} that is {noun.colour}"
