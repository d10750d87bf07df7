"""Reading foreign JSON with care: every fault becomes one sentence that says where it is."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt.data.polygons import fill_polygons
from segagent_rt.data.record import RunLengths
from segagent_rt.errors import DataInvalid
from segagent_rt.image import MAX_MEGAPIXELS, mask_to_rle, rle_to_mask
from segagent_rt.io import open_regular, parse_json, read_bounded
from segagent_rt.types import Size

LONGEST_OUTLINE = 1_000_000
"""Pixels along all polygons of an object: a few numbers must not cost hours of drawing."""

MAX_BYTES = 2 << 30
"""Size of the largest file of data that is read."""

FAR = 1_000_000
"""No coordinate is that far away: drawing a circle to there takes for ever."""

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    object: "text, a number, a list or an object",
}


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        DataInvalid: there is no such file, it is not a regular one, or it cannot be read.
    """
    with open_regular(path, DataInvalid) as stream:
        try:
            return read_bounded(stream, most, str(path), DataInvalid)
        except OSError as error:
            raise DataInvalid(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """A JSON document.

    Raises:
        DataInvalid: no such file, or it is no JSON, for instance because it was cut off.
    """
    content = read_bytes(path)
    try:
        return parse_json(content)
    except ValueError as error:
        raise DataInvalid(
            f"{path} is not JSON: {error}", hint="check that the file is complete"
        ) from None


def field(record: Any, name: str, kind: type, where: str) -> Any:
    """A field of a JSON object, of that type.

    Raises:
        DataInvalid: not an object, no such field, or another type.
    """
    if not isinstance(record, dict):
        raise DataInvalid(f"{where} is not an object")
    if name not in record:
        raise DataInvalid(f"{where}: the field `{name}` is missing")
    return expect(record[name], kind, f"{where}: `{name}`")


def expect(value: Any, kind: type, where: str) -> Any:
    """The value, if it is of that type; a whole number is a number, true is none.

    Raises:
        DataInvalid: it is of another.
    """
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise DataInvalid(f"{where} is not {_NAMES.get(kind, kind.__name__)}")
    return value


def finite(value: Any, where: str) -> float:
    """A number that is finite, and small enough to be a place near an image.

    Raises:
        DataInvalid: it is none.
    """
    found = expect(value, float, where)
    if not abs(found) < FAR:
        raise DataInvalid(f"{where} is a number out of range")
    return float(found)


def whole(value: Any, where: str) -> int:
    """A whole number, also one that is written with a decimal point: 512.0.

    Raises:
        DataInvalid: it is none.
    """
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return int(expect(value, int, where))


def identifier(value: Any, where: str) -> int | str:
    """An id: a whole number or a text.

    Raises:
        DataInvalid: neither.
    """
    if isinstance(value, str) and value.strip():
        return value
    return whole(value, where)


def from_base64(text: str, where: str) -> bytes:
    """The bytes that a text stands for.

    Raises:
        DataInvalid: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise DataInvalid(f"{where} is not base64") from None


def image_size(record: Any, where: str) -> Size:
    """The fields `height` and `width`.

    Raises:
        DataInvalid: missing, not positive, or too large for a picture.
    """
    height, width = (
        whole(field(record, key, float, where), f"{where}: `{key}`") for key in ("height", "width")
    )
    size = (height, width)
    if min(size) < 1 or size[0] * size[1] > MAX_MEGAPIXELS * 1e6:
        raise DataInvalid(f"{where}: {size[0]} x {size[1]} is not the size of an image")
    return size


def truth(value: Any, size: Size, where: str) -> RunLengths:
    """The mask of an object: as `segmentation`, but it covers something.

    Raises:
        DataInvalid: as for `segmentation`; or no pixel is set, and any result would be wrong.
    """
    mask = segmentation(value, size, where)
    if mask == RunLengths.empty(size):
        raise DataInvalid(f"{where}: the mask covers no pixel")
    return mask


def segmentation(value: Any, size: Size, where: str) -> RunLengths:
    """A mask: run lengths, packed or as a list, or polygons.

    Raises:
        DataInvalid: none of these, or of another size than the image.
    """
    if isinstance(value, list):
        if not value:
            raise DataInvalid(f"{where}: there is neither a polygon nor a mask")
        return RunLengths.of(fill_polygons(_polygons(value, where), size))
    if not isinstance(value, dict):
        raise DataInvalid(f"{where}: the mask is neither run lengths nor polygons")
    claimed = [expect(n, int, f"{where}: `size`") for n in field(value, "size", list, where)]
    if claimed != list(size):
        raise DataInvalid(
            f"{where}: the mask is {' x '.join(map(str, claimed))} pixels, "
            f"the image {size[0]} x {size[1]}"
        )
    counts = value.get("counts")
    if isinstance(counts, list):
        counts = [expect(count, int, f"{where}: `counts`") for count in counts]
    elif not isinstance(counts, str) or not counts.isascii():
        raise DataInvalid(f"{where}: `counts` is neither text nor a list")
    try:
        mask = rle_to_mask({"size": claimed, "counts": counts})
    except ValueError as error:
        raise DataInvalid(f"{where}: {error}") from None
    packed = counts if isinstance(counts, str) else mask_to_rle(mask)["counts"]
    return RunLengths(size, packed)


def _polygons(value: list[Any], where: str) -> list[list[float]]:
    polygons = []
    for number, polygon in enumerate(value, 1):
        place = f"{where}: polygon {number}"
        points = [finite(n, place) for n in expect(polygon, list, place)]
        if len(points) < 6 or len(points) % 2:
            raise DataInvalid(f"{place} is not a list of at least three points")
        polygons.append(points)
    if sum(map(_outline, polygons)) > LONGEST_OUTLINE:
        raise DataInvalid(f"{where}: the outline is longer than {LONGEST_OUTLINE} pixels")
    return polygons


def _outline(polygon: list[float]) -> float:
    """How long a polygon is, each edge counted along its longer axis."""
    points = np.asarray(polygon).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum())


def captions(value: Any, where: str) -> tuple[str, ...]:
    """One expression or a list of them.

    Raises:
        DataInvalid: there is none, or one is blank.
    """
    texts = [value] if isinstance(value, str) else expect(value, list, where)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataInvalid(f"{where} is empty", hint="every object needs an expression")
    return tuple(texts)
