"""Predictions and tables in SegAgent's own schemas: read, written, read back, and equal to what its
own script makes of them."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from segagent_rt.annotators.oracle import OracleAnnotator
from segagent_rt.data.predictions import (
    describe_recording,
    looks_like_predictions,
    read_predictions,
    record,
    write_predictions,
)
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.record import ExpressionQuery, RunLengths, Sample
from segagent_rt.data.tables import Overlap, rows, summary, write_tables
from segagent_rt.errors import DataInvalid
from segagent_rt.eval.scores import MaskChoice, measure, overlaps
from segagent_rt.loop import StoppingRules, annotate
from segagent_rt.testing import DiscSegmenter
from tests.data.datasets import DRAWN


@pytest.fixture(scope="module")
def golden(segagent_golden: Path) -> Path:
    return segagent_golden / "eval"


def read(path: Path):
    return read_predictions(json.loads(path.read_text()), path.name, ReadContext())


def walked(drawn=DRAWN[0], clicks=4):
    """A real trajectory: the simulated annotator over the segmenter that paints discs."""
    image = np.zeros((*drawn.mask.shape, 3), np.uint8)
    segmenter, embedding = DiscSegmenter(radius=4), Future()
    embedding.set_result(segmenter.encode(image))
    view = OracleAnnotator(drawn.mask).look(image)
    rules = StoppingRules(clicks, accept_above=None)
    trajectory = annotate(drawn.expressions[0], view, segmenter, embedding, rules=rules)
    sample = Sample(
        5, "meadow.jpg", Path("meadow.jpg"), RunLengths.of(drawn.mask), drawn.expressions, ""
    )
    return trajectory, record(ExpressionQuery("0.0", sample, drawn.expressions[0]), trajectory)


def test_a_walk_is_written_and_read_back(tmp_path):
    _, recording = walked()
    write_predictions(tmp_path / "p.json", [describe_recording(recording)])
    document = json.loads((tmp_path / "p.json").read_text())
    assert looks_like_predictions(document)
    (again,) = read_predictions(document, "p.json", ReadContext())
    assert again.steps == tuple(
        type(step)(step.click, step.box, step.mask, step.reply, round(step.rating, 6))
        for step in recording.steps
    )
    assert (again.expression, again.target, again.stop) == (
        recording.expression, recording.target, "budget",
    )  # fmt: skip


def test_segagents_convention_is_written_a_reply_rates_the_mask_before_its_click():
    trajectory, recording = walked()
    assert [step.rating for step in recording.steps] == [s.rating for s in trajectory.steps]
    written = describe_recording(recording)
    assert written["pred_list"][1]["outputs"].startswith(
        f" Current IOU: {int(100 * recording.steps[0].rating)} "
    )
    assert written["pred_list"][0]["clicks"]["coords"] == [
        trajectory.clicks[0].y, trajectory.clicks[0].x,
    ]  # fmt: skip


def test_ratings_are_read_out_of_replies_where_the_file_holds_none():
    _, recording = walked()
    written = describe_recording(recording)
    for step in written["pred_list"]:
        del step["predicted_iou"]
    (again,) = read_predictions([written], "p.json", ReadContext())
    said = [int(100 * step.rating) / 100 for step in recording.steps]
    assert [step.rating for step in again.steps] == pytest.approx(said)


@pytest.mark.parametrize("name", ["predictions", "predictions_uniform"])
def test_the_files_of_segagent_keep_everything_when_written_again(golden, name):
    """Reading and writing again changes neither a mask, nor a click, nor a reply."""
    before = json.loads((golden / f"{name}.json").read_text())
    after = [describe_recording(recording) for recording in read(golden / f"{name}.json")]
    for old, new in zip(before, after, strict=True):
        for key in ("img_path", "height", "width", "caption", "outputs"):
            assert new[key] == old[key]
        if isinstance(old["gt_mask"], dict) and isinstance(old["gt_mask"]["counts"], str):
            assert new["gt_mask"] == {
                "size": old["gt_mask"]["size"],
                "counts": old["gt_mask"]["counts"],
            }
        for was, now in zip(old["pred_list"], new["pred_list"], strict=True):
            assert {k: now[k] for k in was} == was


RUNS = [
    ("predictions", None), ("predictions_uniform", None),
    ("predictions_uniform", 0), ("predictions_uniform", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "click"), RUNS)
def test_tables_equal_those_of_segagent_byte_for_byte(golden, tmp_path, name, click):
    """Best-step rule, cIoU, gIoU and the CSV of evaltools/eval_result_iou.py."""
    measured = [measure(recording) for recording in read(golden / f"{name}.json")]
    made = write_tables(tmp_path / name, click, overlaps(measured, MaskChoice("ref", click)))
    for path in made:
        assert path.read_bytes() == (golden / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("click", "left_out"), [(0, 2), (2, 1)])
def test_a_walk_that_ended_early_keeps_its_last_mask_where_segagent_crashes(
    golden, click, left_out
):
    """A documented difference: there `IndexError` ends the run, and its CSV is cut off."""
    measured = [measure(recording) for recording in read(golden / "predictions.json")]
    found = overlaps(measured, MaskChoice("ref", click))
    assert len(found) == len(measured) - left_out, (
        "an empty walk, and a step without a mask, as there"
    )
    whole = (golden / f"predictions_clicknew2{click}.csv").read_text().splitlines()
    ours = [f"{row.image},{row.index},{row.iou},{row.caption}" for row in rows(found)]
    assert ours[: len(whole) - 1] == whole[1:], "what it wrote before it crashed is the same"


def test_arithmetic_of_the_tables_by_hand():
    found = [Overlap("a.jpg", "x", 1, 2), Overlap("a.jpg", "y", 0, 0), Overlap("b.jpg", "z", 3, 4)]
    assert [(r.image, r.index, round(r.iou, 4)) for r in rows(found)] == [
        ("a.jpg", 0, 0.5), ("a.jpg", 1, 0.0), ("a.jpg", -1, 0.75), ("b.jpg", 0, 0.75),
        ("b.jpg", -1, 0.75),
    ]  # fmt: skip
    assert summary(found) == pytest.approx((4 / 6, (0.5 + 1 + 0.75) / 3), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("pred_list",), 3, "`pred_list` is not a list"),
        (("pred_list", 0), 3, "step 1 is not an object"),
        (("pred_list", 0, "clicks", "coords"), [1], "not a row and a column"),
        (("pred_list", 0, "clicks", "is_positive"), 1, "`is_positive`"),
        (("pred_list", 0, "mask", "size"), [1, 2], "the mask is 1 x 2 pixels"),
        (("pred_list", 0, "used_box"), [1, 2], "not four numbers"),
        (("pred_list", 0, "outputs"), 3, "`outputs` is not text"),
        (("gt_mask",), None, "neither run lengths"),
        (("caption",), [], "is empty"),
        (("img_path",), "", "neither a path nor a number"),
    ],
    ids=str,
)
def test_predictions_with_a_fault(path, value, sentence):
    written = describe_recording(walked()[1])
    place = written
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataInvalid, match=sentence):
        read_predictions([written], "p.json", ReadContext())


@pytest.mark.parametrize("document", [[], {}, [{"pred_list": 3}], [1]])
def test_no_predictions(document):
    with pytest.raises(DataInvalid):
        read_predictions(document, "p.json", ReadContext())
