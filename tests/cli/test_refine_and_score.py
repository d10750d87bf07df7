"""`segagent-rt refine` and `segagent-rt score`: masks that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segagent_rt.draw import png
from tests.data.datasets import DRAWN, coco, coco_document, picture

pytestmark = pytest.mark.usefixtures("kept_open")

TEXT = DRAWN[0].expressions[0]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "meadow.png").write_bytes(png(picture("meadow")))
    (tmp_path / "mask.png").write_bytes(png(DRAWN[0].mask))
    return tmp_path / "meadow.png", tmp_path / "mask.png"


def test_refining_writes_a_mask_that_is_rated_no_lower(terminal, files, tmp_path):
    given = json.loads(terminal("score", *files, TEXT, "--json").out)["predicted_iou"]
    done = terminal("refine", *files, TEXT, "-o", tmp_path / "out", "--max-clicks", 2, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    (result,) = document["results"]
    assert result["predicted_iou"] >= given - 0.0006
    assert document["mask"] == str(files[1])
    assert "given mask  rated" in done.err.splitlines()[0], "the start is looked at first"
    with Image.open(tmp_path / "out" / "meadow.refined.segagent.mask.png") as found:
        assert found.size == (60, 40)


def test_a_start_that_is_not_bettered_comes_back_as_it_was(terminal, files, tmp_path, monkeypatch):
    from dataclasses import replace

    from segagent_rt.annotators.mllm import ImageContext

    rate = ImageContext.rate

    def content(self, requests):
        return [replace(rating, value=0.95) for rating in rate(self, requests)]

    monkeypatch.setattr(ImageContext, "rate", content)
    done = terminal("refine", *files, TEXT, "-o", tmp_path / "out")
    assert "accepted" in done.out
    with Image.open(tmp_path / "out" / "meadow.refined.segagent.mask.png") as found:
        assert np.array_equal(np.asarray(found) > 0, DRAWN[0].mask)


def test_candidates_are_tried_from_a_start_too(terminal, files, tmp_path):
    how = ("--candidates", 2, "--max-clicks", 1, "-o", tmp_path / "out")
    assert terminal("refine", *files, TEXT, *how).code == 0


@pytest.mark.parametrize("command", ["refine", "score"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda image, mask: mask.unlink(), "there is no file"),
        (lambda image, mask: mask.write_bytes(b"no"), "not a mask"),
        (lambda image, mask: mask.write_bytes(png(DRAWN[2].mask)), "its mask 32 x 48"),
        (lambda image, mask: image.write_bytes(b""), "is empty"),
    ],
)
def test_files_with_a_fault(terminal, files, tmp_path, command, change, sentence):
    change(*files)
    where = ("-o", tmp_path / "out") if command == "refine" else ()
    done = terminal(command, *files, TEXT, *where)
    assert done.code == 1
    assert sentence in done.err
    assert done.err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_score_is_the_rating_that_run_prints(terminal, files, tmp_path):
    terminal("run", files[0], TEXT, "-o", tmp_path, "--max-clicks", 1)
    found = json.loads((tmp_path / "meadow.segagent.json").read_text())["results"][0]
    done = terminal("score", files[0], tmp_path / "meadow.segagent.mask.png", TEXT)
    assert done.code == 0, done.err
    assert done.out == f"{found['predicted_iou']:.2f}\n"


def test_annotations_are_rated_and_the_doubtful_sorted_out(terminal, tmp_path):
    path = Path(coco(tmp_path))
    lines = terminal("score", "--annotations", path).out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["100", "101", "102"]
    listed = json.loads(terminal("score", "--annotations", path, "--json").out)["annotations"]
    ratings = {str(each["id"]): each["predicted_iou"] for each in listed}
    assert [line.split("\t")[1] for line in lines] == [f"{r:.2f}" for r in ratings.values()]
    limit = sorted(ratings.values())[1]
    done = terminal("score", "--annotations", path, "--below", limit, "-o", tmp_path / "kept.json")
    assert done.code == 0, done.err
    doubtful = {line.split("\t")[0] for line in done.out.splitlines()}
    kept = json.loads((tmp_path / "kept.json").read_text())
    ids = {str(annotation["id"]) for annotation in kept["annotations"]}
    assert doubtful | ids == set(ratings)
    assert not doubtful & ids
    assert {key: kept[key] for key in ("images", "categories")} == {
        key: coco_document()[key] for key in ("images", "categories")
    }
    for annotation in kept["annotations"]:
        said = annotation.pop("predicted_iou")
        assert said == ratings[str(annotation["id"])]
        assert annotation in coco_document()["annotations"], "nothing else is changed"


def test_what_cannot_be_rated_is_named_and_kept(terminal, tmp_path):
    path = Path(coco(tmp_path))
    (tmp_path / "harbour.jpg").unlink()
    document = json.loads(path.read_text())
    document["annotations"][1]["caption"] = "the zebra"
    path.write_text(json.dumps(document))
    done = terminal("score", "--annotations", path, "--below", 1, "-o", tmp_path / "kept.json")
    assert done.code == 4
    assert "annotation 101: the shipped model does not know `zebra`" in done.err
    assert "there is no image" in done.err
    assert "2 of 3 annotations could not be rated" in done.err
    kept = json.loads((tmp_path / "kept.json").read_text())["annotations"]
    assert {101, 102} <= {annotation["id"] for annotation in kept}


@pytest.mark.parametrize(
    "arguments",
    [(), ("a.png",), ("a.png", "b.png"), ("a.png", "b.png", "it", "--annotations", "c.json")],
)
def test_half_a_question_is_a_usage_error(terminal, arguments):
    assert terminal("score", *arguments).code == 2


def test_no_annotations(terminal, tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    done = terminal("score", "--annotations", tmp_path / "a.json")
    assert done.code == 1
    assert "does not hold COCO annotations" in done.err
