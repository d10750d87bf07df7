"""Jump-forward decoding equals masked greedy decoding, one token at a time, token for token."""

import numpy as np
import pytest

from segagent_rt.annotators.mllm import MllmView
from segagent_rt.annotators.oracle import next_click
from segagent_rt.mllm.constrained import Prompt, Writer, greedy
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene
from segagent_rt.types import Request
from segagent_rt_export.agreement import OneByOne


@pytest.fixture(scope="module")
def runtime():
    with load(threads=2) as opened:
        yield opened


def states(runtime, count):
    """Scenes with no mask, and with masks that the simulated annotator's clicks made."""
    for seed in range(count // 4):
        scene = make_scene(seed, 256)
        canvas = runtime.open(scene.image)
        said = scene.expressions[0]
        clicks, prediction = [], None
        for _ in range(4):
            yield canvas, Request(prediction, said.text)
            mask = np.zeros((256, 256), np.bool_) if prediction is None else prediction.mask()
            click = next_click(scene.mask(said.target), mask)
            if click is not None:
                clicks.append(click)
                prediction = runtime.segmenter.decode(
                    canvas.embedding.result(), clicks, prior=prediction
                )


def replies(canvas, request, writer):
    view = MllmView(canvas.runtime.annotator, canvas.image)
    view._writer = writer(
        canvas.runtime.annotator.model, canvas.runtime.annotator.settings.head_rows
    )
    return view.propose([request])[0][0].reply


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_jump_forward_equals_masked_greedy(runtime, count):
    different = [
        (fast, plain)
        for canvas, request in states(runtime, count)
        if (fast := replies(canvas, request, Writer))
        != (plain := replies(canvas, request, OneByOne))
    ]
    assert different == []


def test_at_most_eight_calls_follow_the_prompt(runtime):
    annotator = runtime.annotator
    calls = []

    class Counting(Writer):
        def write(self, *arguments):
            written = super().write(*arguments)
            calls.append(written.calls)
            return written

    for canvas, request in states(runtime, 12):
        replies(canvas, request, Counting)
    assert max(calls) <= 8
    assert annotator.settings.reply.rates


def test_rewinding_the_cache_forgets_what_came_after(runtime):
    """Two expressions on one picture, in either order, give the same replies as alone."""
    scene = make_scene(3, 256)
    texts = [e.text for e in scene.expressions]
    alone = [runtime.open(scene.image).view.propose([Request(None, t)])[0][0].reply for t in texts]
    shared = runtime.open(scene.image).view
    together = [shared.propose([Request(None, t)])[0][0].reply for t in reversed(texts)]
    assert together[::-1] == alone


def test_a_rating_alone_equals_the_rating_of_a_whole_reply(runtime):
    for canvas, request in states(runtime, 8):
        view = canvas.view
        whole = view.propose([request])[0][0]
        only = view.rate([request])[0]
        assert only.predicted_iou == pytest.approx(whole.predicted_iou, abs=1e-4)
        assert whole.reply.startswith(only.reply)


def test_greedy_takes_the_first_of_equals():
    assert greedy(np.array([1.0, 3.0, 3.0])) == 1


def test_positions_behind_a_prompt_go_on_after_its_last():
    prompt = Prompt(np.zeros((2, 4), np.float32), np.array([[0, 1], [0, 5], [0, 1]]))
    assert prompt.following(2, skip=1).tolist() == [[7, 8]] * 3
