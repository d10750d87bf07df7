"""Trajectories: what the simulated annotator clicked, in SegAgent's own schema.

A record is that of a data file, with `clicks_list` beside `gt_ann`: `[{"idx", "coor": [row,
column], "is_positive", "mask", "box": [x, y, w, h], "area", "iou"}]`. One that started from a
mask has `start` besides, which is ours: `{"kind", "mask", "iou"}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.reading import expect, field, finite, segmentation
from segagent_rt.data.record import RunLengths, Sample, bounding_box
from segagent_rt.data.segagent import describe_sample, read_sample, records_of, shown_before
from segagent_rt.errors import DataInvalid
from segagent_rt.io import json_bytes, write_result
from segagent_rt.types import Click, Size

StartKind: TypeAlias = Literal["empty", "box", "random", "grid"]
"""Starts that can be asked for."""

AnyStart: TypeAlias = Literal[StartKind, "walk"]
"""And the mask that a bad click of the MLLM made."""


@dataclass(frozen=True, slots=True)
class Start:
    """The mask that a demonstration began with; `empty` has no pixels and is not written."""

    kind: AnyStart
    mask: RunLengths
    iou: float = 0.0


@dataclass(frozen=True, slots=True)
class ShownClick:
    """A click that was kept, the mask after it, and that mask's true IoU."""

    click: Click
    mask: RunLengths
    iou: float


@dataclass(frozen=True, slots=True)
class Demonstration:
    """How the simulated annotator segmented a sample."""

    sample: Sample
    start: Start
    clicks: tuple[ShownClick, ...]

    @property
    def shown(self) -> list[tuple[RunLengths, float]]:
        """The mask that the annotator is shown before each click, with its true IoU."""
        made = [(each.mask, each.iou) for each in self.clicks]
        return shown_before((self.start.mask, self.start.iou), made)


def looks_like_trajectories(document: Any) -> bool:
    """Whether a JSON document has the shape of this format."""
    records = document.get("data") if isinstance(document, dict) else document
    return isinstance(records, list) and any(
        isinstance(record, dict) and "clicks_list" in record for record in records
    )


def read_trajectories(document: Any, name: str, context: ReadContext) -> list[Demonstration]:
    """The demonstrations of a parsed file; `name` stands for it in messages.

    Raises:
        DataInvalid: a record is not as described above.
    """
    found = []
    for where, record in records_of(document, name):
        with context.entry():
            found.append(read_demonstration(record, where, context))
    return found


def read_demonstration(record: Any, where: str, context: ReadContext) -> Demonstration:
    """One record.

    Raises:
        DataInvalid: it is not as described above.
    """
    sample = read_sample(record, where, context)
    clicks = [
        _read_click(made, sample.size, f"{where}, click {number}")
        for number, made in enumerate(field(record, "clicks_list", list, where), 1)
    ]
    start = Start("empty", RunLengths.empty(sample.size))
    if "start" in record:
        start = _read_start(record["start"], sample.size, f"{where}: `start`")
    return Demonstration(sample, start, tuple(clicks))


def check_record(record: Any) -> None:
    """Raise `DataInvalid` unless this is a record of the file."""
    read_demonstration(record, "the journal", ReadContext())


def _read_click(made: Any, size: Size, where: str) -> ShownClick:
    place = [expect(n, int, f"{where}: `coor`") for n in field(made, "coor", list, where)]
    if len(place) != 2 or not (0 <= place[0] < size[0] and 0 <= place[1] < size[1]):
        raise DataInvalid(f"{where}: `coor` is not a row and a column of the image")
    click = Click(place[1], place[0], field(made, "is_positive", bool, where))
    mask = segmentation(field(made, "mask", dict, where), size, where)
    return ShownClick(click, mask, _share(made, where))


def _read_start(start: Any, size: Size, where: str) -> Start:
    kind = field(start, "kind", str, where)
    if kind not in get_args(AnyStart):
        raise DataInvalid(f"{where}: the kind `{kind}` is unknown")
    mask = segmentation(field(start, "mask", dict, where), size, where)
    return Start(cast(AnyStart, kind), mask, _share(start, where))


def _share(record: Any, where: str) -> float:
    value = finite(field(record, "iou", float, where), f"{where}: `iou`")
    if not 0 <= value <= 1:
        raise DataInvalid(f"{where}: `iou` is not between 0 and 1")
    return value


def describe_demonstration(demonstration: Demonstration) -> dict[str, Any]:
    """A demonstration as a record of the file."""
    record = describe_sample(demonstration.sample)
    if demonstration.start.kind != "empty":
        start = demonstration.start
        record["start"] = {"kind": start.kind, "mask": start.mask.json(), "iou": start.iou}
    record["clicks_list"] = [
        _describe_click(number, made) for number, made in enumerate(demonstration.clicks)
    ]
    return record


def _describe_click(number: int, made: ShownClick) -> dict[str, Any]:
    mask = made.mask.mask()
    return {
        "idx": number,
        "coor": [made.click.y, made.click.x],
        "is_positive": made.click.positive,
        "mask": made.mask.json(),
        "box": list(bounding_box(mask)),
        "area": int(mask.sum()),
        "iou": made.iou,
    }


def write_trajectories(
    path: Path, records: Sequence[dict[str, Any]], how: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write records, and under `info` how they were made.

    Raises:
        OutputError: the file cannot be written.
    """
    document = {"info": {"args": how}, "data": list(records)}
    write_result(path, json_bytes(document), overwrite=overwrite)
