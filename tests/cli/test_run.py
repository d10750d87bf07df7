"""`segagent-rt run`: the files it writes, the lines it prints."""

import json

import numpy as np
import pytest
from PIL import Image

from segagent_rt.image import rle_to_mask
from segagent_rt.scenes import make_scene

pytestmark = pytest.mark.usefixtures("kept_open")

TEXT = make_scene(7, 256).expressions[0].text
OTHER = make_scene(7, 256).expressions[1].text


def test_mask_overlay_and_document_are_written(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, TEXT, "-o", tmp_path)
    assert done.code == 0, done.err
    assert {p.name for p in tmp_path.iterdir()} == {
        "scene.segagent.mask.png", "scene.segagent.overlay.png", "scene.segagent.json",
    }  # fmt: skip
    with Image.open(tmp_path / "scene.segagent.mask.png") as picture:
        mask = np.asarray(picture)
    assert mask.shape == (256, 256)
    assert set(np.unique(mask)) <= {0, 255}
    document = json.loads((tmp_path / "scene.segagent.json").read_text())
    result = document["results"][0]
    assert np.array_equal(rle_to_mask(result["mask"]), mask > 0)
    assert result["expression"] == TEXT
    assert document["digest"]
    assert {"annotate", "segment", "vision", "language"} <= set(result["seconds"])


def test_one_line_for_each_expression_and_progress_on_stderr(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, TEXT, OTHER, "-o", tmp_path)
    lines = done.out.splitlines()
    assert len(lines) == 2
    assert [line.split("\t")[-1] for line in lines] == [TEXT, OTHER]
    assert lines[1].startswith(str(tmp_path / "scene.segagent.2.mask.png"))
    assert "click 1" in done.err


def test_json_prints_the_document_alone(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, TEXT, "-o", tmp_path, "--json")
    written = json.loads((tmp_path / "scene.segagent.json").read_text())
    assert written.pop("segagent_rt").startswith("sha256:")
    assert json.loads(done.out) == written


def test_clicks_need_no_mllm(terminal, scene_file, tmp_path, monkeypatch):
    from segagent_rt.runtime import Runtime

    monkeypatch.setattr(Runtime, "annotator", property(lambda self: 1 / 0))
    done = terminal("run", scene_file, "--click", "+120,80", "--click", "-30,40", "-o", tmp_path)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "scene.segagent.json").read_text())["results"][0]
    assert [click["positive"] for click in result["clicks"]] == [True, False]


def test_the_budget_is_kept(terminal, scene_file, tmp_path):
    terminal("run", scene_file, TEXT, "-o", tmp_path, "--max-clicks", "1")
    result = json.loads((tmp_path / "scene.segagent.json").read_text())["results"][0]
    assert len(result["clicks"]) == 1


def test_several_candidates_are_tried(terminal, scene_file, tmp_path):
    how = ("--candidates", 3, "--max-clicks", 2, "-o", tmp_path)
    first, again = (terminal("run", scene_file, TEXT, *how).out for _ in range(2))
    assert first == again
    assert first.startswith(str(tmp_path / "scene.segagent.mask.png"))


def test_a_deadline_of_nothing_says_so(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, TEXT, "-o", tmp_path, "--deadline-ms", "0")
    assert done.code == 5, done.err
    assert done.out.startswith("no mask")
    assert "the deadline passed" in done.err


def test_demo_writes_a_picture_and_says_what_next(terminal, tmp_path):
    done = terminal("demo", "-o", tmp_path / "d")
    assert done.code == 0, done.err
    assert (tmp_path / "d" / "scene.segagent.overlay.png").exists()
    assert "next:" in done.err


def test_scene_prints_expressions_and_masks(terminal, tmp_path):
    done = terminal("scene", "--seed", "7", "-o", tmp_path / "s.png")
    document = json.loads(done.out)
    assert document["seed"] == 7
    scene = make_scene(7)
    first = document["objects"][0]
    assert np.array_equal(rle_to_mask(first["mask"]), scene.mask(0))
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (512, 512)


def test_inspect_verifies_and_names_strangers(terminal):
    done = terminal("inspect", "--json", "--verify")
    document = json.loads(done.out)
    assert document["verified_files"]
    assert document["strangers"] == []
    assert set(document["parts"]) == {"segmenter", "mllm"}
    assert terminal("inspect").code == 0


def test_doctor_tries_the_backends(terminal):
    report = json.loads(terminal("doctor", "--json").out)
    assert {"name": "cpu", "works": True, "why": ""} in report["backends"]
    assert terminal("doctor").code == 0


@pytest.mark.thorough
def test_eval_prints_every_figure(terminal):
    done = terminal("eval", "--scenes", "4", "--json")
    assert {
        "first_click_hit", "first_click_hit_by_type", "miou_by_turn", "miou", "one_shot_miou",
        "oracle_miou_by_click", "predicted_iou_mae", "clicks_mean", "recovery", "oracle_gain",
        "negative_start_hit", "scenes", "seed", "generator", "bundle", "seconds",
    } <= set(json.loads(done.out))  # fmt: skip
    assert json.loads(done.out)["hit_by_rules"] == 1, "every expression means one object"
    removed = json.loads(
        terminal("eval", "--scenes", "4", "--ablate", "remove", "--max-clicks", "1", "--json").out
    )
    assert 0 < removed["hit_by_rules"] < 0.5, "`the object` may be any of several"
    assert terminal("eval", "--scenes", "2", "--ablate", "shuffle").code == 0
