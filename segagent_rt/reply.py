"""SegAgent's reply text: writing it, reading it, and the automaton that decoding stays within.

The only module that knows how a reply counts: its point is (row, column) over 1000, its box
(x, y) over 999 (SegAgent, evaltools/model_loader.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from segagent_rt.types import Action, Box, Click, Finish, Malformed, Size

_FIELDS = re.compile(r"\{(iou|sign|row|column|x0|y0|x1|y1|expression)\}")
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")
_IOU = re.compile(r"current iou:\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
_NUMBER = r"(-?(?:\d+(?:\.\d*)?|\.\d+))(?![\d_])"
_BOX = re.compile(r"<box>\s*\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)\s*</box>")
_ENDINGS = ("finish", "no object found")


@dataclass(frozen=True, slots=True)
class Reading:
    """A reply understood: the action, the rating of the mask shown (0..1), the box."""

    action: Action
    iou: float | None = None
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class ReplyProtocol:
    """How an MLLM writes its replies; part of every MLLM's manifest.

    Attributes:
        template: a reply with the fields {iou} (0..100), {sign}, {row}, {column}, {x0} {y0} {x1}
            {y1} (the box) and {expression}.
        signs: the words for a positive and a negative click.
        endings: whole replies that finish the annotation.
        unit: what {row} and {column} count. `relative`: `scale` to a side; `decimal`: 0 to 1 with
            three digits; `pixels`: pixels of the picture that the MLLM is given.
        scale, box_scale: how many units a side has.
    """

    template: str = " Current IOU: {iou}  {sign} point: ({row}, {column})"
    signs: tuple[str, str] = ("Positive", "Negative")
    endings: tuple[str, ...] = ()
    unit: Literal["relative", "decimal", "pixels"] = "relative"
    scale: int = 1000
    box_scale: int = 999

    @property
    def rates(self) -> bool:
        """Whether replies say how good the mask is."""
        return "{iou}" in self.template

    def write(
        self,
        click: Click,
        size: Size,
        *,
        iou: float = 0.0,
        box: Box | None = None,
        expression: str = "",
        frame: Size | None = None,
    ) -> str:
        """The reply that says this click.

        Args:
            click, box: in pixels of an image of `size`.
            iou: of the mask shown, 0..1.
            frame: size of the picture that the MLLM is given, for pixel units.
        """
        (height, width), corners = size, box or Box(0, 0, 0, 0)
        values = {
            "iou": str(int(100 * iou)),
            "sign": self.signs[0 if click.positive else 1],
            "row": self._code(click.y / height, (frame or size)[0]),
            "column": self._code(click.x / width, (frame or size)[1]),
            "x0": str(round(corners.x0 / width * self.box_scale)),
            "y0": str(round(corners.y0 / height * self.box_scale)),
            "x1": str(round(corners.x1 / width * self.box_scale)),
            "y1": str(round(corners.y1 / height * self.box_scale)),
            "expression": expression,
        }
        return _FIELDS.sub(lambda match: values[match[1]], self.template)

    def _code(self, share: float, length: int) -> str:
        if self.unit == "decimal":
            return f"{min(share, 0.999):.3f}"
        units = length if self.unit == "pixels" else self.scale
        return str(min(units - 1, round(share * units)))

    def read(self, text: str, size: Size, *, frame: Size | None = None) -> Reading:
        """Understand a reply, also one that a free-running model wrote a little differently.

        The last point counts. Numbers slightly out of range are clamped into the image of `size`.
        """
        text = _SPECIAL.sub("", text).rsplit("</ref>", 1)[-1]
        rating = _IOU.search(text)
        iou = float(rating[1]) / 100 if rating and float(rating[1]) <= 100 else None
        found = list(self._points().finditer(text))
        if found:
            return Reading(self._action(found[-1], size, frame or size), iou, self._box(text, size))
        if any(ending.lower() in text.lower() for ending in (*self.endings, *_ENDINGS)):
            return Reading(Finish(), iou)
        return Reading(Malformed("no point in the reply"), iou)

    def _points(self) -> re.Pattern[str]:
        signs = "|".join(re.escape(sign) for sign in self.signs)
        pattern = rf"({signs})\s+point\s*(?::\s*)?(?:[(\[]\s*)?{_NUMBER}\s*,\s*{_NUMBER}"
        return re.compile(pattern, re.IGNORECASE)

    def _action(self, match: re.Match[str], size: Size, frame: Size) -> Action:
        positive = match[1].lower() == self.signs[0].lower()
        columns_first = 0 <= self.template.find("{column}") < self.template.find("{row}")
        numbers = (match[3], match[2]) if columns_first else (match[2], match[3])
        row, column = (
            self._share(n, side, numbers) for n, side in zip(numbers, frame, strict=True)
        )
        if max(row, column) > 1.5 or min(row, column) < -0.5:
            return Malformed("the point lies far outside the image")
        y, x = round(row * size[0]), round(column * size[1])
        clamped = min(max(x, 0), size[1] - 1), min(max(y, 0), size[0] - 1)
        return Click(*clamped, positive=positive)

    def _share(self, number: str, length: int, both: tuple[str, str]) -> float:
        fraction = all("." in n and abs(float(n)) < 1 for n in both)
        if self.unit == "decimal" or fraction:
            return float(number)
        return float(number) / (length if self.unit == "pixels" else self.scale)

    def _box(self, text: str, size: Size) -> Box | None:
        match = _BOX.search(text)
        if match is None:
            return None
        xs = sorted(int(int(match[i]) / self.box_scale * size[1]) for i in (1, 3))
        ys = sorted(int(int(match[i]) / self.box_scale * size[0]) for i in (2, 4))
        return Box(xs[0], ys[0], min(xs[1], size[1] - 1), min(ys[1], size[0] - 1))

    def skeletons(self, expression: str, frame: Size) -> Iterator[list[str | int]]:
        """Every form of a reply: literal texts, and for each number the largest value it may have.

        A decimal is the literal `0.` and three numbers of one digit.
        """
        for ending in self.endings:
            yield [ending]
        for sign in self.signs:
            pieces: list[str | int] = [""]
            for at, part in enumerate(_FIELDS.split(self.template)):
                if at % 2 == 0 or part in ("sign", "expression"):
                    pieces[-1] += {"sign": sign, "expression": expression}.get(part, part)  # type: ignore[operator]
                    continue
                for piece in self._number(part, frame):
                    if isinstance(piece, str):
                        pieces[-1] += piece  # type: ignore[operator]
                    else:
                        pieces += [piece, ""]
            yield pieces

    def _number(self, name: str, frame: Size) -> list[str | int]:
        if name == "iou":
            return [100]
        if name in ("x0", "y0", "x1", "y1"):
            return [self.box_scale]
        if self.unit == "decimal":
            return ["0.", 9, 9, 9]
        length = frame[0 if name == "row" else 1]
        return [(length if self.unit == "pixels" else self.scale) - 1]


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
    protocol: ReplyProtocol, encode: Callable[[str], Sequence[int]], expression: str, frame: Size
) -> Automaton:
    """Turn a protocol into an automaton over the tokens of a tokenizer.

    Literal text is spelt as the tokenizer spells it between numbers, which must be single-digit
    tokens there (true of Qwen's and LLaMA's tokenizers).

    Raises:
        ValueError: the tokenizer joins digits to each other or to their surroundings.
    """
    zero, *others = (_digit(encode, value) for value in range(10))
    digits = {token: str(value) for value, token in enumerate([zero, *others])}
    paths = [
        _spell(pieces, encode, zero, set(digits))
        for pieces in protocol.skeletons(expression, frame)
    ]
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


def _spell(
    pieces: list[str | int], encode: Callable[[str], Sequence[int]], zero: int, digits: set[int]
) -> list[int | _Number]:
    """Encode a skeleton with a 0 in every number's place, then put the numbers back."""
    text = "".join("0" if isinstance(piece, int) else piece for piece in pieces)
    numbers = [piece for piece in pieces if isinstance(piece, int)]
    literal_digits = sum(c.isdigit() for piece in pieces if isinstance(piece, str) for c in piece)
    path: list[int | _Number] = []
    places = _number_places(pieces)
    seen = 0
    for token in encode(text):
        is_number = token == zero and seen in places
        seen += token in digits
        path.append(_Number(numbers[places.index(seen - 1)]) if is_number else token)
    if seen != len(numbers) + literal_digits:
        raise ValueError("the tokenizer joins digits to the text around them")
    return path


def _number_places(pieces: list[str | int]) -> list[int]:
    """Which of the digits of the text, counted from 0, stand for numbers."""
    places, count = [], 0
    for piece in pieces:
        if isinstance(piece, int):
            places.append(count)
            count += 1
        else:
            count += sum(c.isdigit() for c in piece)
    return places
