"""From the digits of a reply, and what else the model thought of writing, to probabilities."""

from __future__ import annotations

from collections.abc import Mapping

from segagent_rt.mllm.decoder import DecodedReply, TokenChoice
from segagent_rt.mllm.grammar import Automaton


def expected_iou(written: DecodedReply, automaton: Automaton) -> float | None:
    """Expected IoU, 0..1, over the digits that the model weighed; None if replies hold no rating.

    The digits written are only the most likely ones; the probabilities of the others say on which
    side the truth lies. An alternative first digit d >= 2 counts as 10 * d + 4.5. A leading 1 may
    begin 10 to 19 or 100: the probabilities of 0 and 2, and of 9, decide between them.
    """
    digits = [c for c in written.choices if automaton.rating_digits(c.state) is not None]
    if not digits:
        return None
    first, *later = digits
    chances = _chances(first, automaton)
    likeliest = max(chances, key=lambda digit: chances[digit])
    total = 0.0
    for digit, chance in chances.items():
        whole = digit == likeliest
        total += chance * (_second(digit, later, automaton) if whole else _first(digit, chances))
    return min(total, 100.0) / 100


def click_confidence(written: DecodedReply, automaton: Automaton) -> float | None:
    """How certain a click is that was written greedily: the lowest probability, 0..1, of the first
    digit of a number after the rating. First digits name a tenth of the image's side.

    None if there is no such number.
    """
    first = [
        float(choice.chances.max())
        for choice in written.choices
        if automaton.past_rating(choice.state) and automaton.starts_number(choice.state)
    ]
    return min(first, default=None)


def _chances(choice: TokenChoice, automaton: Automaton) -> dict[int, float]:
    """The chance of each digit, in the order of the tokens."""
    pairs = zip(choice.tokens, choice.chances.tolist(), strict=True)
    return {int(automaton.digits[token]): chance for token, chance in pairs}


def _first(digit: int, chances: Mapping[int, float]) -> float:
    """Expected number of which no more than the first digit is known."""
    if digit != 1:
        return 10 * digit + 4.5 if digit else 0.0
    few, many = chances[0] + chances[2], chances[9]
    return (few * 14.5 + many * 100.0) / (few + many) if few + many else 14.5


def _second(digit: int, later: list[TokenChoice], automaton: Automaton) -> float:
    """Expected number given its first digit: alone, or with a second one behind it."""
    if not later:
        return float(digit)
    total = 0.0
    for token, chance in zip(later[0].tokens, later[0].chances.tolist(), strict=True):
        second = automaton.digits.get(token)
        total += chance * (digit if second is None else 10 * digit + int(second))
    # A third digit can only make a hundred of a ten.
    if len(later) > 1 and digit == 1:
        zero = next(t for t in later[1].tokens if automaton.digits.get(t) == "0")
        total += 90.0 * float(later[1].chances[later[1].tokens.index(zero)])
    return total
