"""The labelling interface of a Label Studio project: an XML text that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from segagent_rt.errors import InputError

MOST_LETTERS = 1_000_000
CONTROLS = ("BrushLabels", "PolygonLabels", "RectangleLabels")
"""Tags that can hold a result, the most faithful to a mask first."""


@dataclass(frozen=True, slots=True)
class Control:
    """A tag that holds results.

    Attributes:
        kind: `brushlabels`, `polygonlabels` or `rectanglelabels`.
        name: of the tag, `from_name` in a result.
        image: the name of the image's tag, `to_name` in a result.
        labels: the classes, in their order.
    """

    kind: str
    name: str
    image: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What an adapter needs of a labelling interface.

    Attributes:
        control: the tag that answers go to.
        image_key: the key of a task's data that holds the image.
        text_key: the key of a task's data that fills a text area; None if there is none.
    """

    control: Control
    image_key: str
    text_key: str | None


def parse_label_config(text: str) -> LabelConfig:
    """Read a labelling interface.

    Args:
        text: its XML.

    Raises:
        InputError: it is no such XML, or has no image, or no tag that can hold a mask.
    """
    if len(text) > MOST_LETTERS or "<!" in text.replace("<!--", ""):
        raise InputError("the labelling interface is too long, or declares entities")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        raise InputError("the labelling interface is not XML", hint="see its editor") from None
    tags = list(root.iter())
    images = {tag.get("name", ""): tag.get("value", "") for tag in tags if tag.tag == "Image"}
    for kind in CONTROLS:
        for tag in tags:
            if tag.tag == kind and tag.get("toName") in images:
                labels = tuple(each.get("value", "") for each in tag.iter("Label"))
                image = tag.get("toName", "")
                control = Control(kind.lower(), tag.get("name", ""), image, labels)
                return LabelConfig(control, _key(images[image]), _text_key(tags))
    raise InputError(
        "the labelling interface has no image with brush, polygon or rectangle labels",
        hint="add <BrushLabels> for the image",
    )


def _text_key(tags: list[ElementTree.Element]) -> str | None:
    """The key that the first text area with a variable names."""
    values = (tag.get("value", "") for tag in tags if tag.tag in ("TextArea", "Text"))
    return next((_key(value) for value in values if value.startswith("$")), None)


def _key(value: str) -> str:
    return value.removeprefix("$")
