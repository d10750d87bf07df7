"""SegAgent's reply text: writing it and reading it.

The only module that knows how a reply counts: its point is (row, column) over 1000, its box
(x, y) over 999 (SegAgent, evaltools/model_loader.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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


@lru_cache(maxsize=16)
def _points(signs: tuple[str, str]) -> re.Pattern[str]:
    words = "|".join(re.escape(sign) for sign in signs)
    pattern = rf"({words})\s+point\s*(?::\s*)?(?:[(\[]\s*)?{_NUMBER}\s*,\s*{_NUMBER}"
    return re.compile(pattern, re.IGNORECASE)
