"""From a query to words. The ways to say it vary; the meaning does not."""

from segagent_rt.scenes.dice import Dice
from segagent_rt.scenes.expressions import Noun, Query, Side

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


def say(query: Query, dice: Dice) -> str:
    """One way to say the query, e.g. `the second star from the left`."""
    words = _say(query, dice)
    return words if dice.chance(0.15) else f"the {words}"


def _say(query: Query, dice: Dice) -> str:
    noun = _noun(query.noun, dice)
    if query.extreme is not None:
        return f"{dice.pick(EXTREMES[query.extreme])} {noun}"
    if query.side is None:
        return _described(query.noun, dice) or noun
    if query.anchor is not None:
        return f"{noun} {dice.pick(RELATIONS[query.side])} the {_noun(query.anchor, dice)}"
    if query.rank is not None:
        number = ORDINALS[query.rank]
        if dice.chance(0.25):
            return f"{noun} that is {number} from the {query.side}"
        return f"{number} {noun} from the {query.side}"
    at = "at" if query.side in ("top", "bottom") else "on"
    return dice.pick(
        (
            f"{OUTERMOST[query.side]} {noun}",
            f"{noun} {at} the {query.side}",
            f"{noun} nearest the {query.side}",
        )
    )


def _noun(noun: Noun, dice: Dice) -> str:
    words = []
    if noun.size is not None:
        words.append(dice.pick(SIZE_WORDS[noun.size]))
    if noun.colour is not None:
        words.append(noun.colour)
    words.append(noun.shape or dice.pick(HEADS))
    return " ".join(words)


def _described(noun: Noun, dice: Dice) -> str | None:
    """`star that is red`: the same noun, with its colour behind."""
    if noun.colour is None or not dice.chance(0.2):
        return None
    return f"{_noun(Noun(shape=noun.shape, size=noun.size), dice)} that is {noun.colour}"
