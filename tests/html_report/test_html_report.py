"""The report: one file that asks for nothing, the worst cases first, with every step in it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from segagent_rt.html_report import builder as builders
from segagent_rt.html_report.builder import ReportBuilder
from segagent_rt.html_report.case import ReportCase, ReportStep, case_of_trajectory
from segagent_rt.html_report.page import Table
from segagent_rt.html_report.picture import POINTS, outline_of, photos_of
from segagent_rt.testing import DiscSegmenter
from segagent_rt.types import Box, Click, Malformed, Step, Trajectory, Turn

SIZE = (60, 80)
IMAGE = np.full((*SIZE, 3), 90, np.uint8)


def disc(x, y, radius=10, size=SIZE):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def case(name, rating, **more):
    step = ReportStep(click=Click(20, 20, True), mask=disc(20, 20), reply="here", rating=rating)
    return ReportCase("a.png", name, IMAGE, (step,), 0, "accepted", **more)


def written(tmp_path, *cases, **options):
    builder = ReportBuilder(**options)
    for each in cases:
        builder.add(each)
    path = tmp_path / "report.html"
    builder.write(path, "a report", {"bundle": "tiny", "nothing": None})
    return path.read_text("utf-8")


def test_the_file_asks_for_nothing_and_has_no_script(tmp_path):
    page = written(tmp_path, case("the cup", 0.5), case("the mug", 0.7))
    assert "default-src &#x27;none&#x27;" in page
    assert "<script" not in page
    assert set(re.findall(r'(?:href|src)="([^"]{5})', page)) <= {"#case", "data:", "#case"[:5]}
    assert "url(" not in page
    assert "//" not in re.sub(r'href="data:[^"]*"', "", page)


def test_text_from_outside_is_escaped_and_steers_nothing(tmp_path):
    bad = '"><script>alert(1)</script>\u202e\x1b[2J'
    step = ReportStep(click=Click(3, 3, True), reply=bad, problem=bad)
    page = written(tmp_path, ReportCase(bad, bad, IMAGE, (step,), None, bad, note=bad))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.count("&quot;&gt;&lt;script&gt;") >= 5


def test_the_worst_case_is_first_and_no_mask_is_worst(tmp_path):
    nothing = replace(case("nothing", 0.9), steps=(ReportStep(reply="Finish"),), returned=None)
    page = written(tmp_path, case("good", 0.9), case("poor", 0.2), nothing)
    titles = re.findall(r"<h2>“(.*?)”</h2>", page)
    assert titles == ["nothing", "poor", "good"]
    assert re.findall(r'<a href="#case-\d+">“(.*?)”</a>', page) == titles


def test_benchmarks_have_the_slowest_first(tmp_path):
    cases = [case(f"{ms} ms", 0.9) for ms in (5, 20, 10)]
    spent = [
        replace(each, steps=(replace(each.steps[0], seconds={"segment": ms / 1000}),))
        for each, ms in zip(cases, (5, 20, 10), strict=True)
    ]
    page = written(tmp_path, *spent, slowest_first=True)
    assert re.findall(r"<h2>“(\d+) ms”</h2>", page) == ["20", "10", "5"]


def test_only_the_worst_are_drawn_and_all_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "DRAWN", 3)
    cases = [case(f"object {n}", 0.1 * n) for n in (5, 1, 8, 2, 9, 3)]
    page = written(tmp_path, *cases, expected=6)
    assert re.findall(r"<h2>“object (\d)”</h2>", page) == ["1", "2", "3"]
    assert page.count('<th scope="row">') == 6


def test_a_photo_is_in_the_file_once_however_many_steps_show_it(tmp_path):
    steps = [ReportStep(click=Click(9 * n, 30, True), mask=disc(9 * n, 30)) for n in range(1, 8)]
    page = written(tmp_path, ReportCase("a.png", "", IMAGE, steps, 6))
    assert page.count("data:image/jpeg") == 1
    assert page.count("<use ") == 8
    assert page.count('<g class="click positive newest">') == 8
    assert re.findall(r"<h3>Click (\d)", page) == list("1234567")


def test_seven_clicks_on_two_megapixels_of_noise_stay_below_two_megabytes(tmp_path):
    size = (1200, 1700)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ragged = np.random.default_rng(1).random(size) < 0.3
    steps = [
        ReportStep(click=Click(100 * n, 600, n % 2 == 1), mask=disc(850, 600, 90, size) & ragged)
        for n in range(6, 13)
    ]
    page = written(tmp_path, ReportCase("a.png", "noise", image, steps, 6))
    assert len(page) < 2_000_000


def test_steps_tell_what_the_loop_did(tmp_path):
    segmenter = DiscSegmenter()
    embedding = segmenter.encode(IMAGE)
    first, second = Click(20, 20, True), Click(60, 40, False)
    made = segmenter.decode(embedding, [first])
    steps = (
        Step(
            first, made, 0.4, Turn("click here", first), seconds={"annotate": 0.02, "paint": 0.01}
        ),
        Step(second, made, 0.8, Turn("not there", second), restarted=True),
        Step(turn=Turn("hm", Malformed("it has no point")), stop="malformed"),
    )
    page = written(
        tmp_path, case_of_trajectory("a.png", IMAGE, Trajectory("x", steps), disc(20, 20))
    )
    for told in (
        "Click 1: positive at (20, 20)", "Click 1: negative at (60, 40)", "IoU 1.00, rated 0.40",
        "all earlier clicks discarded", "it has no point", "20.0 ms", "mask unchanged", "malformed",
    ):  # fmt: skip
        assert told in page, told


def test_small_objects_are_enlarged_and_coordinates_stay_those_of_the_image():
    big = np.zeros((600, 800, 3), np.uint8)
    mask = disc(700, 500, 20, (600, 800))
    small = ReportCase("a.png", "x", big, (ReportStep(Click(700, 500, True), mask=mask),), 0)
    whole, window = photos_of(small, "c", 640)
    assert whole.window == Box(0, 0, 799, 599)
    assert window.window.x0 > 600
    assert window.window.x1 < 800
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", outline_of(mask, window.window)), float)
    assert points.min(axis=0) == pytest.approx([680.5, 480.5], abs=1)
    assert points.max(axis=0) == pytest.approx([720.5, 520.5], abs=1)


def test_ragged_outlines_are_drawn_more_coarsely():
    noise = np.random.default_rng(2).random((500, 500)) < 0.5
    assert outline_of(noise, Box(0, 0, 499, 499)).count(" ") <= POINTS


def test_figures_have_bars(tmp_path):
    builder = ReportBuilder()
    builder.write(tmp_path / "r.html", "t", {}, [Table("T", ("a", "b"), [("x", 1.234)], [0.5])])
    page = (tmp_path / "r.html").read_text()
    assert 'style="width:50.0%"' in page
    assert "<td>1.23</td>" in page
