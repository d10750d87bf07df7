"""`segagent-rt convert`: other formats, and training data that says what the runtime will read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segagent_rt.data.sources import Places, open_data, open_trajectories
from segagent_rt.image import jpeg_round_trip, load_image, overlay
from segagent_rt.mllm.prompts import PRESETS, SEGAGENT
from segagent_rt_export.recipe import read_recipe
from tests.data.datasets import EVERY, picture, segagent, trajectories


@pytest.fixture
def clicks(tmp_path):
    return trajectories(tmp_path)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["segagent", "coco"])
def test_every_format_becomes_a_data_file_and_coco(terminal, tmp_path, name, kind):
    data = EVERY[name][0](tmp_path)
    done = terminal("convert", data, "--to", kind, "--root", tmp_path, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    (source,) = open_data(data, Places(tmp_path))
    (path,) = (tmp_path / "out").iterdir()
    (found,) = open_data(str(path), Places(images=tmp_path))
    assert [(s.expressions, s.mask) for s in found.samples] == [
        (s.expressions, s.mask) for s in source.samples
    ]
    if kind == "coco":
        files = [image["file_name"] for image in json.loads(path.read_text())["images"]]
        assert all(isinstance(file, str) for file in files)


def test_labelme_has_a_file_for_each_image(terminal, tmp_path):
    done = terminal("convert", segagent(tmp_path), "--to", "labelme", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"meadow.json", "harbour.json"}
    (found,) = open_data(str(tmp_path / "out"), Places(images=tmp_path))
    assert len(found.samples) == 3


def test_llama_factory_gets_pictures_questions_and_replies(terminal, tmp_path, clicks):
    """The picture shows the mask before the click, the reply rates that mask."""
    out = tmp_path / "out"
    done = terminal("convert", clicks, "--to", "llama-factory", "-o", out)
    assert done.code == 0, done.err
    samples = json.loads((out / "segagent.json").read_text())
    assert len(samples) == 2 * 4, "two clicks for four expressions"
    assert done.out == f"{out}\t8 samples\n"
    said = [sample["messages"][0]["content"] for sample in samples]
    assert said[0] == "<image>" + SEGAGENT.replace("{expression}", "the red circle")
    assert all(text.count("<image>") == 1 for text in said)
    shown = open_trajectories(clicks, Places())
    first, second = samples[0], samples[2]
    size = shown[0].sample.size
    protocol = PRESETS["segagent-rated"].reply
    for sample, click, iou in (
        (first, shown[0].clicks[0].click, 0.0),
        (second, shown[0].clicks[1].click, shown[0].clicks[0].iou),
    ):
        reading = protocol.read(sample["messages"][1]["content"], size)
        assert reading.action == click
        assert reading.iou == int(100 * iou) / 100
    before = shown[0].clicks[0].mask.mask()
    for sample, pixels in (
        (first, picture("meadow")), (second, overlay(picture("meadow"), before)),
    ):  # fmt: skip
        assert np.array_equal(load_image(out / sample["images"][0]), jpeg_round_trip(pixels))


CONTROL = [
    "<image>", "<video>", "<audio>", "<|im_end|>", "<|vision_start|>", "</ref>", "<ref>", "<img>",
    "</img>", "<box>", "</s>", "<think>", "[/INST]",
]  # fmt: skip


@pytest.mark.parametrize("token", CONTROL)
@pytest.mark.parametrize("kind", ["llama-factory", "qwen-vl"])
def test_an_expression_with_a_control_token_is_not_taught(terminal, tmp_path, clicks, token, kind):
    """It would be counted as a picture, or close the tag that it stands in."""
    document = json.loads(Path(clicks).read_text())
    document["data"][0]["gt_ann"]["caption"][1] = f"the {token} mug"
    Path(clicks).write_text(json.dumps(document))
    out = tmp_path / "out"
    done = terminal("convert", clicks, "--to", kind, "-o", out)
    assert done.code == 1
    assert f"record 1: an expression contains `{token}`" in done.err
    assert "--skip-bad" in done.err
    assert not out.exists()
    done = terminal("convert", clicks, "--to", kind, "-o", out, "--skip-bad")
    assert done.code == 0, done.err
    assert "1 bad entry was left out" in done.err
    for path in out.glob("*.json"):
        assert "mug" not in path.read_text()


def test_tags_that_steer_nothing_are_taught(terminal, tmp_path, clicks):
    document = json.loads(Path(clicks).read_text())
    document["data"][0]["gt_ann"]["caption"] = ["the <b> key", "a < b > c", "<IMAGE>", "x <|"]
    Path(clicks).write_text(json.dumps(document))
    assert terminal("convert", clicks, "--to", "qwen-vl", "-o", tmp_path / "out").code == 0


def test_one_bad_picture_does_not_end_the_conversion(terminal, tmp_path, clicks):
    (tmp_path / "meadow.jpg").write_bytes(b"no picture")
    done = terminal("convert", clicks, "--to", "qwen-vl", "-o", tmp_path / "out")
    assert done.code == 4
    assert "2 trajectories without a usable image" in done.err
    assert len(json.loads((tmp_path / "out" / "qwen-vl.json").read_text())) == 2
    (tmp_path / "harbour.jpg").unlink()
    done = terminal("convert", clicks, "--to", "qwen-vl", "-o", tmp_path / "none")
    assert done.code == 1
    assert not (tmp_path / "none").exists()


def test_llama_factorys_other_files(terminal, tmp_path, clicks):
    out = tmp_path / "out"
    terminal("convert", clicks, "--to", "llama-factory", "-o", out)
    about = json.loads((out / "dataset_info.json").read_text())["segagent"]
    assert (out / about["file_name"]).is_file()
    assert about["formatting"] == "sharegpt"
    assert about["tags"] == {
        "role_tag": "role", "content_tag": "content",
        "user_tag": "user", "assistant_tag": "assistant",
    }  # fmt: skip
    for name in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        recipe = (out / f"{name}.yaml").read_text()
        lines = dict(
            line.split(" #")[0].split(": ", 1)
            for line in recipe.splitlines()
            if line and not line.startswith("#")
        )
        assert json.loads(lines["dataset_dir"]) == str(out)
        assert lines["dataset"] == "segagent"
        assert lines["template"].startswith("qwen")


def test_qwen_vl_gets_its_own_format_and_replies_with_the_expression(terminal, tmp_path, clicks):
    out = tmp_path / "out"
    terminal("convert", clicks, "--to", "qwen-vl", "-o", out)
    samples = json.loads((out / "qwen-vl.json").read_text())
    question, answer = samples[0]["conversations"]
    assert question["from"] == "user"
    assert question["value"] == (
        "Picture 1: <img>images/000000.00.jpg</img>\n"
        + SEGAGENT.replace("{expression}", "the red circle")
    )
    assert answer["value"].startswith("<ref>the red circle</ref> Current IOU: 0  Positive point: (")
    assert (out / "images" / "000000.00.jpg").is_file()


def test_a_preset_can_be_chosen(terminal, tmp_path, clicks):
    how = ("--to", "qwen-vl", "-o", tmp_path / "out", "--preset")
    assert terminal("convert", clicks, *how, "segagent-box").code == 0
    samples = json.loads((tmp_path / "out" / "qwen-vl.json").read_text())
    assert "<box>(" in samples[0]["conversations"][1]["value"]
    done = terminal("convert", clicks, *how, "qwen2.5-vl")
    assert done.code == 1
    assert "no preset qwen2.5-vl for training" in done.err


def test_what_cannot_be_converted(terminal, tmp_path, clicks):
    assert terminal("convert", clicks, "--to", "pdf").code == 2
    done = terminal("convert", segagent(tmp_path), "--to", "qwen-vl", "-o", tmp_path / "out")
    assert done.code == 1
    assert "holds no trajectories" in done.err
    (tmp_path / "meadow.jpg").unlink()
    done = terminal("convert", clicks, "--to", "qwen-vl", "-o", tmp_path / "out")
    assert done.code == 4
    assert "there is no file" in done.err


def test_images_of_one_name_are_no_two_files_of_labelme(terminal, tmp_path):
    from tests.data.datasets import segagent_document

    document = segagent_document()
    document["data"][0]["image_name"] = "other/meadow.jpg"
    (tmp_path / "f.json").write_text(json.dumps(document))
    done = terminal("convert", tmp_path / "f.json", "--to", "labelme", "-o", tmp_path / "out")
    assert done.code == 1
    assert "have the same labelme file name" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name", "family"),
    [
        ("llama-factory", "qwen2.5-vl", "qwen2_5_vl"),
        ("llama-factory", "qwen3-vl", "qwen3_vl"),
        ("qwen-vl", "qwen-vl", "qwen_vl"),
    ],
)
def test_the_recipe_that_exports_the_result_fits_the_training(
    terminal, tmp_path, clicks, kind, name, family
):
    """The same preset and pixels as in the training data, and the folder that the training writes;
    with its comments taken away, the lines for an adapter."""
    out = tmp_path / "out"
    done = terminal("convert", clicks, "--to", kind, "--preset", "segagent-plain", "-o", out)
    assert done.code == 0, done.err
    path = out / f"{name}.export.toml"
    recipe = read_recipe(path)
    mllm = recipe.mllm
    assert (mllm.family, mllm.preset) == (family, "segagent-plain")
    training = (out / f"{name}.yaml").read_text() if kind == "llama-factory" else ""
    assert not training or f"image_max_pixels: {mllm.most_pixels}" in training
    assert not training or f"output_dir: {mllm.source}" in training
    text = path.read_text().replace(f'source = "{mllm.source}"\n# After', "# After")
    text = text.replace('# source = "', 'source = "').replace("# adapter", "adapter")
    (tmp_path / "lora.toml").write_text(text)
    adapted = read_recipe(tmp_path / "lora.toml").mllm
    assert adapted.adapter == mllm.source
    assert adapted.source.startswith("hf:Qwen/")
