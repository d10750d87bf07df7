"""Tokenizers from files that somebody else made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from segagent_rt.io import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_GROWTH = 64
"""How many times longer a text may become before it is split into tokens, and after decoding."""


def parse_tokenizer(content: str) -> Tokenizer:
    """Read `tokenizer.json`. What it says of padding and truncation is not used.

    Args:
        content: of the file.

    Raises:
        ValueError: the library cannot read it, or its steps lengthen a text without measure.
    """
    from tokenizers import Tokenizer

    found = parse_json(content)
    for part in ("normalizer", "decoder") if isinstance(found, dict) else ():
        growth = 1
        for step in _steps(found.get(part)):
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise ValueError(f"its {part} lengthens texts more than {MOST_GROWTH} times")
    try:
        tokenizer = Tokenizer.from_str(content)
    except BaseException as error:  # the library's panics are no `Exception`
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(" ".join(str(error).split())[:200]) from error
        raise
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _steps(tree: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or decoder, which may be sequences of sequences."""
    if isinstance(tree, dict):
        yield tree
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for item in items:
        if isinstance(item, (dict, list)):
            yield from _steps(item)


def _growth(step: dict[str, Any]) -> int:
    """How many times longer a step can make a text."""
    if "precompiled_charsmap" in step:
        return MOST_GROWTH + 1  # nothing says how long its replacements are
    content, pattern = step.get("content"), step.get("pattern")
    if not isinstance(content, str):
        return 1
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    shortest = len(replaced) if isinstance(replaced, str) else 1
    return 1 if len(content) <= shortest else 1 + len(content)
