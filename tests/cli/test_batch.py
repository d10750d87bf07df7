"""`run` with many images: what it takes, what it skips, what it says, and what a kill leaves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from segagent_rt.draw import png
from tests import squares
from tests.conftest import ROOT

TEXT = "the bright square"
EVERYTHING = ("--save", "mask,overlay,cutout,json,coco,yolo,labelme")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The current folder, with `photos` of five images in it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos", 5)
    return tmp_path / "photos"


def fill(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        image = squares.square(2 + 7 * (number % 6), 3 + 5 * (number % 5))
        (folder / f"p{number:03d}.png").write_bytes(png(image))


def content(folder, *, leave_out=("segagent-run.journal.jsonl",)):
    """Every file with a hash, hidden ones included; the journal holds times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }


def summary(folder):
    lines = (folder / "segagent-run.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def images(done):
    """The images of the rows on stdout, in order."""
    return [line.split("\t")[-1] for line in done.out.splitlines()]


def test_a_folder_has_a_row_a_mask_and_a_line_in_the_summary_for_each_image(
    terminal, runtime, photos
):
    (photos / "notes.txt").write_text("no picture")
    done = terminal("run", "photos", TEXT, "-o", "out")
    assert done.code == 0, done.err
    names = [f"photos/p{number:03d}.png" for number in range(5)]
    assert images(done) == names
    assert [row["image"] for row in summary(photos.parent / "out")] == names
    with Image.open("out/p001.segagent.mask.png") as picture:
        assert np.array_equal(np.asarray(picture) > 0, squares.bright(squares.square(9, 8)))
    document = json.loads((photos.parent / "out" / "p001.segagent.json").read_text())
    assert document["results"][0]["seconds"] == {}
    assert document["results"][0]["steps"][0]["seconds"] == {}
    assert "left" not in done.err, "a log has no line of progress"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("photos/p000.png", "photos/p003.png", TEXT), [0, 3]),
        (("photos/p00[13].png", TEXT), [1, 3]),
        (("**/p004.png", TEXT, "photos/p000.png"), [4, 0]),
        ((".", TEXT, "photos/p002.png"), None),
    ],
)
def test_images_are_told_apart_from_expressions(terminal, runtime, photos, arguments, found):
    done = terminal("run", *arguments, "-o", "out")
    if found is None:  # the folder itself has no picture
        assert done.code == 1
        assert ". holds no picture" in done.err
        return
    assert done.code == 0, done.err
    assert images(done) == [f"photos/p{number:03d}.png" for number in found]
    asked = {result["expression"] for row in summary(photos.parent / "out")
             for result in row["results"]}  # fmt: skip
    assert asked == {TEXT}


def test_results_in_the_folder_of_the_images_are_no_images(terminal, runtime, photos):
    first = terminal("run", "photos", TEXT, "-o", "photos")
    again = terminal("run", "photos", TEXT, "-o", "photos")
    assert (first.code, again.code) == (0, 0)
    assert images(first) == images(again)
    assert len(images(again)) == 5


LISTS = {
    "text": "# a comment\nphotos/p000.png\n\nphotos/p001.png\tthe other square\n",
    "jsonl": '{"image": "photos/p000.png"}\n'
    '{"image": "photos/p001.png", "expression": ["the other square"]}\n',
    "coco": json.dumps({
        "images": [{"id": 1, "file_name": "photos/p000.png"},
                   {"id": 2, "file_name": "photos/p001.png"}],
        "annotations": [{"id": 7, "image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2]}],
        "categories": [{"id": 3, "name": "the other square"}],
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("from_stdin", [False, True])
def test_lists(terminal, runtime, photos, monkeypatch, kind, from_stdin):
    """Entries have their own expressions, or else those of the command line."""
    (photos.parent / "list").write_text(LISTS[kind])
    stdin = io.TextIOWrapper(io.BytesIO(LISTS[kind].encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    done = terminal("run", "--from", "-" if from_stdin else "list", TEXT, "-o", "out")
    assert done.code == 0, done.err
    asked = {row["image"]: [each["expression"] for each in row["results"]]
             for row in summary(photos.parent / "out")}  # fmt: skip
    assert asked == {"photos/p000.png": [TEXT], "photos/p001.png": ["the other square"]}


def test_a_list_has_clicks_and_boxes(terminal, runtime, photos):
    entries = [
        {"image": "photos/p000.png", "clicks": [{"x": 5, "y": 6}], "expression": "a tile"},
        {"image": "photos/p000.png", "box": [1, 2, 15, 16]},
    ]
    (photos.parent / "list").write_text("\n".join(map(json.dumps, entries)))
    done = terminal("run", "--from", "list", "-o", "out")
    assert done.code == 0, done.err
    assert runtime.annotator.asked == []
    (row,) = summary(photos.parent / "out")
    assert [each["expression"] for each in row["results"]] == ["a tile", ""]
    assert [each["clicks"] for each in row["results"]] == [1, 0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("photos/p000.png\n", "there is no expression, click or box for photos/p000.png"),
        ('{"image": 5}', "line 1: `image` is not text"),
        ('{"image": "a.png"}\n{"image"', "line 2 is not JSON"),
        ('{"image": "a.png", "box": [5, 5, 1, 9]}', "`box` is not [left, top, right, bottom]"),
        ('{"image": "a.png", "clicks": [[1, 2]]}', "`clicks` is not an object"),
        ("[1, 2]", "has no known format"),
        ("", "the input names no image"),
    ],
)
def test_bad_lists_are_one_sentence(terminal, runtime, photos, text, sentence):
    (photos.parent / "list").write_text(text)
    done = terminal("run", "--from", "list", "-o", "out")
    assert done.code == 1
    assert sentence in done.err
    assert not (photos.parent / "out").exists()


def test_finished_images_are_not_done_again(terminal, runtime, photos):
    first = terminal("run", "photos", TEXT, "-o", "out", *EVERYTHING)
    before, decoded = content(photos.parent / "out"), len(runtime.segmenter.decoded)
    again = terminal("run", "photos", TEXT, "-o", "out", *EVERYTHING)
    assert again.out == first.out
    assert content(photos.parent / "out") == before
    assert len(runtime.segmenter.decoded) == decoded
    (photos / "p002.png").write_bytes(png(squares.square(30, 30)))
    (photos.parent / "out" / "p003.segagent.overlay.png").unlink()
    terminal("run", "photos", TEXT, "-o", "out", *EVERYTHING)
    assert len(runtime.segmenter.decoded) == decoded + 2, "a changed image, and a missing file"
    terminal("run", "photos", TEXT, "-o", "out", "--max-clicks", 3)
    assert len(runtime.segmenter.decoded) == decoded + 7, "other options"


def test_a_mask_that_was_edited_is_kept(terminal, runtime, photos):
    terminal("run", "photos", TEXT, "-o", "out")
    edited = photos.parent / "out" / "p001.segagent.mask.png"
    edited.write_bytes(b"painted by hand")
    assert terminal("run", "photos", TEXT, "-o", "out").code == 0
    assert edited.read_bytes() == b"painted by hand"
    done = terminal("run", "photos", "another square", "-o", "out")
    assert done.code == 1
    assert "p001.segagent.mask.png exists, and" in done.err
    assert edited.read_bytes() == b"painted by hand"


def test_failures_are_listed_at_the_end_and_tried_again(terminal, runtime, photos):
    (photos / "p001.png").write_bytes(b"")
    (photos / "p003.png").write_bytes(png(np.zeros((20, 20, 3), np.uint8)))
    done = terminal("run", "photos", TEXT, "-o", "out")
    assert done.code == 4
    told = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert "photos/p001.png is empty" in told[0]
    assert "no mask was found" in told[1]
    assert "error: 2 of 5 images failed" in done.err
    problems = [row["problem"] for row in summary(photos.parent / "out")]
    assert [problem is not None for problem in problems] == [False, True, False, True, False]
    (photos / "p001.png").write_bytes(png(squares.square(9, 9)))
    (photos / "p003.png").write_bytes(png(squares.square(9, 9)))
    assert terminal("run", "photos", TEXT, "-o", "out").code == 0


def test_no_mask_at_all_is_exit_code_5(terminal, runtime, photos):
    for path in photos.iterdir():
        path.write_bytes(png(np.zeros((20, 20, 3), np.uint8)))
    assert terminal("run", "photos", TEXT, "-o", "out").code == 5


def test_an_expression_that_is_refused_ends_the_batch_before_it_begins(terminal, runtime, photos):
    done = terminal("run", "photos", "an unknown thing", "-o", "out")
    assert done.code == 1
    assert "`an unknown thing` is not known" in done.err
    assert runtime.segmenter.decoded == []


def test_json_is_one_document(terminal, runtime, photos):
    done = terminal("run", "photos", TEXT, "-o", "out", "--json")
    document = json.loads(done.out)
    assert document["images"] == summary(photos.parent / "out")
    assert document["summary"] == "out/segagent-run.jsonl"


def test_equal_names_in_two_folders(terminal, runtime, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("a/p.png", "b/p.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(png(squares.square(5, 5)))
    for _ in range(2):
        done = terminal("run", "*/p.png", TEXT, "-o", "out", "--save", "coco")
        assert done.code == 0, done.err
    documents = [row["document"] for row in summary(tmp_path / "out")]
    assert documents == ["p.segagent.json", "p-2.segagent.json"]
    coco = json.loads((tmp_path / "out" / "segagent-run.coco.json").read_text())
    assert [each["file_name"] for each in coco["images"]] == ["a/p.png", "b/p.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give an image, a folder, --from or --video"),
        (("photos",), "give either expressions, or --click and --box"),
        (("photos", TEXT, "--save", "png"), "--save is mask, overlay"),
        (("photos", TEXT, "--look-every", "3"), "applies to --video"),
        (("--video", "v.mp4", TEXT, "--all"), "--video cannot be combined"),
        (("-", "a.png", TEXT), "- is one image on standard input"),
    ],
)
def test_usage_errors(terminal, runtime, photos, arguments, said):
    done = terminal("run", *arguments)
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())


def test_a_run_that_is_stopped_goes_on_with_the_same_bytes(terminal, runtime, photos):
    """Stopped at every fourth file, and run again each time."""
    terminal("run", "photos", TEXT, "-o", "whole", *EVERYTHING)
    whole = content(photos.parent / "whole")
    codes = []
    while not codes or codes[-1] == 130:
        with squares.stopped_after(3):
            codes.append(terminal("run", "photos", TEXT, "-o", "out", *EVERYTHING).code)
    assert codes[-1] == 0
    assert len(codes) >= 5
    assert content(photos.parent / "out") == whole


@pytest.mark.parametrize(
    "count",
    [pytest.param(120, marks=pytest.mark.chaos), pytest.param(500, marks=pytest.mark.slow)],
)
def test_a_run_that_is_killed_goes_on_with_the_same_bytes(tmp_path, count):
    """SIGKILL at ten random moments; the result is that of an unbroken run."""
    fill(tmp_path / "photos", count)
    (tmp_path / "photos" / "p000.txt").write_text("mine")
    mine = content(tmp_path / "photos")

    def start(folder):
        program = [sys.executable, "-m", "tests.squares", "run", "photos", TEXT, "-o", folder]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*program, *EVERYTHING], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    unbroken = start("whole")
    printed, _ = unbroken.communicate(timeout=600)
    assert unbroken.returncode == 0
    random.seed(0)
    killed, share = 0, count // 11  # of the images, done between two kills
    for _ in range(10):
        running = start("out")
        rows = random.randrange(1, share) + share * killed  # those of earlier runs too
        for _ in range(rows):
            running.stdout.readline()
        time.sleep(random.random() / 50)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        killed += running.returncode == -signal.SIGKILL
    assert killed >= 8
    last = start("out")
    again, _ = last.communicate(timeout=600)
    assert last.returncode == 0
    assert again == printed.replace(b"whole/", b"out/")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert content(tmp_path / "photos") == mine
