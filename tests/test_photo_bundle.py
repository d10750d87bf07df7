"""The photo bundle that ships: what it says of its origin, and when it is used."""

from __future__ import annotations

import numpy as np
import pytest

from segagent_rt.annotators.endpoint import Endpoint
from segagent_rt.bundle.bundle import open_photo_bundle
from segagent_rt.cli.parameters import parse_click
from segagent_rt.image import load_image
from segagent_rt.io import parse_json
from segagent_rt.metrics import iou
from segagent_rt.runtime import load
from segagent_rt.types import Box, Click, ObjectPrompt

SPOON = Box(326, 240, 406, 326)
"""The bowl of the spoon on the packaged photo."""

CUP = Box(172, 16, 426, 308)
"""The cup, and the tip of the spoon's handle, which the mask includes."""


@pytest.fixture(scope="module")
def part():
    return open_photo_bundle().part("segmenter")


def test_every_training_photo_is_attributed_and_none_is_share_alike(part):
    lines = part.file("ATTRIBUTIONS.tsv").read_text("utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    assert all(len(row) == 5 and all(row) for row in rows)
    assert not [row[1] for row in rows if "SA" in row[1]]
    counted = sum(kind["photos"] for kind in part.manifest.provenance["data_sets"].values())
    assert len({row[0] for row in rows}) == len(rows) == counted


def test_the_manifest_names_recipe_time_and_notice(part):
    origin = part.manifest.provenance
    assert origin["hours"] > 0
    assert origin["steps"] > 0
    assert all("seed" in run["recipe"]["batches"] for run in origin["runs"])
    assert "Apache License" in part.file(origin["notice"]).read_text("utf-8")


def test_the_manifest_says_how_good_the_segmenter_is_photo_by_photo(part):
    verified = part.manifest.verified
    held_out = verified["held_out_photos"]
    assert len(held_out["iou_at_1_3_5_7_by_photo"]) == held_out["targets"] == 21
    for suite in ("held_out_photos", "validation_photos", "scenes"):
        assert len(verified[suite]["miou_by_click"]) == 7


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, {"segmenter": "click_net", "mllm": "qwen3_vl"}),
        ({"bundle": "photo"}, {"segmenter": "photo_net"}),
        (
            {"endpoint": Endpoint("http://localhost:1", "m")},
            {"segmenter": "photo_net", "mllm": "qwen3_vl"},
        ),
        ({"bundle": "tiny"}, {"segmenter": "click_net", "mllm": "qwen3_vl"}),
    ],
)
def test_the_shipped_segmenter_suits_the_task(options, parts):
    """Clicks and endpoints meet any photo; words without an endpoint meet the demo's scenes."""
    with load(**options) as runtime:
        found = {name: part.manifest.family for name, part in runtime.bundle.parts.items()}
    assert found == parts


@pytest.fixture(scope="module")
def canvas():
    photo = load_image(open_photo_bundle().folder / "demo.jpg")
    with load("photo", threads=2) as runtime:
        yield runtime.open(photo)


def test_a_box_and_clicks_cut_out_the_same_object(canvas):
    boxed = canvas.segment([], box=SPOON).mask()
    clicked = canvas.segment([Click(365, 285, True)]).mask()
    assert iou(boxed, clicked) > 0.9
    assert_fills(SPOON, boxed)


def test_the_clicks_of_the_demo_cut_out_the_cup_and_no_saucer(canvas):
    about = parse_json((open_photo_bundle().folder / "demo.json").read_bytes())
    clicks = tuple(map(parse_click, about["clicks"]))
    (steps,) = canvas.annotate_prompts([ObjectPrompt("", clicks)])
    mask = steps.prediction.mask()
    assert_fills(CUP, mask)
    saucer = np.array([[250, 130], [330, 290], [190, 450], [150, 110]])
    assert not mask[tuple(saucer.T)].any()
    assert all(mask[click.y, click.x] == click.positive for click in clicks)


def assert_fills(box, mask):
    """The mask reaches the edges of the box, within 10 pixels, and not beyond."""
    rows, columns = np.nonzero(mask)
    found = columns.min(), rows.min(), columns.max(), rows.max()
    assert np.abs(np.subtract(found, (box.x0, box.y0, box.x1, box.y1))).max() <= 10
