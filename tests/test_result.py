"""`Result` and what it can be saved as, against values known exactly."""

from __future__ import annotations

import base64
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

import segagent_rt
from segagent_rt.data.masks import load_mask
from segagent_rt.data.sources import Places, open_data
from segagent_rt.data.yolo import outline, yolo_labels
from segagent_rt.draw import png
from segagent_rt.errors import ExpressionRefused, OutputError
from segagent_rt.image import rle_to_mask
from segagent_rt.result_pictures import cutout
from segagent_rt.types import AnnotationItem, Box, Click, ObjectPrompt
from tests import squares

IMAGE = squares.square(10, 20, side=4)
MASK = squares.bright(IMAGE)


@pytest.fixture
def runtime():
    return squares.square_runtime()


@pytest.fixture
def result(runtime, tmp_path):
    path = tmp_path / "tile.png"
    path.write_bytes(png(IMAGE))
    (found,) = runtime.annotate_many([(path, "the tile")])
    return found


def drawn(line, size):
    """A YOLO label as Ultralytics draws it (data/utils.py, polygon2mask)."""
    number, *shares = line.split()
    points = np.array(shares, float).reshape(-1, 2) * (size[1], size[0])
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, points.astype(np.int32).reshape(1, -1, 2), color=1)
    return int(number), mask > 0


def test_a_result_has_the_mask_and_says_little(result):
    assert np.array_equal(result.mask, MASK)
    assert result.rating == 0.95
    text = "<Result 'the tile' in {}, 64 x 48: 0.5% of the image, rated 0.95>"
    assert repr(result) == text.format(result.source)
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert shown.width == 64
    with pytest.raises(AttributeError):
        result.number = 2


def test_to_json_is_the_document_of_run(result):
    document = result.to_json()
    assert document["expression"] == "the tile"
    assert (document["height"], document["width"]) == (48, 64)
    assert document["bundle"] == "tiny"
    assert np.array_equal(rle_to_mask(document["mask"]), MASK)
    json.dumps(document, allow_nan=False)


def test_to_coco(result):
    document = result.to_coco()
    assert document["images"] == [{"id": 1, "file_name": "tile.png", "height": 48, "width": 64}]
    assert document["categories"] == [{"id": 1, "name": "the tile"}]
    (annotation,) = document["annotations"]
    assert np.array_equal(rle_to_mask(annotation.pop("segmentation")), MASK)
    assert annotation == {
        "id": 1, "image_id": 1, "category_id": 1, "caption": ["the tile"],
        "bbox": [10.0, 20.0, 4.0, 4.0], "area": 16, "iscrowd": 0, "score": 0.95,
    }  # fmt: skip


def test_everything_is_saved_under_names_of_our_own(result, tmp_path):
    kinds = ("mask", "overlay", "cutout", "json", "coco", "yolo", "labelme")
    written = result.save(tmp_path / "out", kinds)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        "tile.segagent.json", "tile.segagent.mask.png", "tile.segagent.overlay.png",
        "tile.segagent.cutout.png", "classes.txt", "tile.segagent.coco.json",
        "tile.segagent.labelme.json", "labels/tile.txt",
    ]  # fmt: skip
    assert np.array_equal(load_mask(tmp_path / "out" / "tile.segagent.mask.png"), MASK)
    assert (tmp_path / "out" / "classes.txt").read_text() == "the tile\n"


def test_a_file_of_somebody_else_is_kept(result, tmp_path):
    foreign = tmp_path / "labels" / "tile.txt"
    foreign.parent.mkdir()
    foreign.write_text("0 0.1 0.1 0.2 0.2 0.3 0.3\n")
    with pytest.raises(OutputError, match=r"tile\.txt exists, and"):
        result.save(tmp_path, ("yolo",))
    assert foreign.read_text().startswith("0 0.1")


def test_classes_are_added_at_the_end(runtime, tmp_path):
    prompts = ("a Tile.", "another tile", "a tile")
    for number, found in enumerate(runtime.annotate_many((IMAGE, text) for text in prompts), 1):
        found.save(tmp_path, ("yolo",))
        label = (tmp_path / "labels" / f"image-{number}.txt").read_text()
        assert label.split()[0] == "010"[number - 1]
    assert (tmp_path / "classes.txt").read_text() == "a tile\nanother tile\n"


def test_what_is_saved_no_more_is_deleted(result, tmp_path):
    result.save(tmp_path / "out", ("cutout", "yolo", "labelme"))
    result.save(tmp_path / "out", ("mask",))
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "tile.segagent.json", "tile.segagent.mask.png", ".segagent-files", "classes.txt",
    }  # fmt: skip


def test_a_cutout_is_cropped_and_has_nothing_of_the_background():
    image = np.full((6, 8, 3), 7, np.uint8)
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    mask[2, 3] = False
    made = cutout(image, mask)
    assert made.shape == (2, 3, 4)
    assert made[..., 3].tolist() == [[0, 255, 255], [255, 255, 255]]
    assert made[0, 0].tolist() == [0, 0, 0, 0]
    assert made[1, 1].tolist() == [7, 7, 7, 255]


def test_a_yolo_label_of_a_rectangle():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:9] = True
    line = "3 0.225000 0.250000 0.225000 0.450000 0.425000 0.450000 0.425000 0.250000\n"
    assert yolo_labels([(3, mask), (0, np.zeros((10, 20), bool))]) == line.encode()


@pytest.mark.parametrize("seed", range(8))
def test_yolo_labels_give_back_what_has_one_part_and_no_hole(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.resize(rng.random((6, 7), np.float32), (90, 70)) > 0.5
    _, parts = cv2.connectedComponents(mask.astype(np.uint8))
    part = parts == 1
    outlines, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros((70, 90), np.uint8), outlines, -1, 1, -1) > 0
    number, back = drawn(yolo_labels([(2, filled)]).decode(), (70, 90))
    assert number == 2
    assert np.array_equal(back, filled)


def test_several_parts_and_single_pixels_make_one_outline():
    mask = np.zeros((30, 30), bool)
    mask[3:9, 3:9] = mask[18:27, 15:28] = mask[15, 2] = True
    _, back = drawn(yolo_labels([(0, mask)]).decode(), (30, 30))
    assert (back & mask).sum() == mask.sum(), "every pixel is inside"
    assert (back & ~mask).sum() <= 40, "the parts are joined by thin lines"
    single = np.zeros((5, 5), bool)
    single[2, 3] = True
    assert outline(single).tolist() == [[3, 2]] * 3


def test_labelme_and_coco_are_read_back_by_our_own_readers(result, tmp_path):
    result.save(tmp_path, ("coco", "labelme"))
    for name in ("tile.segagent.coco.json", "tile.segagent.labelme.json"):
        (data,) = open_data(str(tmp_path / name), Places())
        (sample,) = data.samples
        assert sample.expressions == ("the tile",)
        assert np.array_equal(sample.mask.mask(), MASK)
        assert sample.image == tmp_path / "tile.png"


def test_a_labelme_file_names_the_image_from_its_own_folder(result, tmp_path):
    result.save(tmp_path / "out", ("labelme",))
    document = json.loads((tmp_path / "out" / "tile.segagent.labelme.json").read_text())
    assert document["imagePath"] == "../tile.png"
    (shape,) = document["shapes"]
    assert (shape["label"], shape["points"]) == ("the tile", [[10.0, 20.0], [13.0, 23.0]])
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as part:
        assert np.asarray(part).shape == (4, 4)


def test_many_images_in_python(runtime):
    by_hand = (ObjectPrompt("tile", (Click(11, 21, True),)), ObjectPrompt(box=Box(9, 19, 14, 24)))
    items = (item for item in [(IMAGE, "the tile"), AnnotationItem(png(IMAGE), by_hand)])
    found = list(runtime.annotate_many(items))
    assert [(each.source, each.number, each.expression) for each in found] == [
        ("image-1", 1, "the tile"), ("image-2", 1, "tile"), ("image-2", 2, ""),
    ]  # fmt: skip
    assert all(np.array_equal(each.mask, MASK) for each in found)


def test_an_image_that_fails_is_reported_or_raised(runtime):
    items = [(IMAGE, "unknown"), (b"no picture", "the tile"), (IMAGE, "the tile")]
    failed = []
    found = list(runtime.annotate_many(items, on_error=lambda image, error: failed.append(error)))
    assert len(found) == 1
    assert [str(error) for error in failed] == [
        "`unknown` is not known", "the image is not an image that can be read",
    ]  # fmt: skip
    with pytest.raises(ExpressionRefused):
        next(runtime.annotate_many(items))


def test_dir_lists_public_names_only():
    shown = [name for name in dir(segagent_rt) if not name.startswith("__")]
    assert shown == sorted(segagent_rt.__all__)
