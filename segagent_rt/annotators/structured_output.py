"""The form of a reply, written down so that a server can hold its model to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator

from segagent_rt.reply import (
    BOX_LIST_END,
    BOX_LIST_START,
    BOX_SEPARATOR,
    AnyReplyProtocol,
    ReplyProtocol,
)
from segagent_rt.types import Size

_SPECIAL = re.compile(r"([\\.^$*+?{}\[\]|()])")


def regex(protocol: AnyReplyProtocol, expression: str, frame: Size) -> str:
    """A regular expression for the whole reply, without what dialects disagree about.

    `frame` is the size of the picture that the model is given, for replies in pixels.
    """

    def literal(text: str) -> str:
        return _SPECIAL.sub(r"\\\1", text)

    return "|".join(_alternatives(protocol, expression, frame, literal, ""))


def gbnf(protocol: AnyReplyProtocol, expression: str, frame: Size) -> str:
    """The same in llama.cpp's grammar language."""

    def literal(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    return "root ::= " + " | ".join(_alternatives(protocol, expression, frame, literal, " "))


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


def _alternatives(
    protocol: AnyReplyProtocol,
    expression: str,
    frame: Size,
    literal: Callable[[str], str],
    space: str,
) -> Iterator[str]:
    """The forms of a reply; `space` stands between the parts of one."""

    def written(pieces: Iterable[str | int]) -> str:
        return space.join(
            literal(piece) if isinstance(piece, str) else f"({up_to(piece)})"
            for piece in pieces
            if piece != ""
        )

    if isinstance(protocol, ReplyProtocol):
        yield from (written(pieces) for pieces in protocol.skeletons(expression, frame))
        return
    entry = written(protocol.entry(expression, frame))
    again = f"({literal(BOX_SEPARATOR)}{space}{entry}){{0,{protocol.max_boxes - 1}}}"
    yield space.join([literal(BOX_LIST_START), entry, again, literal(BOX_LIST_END)])
