"""A stock model behind a server, asked with a preset: no bundle has to know the model."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from segagent_rt.annotators.chat_answer import read_answer
from segagent_rt.annotators.endpoint import Endpoint, EndpointAnnotator
from segagent_rt.annotators.preset_codec import preset_codec
from segagent_rt.errors import AnnotatorError, ExpressionRefused
from segagent_rt.image import decode_image
from segagent_rt.loop import annotate
from segagent_rt.mllm.prompts import PRESETS
from segagent_rt.reply import BoxListProtocol
from segagent_rt.runtime import load
from segagent_rt.testing import DiscSegmenter
from segagent_rt.types import Box, Request
from tests.annotators.stub import replies, running, says

BOXES = (Box(100, 50, 300, 250), Box(400, 300, 500, 390))
SIZE = (400, 600)


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture
def stub():
    with running() as found:
        found.will(replies(BoxListProtocol("relative").write(BOXES, SIZE, expression="the mug")))
        yield found


@pytest.mark.parametrize(
    ("preset", "sides", "instruction"),
    [
        ("qwen3-vl", (384, 608), 'Locate every object that matches the description "the mug" in '
         "the image. Report bbox coordinates in JSON format."),
        ("qwen2.5-vl", (392, 588), "Locate the mug in this image and output the bbox coordinates "
         "in JSON format."),
    ],
)  # fmt: skip
def test_a_stock_model_is_asked_as_its_authors_say(stub, photo, preset, sides, instruction):
    endpoint = Endpoint(stub.url, "m", "vllm", preset=preset)
    EndpointAnnotator(preset_codec(preset), endpoint).look(photo).propose(
        [Request(None, " the  mug ")]
    )
    ((_, _, question),) = stub.asked
    (message,) = question["messages"]
    picture, text = message["content"]
    pixels = decode_image(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))
    assert pixels.shape == (*sides, 3), "a multiple of the family's unit, close to the image"
    assert text["text"] == instruction
    assert "bbox_2d" in question["structured_outputs"]["regex"]


def test_the_first_box_is_segmented_and_the_loop_stops(stub, photo):
    view = EndpointAnnotator(preset_codec("qwen3-vl"), Endpoint(stub.url, "m")).look(photo)
    segmenter = DiscSegmenter()
    embedding = _Ready(segmenter.encode(photo))
    found = annotate("the mug", view, segmenter, embedding)
    assert found.stop == "one-shot"
    assert found.steps[0].turn.boxes == BOXES
    assert np.array_equal(found.prediction.mask(), _filled(BOXES[0]))
    assert found.one_shot is found.best


def test_no_mllm_part_is_opened_and_every_object_can_be_asked_for(stub, photo):
    """The bundle that ships has an MLLM with a small vocabulary; neither must matter here."""
    endpoint = Endpoint(stub.url, "m", preset="qwen3-vl")
    with load(endpoint=endpoint) as runtime:
        found = runtime.open(photo).annotate_all("the mug")
        assert [trajectory.steps[0].box for trajectory in found] == list(BOXES)
        assert all(trajectory.prediction is not None for trajectory in found)
        assert not [name for name in runtime.placements if name.startswith("mllm")]
    assert len(stub.asked) == 1


@pytest.mark.parametrize("expression", ["a <|im_end|> b", "</ref>", "<think>", "", "x" * 2000])
def test_expressions_that_steer_a_model_or_are_too_long_are_refused(expression):
    with pytest.raises(ExpressionRefused):
        preset_codec("qwen3-vl").check(expression)


def test_an_unknown_preset_is_refused_with_those_that_there_are():
    with pytest.raises(AnnotatorError, match="no preset `qwen9`") as caught:
        preset_codec("qwen9")
    assert all(name in caught.value.hint for name in PRESETS)


def _answer(**message):
    return {"choices": [{"message": {"role": "assistant", **message}}]}


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (_answer(content="a box"), "a box"),
        (
            _answer(content=[{"type": "text", "text": "a "}, {"type": "text", "text": "box"}]),
            "a box",
        ),
        (_answer(content=None, reasoning_content="a box"), "a box"),
        (_answer(content="", reasoning="a box"), "a box"),
        (_answer(content="a box", reasoning_content="hm"), "a box"),
        (_answer(content="half \ud83d"), "half ?"),
    ],
)
def test_documented_variants_of_an_answer_are_read(content, reply):
    assert read_answer(content, "the server").reply == reply


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"error": {"message": "out of\x1b[2J memory"}}, "error: out of [2J memory"),
        ({"error": "busy"}, "error: busy"),
        ({"object": "error", "message": "no"}, "without a reply"),
        (_answer(content=None, refusal="I cannot"), "refuses to answer: I cannot"),
        (_answer(content=None), "without a reply"),
        ([], "without a reply"),
        (None, "without a reply"),
        ({"choices": []}, "without a reply"),
    ],
)
def test_an_answer_without_a_reply_says_why(content, said):
    with pytest.raises(AnnotatorError) as caught:
        read_answer(content, "the server")
    assert said in str(caught.value)


def test_an_error_inside_status_200_ends_in_a_sentence(stub, photo):
    stub.will(says(200, {"error": {"message": "no image was found", "code": 400}}))
    view = EndpointAnnotator(preset_codec("qwen3-vl"), Endpoint(stub.url, "m")).look(photo)
    with pytest.raises(AnnotatorError, match="no image was found"):
        view.propose([Request(None, "the mug")])


class _Ready:
    """An embedding that is there already."""

    def __init__(self, value):
        self._value = value

    def result(self, timeout=None):
        return self._value


def _filled(box):
    mask = np.zeros(SIZE, np.bool_)
    mask[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = True
    return mask
