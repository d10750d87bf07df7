"""Pictures for people: the mask's outline, the clicks in order, the expression."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from segagent_rt.types import Click, Mask, RgbImage

OUTLINE = (57, 255, 20)
POSITIVE, NEGATIVE = (0, 132, 255), (255, 45, 45)
"""Blue and red are told apart by most people, and neither is the mask's green."""

LONGEST_SIDE = 2048
"""Overlays of larger pictures are shrunk to this; masks never are."""


def draw_overlay(
    image: RgbImage, mask: Mask, clicks: Sequence[Click], caption: str = ""
) -> RgbImage:
    """The image with the mask's outline, numbered clicks and a caption below.

    image uint8 [H, W, 3]; mask bool [H, W]. Large pictures come back smaller.
    """
    scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    canvas = _shrunk(image, scale)
    _outline(canvas, mask)
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


def _outline(canvas: RgbImage, mask: Mask) -> None:
    height, width = canvas.shape[:2]
    small = mask.astype(np.uint8)
    if small.shape != (height, width):
        small = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))
    outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thin = max(1, round(max(height, width) / 400))
    cv2.drawContours(canvas, outlines, -1, (0, 0, 0), thin + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, OUTLINE, thin, cv2.LINE_AA)


def _mark(canvas: RgbImage, click: Click, number: int, scale: float) -> None:
    radius = max(5, round(max(canvas.shape[:2]) / 60))
    centre = round((click.x + 0.5) * scale), round((click.y + 0.5) * scale)
    cv2.circle(canvas, centre, radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, radius, POSITIVE if click.positive else NEGATIVE, -1, cv2.LINE_AA)
    size = radius / 14
    (width, height), _ = cv2.getTextSize(str(number), cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    corner = centre[0] - width // 2, centre[1] + height // 2
    thick = max(1, round(radius / 7))
    white = (255, 255, 255)
    cv2.putText(
        canvas, str(number), corner, cv2.FONT_HERSHEY_SIMPLEX, size, white, thick, cv2.LINE_AA
    )


def _captioned(canvas: RgbImage, caption: str) -> RgbImage:
    """A dark strip below with the caption, wrapped to the picture's width."""
    from PIL import Image, ImageDraw, ImageFont

    width = canvas.shape[1]
    size = max(12, min(28, width // 24))
    font: Any = ImageFont.load_default(size)
    lines = _wrapped(caption, font, max(width - size, size))
    strip = Image.new("RGB", (width, round(size * (1.4 * len(lines) + 0.6))), (24, 24, 24))
    pen = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        pen.text((size // 2, size * (0.3 + 1.4 * row)), line, font=font, fill=(240, 240, 240))
    return np.concatenate([canvas, np.asarray(strip, np.uint8)])


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines[:4]
