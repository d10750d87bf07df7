"""`--report` of run, eval and bench."""

from __future__ import annotations

import re

import pytest

from segagent_rt.draw import png
from tests import squares
from tests.data.datasets import coco

TEXT = "the bright square"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"p{number}.png").write_bytes(png(squares.square(2 + 7 * number, 3)))
    return folder


def test_one_image(terminal, runtime, photos, tmp_path):
    report = tmp_path / "r" / "one.html"
    done = terminal("run", photos / "p0.png", TEXT, "-o", tmp_path, "--report", report)
    assert done.code == 0, done.err
    page = report.read_text()
    assert "segagent-rt run: p0.png" in page
    assert "rated 0.95" in page


def test_each_click_by_hand_has_its_own_mask(terminal, runtime, photos, tmp_path):
    clicks = ("--click", "+40,40", "--click", "+5,5")
    options = ("-o", tmp_path, "--report", tmp_path / "r.html")
    assert terminal("run", photos / "p0.png", *clicks, *options).code == 0
    masks = re.findall(r'<path class="mask" d="(.*?)"', (tmp_path / "r.html").read_text())
    assert len(masks) == 3
    assert len(set(masks)) == 2


def test_a_run_without_a_mask_still_has_a_report(terminal, runtime, tmp_path):
    (tmp_path / "dark.png").write_bytes(png(squares.square(2, 3) * 0))
    options = ("-o", tmp_path, "--report", tmp_path / "r.html")
    assert terminal("run", tmp_path / "dark.png", TEXT, *options).code == 5
    assert "no mask" in (tmp_path / "r.html").read_text()


def test_a_batch_that_goes_on_reports_the_images_of_before_too(terminal, runtime, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    options = ("-o", tmp_path / "out", "--report", tmp_path / "r.html")
    for again in ("", "An earlier run did this image"):
        assert terminal("run", photos, TEXT, *options).code == 4
        page = (tmp_path / "r.html").read_text()
        assert again in page
        assert page.count('<th scope="row">') == 4
        assert page.count('-whole" x=') == 3
        assert "broken.png" in re.findall(r"<section class=\"case\".*?</section>", page, re.S)[0]


def test_a_file_of_somebody_else_is_not_replaced(terminal, runtime, photos, tmp_path):
    (tmp_path / "r.html").write_text("mine")
    options = ("-o", tmp_path, "--report", tmp_path / "r.html")
    assert terminal("run", photos / "p0.png", TEXT, *options).code == 1
    assert (tmp_path / "r.html").read_text() == "mine"
    assert not (tmp_path / "p0.segagent.json").exists()


def test_eval_of_data(terminal, tmp_path):
    report = tmp_path / "r.html"
    oracle = ("--annotator", "oracle", "--max-clicks", 2, "--threads", 1)
    done = terminal("eval", coco(tmp_path), *oracle, "-o", tmp_path / "out", "--report", report)
    assert done.code == 0, done.err
    page = report.read_text()
    assert "cIoU" in page
    assert "Dashed magenta" in page
    assert page.count("<h2>") > 1
    ious = [float(each) for each in re.findall(r'<span class="(?:good|bad)">IoU ([\d.]+)', page)]
    assert ious == sorted(ious)


@pytest.mark.thorough
def test_eval_of_scenes(terminal, tmp_path):
    done = terminal("eval", "--scenes", 2, "--max-clicks", 1, "--report", tmp_path / "r.html")
    assert done.code == 0, done.err
    assert (tmp_path / "r.html").read_text().count("<h2>") == 2


@pytest.mark.thorough
def test_bench(terminal, tmp_path):
    scenario = tmp_path / "small.toml"
    scenario.write_text('kind = "one"\nscenes = 3\nside = 96\nclicks = 1\nwarm_up = 1\n')
    done = terminal("bench", "-s", scenario, "--threads", 1, "--report", tmp_path / "r.html")
    assert done.code == 0, done.err
    page = (tmp_path / "r.html").read_text()
    assert page.count("<h2>") == 3
    assert "stages.vision" in page
    assert "slowest first" in page
