"""The ROS 2 example, without ROS: messages are small stand-ins with the fields that it uses."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace as Message

import numpy as np
import pytest

from segagent_rt.errors import InputError
from tests import squares
from tests.conftest import ROOT

IMAGE = squares.square(10, 8)


def load_node():
    path = ROOT / "deploy" / "ros2" / "segmentation_node.py"
    spec = importlib.util.spec_from_file_location("segmentation_node", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


node = load_node()


def image_message(pixels=IMAGE, encoding="rgb8", pad=0):
    rows = pixels.reshape(len(pixels), -1)
    data = np.pad(rows, ((0, 0), (0, pad))).tobytes()
    return Message(
        header=Message(frame_id="camera"), height=pixels.shape[0], width=pixels.shape[1],
        encoding=encoding, step=rows.shape[1] + pad, data=data, is_bigendian=0,
    )  # fmt: skip


def request(expression="", points=(), labels=(), boxes=(), image=None):
    return Message(
        image=image or image_message(), expression=expression, boxes=list(boxes),
        query_points=[Message(x=float(x), y=float(y), z=0.0) for x, y in points],
        query_labels=list(labels),
    )  # fmt: skip


@pytest.fixture
def ask():
    segmenter = node.ImageSegmenter(squares.square_runtime())

    def answer(asked):
        response = Message(success=False, message="", mask=Message(), score=0.0)
        return segmenter.answer(asked, response)

    answer.segmenter = segmenter
    return answer


def mask_of(response):
    mask = response.mask
    assert (mask.encoding, mask.header.frame_id) == ("mono8", "camera")
    return np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.step)[:, : mask.width] > 0


def test_words_points_and_boxes(ask):
    box = Message(center=Message(position=Message(x=16.0, y=14.0)), size_x=12.0, size_y=12.0)
    older = Message(center=Message(x=16.0, y=14.0), size_x=12.0, size_y=12.0)
    for asked, score in (
        (request("the bright square"), 0.95),
        (request(points=[(15, 12)], labels=[1]), 0.75),
        (request(boxes=[box]), 0.75),
        (request(boxes=[older]), 0.75),
    ):
        response = ask(asked)
        assert response.success, response.message
        assert response.score == score
        assert np.array_equal(mask_of(response), squares.bright(IMAGE))


def test_an_image_is_encoded_once(ask):
    first = ask(request(points=[(15, 12)], labels=[1])) and ask.segmenter._opened[1]
    ask(request(points=[(16, 13)], labels=[1]))
    assert ask.segmenter._opened[1] is first
    ask(request(points=[(16, 13)], labels=[1], image=image_message(squares.square(20, 8))))
    assert ask.segmenter._opened[1] is not first


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", IMAGE),
        ("bgr8", IMAGE[..., ::-1]),
        ("rgba8", np.dstack([IMAGE, IMAGE[..., 0]])),
        ("bgra8", np.dstack([IMAGE[..., ::-1], IMAGE[..., 0]])),
    ],
)
@pytest.mark.parametrize("pad", [0, 5])
def test_encodings_and_padding(encoding, pixels, pad):
    message = image_message(np.ascontiguousarray(pixels), encoding, pad)
    assert np.array_equal(node.rgb_of(message), IMAGE)


def test_images_that_do_not_fit_their_sizes_are_refused():
    for change in (
        {"encoding": "rgb16"}, {"height": 0}, {"height": 10**6}, {"step": 3}, {"data": b"short"},
        {"width": 10**9},
    ):  # fmt: skip
        message = image_message()
        vars(message).update(change)
        with pytest.raises(InputError):
            node.rgb_of(message)


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(points=[(1, 1)], labels=[]),
        request(points=[(1000, 1)], labels=[1]),
        request("an unknown thing"),
        request("a thing", image=image_message(encoding="bayer_rggb8")),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(ask, asked):
    response = ask(asked)
    assert not response.success
    assert response.message
