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
