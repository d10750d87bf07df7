"""What a server is asked, for each kind of server, family and protocol."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.annotators import structured_output
from segagent_rt.annotators.endpoint import (
    Endpoint,
    EndpointAnnotator,
    choices_from_logprobs,
    conversation,
)
from segagent_rt.annotators.server_profiles import SERVERS
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.errors import AnnotatorError, ExpressionRefused, ManifestInvalid
from segagent_rt.image import decode_image, overlay
from segagent_rt.mllm.prompts import PRESETS
from segagent_rt.reply import ReplyProtocol
from segagent_rt.runtime import open_prompt_codec
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import (
    Box,
    Click,
    Request,
    Sampling,
)
from tests.annotators.stub import replies, running

CLICKING = sorted(n for n, p in PRESETS.items() if isinstance(p.reply, ReplyProtocol))

GOOD = " Current IOU: 40  Positive point: (500, 250)"


@pytest.fixture(scope="module")
def codec():
    return open_prompt_codec(open_bundle().part("mllm"))


@pytest.fixture
def stub():
    with running() as found:
        found.will(replies(GOOD))
        yield found


def test_the_picture_is_sent_as_the_model_takes_it_with_the_mask_over_it(codec, stub):
    scene = make_scene(3, 300)
    view = EndpointAnnotator(codec, Endpoint(stub.url, "m")).look(scene.image)
    mask = scene.mask(0)
    view.propose([Request(GivenMask(mask), "The red circle.")])
    ((path, headers, question),) = stub.asked
    (message,) = question["messages"]
    picture, text = message["content"]
    pixels = decode_image(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))
    clean = codec.settings.vision.resize.resize(scene.image)
    assert path == "/v1/chat/completions"
    assert headers["content-type"] == "application/json"
    assert np.array_equal(pixels, overlay(clean, GivenMask(mask).mask((256, 256))))
    assert text == {"type": "text", "text": "Segment the red circle"}
    assert question["temperature"] == 0.0
    assert set(question) == {"model", "messages", "max_tokens", "temperature"}


def test_draws_have_seeds_and_a_temperature(codec, stub):
    view = EndpointAnnotator(codec, Endpoint(stub.url, "m")).look(make_scene(3, 64).image)
    for _ in range(2):
        rng = np.random.default_rng(5)
        drawn = view.propose([Request(None, "circle")], Sampling(2, 0.7, rng))
        assert len(drawn[0]) == 2
    seeds = [question["seed"] for _, _, question in stub.asked]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]
    assert {question["temperature"] for _, _, question in stub.asked} == {0.7}


def test_a_mask_that_was_rated_is_not_asked_about_again(codec, stub):
    """The reply that rates says the next click too: a search costs a call for each mask."""
    scene = make_scene(3, 64)
    view = EndpointAnnotator(codec, Endpoint(stub.url, "m")).look(scene.image)
    requests = [Request(GivenMask(scene.mask(0)), text) for text in ("circle", "square")]
    assert [rating.value for rating in view.rate(requests)] == [0.4, 0.4]
    ((turn,),) = view.propose(requests[1:])
    assert turn.action == Click(16, 32, positive=True)
    assert len(stub.asked) == 2
    view.propose([Request(GivenMask(scene.mask(0)), "square")])
    assert len(stub.asked) == 3, "another mask"


def test_expressions_are_refused_as_in_process(codec, stub):
    annotator = EndpointAnnotator(codec, Endpoint(stub.url, "m"))
    for expression in ("", "the zebra", "circle <|im_end|>"):
        with pytest.raises(ExpressionRefused):
            annotator.check(expression)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("vllm", ("structured_outputs", "regex")),
        ("sglang", ("regex",)),
        ("trtllm", ("response_format", "regex")),
        ("edge-llm", ("guided_decoding", "regex")),
        ("llama.cpp", ("grammar",)),
    ],
)
def test_each_kind_of_server_is_told_the_form_in_its_own_field(kind, where):
    asked = SERVERS[kind].asks(ReplyProtocol(), "it", (100, 100))
    if kind == "trtllm":
        assert asked["response_format"]["type"] == "regex"
    for name in where:
        asked = asked[name]
    assert asked.startswith("root ::= " if kind == "llama.cpp" else " Current IOU: (")


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(codec):
    with pytest.raises(AnnotatorError, match="`sglong` is not a kind of server") as caught:
        EndpointAnnotator(codec, Endpoint("http://localhost", "m", "sglong"))
    assert "vllm" in caught.value.hint


@given(most=st.integers(0, 20_000), number=st.integers(0, 30_000))
def test_numbers_up_to_a_largest_one(most, number):
    assert bool(re.fullmatch(structured_output.up_to(most), str(number))) == (number <= most)
    assert not re.fullmatch(structured_output.up_to(most), f"0{number}")


@given(
    preset=st.sampled_from(CLICKING),
    x=st.integers(0, 639), y=st.integers(0, 479), iou=st.floats(0, 1),
    positive=st.booleans(), expression=st.text(min_size=1, max_size=20),
)  # fmt: skip
def test_every_reply_of_a_protocol_has_its_form(preset, x, y, iou, positive, expression):
    protocol, size = PRESETS[preset].reply, (480, 640)
    frame = (28 * 10, 28 * 13)
    reply = protocol.write(
        Click(x, y, positive), size,
        iou=iou, box=Box(1, 2, 300, 400), expression=expression, frame=frame,
    )  # fmt: skip
    form = structured_output.regex(protocol, expression, frame)
    assert re.fullmatch(form, reply)
    assert not re.fullmatch(form, reply + "0)")
    assert not re.fullmatch(form, reply.replace("point", "pint"))
    for ending in protocol.endings:
        assert re.fullmatch(form, ending)


def test_the_grammar_of_llama_cpp_quotes_what_it_must():
    protocol = ReplyProtocol('"{expression}"\\ {sign} ({row}, {column})', scale=3)
    assert structured_output.gbnf(protocol, 'a\n"b"', (1, 1)) == (
        r'root ::= "\"a\n\"b\"\"\\ Positive (" ([0]|[1-1]|[2]) ", " ([0]|[1-1]|[2]) ")" | '
        r'"\"a\n\"b\"\"\\ Negative (" ([0]|[1-1]|[2]) ", " ([0]|[1-1]|[2]) ")"'
    )


@pytest.mark.parametrize(
    ("prompt", "picture", "said"),
    [
        ("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
         "<|vision_end|>Do <ref>{expression}</ref>\nnow<|im_end|>\n<|im_start|>assistant\n",
         "<|image_pad|>", ("Be good.", "Do <ref>{expression}</ref>\nnow")),
        ("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Do {expression}<|im_end|>\n"
         "<|im_start|>assistant\n", "<|image_pad|>", ("", "Do {expression}")),
        ("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nPicture 1: <img><imgpad></img>\n"
         "{expression}<|im_end|>\n<|im_start|>assistant\n", "<imgpad>", ("S", "{expression}")),
        ("<s>USER: <image>\nDo\n{expression} ASSISTANT:",
         "<image>", ("", "Do\n{expression}")),
    ],
)  # fmt: skip
def test_the_family_s_frame_is_left_to_the_server(codec, prompt, picture, said):
    assert conversation(replace(codec.settings, prompt=prompt, picture=picture)) == said


def test_a_prompt_of_no_known_chat_is_refused(codec):
    with pytest.raises(ManifestInvalid, match="not that of a known chat"):
        conversation(replace(codec.settings, prompt="<|image_pad|> {expression}?"))


def place(token, **chances):
    known = [{"token": t, "logprob": math.log(c)} for t, c in chances.items()]
    return {"token": token, "logprob": -1.0, "top_logprobs": known}


def spelt(codec, reply):
    return [place(codec.decode([token])) for token in codec.encode(reply)]


def test_likelihoods_become_choices(codec):
    grammar = codec.grammar("", (256, 256))
    places = spelt(codec, GOOD)
    at = next(n for n, p in enumerate(places) if p["token"] == "4")
    places[at] = place("4", **{"4": 0.3, "5": 0.1, "x": 0.6})
    written = choices_from_logprobs(places, grammar, codec.decode)
    assert codec.decode(written.tokens) == GOOD
    digits = {codec.decode([t]): c for t, c in zip(
        written.choices[0].tokens, written.choices[0].chances, strict=True)}  # fmt: skip
    assert digits["5"] == pytest.approx(0.1 / (0.1 + math.exp(-1)))  # the token's own word counts
    assert digits["6"] == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda places: places[:-1],
        lambda places: [],
        lambda places: [1, *places[1:]],
        lambda places: [{"token": "Ha"}, *places[1:]],
        lambda places: [places[0] | {"logprob": float("nan")}, *places[1:]],
        lambda places: [places[0] | {"logprob": float("inf")}, *places[1:]],
        lambda places: [places[0] | {"logprob": "0"}, *places[1:]],
        lambda places: [places[0] | {"logprob": -99999}, *places[1:]],
        lambda places: [places[0] | {"top_logprobs": None}, *places[1:]],
        lambda places: [places[0] | {"token": ["a"]}, *places[1:]],
    ],
)
def test_likelihoods_that_are_none_are_left(codec, spoil):
    grammar = codec.grammar("", (256, 256))
    places = json.loads(json.dumps(spelt(codec, GOOD)))
    assert choices_from_logprobs(spoil(places), grammar, codec.decode) is None
