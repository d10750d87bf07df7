"""What is wrong with foreign data is said in one sentence that names the place."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segagent_rt.data.sources import Places, open_data
from segagent_rt.errors import DataInvalid, SegagentWarning
from tests.data.datasets import (
    coco_document,
    dis,
    labelme_document,
    refer,
    segagent_document,
    trajectories_document,
)


def refused(path: Path) -> str:
    with pytest.raises(DataInvalid) as caught:
        open_data(str(path), Places(path.parent))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def changed(document, *steps):
    """The document with the value at a path replaced; None removes it."""
    *path, value = steps
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


OBJECTS, COCO, LABELS = segagent_document, coco_document, labelme_document
RECORD = ("data", 0)
TRUTH = (*RECORD, "gt_ann")
SEGMENT = (*TRUTH, "segmentation")
WRONG = {
    "a number": (5, "no known format"),
    "an empty list": ([], "no known format"),
    "no records": ({"data": []}, "no known format"),
    "a record is no object": (changed(OBJECTS(), "data", 1, 7), "record 2 is not an"),
    "no size": (changed(OBJECTS(), *RECORD, "height", None), "`height` is missing"),
    "size of nothing": (changed(OBJECTS(), *RECORD, "height", 0), "not the size of an image"),
    "size without end": (changed(OBJECTS(), *RECORD, "width", 10**9), "not the size of an image"),
    "size is true": (changed(OBJECTS(), *RECORD, "width", True), "is not a number"),
    "no caption": (changed(OBJECTS(), *TRUTH, "caption", None), "`caption` is missing"),
    "no captions": (changed(OBJECTS(), *TRUTH, "caption", []), "is empty"),
    "blank caption": (changed(OBJECTS(), *TRUTH, "caption", ["a", "  "]), "is empty"),
    "caption is a number": (changed(OBJECTS(), *TRUTH, "caption", 3), "not a list"),
    "image is true": (changed(OBJECTS(), *RECORD, "image_name", True), "is not text"),
    "image is blank": (changed(OBJECTS(), *RECORD, "image_name", " "), "neither a path"),
    "id is a list": (changed(OBJECTS(), *TRUTH, "object_id", []), "whole number"),
    "mask of another size": (changed(OBJECTS(), *SEGMENT, "size", [40, 61]), "40 x 61"),
    "mask of three sides": (changed(OBJECTS(), *SEGMENT, "size", [4, 6, 1]), "4 x 6 x 1"),
    "mask too short": (changed(OBJECTS(), *SEGMENT, "counts", "PR1"), "do not fill"),
    "mask of strange letters": (changed(OBJECTS(), *SEGMENT, "counts", "é"), "`counts`"),
    "mask cut off": (changed(OBJECTS(), *SEGMENT, "counts", "oo"), "middle of a number"),
    "mask of a number without end": (
        changed(OBJECTS(), *SEGMENT, "counts", "o" * 100_000), "does not use"),
    "negative counts": (changed(OBJECTS(), *SEGMENT, "counts", [-5, 2405]), "do not fill"),
    "mask is nothing": (changed(OBJECTS(), *TRUTH, "segmentation", {}), "`size` is missing"),
    "polygon of two points": (
        changed(OBJECTS(), *TRUTH, "segmentation", [[1, 2, 3, 4]]), "three points"),
    "polygon of an odd number": (
        changed(OBJECTS(), *TRUTH, "segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "three points"),
    "polygon far outside": (
        changed(OBJECTS(), *TRUTH, "segmentation", [[0, 0, 1e9, 0, 5, 5]]), "out of range"),
    "polygon of a number without end": (
        changed(OBJECTS(), *TRUTH, "segmentation", [[0, 0, 10**400, 0, 5, 5]]), "out of range"),
    "polygon without end": (
        changed(OBJECTS(), *TRUTH, "segmentation", [[0, 0, 9e5, 9e5] * 20]), "outline"),
    "twice": (
        changed(OBJECTS(), "data", [OBJECTS()["data"][0]] * 2), "repeats"),
    "coco: an id twice": (changed(COCO(), "annotations", 1, "id", 100), "have the id 100"),
    "coco: an image twice": (changed(COCO(), "images", 1, "id", 11), "have the id 11"),
    "coco: unknown image": (changed(COCO(), "annotations", 1, "image_id", 9), "no image 9"),
    "coco: no annotation": (changed(COCO(), "annotations", []), "no annotation"),
    "coco: nothing is said": (
        changed(changed(COCO(), "annotations", 0, "caption", None), "categories", []),
        "no caption, and no category"),
    "coco: images is an object": (changed(COCO(), "images", {}), "not a list"),
    "labelme: no shape": (changed(LABELS("meadow"), "shapes", []), "no object"),
    "labelme: blank label": (
        changed(LABELS("meadow"), "shapes", 0, "label", " "), "is empty"),
    "labelme: a line": (
        changed(LABELS("meadow"), "shapes", 0, "shape_type", "line"), "no area"),
    "labelme: no base64": (
        changed(LABELS("meadow"), "shapes", 0, "mask", "!!"), "not base64"),
    "labelme: no picture": (
        changed(LABELS("meadow"), "shapes", 0, "mask", "AAAA"), "not an image"),
    "labelme: mask outside": (
        changed(LABELS("meadow"), "shapes", 0, "points", [[60, 30], [75, 50]]), "covers no pixel"),
    "labelme: circle without end": (
        changed(LABELS("meadow"), "shapes", 0, {
            "label": "it", "shape_type": "circle", "points": [[0, 0], [1e300, 0]]}),
        "out of range"),
    "labelme: points are numbers": (
        changed(LABELS("meadow"), "shapes", 0, "points", [1, 2]), "list of pairs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_json_of_the_wrong_shape(tmp_path, name):
    document, sentence = WRONG[name]
    (tmp_path / "f.json").write_text(json.dumps(document))
    assert sentence in refused(tmp_path / "f.json")


@pytest.mark.parametrize("content", [b"", b"{", b'{"data": [', b"\xff\xfe", b"[" * 100_000])
def test_no_json_at_all(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    assert "is not JSON" in refused(tmp_path / "f.json")


def test_no_file(tmp_path):
    assert "there is no file" in refused(tmp_path / "f.json")


def test_no_split(tmp_path):
    with pytest.raises(DataInvalid, match=r"neither refcoco_val\.json nor"):
        open_data("refcoco_val", Places(tmp_path))


@pytest.mark.parametrize("name", ["refcocog_testA", "refcoco_nonsense", "refcoco+_test"])
def test_a_split_that_a_benchmark_does_not_have(tmp_path, name):
    benchmark, _, split = name.partition("_")
    assert refused(tmp_path / name).startswith("there is no file")
    with pytest.raises(DataInvalid, match=rf"{re.escape(benchmark)} has no split {split}"):
        open_data(name, Places(tmp_path))


def test_a_pickle_that_names_anything_is_refused(tmp_path):
    """REFER's own files are pickles of plain data; one that calls something is an attack."""
    refer(tmp_path)

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "refcocog" / "refs(umd).p").write_bytes(pickle.dumps([Attack()]))
    with pytest.raises(DataInvalid, match="not a pickle of plain data"):
        open_data("refcocog_test", Places(tmp_path))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda f: [p.unlink() for p in (f / "gt").iterdir()], "holds no masks"),
        (lambda f: next((f / "gt").iterdir()).unlink(), "no mask of the name"),
        (lambda f: next((f / "im").glob("*.jpg")).unlink(), "no picture of the name"),
        (lambda f: next((f / "gt").iterdir()).write_bytes(b"no"), "not a mask"),
        (lambda f: next((f / "im").glob("*.txt")).write_bytes(b"\n \n"), "is empty"),
        (lambda f: next((f / "im").glob("*.txt")).write_bytes(b"\xff"), "not text in UTF-8"),
    ],
)
def test_folders_with_a_fault(tmp_path, harm, sentence):
    folder = Path(dis(tmp_path))
    harm(folder)
    assert sentence in refused(folder)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "letter.txt").touch()
    assert "holds no masks" in refused(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from places(inner, (*path, key))


@pytest.mark.thorough
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_value_at_any_place_is_read_or_refused_in_a_sentence(tmp_path_factory, data):
    """No other exception or warning leaves the readers, whatever stands in the file."""
    make = data.draw(
        st.sampled_from(
            [
                segagent_document,
                coco_document,
                trajectories_document,
                lambda: labelme_document("meadow"),
            ]
        )
    )
    document = make()
    path = data.draw(st.sampled_from([p for p in places(document) if p]))
    changed(document, *path, data.draw(json_values.filter(lambda value: value is not None)))
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(document))
    with warnings.catch_warnings(record=True) as said, suppress(DataInvalid):
        warnings.simplefilter("always")
        open_data(str(file), Places())
    assert {warning.category for warning in said} <= {SegagentWarning}
