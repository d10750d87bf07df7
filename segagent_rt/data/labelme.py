"""labelme's JSON, one file beside each picture.

Shapes of the same label and group are one object; the label is its expression.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt.data.images import ImageFolders
from segagent_rt.data.masks import load_mask
from segagent_rt.data.reading import captions, expect, field, image_size
from segagent_rt.data.record import RunLengths, Sample, corners
from segagent_rt.data.segagent import image_name
from segagent_rt.draw import png
from segagent_rt.errors import DataInvalid
from segagent_rt.files import json_bytes, write_result
from segagent_rt.types import Mask, Size

VERSION = "5.5.0"
"""Version of labelme whose format is written."""


def looks_like_labelme(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    return isinstance(document, dict) and "shapes" in document


def read_labelme(document: Any, name: str, images: ImageFolders) -> list[Sample]:
    """The objects of one file; `name` stands for it in messages.

    Raises:
        DataInvalid: the file is not as labelme writes it, or a shape has no area.
    """
    size = (
        field(document, "imageHeight", int, name),
        field(document, "imageWidth", int, name),
    )
    image_size({"height": size[0], "width": size[1]}, name)
    file = image_name(document, "imagePath", name)
    objects: dict[tuple[str, str], Mask] = {}
    for number, shape in enumerate(field(document, "shapes", list, name), 1):
        where = f"{name}, shape {number}"
        label = captions(field(shape, "label", str, where), f"{where}: `label`")[0]
        group = shape.get("group_id")
        key = (label, str(number) if group is None else f"group {group}")
        mask = _draw(shape, size, where)
        objects[key] = objects[key] | mask if key in objects else mask
    if not objects:
        raise DataInvalid(f"{name} holds no shape")
    return [
        Sample(at, file, images.find(file), RunLengths.of(mask), (label,), f"{name}, object {at}")
        for at, ((label, _), mask) in enumerate(objects.items(), 1)
    ]


def _draw(shape: Any, size: Size, where: str) -> Mask:
    """A shape as labelme itself draws it, bool [H, W]."""
    from PIL import Image, ImageDraw

    points = [
        (float(expect(x, float, where)), float(expect(y, float, where)))
        for x, y in _pairs(field(shape, "points", list, where), where)
    ]
    kind = shape.get("shape_type", "polygon")
    if kind == "mask":
        return _placed(shape, points, size, where)
    canvas = Image.new("L", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    if kind == "polygon" and len(points) > 2:
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
    """A mask kept as a picture of its own, at its place in the image."""
    try:
        content = base64.b64decode(field(shape, "mask", str, where), validate=True)
    except ValueError:
        raise DataInvalid(f"{where}: `mask` is not base64") from None
    part = load_mask(content, name=f"{where}: `mask`")
    x, y = (int(n) for n in points[0]) if points else (0, 0)
    height, width = part.shape
    if min(x, y) < 0 or y + height > size[0] or x + width > size[1]:
        raise DataInvalid(f"{where}: the mask does not lie in the image")
    mask = np.zeros(size, np.bool_)
    mask[y : y + height, x : x + width] = part
    return mask


def write_labelme(path: Path, samples: Sequence[Sample], *, overwrite: bool = False) -> None:
    """Write the objects of one image, each as a mask, which keeps every pixel.

    An object of several expressions is written under its first; an empty mask is left out.

    Raises:
        OutputError: the file cannot be written.
    """
    height, width = samples[0].size
    document: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": [_shape(sample) for sample in samples if sample.mask.mask().any()],
        "imagePath": samples[0].image.name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write_result(path, json_bytes(document, indent=2), overwrite=overwrite)


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
        "mask": base64.b64encode(png(part)).decode("ascii"),
    }
