"""Lists of images with prompts: text, JSON lines and COCO."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segagent_rt.data.coco import Instances, expressions_of, looks_like_coco
from segagent_rt.data.images import ImageFolders
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import captions, expect, field, identifier, read_bytes, whole
from segagent_rt.data.segagent import image_name
from segagent_rt.errors import DataInvalid
from segagent_rt.io import parse_json, read_bounded
from segagent_rt.types import AnnotationItem, Box, Click, ObjectPrompt

LONGEST_LIST = 256 << 20
"""Bytes of the largest list that is read from standard input."""


def read_list(source: str) -> list[AnnotationItem]:
    """The entries of a list.

    Args:
        source: a file, or `-` for standard input, in one of three formats. Text: a path a line,
            and after a tab an expression; lines that begin with `#` are left out. JSONL: an object
            a line, with `image` and any of `expression` (a text or a list), `clicks`
            (`[{"x", "y", "positive"}]`) and `box` (`[left, top, right, bottom]`). COCO instances:
            an image is asked for the caption, else the category, of each of its annotations.
            Paths count from the folder of the list; from the current one on standard input.

    Raises:
        DataInvalid: it cannot be read, or an entry is not as described.
    """
    if source == "-":
        content = read_bounded(sys.stdin.buffer, LONGEST_LIST, "standard input", DataInvalid)
        name, folder = "standard input", Path()
    else:
        content, name, folder = read_bytes(Path(source)), source, Path(source).parent
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataInvalid(f"{name} is not text in UTF-8") from None
    if text.lstrip()[:1] not in ("{", "["):
        return list(_text_items(text, folder))
    try:
        document = parse_json(text)
    except ValueError:
        return list(_json_items(text, name, folder))
    if looks_like_coco(document):
        return list(_coco_items(document, name, folder))
    if isinstance(document, dict):
        return list(_json_items(text, name, folder))
    raise DataInvalid(
        f"{name} has no known format", hint="a text file, JSONL, or COCO instances; see --help"
    )


def _text_items(text: str, folder: Path) -> Iterator[AnnotationItem]:
    for line in text.splitlines():
        path, _, expression = line.partition("\t")
        if path.strip() and not path.startswith("#"):
            said = expression.strip()
            yield AnnotationItem(folder / path.strip(), (ObjectPrompt(said),) if said else ())


def _json_items(text: str, name: str, folder: Path) -> Iterator[AnnotationItem]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataInvalid(f"{where} is not JSON: {error}") from None
        yield AnnotationItem(folder / field(entry, "image", str, where), _prompts(entry, where))


def _prompts(entry: dict[str, Any], where: str) -> tuple[ObjectPrompt, ...]:
    said = entry.get("expression")
    texts = () if said is None else captions(said, f"{where}: `expression`")
    clicks = tuple(_click(each, where) for each in expect(entry.get("clicks", []), list, where))
    box = None if entry.get("box") is None else _box(entry["box"], f"{where}: `box`")
    if not (clicks or box):
        return tuple(ObjectPrompt(text) for text in texts)
    if len(texts) > 1:
        raise DataInvalid(f"{where}: clicks or a box with several expressions show one object")
    return (ObjectPrompt("".join(texts), clicks, box),)


def _click(value: Any, where: str) -> Click:
    place = f"{where}: `clicks`"
    x, y = (whole(field(value, axis, object, place), place) for axis in ("x", "y"))
    return Click(x, y, positive=expect(value.get("positive", True), bool, place))


def _box(value: Any, where: str) -> Box:
    corners = [whole(each, where) for each in expect(value, list, where)]
    if len(corners) != 4 or corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise DataInvalid(f"{where} is not [left, top, right, bottom]")
    return Box(*corners)


def _coco_items(document: Any, name: str, folder: Path) -> Iterator[AnnotationItem]:
    context = ReadContext(ImageFolders((folder,)))
    instances = Instances.read(document, name, context)
    asked: dict[int | str, dict[ObjectPrompt, None]] = {image: {} for image in instances.images}
    for number, record in instances.annotations.items():
        where = f"{name}, annotation {number}"
        image = identifier(field(record, "image_id", object, where), f"{where}: `image_id`")
        if image not in asked:
            raise DataInvalid(f"{where}: {name} lists no image {image}")
        if not record.get("iscrowd"):
            said = expressions_of(record, instances.category(record, where), where)
            asked[image].update(dict.fromkeys(map(ObjectPrompt, said)))
    for image, prompts in asked.items():
        file = image_name(instances.images[image], "file_name", f"{name}, image {image}")
        yield AnnotationItem(context.images.find(file), tuple(prompts))
