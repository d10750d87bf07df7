"""Reply protocols: SegAgent's clicks and ratings, and the JSON boxes of stock Qwen-VL models.

The only module that knows the coordinate frames of replies. SegAgent's point is (row, column) over
1000, its box (x, y) over 999 (SegAgent, evaltools/model_loader.py). Qwen3-VL's boxes are
thousandths of the image, Qwen2.5-VL's are pixels of the resized image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from segagent_rt.bounds import Count
from segagent_rt.errors import ManifestInvalid
from segagent_rt.types import Action, Box, Click, Finish, Malformed, Size

_FIELDS = re.compile(r"\{(iou|sign|row|column|x0|y0|x1|y1|expression)\}")
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")
_IOU = re.compile(r"current iou:\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
_NUMBER = r"(-?(?:\d+(?:\.\d*)?|\.\d+))(?![\d_])"
_BOX = re.compile(r"<box>\s*\((\d{1,6}),\s*(\d{1,6})\),\s*\((\d{1,6}),\s*(\d{1,6})\)\s*</box>")
_ENDINGS = ("finish", "no object found")
_COORDINATE = r"\s*(-?\d{1,6}(?:\.\d{0,6})?)\s*"
_JSON_BOX = re.compile(
    r"\"bbox(?:_2d)?\"\s*:\s*\[" + ",".join([_COORDINATE] * 4) + r"\]", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reply understood.

    Attributes:
        action: what to do next; of a list of boxes, the first one.
        iou: the rating of the mask shown, 0..1.
        box: the box that comes with a click.
        boxes: every box of a list of boxes.
    """

    action: Action
    iou: float | None = None
    box: Box | None = None
    boxes: tuple[Box, ...] = ()


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
    scale: Count = 1000
    box_scale: Count = 999

    def __post_init__(self) -> None:
        if not {"row", "column"} <= set(_FIELDS.findall(self.template)):
            raise ManifestInvalid("the form of the replies has no `{row}` or no `{column}`")
        if self.signs[0] == self.signs[1] or not all(self.signs):
            raise ManifestInvalid("the words of positive and negative clicks are not two")

    @property
    def rates(self) -> bool:
        """Whether replies say how good the mask is."""
        return "{iou}" in self.template

    @property
    def repeats_expression(self) -> bool:
        """Whether replies repeat the expression."""
        return "{expression}" in self.template

    def longest_reply(self, expression: int) -> int:
        """Tokens of the longest reply, given the tokens of the longest expression."""
        return 128 + (expression if self.repeats_expression else 0)

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
        found = list(_points(self.signs).finditer(text))
        if found:
            return Reading(self._action(found[-1], size, frame or size), iou, self._box(text, size))
        if any(ending.lower() in text.lower() for ending in (*self.endings, *_ENDINGS)):
            return Reading(Finish(), iou)
        return Reading(Malformed("no point in the reply"), iou)

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


LABEL_CHARACTERS = 24
"""Characters of the expression that a box's label repeats. Labels are not used, so they are kept
short: every token of them has to be read by the model before the next box."""

BOX_LIST_START, BOX_SEPARATOR, BOX_LIST_END = "```json\n[\n\t", '"},\n\t', '"}\n]\n```'


@dataclass(frozen=True, slots=True)
class BoxListProtocol:
    """How stock Qwen-VL models answer when they are asked to locate an object.

    The reply is a fenced JSON list with an object for each box::

        [
            {"bbox_2d": [x1, y1, x2, y2], "label": "the mug"}
        ]

    Attributes:
        unit: what coordinates count. `relative`: thousandths of the image's width and height
            (Qwen3-VL); `pixels`: pixels of the resized image (Qwen2.5-VL).
        max_boxes: length of the longest list that constrained decoding allows.
        form: tells this protocol from `ReplyProtocol` in a manifest.
    """

    unit: Literal["relative", "pixels"]
    max_boxes: int = 8
    form: Literal["json-boxes"] = "json-boxes"

    @property
    def rates(self) -> bool:
        """Whether replies say how good the mask is: never."""
        return False

    @property
    def repeats_expression(self) -> bool:
        """Whether replies repeat the expression: always, as the label."""
        return True

    def longest_reply(self, expression: int) -> int:
        """Tokens of the longest reply; the length of the expression does not matter."""
        return self.max_boxes * (32 + 3 * LABEL_CHARACTERS) + 16

    def write(
        self, boxes: Sequence[Box], size: Size, *, expression: str = "", frame: Size | None = None
    ) -> str:
        """The reply that lists these boxes.

        Args:
            boxes: in pixels of an image of `size`.
            size: (height, width) of the image.
            expression: the label of each box.
            frame: (height, width) of the resized image, for pixel units.

        Returns:
            The text, with coordinates in the protocol's unit.
        """
        rows, columns = self._units(frame or size)
        numbers = (
            round(value * units / side)
            for box in boxes
            for value, units, side in (
                (box.x0, columns, size[1]),
                (box.y0, rows, size[0]),
                (box.x1, columns, size[1]),
                (box.y1, rows, size[0]),
            )
        )
        pieces = self._skeleton(len(boxes), expression, frame or size)
        return "".join(piece if isinstance(piece, str) else str(next(numbers)) for piece in pieces)

    def read(self, text: str, size: Size, *, frame: Size | None = None) -> Reading:
        """Understand a reply, also one that a free-running model wrote a little differently.

        Text around the list, missing fences, decimals and a list that was cut off are accepted.
        Corners are put in order and clamped to the image; boxes without area are left out.

        Args:
            text: the reply.
            size: (height, width) of the image that boxes are wanted in.
            frame: (height, width) of the resized image, for pixel units.

        Returns:
            The first box as the action, and all boxes. An empty list reads as `Finish`.
        """
        rows, columns = self._units(frame or size)
        found = []
        for match in _JSON_BOX.finditer(text):
            x0, x1 = self._interval(match[1], match[3], columns, size[1])
            y0, y1 = self._interval(match[2], match[4], rows, size[0])
            if x0 < x1 and y0 < y1:
                found.append(Box(x0, y0, x1, y1))
        if found:
            return Reading(found[0], boxes=tuple(found))
        if re.search(r"\[\s*\]", text):
            return Reading(Finish())
        return Reading(Malformed("no box in the reply"))

    def _units(self, frame: Size) -> Size:
        return frame if self.unit == "pixels" else (1000, 1000)

    @staticmethod
    def _interval(one: str, other: str, units: int, side: int) -> tuple[int, int]:
        first, last = sorted(round(float(value) / units * side) for value in (one, other))
        return min(max(first, 0), side - 1), min(max(last, 0), side - 1)

    def skeletons(self, expression: str, frame: Size) -> Iterator[list[str | int]]:
        """Every form of a reply, from one box to `max_boxes`: literal texts, and for each number
        the largest value it may have."""
        for count in range(1, self.max_boxes + 1):
            yield self._skeleton(count, expression, frame)

    def entry(self, expression: str, frame: Size) -> list[str | int]:
        """One box of the list, without what separates it from the next.

        The label stands apart, so that it does not change how the text after it is tokenized.
        """
        rows, columns = self._units(frame)
        numbers: list[str | int] = [columns, ", ", rows, ", ", columns, ", ", rows]
        label = json.dumps(expression[:LABEL_CHARACTERS].rstrip(), ensure_ascii=False)[1:-1]
        return ['{"bbox_2d": [', *numbers, '], "label": "', label]

    def _skeleton(self, count: int, expression: str, frame: Size) -> list[str | int]:
        first, *rest = self.entry(expression, frame)
        again: list[str | int] = [f"{BOX_SEPARATOR}{first}", *rest] * (count - 1)
        return [f"{BOX_LIST_START}{first}", *rest, *again, BOX_LIST_END]


AnyReplyProtocol: TypeAlias = ReplyProtocol | BoxListProtocol


@lru_cache(maxsize=16)
def _points(signs: tuple[str, str]) -> re.Pattern[str]:
    words = "|".join(re.escape(sign) for sign in signs)
    pattern = rf"({words})\s+point\s*(?::\s*)?(?:[(\[]\s*)?{_NUMBER}\s*,\s*{_NUMBER}"
    return re.compile(pattern, re.IGNORECASE)
