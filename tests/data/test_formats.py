"""Every format: read as it was drawn, written, read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segagent_rt.data.coco import write_coco
from segagent_rt.data.folders import class_name
from segagent_rt.data.images import ImageFolders, missing_images
from segagent_rt.data.labelme import write_labelme
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.record import expression_queries
from segagent_rt.data.refcoco import SPLITS, splits_named
from segagent_rt.data.segagent import write_segagent
from segagent_rt.data.sources import Places, open_all, open_data
from segagent_rt.errors import DataInvalid
from segagent_rt.image import load_image
from tests.data.datasets import (
    DRAWN,
    EVERY,
    FIRST_WORDS,
    labelme_document,
    picture,
    pictures,
    refer,
)


def told(samples):
    """What was read, sorted: mask, expressions, pixels of the picture."""
    return sorted(
        (s.mask.mask().tobytes(), s.expressions, load_image(s.image).tobytes()) for s in samples
    )


def drawn(objects):
    return sorted((d.mask.tobytes(), d.expressions, picture(d.picture).tobytes()) for d in objects)


@pytest.mark.parametrize("name", EVERY)
def test_a_format_is_read_as_it_was_drawn(tmp_path, name):
    write, objects = EVERY[name]
    (found,) = open_data(write(tmp_path), Places(tmp_path))
    assert len(found.samples) == len(objects)
    assert told(found.samples) == drawn(objects)
    assert {s.size for s in found.samples} == {d.mask.shape for d in objects}
    assert missing_images(found.samples) == []


@pytest.mark.parametrize("name", EVERY)
def test_what_is_read_can_be_written_as_a_data_file_and_as_coco(tmp_path, name):
    write, _ = EVERY[name]
    (found,) = open_data(write(tmp_path), Places(tmp_path))
    for kind, writer in (("segagent", write_segagent), ("coco", write_coco)):
        path = tmp_path / f"written.{kind}.json"
        writer(path, found.samples)
        images = sorted({s.image.parent for s in found.samples})[0]
        (again,) = open_data(str(path), Places(images=images))
        assert [s.expressions for s in again.samples] == [s.expressions for s in found.samples]
        assert [s.mask for s in again.samples] == [s.mask for s in found.samples]


def test_labelme_is_written_one_file_for_an_image(tmp_path):
    (found,) = open_data(EVERY["labelme"][0](tmp_path), Places())
    folder = tmp_path / "written"
    pictures(folder)
    for name in ("meadow", "harbour"):
        of_it = [s for s in found.samples if s.image.stem == name]
        write_labelme(folder / f"{name}.json", of_it)
    (again,) = open_data(str(folder), Places())
    assert told(again.samples) == told(found.samples)
    assert told(again.samples) == drawn(FIRST_WORDS)


@pytest.mark.parametrize("benchmark", SPLITS)
def test_every_split_has_its_name(tmp_path, benchmark):
    for part in SPLITS[benchmark]:
        refer(tmp_path / part, benchmark, part)
        (found,) = open_data(f"{benchmark}_{part}", Places(tmp_path / part))
        assert found.title == f"{benchmark}_{part}"
        assert len(found.samples) == len(DRAWN), "the reference of another split is left out"
    assert [s.title for s in splits_named(benchmark)] == [
        f"{benchmark}_{n}" for n in SPLITS[benchmark]
    ]
    assert splits_named(f"{benchmark}_train")
    assert not splits_named(f"{benchmark}_testC")


def test_numbers_are_images_of_coco_or_of_saiapr(tmp_path):
    images = ImageFolders((tmp_path,))
    assert images.find(42).name == "COCO_train2014_000000000042.jpg"
    assert images.find(12345, "refclef_val.json").parts[-3:] == ("12", "images", "12345.jpg")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../etc/passwd", "a/../../passwd", "C:\\secret\\passwd", "..\\..\\passwd"],
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    found = ImageFolders((tmp_path,)).find(name)
    assert found == tmp_path / "passwd"


def test_a_name_without_an_ending_is_a_jpeg(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert ImageFolders((tmp_path,)).find("a") == tmp_path / "a.jpg"


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("2#Aircraft#7#UAV#3522034", "UAV"),  # DIS5K
        ("fire_hydrant_0012", "fire hydrant"),
        ("chair-07", "chair"),
        ("0042", "0042"),
        ("meadow", "meadow"),
    ],
)
def test_the_class_is_read_from_the_name(stem, words):
    assert class_name(stem) == words


def test_a_caption_of_unknown_is_the_name_of_the_image(tmp_path):
    from segagent_rt.data.segagent import read_segagent
    from tests.data.datasets import segagent_document

    document = segagent_document(lambda name: f"{name}_1.jpg")
    document["data"][0]["gt_ann"]["caption"] = ["Unknown"]
    context = ReadContext(ImageFolders((tmp_path,)))
    samples = read_segagent(document, "f.json", context)
    assert context.from_names == ["meadow"]
    assert samples[0].expressions == ("meadow",)


def test_labelme_shapes_of_one_group_are_one_object(tmp_path):
    from segagent_rt.data.labelme import read_labelme

    square = {"label": "it", "shape_type": "rectangle", "group_id": 1}
    document = labelme_document("meadow") | {
        "shapes": [
            square | {"points": [[2, 2], [6, 6]]},
            square | {"points": [[20, 20], [10, 12]]},
            square | {"points": [[30, 30], [34, 30]], "shape_type": "circle", "group_id": None},
        ]
    }
    one, other = read_labelme(document, "m.json", ReadContext(ImageFolders((tmp_path,))))
    assert int(one.mask.mask().sum()) == 5 * 5 + 9 * 11
    assert np.flatnonzero(other.mask.mask()[30]).tolist() == list(range(26, 35))


def test_data_sets_of_one_title_are_refused_before_any_work(tmp_path):
    first = EVERY["coco"][0](tmp_path / "a")
    second = EVERY["coco"][0](tmp_path / "b")
    with pytest.raises(DataInvalid, match="two data sets are called instances"):
        open_all([first, second], Places())


def test_questions_have_keys_that_stay(tmp_path):
    (found,) = open_data(EVERY["segagent"][0](tmp_path), Places())
    asked = list(expression_queries(found.samples))
    assert [(q.key, q.expression) for q in asked] == [
        ("0.0", "the red circle"), ("0.1", "the largest circle"),
        ("1.0", "the blue ring"), ("2.0", "the big square"),
    ]  # fmt: skip


def test_a_digest_names_the_content(tmp_path):
    path = Path(EVERY["segagent"][0](tmp_path))
    (first,) = open_data(str(path), Places())
    document = json.loads(path.read_text())
    document["data"][0]["gt_ann"]["caption"][0] = "the red ring"
    path.write_text(json.dumps(document))
    (second,) = open_data(str(path), Places())
    assert first.digest != second.digest
