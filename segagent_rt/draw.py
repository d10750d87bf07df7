"""Overlays for people: the mask, the clicks in order, the expression."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.types import Box, Click, Mask, RgbImage

OUTLINE = (57, 255, 20)
POSITIVE, NEGATIVE = (0, 132, 255), (255, 45, 45)
"""Blue and red are told apart by most people, and neither is the mask's green."""

LONGEST_SIDE = 2048
"""Overlays of larger images are shrunk to this; masks never are."""

FILL = 0.25
"""How much of the mask's colour is laid over the object."""

FONTS = (
    "DejaVuSans", "NotoSans", "NotoSansCJK", "NotoSansSC", "NotoSansArabic", "NotoEmoji",
    "SourceHanSans", "wqy", "uming", "ukai", "DroidSansFallback", "Unifont", "FreeSans", "Symbola",
    "Arial Unicode", "ArialUni", "PingFang", "Hiragino", "AppleGothic", "msyh", "simsun", "meiryo",
    "malgun", "segoeui", "seguisym", "seguiemj", "tahoma", "arial",
)  # fmt: skip
"""Beginnings of the names of fonts that are tried for letters that Pillow's own font lacks."""

SHAPED = (("\u0590", "\u08ff"), ("\ufb1d", "\ufdff"), ("\ufe70", "\ufeff"), ("\u0900", "\u0dff"))
"""Scripts whose letters are joined or written from the right: they need a layout with Raqm."""


def draw_overlay(
    image: RgbImage,
    mask: Mask,
    clicks: Sequence[Click],
    caption: str = "",
    *,
    box: Box | None = None,
) -> RgbImage:
    """The image with the mask lightly filled and outlined, numbered clicks and a caption below.

    Args:
        image: uint8 [H, W, 3] RGB.
        mask: bool [H, W].
        clicks: in pixels of the image.
        caption: what stands below; `undrawable` says which of its letters cannot be drawn.
        box: the box that the segmenter was given, in pixels of the image.

    Returns:
        uint8 RGB. Large images come back smaller.
    """
    scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    canvas = _shrunk(image, scale)
    _paint_mask(canvas, mask)
    if box is not None:
        _outline_box(canvas, box, scale)
    for number, click in enumerate(clicks, 1):
        _mark(canvas, click, number, scale)
    return _captioned(canvas, caption) if caption else canvas


def png(pixels: RgbImage | Mask) -> bytes:
    """A PNG file: RGB, or a mask as 0 and 255."""
    from PIL import Image

    array = pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint8) * 255
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _shrunk(image: RgbImage, scale: float) -> RgbImage:
    if scale == 1.0:
        return image.copy()
    size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def undrawable(caption: str) -> str:
    """The letters of a caption that no font on this machine can draw, each once."""
    if caption.isascii():
        return ""
    _, drawn = _font_for(caption, 24)
    return "".join(dict.fromkeys(letter for letter in caption if letter not in drawn))


def _paint_mask(canvas: RgbImage, mask: Mask) -> None:
    height, width = canvas.shape[:2]
    small = mask.astype(np.uint8)
    if small.shape != (height, width):
        small = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))
    inside = small > 0
    canvas[inside] = (canvas[inside] * (1 - FILL) + np.asarray(OUTLINE) * FILL).astype(np.uint8)
    outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thin = max(1, round(max(height, width) / 400))
    cv2.drawContours(canvas, outlines, -1, (0, 0, 0), thin + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, OUTLINE, thin, cv2.LINE_AA)


def _outline_box(canvas: RgbImage, box: Box, scale: float) -> None:
    top_left = round(box.x0 * scale), round(box.y0 * scale)
    bottom_right = round(box.x1 * scale), round(box.y1 * scale)
    thin = max(1, round(max(canvas.shape[:2]) / 300))
    cv2.rectangle(canvas, top_left, bottom_right, (255, 255, 255), thin + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, top_left, bottom_right, POSITIVE, thin, cv2.LINE_AA)


def _mark(canvas: RgbImage, click: Click, number: int, scale: float) -> None:
    radius = max(5, round(max(canvas.shape[:2]) / 60))
    x, y = round((click.x + 0.5) * scale), round((click.y + 0.5) * scale)
    colour = POSITIVE if click.positive else NEGATIVE
    cv2.circle(canvas, (x, y), radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, (x, y), radius, colour, -1, cv2.LINE_AA)
    _write_centred(canvas, str(number), (x, y), radius)


def _write_centred(canvas: RgbImage, text: str, centre: tuple[int, int], radius: int) -> None:
    """Write into a disc, with Pillow: OpenCV 5 would load fonts of its own first."""
    from PIL import Image, ImageDraw, ImageFont

    left, top = (max(0, place - radius) for place in centre)
    window = canvas[top : centre[1] + radius, left : centre[0] + radius]
    tile = Image.fromarray(window)
    font = ImageFont.load_default(round(radius * (1.6 if len(text) == 1 else 1.3)))
    place = centre[0] - left, centre[1] - top
    ImageDraw.Draw(tile).text(place, text, (255, 255, 255), font, anchor="mm")
    window[:] = np.asarray(tile)


def _captioned(canvas: RgbImage, caption: str) -> RgbImage:
    """A dark strip below with the caption, wrapped to the picture's width."""
    from PIL import Image, ImageDraw

    width = canvas.shape[1]
    size = max(12, min(28, width // 24))
    font, drawn = _font_for(caption, size)
    caption = "".join(letter for letter in caption if letter in drawn)
    lines = _wrapped(caption, font, max(width - size, size))
    strip = Image.new("RGB", (width, round(size * (1.4 * len(lines) + 0.6))), (24, 24, 24))
    pen = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        pen.text((size // 2, size * (0.3 + 1.4 * row)), line, font=font, fill=(240, 240, 240))
    return np.concatenate([canvas, np.asarray(strip, np.uint8)])


def _font_for(text: str, size: int) -> tuple[Any, frozenset[str]]:
    """The font that has most of a text's letters, and those letters."""
    from PIL import ImageFont

    letters = frozenset(text)
    best: Any = ImageFont.load_default(size)
    drawn = letters if text.isascii() else _drawn_by(best, letters)
    for path in _font_files() if drawn != letters else ():
        try:
            font = ImageFont.truetype(path, size)
        except (OSError, ValueError):
            continue
        if len(found := _drawn_by(font, letters)) > len(drawn):
            best, drawn = font, found
            if drawn == letters:
                break
    return best, drawn


def _drawn_by(font: Any, letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font has a shape for, other than the one for what it lacks."""
    from PIL import features

    lacking = [bytes(font.getmask(code)) for code in ("\uffff", "\U0010fffe")]
    shaped = features.check("raqm")
    return frozenset(
        letter
        for letter in letters
        if letter.isspace()
        or (
            letter.isprintable()
            and (shaped or not any(low <= letter <= high for low, high in SHAPED))
            and bytes(font.getmask(letter)) not in lacking
        )
    )


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """Fonts of this machine by the names above, in their order."""
    names = [name.lower() for name in FONTS]
    found = [
        (at, len(path), path)
        for path in _every_font()
        for at, name in enumerate(names)
        if os.path.basename(path).lower().startswith(name)  # noqa: PTH119 (thousands of them)
    ]
    return tuple(path for *_, path in sorted(found))


def _every_font() -> Iterator[str]:
    home = os.path.expanduser("~")  # noqa: PTH111 (`Path.home` raises where there is none)
    folders = {
        "win32": (os.path.join(os.environ.get("WINDIR", "C:/Windows"), "Fonts"),),  # noqa: PTH118
        "darwin": ("/System/Library/Fonts", "/Library/Fonts", f"{home}/Library/Fonts"),
    }.get(
        sys.platform, ("/usr/share/fonts", "/usr/local/share/fonts", f"{home}/.local/share/fonts")
    )
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in sorted(names):
                if Path(name).suffix.lower() in (".ttf", ".otf", ".ttc"):
                    yield f"{place}/{name}"


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for piece in _pieces(text, font, width):
        if lines[-1] and font.getlength(lines[-1] + piece) > width:
            lines.append(piece.lstrip())
        else:
            lines[-1] = (lines[-1] + piece).lstrip()
    return lines[:4]


def _pieces(text: str, font: Any, width: int) -> Iterator[str]:
    """Words with a space before them; those that are wider than a line cut into letters."""
    for word in text.split():
        yield from [f" {word}"] if font.getlength(word) <= width else f" {word}"
