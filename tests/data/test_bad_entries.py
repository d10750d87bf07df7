"""One bad entry: an error that names it, or left out and named; and what COCO and labelme mean."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segagent_rt.data.canvas_cache import check_size
from segagent_rt.data.coco import write_coco
from segagent_rt.data.images import read_picture
from segagent_rt.data.labelme import write_labelme
from segagent_rt.data.record import Category, expression_queries
from segagent_rt.data.segagent import write_segagent
from segagent_rt.data.sources import Places, open_data, open_trajectories, recordings_in
from segagent_rt.draw import png
from segagent_rt.errors import DataInvalid, SegagentWarning
from segagent_rt.image import mask_to_rle
from tests.data.datasets import (
    beside,
    coco_document,
    labelme_document,
    refer,
    segagent_document,
    trajectories_document,
)
from tests.data.test_bad_input import changed


def read(folder, document, name="data.json", **how):
    path = folder / name
    path.write_text(json.dumps(document))
    (found,) = open_data(str(path), Places(**how))
    return found


FIRST = ("annotations", 0)
BAD_COCO = {
    "two points": (*FIRST, "segmentation", [[26, 31, 50, 31]]),
    "two points beside a good polygon": (
        *FIRST, "segmentation", [[2, 2, 20, 2, 20, 20], [26, 31, 50, 31]]),
    "an empty polygon": (*FIRST, "segmentation", [[]]),
    "no polygon": (*FIRST, "segmentation", []),
    "a flat polygon": (*FIRST, "segmentation", [2, 2, 20, 2, 20, 20]),
    "no segmentation": (*FIRST, "segmentation", None),
    "run lengths of nothing": (*FIRST, "segmentation", {"size": [40, 60], "counts": [2400]}),
    "run lengths of another size": (*FIRST, "segmentation", {"size": [4, 6], "counts": [4, 20]}),
    "a polygon outside": (*FIRST, "segmentation", [[900, 900, 910, 900, 910, 910]]),
    "no id": (*FIRST, "id", None),
    "the id of another": (*FIRST, "id", 101),
    "an unknown image": (*FIRST, "image_id", 99),
    "nothing said": (*FIRST, "caption", []),
    "crowd is text": (*FIRST, "iscrowd", "yes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COCO)
def test_a_bad_annotation_is_an_error_or_left_out_and_named(tmp_path, name):
    document = changed(coco_document(), *BAD_COCO[name])
    with pytest.raises(DataInvalid) as caught:
        read(tmp_path, document)
    assert caught.value.hint.count("--skip-bad") == 1
    with pytest.warns(SegagentWarning, match="data: 1 bad entry was left out: data.json") as told:
        found = read(tmp_path, document, skip_bad=True)
    assert str(caught.value) in str(told[0].message)
    assert found.skipped == (str(caught.value),)
    assert [s.id for s in found.samples] == [101, 102]


def test_an_image_without_a_size_takes_its_annotations_with_it(tmp_path):
    document = changed(coco_document(), "images", 0, "height", None)
    with pytest.warns(SegagentWarning, match="2 bad entries"):
        found = read(tmp_path, document, skip_bad=True)
    assert [s.id for s in found.samples] == [102]


def test_if_every_entry_is_bad_that_is_an_error_still(tmp_path):
    document = coco_document()
    for record in document["annotations"]:
        record["segmentation"] = []
    with pytest.raises(DataInvalid, match="no entry can be read"):
        read(tmp_path, document, skip_bad=True)


def test_of_many_bad_entries_a_message_names_three(tmp_path):
    document = coco_document()
    document["annotations"] += [{"id": n} for n in range(200, 210)]
    with pytest.warns(SegagentWarning, match=r"annotation 202: .*, and 7 more"):
        assert len(read(tmp_path, document, skip_bad=True).skipped) == 10


def test_ids_may_be_texts_and_sizes_have_a_decimal_point(tmp_path):
    document = coco_document()
    for image in document["images"]:
        image.update(id=f"im{image['id']}", height=float(image["height"]))
    for record in document["annotations"]:
        record.update(id=f"ann-{record['id']}", image_id=f"im{record['image_id']}")
    found = read(tmp_path, document)
    assert [s.id for s in found.samples] == ["ann-100", "ann-101", "ann-102"]
    write_coco(tmp_path / "again.json", found.samples)
    (again,) = open_data(str(tmp_path / "again.json"), Places())
    assert [(s.id, s.mask) for s in again.samples] == [(s.id, s.mask) for s in found.samples]


def with_kinds():
    document = coco_document()
    document["categories"] = [
        {"id": 3, "name": "triangle", "supercategory": "shape"},
        {"id": 5, "name": "circle"},
        {"id": 9, "name": "of no object"},
    ]
    for record, number, crowd in zip(document["annotations"], (5, 5, 3), (0, 1, 0), strict=True):
        record.update(category_id=number, iscrowd=crowd)
    return document


CROWDS = pytest.mark.filterwarnings("ignore:.*1 crowd is:segagent_rt.errors.SegagentWarning")


def test_crowds_and_categories_are_kept(tmp_path):
    with pytest.warns(SegagentWarning, match="1 crowd is kept"):
        found = read(tmp_path, with_kinds())
    write_coco(tmp_path / "again.json", found.samples, found.categories)
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["categories"] == with_kinds()["categories"]
    assert [(r["id"], r["category_id"], r["iscrowd"]) for r in again["annotations"]] == [
        (100, 5, 0), (101, 5, 1), (102, 3, 0)]  # fmt: skip


@CROWDS
@pytest.mark.parametrize("kind", ["segagent", "labelme"])
def test_other_formats_carry_crowds_and_categories_along(tmp_path, kind):
    samples = read(tmp_path, with_kinds()).samples
    if kind == "segagent":
        write_segagent(tmp_path / "there.json", samples)
    else:
        write_labelme(tmp_path / "there.json", samples[:2])
    (there,) = open_data(str(tmp_path / "there.json"), Places())
    kinds = [(s.category, s.crowd) for s in samples]
    assert [(s.category, s.crowd) for s in there.samples] == kinds[: len(there.samples)]


@CROWDS
def test_nobody_is_asked_about_a_crowd(tmp_path):
    """pycocotools 2.0.11: with `iscrowd` of annotation 101 set, COCOeval counts 2 of 3 objects
    (`npig`), and marks a result that covers the crowd as ignored."""
    found = read(tmp_path, with_kinds())
    assert [q.key for q in expression_queries(found.samples)] == ["0.0", "0.1", "2.0"]


def test_labels_of_labelme_become_categories(tmp_path):
    found = read(tmp_path, labelme_document("meadow"), "meadow.json")
    write_coco(tmp_path / "again.json", found.samples)
    again = json.loads((tmp_path / "again.json").read_text())
    assert [c["name"] for c in again["categories"]] == [s.expressions[0] for s in found.samples]
    assert [c["id"] for c in again["categories"]] == [1, 2]


SQUARE = {"label": "it", "shape_type": "polygon", "points": [[2, 2], [20, 2], [20, 20], [2, 20]]}
BAD_SHAPES = {
    "a point": SQUARE | {"shape_type": "point", "points": [[3, 3]]},
    "a line": SQUARE | {"shape_type": "line", "points": [[1, 1], [5, 5]]},
    "a line strip": SQUARE | {"shape_type": "linestrip"},
    "a polygon of two points": SQUARE | {"points": [[1, 1], [5, 5]]},
    "no label": SQUARE | {"label": ""},
    "a label that is a number": SQUARE | {"label": 3},
    "outside": SQUARE | {"points": [[900, 900], [910, 900], [910, 910]]},
    "a damaged mask": SQUARE | {"shape_type": "mask", "mask": "AAAA"},
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_a_bad_shape_is_an_error_or_left_out_and_named(tmp_path, name):
    document = labelme_document("meadow") | {"shapes": [SQUARE, BAD_SHAPES[name]]}
    with pytest.raises(DataInvalid, match="shape 2") as caught:
        read(tmp_path, document)
    assert caught.value.hint.count("--skip-bad") == 1
    with pytest.warns(SegagentWarning, match="data.json, shape 2"):
        (sample,) = read(tmp_path, document, skip_bad=True).samples
    assert int(sample.mask.mask().sum()) == 19 * 19


@pytest.mark.parametrize("kind", [None, "oriented_rectangle"])
def test_labelme_draws_shapes_without_a_type_and_turned_rectangles_as_polygons(tmp_path, kind):
    document = labelme_document("meadow") | {"shapes": [SQUARE | {"shape_type": kind}]}
    (sample,) = read(tmp_path, document).samples
    assert int(sample.mask.mask().sum()) == 19 * 19


def placed(tmp_path, x, y, part):
    shape = {
        "label": "it", "shape_type": "mask", "points": [[x, y], [x + 9, y + 9]],
        "mask": base64.b64encode(png(part)).decode(),
    }  # fmt: skip
    (sample,) = read(tmp_path, labelme_document("meadow") | {"shapes": [shape]}).samples
    return sample.mask.mask()


@pytest.mark.parametrize(
    ("x", "y", "rows", "columns"),
    [
        (10.6, 9.7, (10, 20), (11, 21)),  # rounded, not cut
        (10.4, 9.2, (9, 19), (10, 20)),
        (55, 35, (35, 40), (55, 60)),  # across the border: cut off
        (-4, -3, (0, 7), (0, 6)),
    ],
)
def test_labelme_rounds_the_corner_of_a_mask_and_cuts_off_what_is_outside(
    tmp_path, x, y, rows, columns
):
    mask = placed(tmp_path, x, y, np.ones((10, 10), np.bool_))
    wanted = np.zeros((40, 60), np.bool_)
    wanted[slice(*rows), slice(*columns)] = True
    assert np.array_equal(mask, wanted)


def test_a_labelme_file_without_sizes_has_those_of_its_picture(tmp_path):
    (tmp_path / "meadow.jpg").write_bytes(png(np.zeros((40, 60, 3), np.uint8)))
    document = labelme_document("meadow") | {"imageHeight": None, "imageWidth": None}
    assert read(tmp_path, document).samples[0].size == (40, 60)


def test_a_picture_inside_of_a_labelme_file_is_used_where_there_is_no_other(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    content = base64.b64encode(png(pixels)).decode()
    found = read(tmp_path, labelme_document("meadow") | {"imageData": content}, "meadow.json")
    sample = found.samples[0]
    assert np.array_equal(read_picture(sample.image), pixels)
    assert sample.file_name == "meadow.jpg"
    check_size(pixels.shape, sample.size, sample.image)
    broken = read(tmp_path, labelme_document("meadow") | {"imageData": "%"}, "meadow.json")
    with pytest.raises(DataInvalid, match="not base64"):
        read_picture(broken.samples[0].image)


def test_in_a_folder_a_file_of_labelme_may_have_no_shapes_and_a_bad_one_is_named(tmp_path):
    (tmp_path / "none.json").write_text(json.dumps(labelme_document("meadow") | {"shapes": []}))
    (tmp_path / "some.json").write_text(json.dumps(labelme_document("harbour")))
    assert len(open_data(str(tmp_path), Places())[0].samples) == 1
    (tmp_path / "cut.json").write_text(json.dumps(labelme_document("meadow"))[:-9])
    with pytest.raises(DataInvalid, match=r"cut\.json is not JSON"):
        open_data(str(tmp_path), Places())
    with pytest.warns(SegagentWarning, match=r"cut\.json is not JSON"):
        assert len(open_data(str(tmp_path), Places(skip_bad=True))[0].samples) == 1


def test_bad_records_of_segagent_refer_and_folders_are_left_out_too(tmp_path):
    document = changed(segagent_document(), "data", 1, "gt_ann", "caption", [])
    with pytest.warns(SegagentWarning, match="record 2"):
        assert len(read(tmp_path, document, skip_bad=True).samples) == 2
    refer(tmp_path)
    path = tmp_path / "refcocog" / "refs(umd).p"
    path.with_suffix(".json").write_text(
        json.dumps([
            {"split": "test", "ann_id": 100, "image_id": 11, "sentences": [{"sent": "it"}]},
            {"split": "test", "ann_id": 9, "image_id": 11, "sentences": [{"sent": "it"}]},
            {"ann_id": 9},
        ])
    )  # fmt: skip
    with pytest.warns(SegagentWarning, match="2 bad entries.*no annotation 9"):
        (found,) = open_data("refcocog_test", Places(tmp_path, skip_bad=True))
    assert [s.id for s in found.samples] == [100]
    folder = Path(beside(tmp_path))
    (folder / "meadow.png").write_bytes(b"no picture")
    with pytest.warns(SegagentWarning, match=r"meadow\.png is not an image"):
        (found,) = open_data(str(folder), Places(skip_bad=True))
    assert [s.image.stem for s in found.samples] == ["harbour"]


def test_an_empty_mask_in_a_folder_is_no_object(tmp_path):
    folder = Path(beside(tmp_path))
    (folder / "meadow.png").write_bytes(png(np.zeros((40, 60), np.bool_)))
    with pytest.raises(DataInvalid, match="is empty"):
        open_data(str(folder), Places())


def test_bad_trajectories_and_predictions_are_left_out_too(tmp_path):
    document = trajectories_document()
    document["data"].append({"height": 3})
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.warns(SegagentWarning, match="1 bad entry"):
        found = open_trajectories(str(tmp_path / "t.json"), Places(skip_bad=True))
    assert len(found) == len(document["data"]) - 1
    mask = mask_to_rle(np.ones((4, 5), np.bool_))
    good = {"img_path": "a", "height": 4, "width": 5, "caption": "it", "gt_mask": mask,
            "pred_list": []}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps([good, {"pred_list": []}]))
    with pytest.warns(SegagentWarning, match="prediction 2"):
        assert len(recordings_in(str(tmp_path / "p.json"), Places(skip_bad=True))) == 1


def test_expressions_from_the_names_of_files_are_told(tmp_path):
    (tmp_path / "coco_train_000072_giraffe.jpg").write_bytes(png(np.zeros((4, 5, 3), np.uint8)))
    (tmp_path / "coco_train_000072_giraffe.png").write_bytes(png(np.ones((4, 5), np.bool_)))
    with pytest.warns(SegagentWarning, match="1 expression is taken from.*`coco train`"):
        open_data(str(tmp_path), Places())
    (tmp_path / "coco_train_000072_giraffe.txt").write_text("the giraffe")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = open_data(str(tmp_path), Places())
    assert found.samples[0].expressions == ("the giraffe",)


def test_a_label_map_in_a_folder_needs_a_label(tmp_path):
    folder = Path(beside(tmp_path))
    labels = np.zeros((40, 60), np.uint8)
    labels[5:20, 5:20], labels[25:35, 5:20] = 1, 2
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "PNG")
    for name in ("meadow", "harbour"):
        (folder / f"{name}.png").write_bytes(stream.getvalue())
    with pytest.raises(DataInvalid, match="label map"):
        open_data(str(folder), Places())
    (found,) = open_data(str(folder), Places(mask_label=2))
    assert int(found.samples[0].mask.mask().sum()) == 150


def test_categories_without_numbers_get_those_that_are_free(tmp_path):
    samples = read(tmp_path, labelme_document("meadow"), "meadow.json").samples
    write_coco(tmp_path / "again.json", samples, [Category("sky", 1)])
    again = json.loads((tmp_path / "again.json").read_text())
    assert [c["id"] for c in again["categories"]] == [1, 2, 3]
