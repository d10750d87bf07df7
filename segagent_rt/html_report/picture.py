"""A case's pictures as SVG: the photo once, and for each step its mask, box and numbered clicks.

All coordinates in the SVG are pixels of the original image; the pixel (x, y) covers the unit square
from there, so marks are drawn at its centre.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segagent_rt.html_report.case import ReportCase, ReportStep
from segagent_rt.types import Box, Click, Mask, RgbImage

QUALITIES = (82, 65, 45)
"""Of the JPEG photos; the lower ones for photos that become larger than `MOST_BYTES`."""

MOST_BYTES = 500_000

POINTS = 3000
"""An outline has about so many points at most; it is drawn more coarsely until it does."""

WINDOW_SHARE = 0.4
"""Steps are drawn enlarged if all masks and clicks lie in so small a share of the image."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo, or a window of it, that several pictures show.

    Attributes:
        id: of the element in the page.
        window: the part of the image, in pixels; both corners belong to it.
        jpeg: the file.
    """

    id: str
    window: Box
    jpeg: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the image."""
        return _size(self.window)

    def definition(self) -> str:
        """The SVG element that pictures refer to."""
        width, height = self.size
        content = base64.b64encode(self.jpeg).decode()
        return (
            f'<image id="{self.id}" x="{self.window.x0}" y="{self.window.y0}" width="{width}" '
            f'height="{height}" href="data:image/jpeg;base64,{content}"/>'
        )


def photos_of(case: ReportCase, name: str, longest: int) -> tuple[Photo, Photo]:
    """The whole photo, and the part of it that the steps are drawn in; often the same.

    Args:
        case: one with an image.
        name: begins the ids of the photos.
        longest: pixels of the longer side of a photo.
    """
    image = case.image
    assert image is not None
    height, width = image.shape[:2]
    everything = Box(0, 0, width - 1, height - 1)
    whole = Photo(f"{name}-whole", everything, _jpeg(image, longest))
    window = _window(case, (width, height))
    if window == everything:
        return whole, whole
    part = image[window.y0 : window.y1 + 1, window.x0 : window.x1 + 1]
    return whole, Photo(f"{name}-window", window, _jpeg(part, longest))


def picture_of(
    photo: Photo,
    label: str,
    step: ReportStep,
    clicks: Sequence[Click],
    *,
    target: Mask | None = None,
    frame: Box | None = None,
) -> str:
    """A photo with a step drawn over it.

    Args:
        photo: what lies below.
        label: says in words what is to be seen; already escaped.
        step: its mask and box are drawn.
        clicks: all that led to the mask, numbered from 1.
        target: the true mask, bool [H, W]; its outline is dashed.
        frame: an area to outline: the window that other pictures enlarge.

    Returns:
        An `svg` element.
    """
    width, height = photo.size
    corner = f"{photo.window.x0} {photo.window.y0}"
    parts = [f'<use href="#{photo.id}"/>']
    if step.mask is not None:
        outline = outline_of(step.mask, photo.window)
        parts.append(f'<path class="halo" d="{outline}"/><path class="mask" d="{outline}"/>')
    if target is not None:
        parts.append(f'<path class="target" d="{outline_of(target, photo.window)}"/>')
    parts += [_rectangle(box, kind) for box, kind in ((step.box, "box"), (frame, "frame")) if box]
    parts += _marks(clicks, max(width, height))
    return (
        f'<svg class="picture" viewBox="{corner} {width} {height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def outline_of(mask: Mask, window: Box) -> str:
    """The outline of a mask as the data of an SVG path; holes are cut out by the even-odd rule.

    Args:
        mask: bool [H, W].
        window: the part of the image that is shown.
    """
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    coarse = max(_size(window)) / 2000
    found = [cv2.approxPolyDP(contour, coarse, True) for contour in contours]
    while sum(map(len, found)) > POINTS:
        coarse *= 2
        found = [
            cv2.approxPolyDP(contour, coarse, True)
            for contour in contours
            if cv2.contourArea(contour) >= coarse**2
        ]
    return "".join(_ring(contour[:, 0].tolist()) for contour in found)


def _ring(points: Iterable[Sequence[int]]) -> str:
    return "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points) + "Z"


def _rectangle(box: Box, kind: str) -> str:
    width, height = _size(box)
    place = f'x="{box.x0}" y="{box.y0}" width="{width}" height="{height}"'
    return f'<rect class="{kind}" {place}/>'


def _marks(clicks: Sequence[Click], longest: int) -> Iterator[str]:
    """Positive clicks as circles, negative ones as squares, so that grey prints tell them apart."""
    radius = longest * 0.022
    for number, click in enumerate(clicks, 1):
        x, y = click.x + 0.5, click.y + 0.5
        newest = " newest" if number == len(clicks) else ""
        kind = ("positive" if click.positive else "negative") + newest
        if click.positive:
            shape = f'<circle cx="{x:g}" cy="{y:g}" r="{radius:.4g}"/>'
        else:
            side = 1.8 * radius
            corner = f'x="{x - side / 2:.6g}" y="{y - side / 2:.6g}"'
            shape = f'<rect {corner} width="{side:.4g}" height="{side:.4g}"/>'
        text = f'<text x="{x:g}" y="{y:g}" font-size="{1.3 * radius:.4g}">{number}</text>'
        yield f'<g class="click {kind}">{shape}{text}</g>'


def _window(case: ReportCase, size: tuple[int, int]) -> Box:
    """The part of the image with all masks, boxes and clicks, if it is a small one."""
    width, height = size
    points = [(step.click.x, step.click.y) for step in case.steps if step.click is not None]
    for box in (step.box for step in case.steps if step.box is not None):
        points += [(box.x0, box.y0), (box.x1, box.y1)]
    masks = [step.mask for step in case.steps if step.mask is not None]
    for mask in masks if case.target is None else [*masks, case.target]:
        x, y, across, down = cv2.boundingRect(mask.view(np.uint8))
        points += [(x, y), (x + across, y + down)] if across else []
    if not points:
        return Box(0, 0, width - 1, height - 1)
    left, top = np.min(points, axis=0)
    right, bottom = np.max(points, axis=0)
    side = max(1.3 * (right - left), 1.3 * (bottom - top), 0.15 * max(size), 32.0)
    if side * side > WINDOW_SHARE * width * height:
        return Box(0, 0, width - 1, height - 1)
    x0, x1 = _slice((left + right) / 2, side, width)
    y0, y1 = _slice((top + bottom) / 2, side, height)
    return Box(x0, y0, x1, y1)


def _slice(centre: float, side: float, size: int) -> tuple[int, int]:
    """First and last pixel of a part of so many pixels, moved into the image."""
    length = min(round(side), size)
    start = min(max(round(centre - length / 2), 0), size - length)
    return start, start + length - 1


def _size(box: Box) -> tuple[int, int]:
    return box.x1 - box.x0 + 1, box.y1 - box.y0 + 1


def _jpeg(image: RgbImage, longest: int) -> bytes:
    from PIL import Image

    scale = min(1.0, longest / max(image.shape[:2]))
    if scale < 1:
        size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality, optimize=True)
        content = stream.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return content
