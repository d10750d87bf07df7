"""The reply grammar over the tokens of a tokenizer: what decoding stays within."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from segagent_rt.reply import AnyReplyProtocol, ReplyProtocol
from segagent_rt.types import Size

State: TypeAlias = frozenset[tuple[int, int, str]]
"""Where decoding may stand: (skeleton, token in it, digits of the number being written)."""


@dataclass(slots=True)
class Automaton:
    """The token sequences that spell a valid reply. States are made when first visited.

    `Automaton.start` to begin, `edges(state)` for the tokens allowed and where they lead; a state
    without edges is the end. `opening` is how a reply that is shown no mask most likely begins:
    rated 0, and positive; `praise`, how one does that is shown a good mask: rated in the nineties.
    """

    paths: list[list[int | _Number]]
    digits: dict[int, str]
    opening: tuple[int, ...] = ()
    praise: tuple[int, ...] = ()
    start: State = frozenset()
    _edges: dict[State, dict[int, State]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = frozenset((path, 0, "") for path in range(len(self.paths)))

    def edges(self, state: State) -> dict[int, State]:
        """Allowed tokens, in ascending order, with the state after each."""
        if state not in self._edges:
            after: dict[int, set[tuple[int, int, str]]] = {}
            for place in state:
                for token, following in self._moves(*place):
                    after.setdefault(token, set()).add(following)
            self._edges[state] = {token: frozenset(after[token]) for token in sorted(after)}
        return self._edges[state]

    def _moves(
        self, path: int, at: int, written: str
    ) -> Iterator[tuple[int, tuple[int, int, str]]]:
        if at == len(self.paths[path]):
            return
        piece = self.paths[path][at]
        if isinstance(piece, int):
            yield piece, (path, at + 1, "")
            return
        for token, digit in self.digits.items():
            if written != "0" and int(written + digit) <= piece.most:
                yield token, (path, at, written + digit)
        if written:  # the number may end here
            yield from self._moves(path, at + 1, "")

    def ended(self, state: State) -> bool:
        """Whether the reply is complete."""
        return not self.edges(state)

    def rating_digits(self, state: State) -> str | None:
        """The digits written so far of a reply's first number; None anywhere else.

        In protocols that rate, the first number is the rating.
        """
        for path, at, written in state:
            pieces = self.paths[path]
            first = not any(isinstance(piece, _Number) for piece in pieces[:at])
            if first and at < len(pieces) and isinstance(pieces[at], _Number):
                return written
        return None

    def starts_number(self, state: State) -> bool:
        """Whether the next token is the first digit of a number."""
        return all(
            at < len(self.paths[path]) and not written and isinstance(self.paths[path][at], _Number)
            for path, at, written in state
        )

    def past_rating(self, state: State) -> bool:
        """Whether the first number of the reply is complete."""
        return all(
            any(isinstance(piece, _Number) for piece in self.paths[path][:at])
            for path, at, _ in state
        )

    def tokens(self) -> set[int]:
        """Every token that can occur."""
        literals = {piece for path in self.paths for piece in path if isinstance(piece, int)}
        return literals | set(self.digits)


@dataclass(frozen=True, slots=True)
class _Number:
    most: int


def compile_grammar(
    protocol: AnyReplyProtocol, encode: Callable[[str], Sequence[int]], expression: str, frame: Size
) -> Automaton:
    """Turn a protocol into an automaton over the tokens of a tokenizer.

    Literal text is spelt as the tokenizer spells it between numbers, which must be single-digit
    tokens there (true of Qwen's and LLaMA's tokenizers).

    Raises:
        ValueError: the tokenizer joins digits to each other or to their surroundings.
    """
    zero, one, *others = (_digit(encode, value) for value in range(10))
    digits = {token: str(value) for value, token in enumerate([zero, one, *others])}
    paths = [
        [step for part in _parts(pieces) for step in _spell(part, encode, zero, one)]
        for pieces in protocol.skeletons(expression, frame)
    ]
    if not isinstance(protocol, ReplyProtocol):
        return Automaton(paths, digits)
    positive = paths[len(protocol.endings)]
    words = _before_numbers(positive)
    first = next(words)
    if not protocol.rates:
        return Automaton(paths, digits, first)
    opening = (*first, zero, *next(words))
    return Automaton(paths, digits, opening, praise=(*first, others[-1]))


def _before_numbers(path: list[int | _Number]) -> Iterator[tuple[int, ...]]:
    """The tokens before each number of a path, from those of the number before it on."""
    words = list[int]()
    for piece in path:
        if isinstance(piece, int):
            words.append(piece)
        else:
            yield tuple(words)
            words.clear()


def _digit(encode: Callable[[str], Sequence[int]], value: int) -> int:
    """The token of a digit, seen after another digit, where no space is drawn into it."""
    token = encode(f"3{value}")[-1]
    if encode(f"3{value}{value}")[-2:] != [token, token]:
        raise ValueError("the tokenizer does not write digits one by one")
    return token


def _parts(pieces: list[str | int]) -> list[list[str | int]]:
    """Split a skeleton where two texts meet: the tokenizer spells each side by itself."""
    parts: list[list[str | int]] = [[]]
    for piece in pieces:
        if isinstance(piece, str) and parts[-1] and isinstance(parts[-1][-1], str):
            parts.append([])
        parts[-1].append(piece)
    return parts


def _spell(
    pieces: list[str | int], encode: Callable[[str], Sequence[int]], zero: int, one: int
) -> list[int | _Number]:
    """Encode a skeleton with a 0 in every number's place, and with a 1: the numbers differ."""
    numbers = [piece for piece in pieces if isinstance(piece, int)]
    zeros, ones = (
        encode("".join(digit if isinstance(piece, int) else piece for piece in pieces))
        for digit in "01"
    )
    tokens = list(zip(zeros, ones, strict=False))
    places = [at for at, (token, other) in enumerate(tokens) if token != other]
    alone = all(tokens[at] == (zero, one) for at in places)
    if len(zeros) != len(ones) or len(places) != len(numbers) or not alone:
        raise ValueError("the tokenizer joins digits to the text around them")
    path: list[int | _Number] = list(zeros)
    for at, most in zip(places, numbers, strict=True):
        path[at] = _Number(most)
    return path
