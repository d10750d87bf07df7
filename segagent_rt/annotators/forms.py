"""The form of a reply, written down so that a server can hold its model to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from segagent_rt.reply import ReplyProtocol
from segagent_rt.types import Size

_SPECIAL = re.compile(r"([\\.^$*+?{}\[\]|()])")


def regex(protocol: ReplyProtocol, expression: str, frame: Size) -> str:
    """A regular expression for the whole reply, without what dialects disagree about.

    `frame` is the size of the picture that the model is given, for replies in pixels.
    """
    forms = _spelt(protocol, expression, frame, lambda text: _SPECIAL.sub(r"\\\1", text))
    return "|".join("".join(form) for form in forms)


def gbnf(protocol: ReplyProtocol, expression: str, frame: Size) -> str:
    """The same in llama.cpp's grammar language."""
    forms = _spelt(protocol, expression, frame, lambda text: json.dumps(text, ensure_ascii=False))
    return "root ::= " + " | ".join(" ".join(form) for form in forms)


def up_to(most: int) -> str:
    """The numbers 0 to `most` without leading zeros, as alternatives of character classes, which
    both languages read."""
    digits = str(most)
    classes, any_digit = [f"[{digit}]" for digit in digits], "[0-9]"
    found = ["[0]", *("[1-9]" + any_digit * rest for rest in range(len(digits) - 1))]
    for at, digit in enumerate(digits):  # as long, equal before this digit, smaller from it on
        least = int(at == 0)
        if int(digit) > least:
            smaller = f"[{least}-{int(digit) - 1}]"
            found.append("".join(classes[:at]) + smaller + any_digit * (len(digits) - at - 1))
    return "|".join(found if most == 0 else [*found, "".join(classes)])


def _spelt(
    protocol: ReplyProtocol, expression: str, frame: Size, literal: Callable[[str], str]
) -> Iterator[list[str]]:
    for pieces in protocol.skeletons(expression, frame):
        yield [
            literal(piece) if isinstance(piece, str) else f"({up_to(piece)})"
            for piece in pieces
            if piece != ""
        ]
