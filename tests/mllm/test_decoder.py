"""Jump-forward decoding equals masked greedy decoding, one token at a time, token for token."""

from dataclasses import replace

import numpy as np
import pytest

from segagent_rt.annotators.oracle import next_click
from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.mllm.decoder import ConstrainedDecoder, greedy
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene
from segagent_rt.types import Request


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
    view = replace(canvas.runtime.annotator, decoder_class=writer).look(canvas.image)
    return view.propose([request])[0][0].reply


@pytest.mark.thorough
@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_jump_forward_equals_masked_greedy(runtime, count):
    different = [
        (fast, plain)
        for canvas, request in states(runtime, count)
        if (fast := replies(canvas, request, ConstrainedDecoder))
        != (plain := replies(canvas, request, StepwiseDecoder))
    ]
    assert different == []


def test_at_most_eight_calls_follow_the_prompt(runtime):
    annotator = runtime.annotator
    calls = []

    class Counting(ConstrainedDecoder):
        def write(self, *arguments):
            written = super().write(*arguments)
            calls.append(written.calls)
            return written

    for canvas, request in states(runtime, 12):
        replies(canvas, request, Counting)
    assert max(calls) <= 8
    assert annotator.settings.reply.rates


@pytest.mark.thorough
def test_what_is_guessed_right_is_not_asked_and_what_is_not_costs_no_token(runtime):
    """Replies about no mask begin rated 0 and positive: two calls fewer. Any other guess leaves the
    reply as it is, also one that the model would never have written."""
    annotator = runtime.annotator
    grammar = annotator.grammar("the red circle", (256, 256))
    assert annotator.decode(grammar.opening) == " Current IOU: 0  Positive point: ("
    assert annotator.decode(grammar.praise) == " Current IOU: 9"
    other, praised = annotator.encode(" Current IOU: 37  Negative point: ("), 0
    for canvas, request in states(runtime, 8):
        written = {}
        for guess in ((), grammar.opening, grammar.praise, other[:-4], other):
            view = annotator.look(canvas.image)
            view._decoder = Guessing(annotator.model, annotator.settings.head_rows, tuple(guess))
            view.propose([request])
            written[tuple(guess)] = (view._painted or [view._clean_prefix])[0].draft.written
        plain, *guessed = written.values()
        assert {each.tokens for each in guessed} == {plain.tokens}
        if request.prediction is None:
            assert guessed[0].calls == plain.calls - 2
        assert all(each.calls <= plain.calls for each in guessed)
        if annotator.decode(plain.tokens).startswith(" Current IOU: 9"):
            assert guessed[1].calls == plain.calls - 1
            praised += 1
    assert praised > 2


class Guessing(ConstrainedDecoder):
    """Begins with a guess of its own."""

    def __init__(self, model, rows, guess):
        super().__init__(model, rows)
        self.guess = guess

    def write(self, cache, prompt, automaton, sampler, stop_at):
        return super().write(cache, replace(prompt, guess=self.guess), automaton, sampler, stop_at)


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
        assert only.value == pytest.approx(whole.rating, abs=1e-4)
        assert whole.reply.startswith(only.reply)


def test_greedy_takes_the_first_of_equals():
    assert greedy(np.array([1.0, 3.0, 3.0])) == 1


class Ranked:
    """Takes the second likeliest token where its plan says so, else the likeliest."""

    def __init__(self, plan, skip=0):
        self.plan, self.at = plan, -skip

    def __call__(self, logits):
        self.at += 1
        second = 0 < self.at <= len(self.plan) and self.plan[self.at - 1]
        return int(np.argsort(-logits, kind="stable")[1 if second else 0])


@pytest.mark.thorough
def test_turning_off_from_a_draft_equals_writing_anew(runtime):
    """Any choices, one after the other from the same draft, in any order; and the draft is still
    the greedy reply afterwards."""
    rng = np.random.default_rng(0)
    for canvas, request in states(runtime, 8):
        annotator = canvas.runtime.annotator
        view = annotator.look(canvas.image)
        greedily = view.propose([request])[0][0].reply
        (prefix,) = view._painted or [view._clean_prefix]
        grammar = annotator.grammar(request.expression, (256, 256))
        rated = [not grammar.past_rating(c.state) for c in prefix.draft.written.choices].count(True)
        for _ in range(6):
            plan = rng.random(8) < 0.3
            forked = view._decoder.resume(
                prefix.cache, prefix.draft, grammar, Ranked(plan), grammar.ended
            )
            other = annotator.look(canvas.image)
            fresh = other._turn(request, Ranked(plan, skip=rated)).reply
            assert annotator.decode(forked.tokens) == fresh
        assert view.propose([request])[0][0].reply == greedily


def test_a_rated_mask_is_gone_on_with_and_a_known_reply_costs_nothing(runtime, monkeypatch):
    calls = []
    forward = type(runtime.annotator.model).forward
    monkeypatch.setattr(
        type(runtime.annotator.model),
        "forward",
        lambda self, *arguments: calls.append(arguments[1].shape[1]) or forward(self, *arguments),
    )
    for canvas, request in states(runtime, 8):
        if request.prediction is None:
            continue
        calls.clear()
        whole = canvas.runtime.annotator.look(canvas.image).propose([request])[0][0]
        alone = list(calls)
        calls.clear()
        view = canvas.runtime.annotator.look(canvas.image)
        rated = view.rate([request])[0]
        gone_on = view.propose([request])[0][0]
        assert (gone_on.reply, gone_on.action) == (whole.reply, whole.action)
        assert calls == alone, "not one call more, the same tokens in each"
        assert view.propose([request])[0][0].reply == whole.reply
        assert view.rate([request])[0].value == rated.value == whole.rating
        assert calls == alone
