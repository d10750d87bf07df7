"""`segagent-rt run --endpoint`: the MLLM somewhere else, the segmenter here."""

from __future__ import annotations

import json

import pytest

from tests.annotators.stub import replies, running, says


@pytest.fixture
def stub():
    with running() as found:
        found.will(replies(" Current IOU: 95  Positive point: (500, 500)"))
        yield found


def test_masks_are_made_of_a_server_s_clicks(terminal, stub, scene_file, tmp_path):
    done = terminal(
        "run", scene_file, "the red circle", "-o", tmp_path, "--json",
        "--endpoint", stub.url, "--model", "m", "--server", "vllm",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["results"][0]["clicks"] == [{"x": 128, "y": 128, "positive": True}]
    assert document["endpoint"]["model"] == "m"
    assert not any(name.startswith("mllm") for name in document["backends"])
    assert "structured_outputs" in stub.asked[0][2]


STOCK = ("--model", "m", "--preset", "qwen3-vl")


def test_a_stock_model_gives_a_box_and_no_mllm_is_loaded(terminal, stub, scene_file, tmp_path):
    """Words that the demo bundle does not know, a preset, and the demo bundle's segmenter."""
    stub.will(replies('```json\n[{"bbox_2d": [250, 250, 750, 750], "label": "x"}]\n```'))
    done = terminal(
        "run", scene_file, "the espresso machine", "-o", tmp_path, "--json",
        "--endpoint", stub.url, *STOCK,
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    (result,) = document["results"]
    assert result["steps"][0]["box"] == {"x0": 64, "y0": 64, "x1": 192, "y1": 192}
    assert result["stop"] == "one-shot"
    assert result["one_shot"]["mask"] == result["mask"]
    assert document["endpoint"]["preset"] == "qwen3-vl"
    assert not any(name.startswith("mllm") for name in document["backends"])


def test_all_writes_a_mask_for_every_box(terminal, stub, scene_file, tmp_path):
    entry = '{{"bbox_2d": [{0}, {0}, {1}, {1}], "label": "x"}}'
    stub.will(replies(f"[{entry.format(100, 400)}, {entry.format(500, 900)}]"))
    one = terminal("run", scene_file, "mugs", "-o", tmp_path, "--endpoint", stub.url, *STOCK)
    assert one.code == 0, one.err
    assert "1 further object" in one.err
    assert one.out.count("\n") == 1
    every = terminal(
        "run", scene_file, "mugs", "-o", tmp_path, "--all", "--endpoint", stub.url, *STOCK
    )
    assert every.code == 0, every.err
    masks = sorted(path.name for path in tmp_path.glob("*.mask.png"))
    assert [name.split(".")[-3] for name in masks] == ["1", "2"]


def test_what_could_not_be_read_is_shown(terminal, stub, scene_file, tmp_path):
    stub.will(replies("I see \x1b[31mno mug"))
    done = terminal("run", scene_file, "mug", "-o", tmp_path, "--endpoint", stub.url, *STOCK)
    assert done.code == 5
    assert "I see " in done.err
    assert "\x1b" not in done.err


def test_a_preset_without_a_server_is_refused(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, "mug", "-o", tmp_path, "--preset", "qwen3-vl")
    assert done.code == 2
    assert "--preset has no effect without --endpoint" in " ".join(done.err.split())


def test_a_box_by_hand(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, "--box", "40,30,200,180", "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    (step,) = json.loads(done.out)["results"][0]["steps"]
    assert step["box"] == {"x0": 40, "y0": 30, "x1": 200, "y1": 180}
    for wrong in ("40,30,200", "200,30,40,180", "a,b,c,d"):
        done = terminal("run", scene_file, "--box", wrong, "-o", tmp_path)
        assert done.code == 2
        assert "is not a box" in " ".join(done.err.split())


def test_a_server_that_says_no_is_one_sentence(terminal, stub, scene_file, tmp_path):
    stub.will(says(401, {"error": {"message": "Invalid API key"}}))
    done = terminal(
        "run", scene_file, "circle", "-o", tmp_path, "--endpoint", stub.url, "--model", "m"
    )
    assert done.code == 1
    assert done.err == (
        f"error: {stub.url}/v1 answers 401: Invalid API key\n\n"
        "hint: put the server's key into the environment variable SEGAGENT_API_KEY\n"
    )
    assert done.out == ""


def test_an_endpoint_needs_a_model(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, "circle", "-o", tmp_path, "--endpoint", "http://localhost")
    assert done.code == 2
    assert "go together" in done.err
