"""The gate on somebody's photos: what is asked about them, what the manifest says, what is refused
before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import MANIFEST_FILE
from segagent_rt.errors import GateFailed, ImageUnreadable, InputError
from segagent_rt.scenes import make_scene
from segagent_rt.testing import DiscSegmenter
from segagent_rt.types import Click
from segagent_rt_export import pipeline
from segagent_rt_export.gate import photo_inputs
from segagent_rt_export.gate.inputs import CLICKS
from segagent_rt_export.gate.photo_inputs import EXPRESSIONS, LONGEST, OBJECTS, open_photo_inputs
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Five pictures of several sizes, and what is none."""
    place = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate([(200, 300), (300, 200), (64, 64), (90, 90), (9, 7)]):
        image = Image.fromarray(make_scene(number, 300).image[:height, :width])
        image.save(place / f"{number}.{'jpg' if number % 2 else 'PNG'}")
    (place / "notes.txt").write_text("not a picture")
    (place / "0.jpg").mkdir()
    return place


def test_every_other_picture_is_judged_and_the_others_measured(folder):
    found = open_photo_inputs(folder)
    assert [photo.name for photo in found.judged] == ["0.PNG", "2.PNG", "4.PNG"]
    assert [image.shape[:2] for image in found.measured()] == [(300, 200), (90, 90)]
    assert found.record() == {
        "pictures": "photos", "judged": 3, "measured": 2, "sha256": found.sha256
    }  # fmt: skip


def test_one_picture_serves_both(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    found = open_photo_inputs(tmp_path)
    assert len(found.judged) == len(list(found.measured())) == 1


def test_the_hash_is_that_of_the_contents_in_order(folder, tmp_path):
    whole = open_photo_inputs(folder).sha256
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / f"my {path.name}").write_bytes(path.read_bytes())
    assert open_photo_inputs(tmp_path).sha256 == whole
    (tmp_path / "my 2.PNG").unlink()
    assert open_photo_inputs(tmp_path).sha256 != whole


def test_large_pictures_are_shrunk_and_of_many_some_are_taken(folder, tmp_path, monkeypatch):
    Image.new("RGB", (3000, 300), "blue").save(tmp_path / "wide.png")
    (photo,) = open_photo_inputs(tmp_path).pictures
    assert photo.image.shape == (102, LONGEST, 3)
    monkeypatch.setattr(photo_inputs, "MOST", 3)
    assert [photo.name for photo in open_photo_inputs(folder).pictures] == [
        "0.PNG",
        "2.PNG",
        "4.PNG",
    ]


def test_clicks_ask_for_the_opposite_of_what_is_drawn(folder):
    """With discs it can be reckoned: on the first photo none of them covers the next place."""
    found = open_photo_inputs(folder)
    drawn = list(found.drawn(DiscSegmenter(10)))
    assert len(drawn) == OBJECTS * len(found.judged)
    first = drawn[0]
    assert first.clicks == (
        Click(150, 100, True), Click(75, 60, True), Click(225, 140, True), Click(210, 50, True),
    )  # fmt: skip
    assert first.mask[100, 150]
    assert first.mask[50, 210]
    assert drawn[1].clicks[0] == Click(75, 60, True)
    covering = next(iter(found.drawn(DiscSegmenter(1000))))
    assert [click.positive for click in covering.clicks] == [True, False, True, False]
    assert len(covering.clicks) == CLICKS


def test_an_mllm_is_asked_with_no_mask_and_with_two(folder):
    states = list(open_photo_inputs(folder).states(None))
    assert len(states) == 9
    assert [state.expression for state in states[::3]] == list(EXPRESSIONS[:3])
    assert [state.prediction is None for state in states[:3]] == [True, False, False]
    disc = states[1].prediction.mask()
    assert disc[100, 150]
    assert not disc[0, 0]
    assert disc.shape == (200, 300)


@pytest.fixture(scope="module")
def places(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture
def bundle(places, folder, recipe_text, terminal) -> Path:
    """EdgeTAM with integers, Qwen2.5-VL in 8 bits."""
    text = recipe_text("cpu-w8a8-static", segmenter="edgetam") + recipe_text(
        "cpu-w8", mllm="qwen2_5_vl"
    )
    (places / "pair.toml").write_text(text)
    made = places / "pair"
    if not made.exists():
        done = terminal("export", places / "pair.toml", "-o", made, "--calibration", folder)
        assert done.code == 0, done.err
        assert "segmenter: measuring the ranges of values" in done.err
    return made


def test_the_manifest_says_what_was_used_and_inspect_prints_it(bundle, folder, terminal):
    used = open_photo_inputs(folder).record()
    parts = open_bundle(bundle).parts
    for part in parts.values():
        assert part.manifest.verified["material"] == used
        assert part.manifest.verified["gate"] == "passed"
    numbers = parts["segmenter"].manifest.verified["variants"]["cpu-w8a8-static"]
    assert numbers["states"] == OBJECTS * used["judged"]
    assert numbers["mask_iou_mean"] >= 0.98
    assert numbers["range_misfit"] < 3
    assert parts["mllm"].manifest.verified["variants"]["cpu-w8"]["states"] == 3 * used["judged"]
    assert parts["segmenter"].manifest.variants["cpu-w8a8-static"].integers == ("encoder",)
    said = terminal("inspect", bundle, "--all").out
    assert f"sha256: {used['sha256']}" in said
    assert "pictures: photos" in said


def test_the_bundle_runs(bundle, folder, terminal, tmp_path):
    done = terminal("run", folder / "1.jpg", "--click", "+50,60", "-b", bundle, "-o", tmp_path)
    assert done.code == 0, done.err


def test_other_pictures_make_another_part(bundle, places, folder, terminal, monkeypatch):
    """With the same ones a finished part is kept."""
    for name in ("make_segmenter", "make_mllm"):
        monkeypatch.setattr(pipeline, name, None)
    recipe = places / "pair.toml"
    done = terminal("export", recipe, "-o", bundle, "--resume", "--calibration", folder)
    assert done.code == 0, done.err
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["kept", "kept"]
    recipe = exporter_plan(recipe, bundle, pictures="others")
    assert [part.state for part in recipe.parts] == ["exported", "exported"]


def exporter_plan(recipe: Path, bundle: Path, pictures: str) -> Any:
    from segagent_rt_export.recipe import read_recipe

    return make_plan(read_recipe(recipe), bundle, resume=True, below_gate=False, pictures=pictures)


def test_ranges_ten_times_off_fail_the_export_and_nothing_is_written(
    recipe, folder, tmp_path, monkeypatch
):
    measured = pipeline.calibrate_ranges

    def wrong(*arguments: Any) -> Any:
        found = measured(*arguments)
        return {
            role: {name: (10 * low, 10 * high) for name, (low, high) in ranges.items()}
            for role, ranges in found.items()
        }

    monkeypatch.setattr(pipeline, "calibrate_ranges", wrong)
    target = tmp_path / "bundle"
    plan = make_plan(
        recipe("cpu-w8a8-static", segmenter="edgetam"), target, resume=False, below_gate=False
    )
    with pytest.raises(
        GateFailed, match=r"cpu-w8a8-static: .*; keep its encoder at higher precision"
    ):
        run_export(plan, GatePolicy(Gate(), photos=open_photo_inputs(folder)), lambda text: None)
    assert not list(target.rglob(MANIFEST_FILE))


def test_refusals_come_before_any_work(folder, terminal, tmp_path, recipe_text):
    (tmp_path / "mine.toml").write_text(recipe_text("cpu-w8", mllm="qwen2_5_vl"))
    target, empty = tmp_path / "never", tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()

    def refused(place: Path, said: str) -> None:
        done = terminal("export", tmp_path / "mine.toml", "-o", target, "--calibration", place)
        assert done.code == 1
        assert said in done.err
        assert "Traceback" not in done.err
        assert not target.exists()

    refused(tmp_path / "nowhere", "there is no folder")
    refused(empty, "holds no pictures")
    (empty / "broken.jpg").write_bytes((folder / "1.jpg").read_bytes()[:500])
    refused(empty, "broken.jpg is")
    (empty / "broken.jpg").write_bytes(b"MZ not a picture")
    refused(empty, "is not an image that can be read")


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(photo_inputs, "LARGEST_FILE", 10)
    with pytest.raises(ImageUnreadable, match="more than"):
        open_photo_inputs(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        open_photo_inputs(tmp_path / "a.png")
