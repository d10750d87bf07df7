"""labelme's JSON, one file beside each picture.

Shapes of the same label and group are one object; the label is its expression.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segagent_rt.data.images import read_picture
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, field, finite, from_base64, image_size
from segagent_rt.data.record import Category, RunLengths, Sample, corners
from segagent_rt.data.segagent import describe_kind, image_name, read_kind
from segagent_rt.draw import png
from segagent_rt.errors import DataInvalid
from segagent_rt.image import opened
from segagent_rt.io import json_bytes, write_result
from segagent_rt.types import Mask, Size

VERSION = "5.5.0"
"""Version of labelme whose format is written."""


def looks_like_labelme(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    return isinstance(document, dict) and "shapes" in document


def read_labelme(document: Any, name: str, context: ReadContext) -> list[Sample]:
    """The objects of one file, none if it has no shapes; `name` stands for it in messages.

    Where the picture is missing and the file holds one (`imageData`), that one is used.

    Raises:
        DataInvalid: the file is not as labelme writes it, or a shape has no area.
    """
    file = image_name(document, "imagePath", name)
    image = context.images.find(file)
    if context.file is not None and not image.is_file() and document.get("imageData"):
        image = context.file
    size = _size(document, name, image)
    objects: dict[tuple[str, str], Mask] = {}
    kinds: dict[tuple[str, str], tuple[Category | None, bool]] = {}
    for number, shape in enumerate(field(document, "shapes", list, name), 1):
        with context.entry():
            where = f"{name}, shape {number}"
            label = captions(field(shape, "label", str, where), f"{where}: `label`")[0]
            mask = _draw(shape, size, where)
            if not mask.any():
                raise DataInvalid(f"{where} covers no pixel of the image")
            group = shape.get("group_id")
            key = (label, str(number) if group is None else f"group {group}")
            objects[key] = objects[key] | mask if key in objects else mask
            kinds[key] = read_kind(shape)
    return [
        Sample(
            id=at,
            name=file,
            image=image,
            mask=RunLengths.of(mask),
            expressions=(key[0],),
            source=f"{name}, object {at}",
            category=kinds[key][0] or Category(key[0]),
            crowd=kinds[key][1],
        )
        for at, (key, mask) in enumerate(objects.items(), 1)
    ]


def _size(document: Any, name: str, image: Path) -> Size:
    """Of the image, as the file says or, where it says nothing, as the picture is."""
    stated = document.get("imageHeight"), document.get("imageWidth")
    if None in stated and image.is_file():
        height, width = read_picture(image).shape[:2]
        return height, width
    return image_size({"height": stated[0], "width": stated[1]}, name)


def _draw(shape: Any, size: Size, where: str) -> Mask:
    """A shape as labelme itself draws it, bool [H, W] (labelme 6.3.1, utils/shape.py)."""
    from PIL import Image, ImageDraw

    points = [
        (finite(x, where), finite(y, where))
        for x, y in _pairs(field(shape, "points", list, where), where)
    ]
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        return _placed(shape, points, size, where)
    canvas = Image.new("L", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    if (kind == "polygon" and len(points) > 2) or (kind, len(points)) == ("oriented_rectangle", 4):
        pen.polygon(points, fill=1, outline=1)
    elif kind == "rectangle" and len(points) == 2:
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*points, strict=True))
        pen.rectangle((x0, y0, x1, y1), fill=1, outline=1)
    elif kind == "circle" and len(points) == 2:
        (x, y), (u, v) = points
        radius = float(np.hypot(x - u, y - v))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    else:
        raise DataInvalid(
            f"{where} is a `{kind}` of {len(points)} points, which has no area",
            hint="polygons, rectangles, circles and masks have one",
        )
    return np.asarray(canvas) > 0


def _pairs(points: list[Any], where: str) -> list[tuple[Any, Any]]:
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise DataInvalid(f"{where}: `points` is not a list of pairs")
    return [(point[0], point[1]) for point in points]


def _placed(shape: Any, points: list[tuple[float, float]], size: Size, where: str) -> Mask:
    """A mask kept as a picture of its own, at its place in the image.

    As labelme does it, the corner is rounded, every value but 0 is set, and what lies outside of
    the image is cut off.
    """
    where = f"{where}: `mask`"
    with opened(from_base64(field(shape, "mask", str, where), where), where) as (picture, _):
        part = np.asarray(picture) != 0
    if part.ndim != 2 or not points:
        raise DataInvalid(f"{where} is not grey, or has no corner")
    left, top = (round(n) for n in points[0])
    mask = np.zeros(size, np.bool_)
    part = part[max(0, -top) :, max(0, -left) :]
    target = mask[max(0, top) :, max(0, left) :]
    height, width = (min(sides) for sides in zip(part.shape, target.shape, strict=True))
    target[:height, :width] = part[:height, :width]
    return mask


def write_labelme(path: Path, samples: Sequence[Sample], *, overwrite: bool = False) -> None:
    """Write the objects of one image beside it; see `labelme_document`.

    Raises:
        OutputError: the file cannot be written.
    """
    image = PurePosixPath(samples[0].file_name.replace("\\", "/")).name
    document = labelme_document(samples, image, samples[0].size)
    write_result(path, json_bytes(document, indent=2), overwrite=overwrite)


def labelme_document(samples: Sequence[Sample], image: str, size: Size) -> dict[str, Any]:
    """The objects of one image, each as a mask, which keeps every pixel.

    An object of several expressions is written under its first; an empty mask is left out.

    Args:
        samples: the objects.
        image: path of the image from the folder of the file.
        size: of the image.
    """
    return {
        "version": VERSION,
        "flags": {},
        "shapes": [_shape(sample) for sample in samples if sample.mask.mask().any()],
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def _shape(sample: Sample) -> dict[str, Any]:
    mask = sample.mask.mask()
    box = corners(mask)
    part = mask[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1]
    return {
        "label": sample.expressions[0],
        "points": [[float(box.x0), float(box.y0)], [float(box.x1), float(box.y1)]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        **describe_kind(sample),
        "mask": base64.b64encode(png(part)).decode("ascii"),
    }
