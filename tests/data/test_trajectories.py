"""Trajectories in SegAgent's own schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segagent_rt.annotators.oracle import next_click
from segagent_rt.data.images import ImageFolders
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.trajectories import (
    describe_demonstration,
    looks_like_trajectories,
    read_trajectories,
    write_trajectories,
)
from segagent_rt.errors import DataInvalid
from segagent_rt.metrics import iou
from tests.data.datasets import trajectories_document

GOLDEN = ["trace_iou098.json", "trace_iou_low.json"]


def read(document, name="t.json", folder=Path()):
    return read_trajectories(document, name, ReadContext(ImageFolders((folder,))))


def test_written_and_read_back(tmp_path):
    found = read(trajectories_document())
    records = [describe_demonstration(each) for each in found]
    write_trajectories(tmp_path / "t.json", records, {"most": 20})
    document = json.loads((tmp_path / "t.json").read_text())
    assert looks_like_trajectories(document)
    assert document["info"] == {"args": {"most": 20}}
    again = read(document)
    assert [d.clicks for d in again] == [d.clicks for d in found]
    assert [d.sample.mask for d in again] == [d.sample.mask for d in found]


@pytest.mark.parametrize("name", GOLDEN)
def test_records_of_segagent_come_out_as_they_went_in(segagent_golden, tmp_path, name):
    before = json.loads((segagent_golden / "trajectories" / name).read_text())["data"]
    for old in before:
        (tmp_path / old["image_name"]).touch()
    found = read({"data": before}, name, tmp_path)
    for old, demonstration in zip(before, found, strict=True):
        new = describe_demonstration(demonstration)
        assert demonstration.sample.image.is_file()
        assert new["clicks_list"] == old["clicks_list"]
        assert new["gt_ann"] == {k: v for k, v in old["gt_ann"].items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_each_click_of_segagent_is_the_one_we_would_make(segagent_golden, name):
    """The simulated annotator and the IoU, on every recorded state."""
    folder = segagent_golden / "trajectories"
    for demonstration in read(json.loads((folder / name).read_text()), name, folder):
        target = demonstration.sample.mask.mask()
        clicked = np.zeros_like(target)
        shown = [mask.mask() for mask, _ in demonstration.shown]
        for made, mask in zip(demonstration.clicks, shown, strict=True):
            assert next_click(target, mask, clicked=clicked) == made.click
            assert iou(made.mask.mask(), target) == pytest.approx(made.iou, abs=1e-7)
            clicked[made.click.y, made.click.x] = True


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("clicks_list",), 5, "not a list"),
        (("clicks_list", 0, "coor"), [1], "not a row and a column"),
        (("clicks_list", 0, "coor"), [40, 0], "not a row and a column"),
        (("clicks_list", 0, "is_positive"), "yes", "true or false"),
        (("clicks_list", 0, "iou"), 1.5, "not between 0 and 1"),
        (("clicks_list", 0, "mask"), [[1, 2, 3, 4, 5, 6]], "is not an object"),
        (("start",), {"kind": "wish"}, "kind `wish`"),
        (("start",), {"kind": "box"}, "`mask` is missing"),
    ],
    ids=str,
)
def test_trajectories_with_a_fault(path, value, sentence):
    document = trajectories_document()
    place = document["data"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataInvalid, match=sentence):
        read(document)
