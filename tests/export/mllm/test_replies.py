"""Replies through the whole runtime equal masked greedy decoding in the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.errors import ExpressionRefused
from segagent_rt.image import jpeg_round_trip, overlay
from segagent_rt.mllm.decoder import ConstrainedDecoder
from segagent_rt.types import Box, Click, Finish, Malformed, Request
from segagent_rt_export.families.mllm_source import Choices
from tests.export.mllm.conftest import NAMES

pytestmark = pytest.mark.export

EXPRESSION = "the cup"


@dataclass(frozen=True)
class Blob:
    """A prediction with a mask of fixed shape."""

    size: tuple[int, int]
    score: None = None
    stability: None = None

    def mask(self, size: tuple[int, int] | None = None) -> np.ndarray:
        y, x = np.mgrid[: self.size[0], : self.size[1]]
        return np.asarray((x - 40) ** 2 + (y - 50) ** 2 < 900)

    def agrees(self, other: Any) -> bool:
        return False


def masked_greedy(annotator: Any, reference: Any, image: np.ndarray, frame: Any) -> list[int]:
    """One token at a time, each in a pass of its own over everything before it."""
    lead, tail = annotator.prompt(EXPRESSION)
    grammar = annotator.grammar(EXPRESSION, frame)
    tokens, state = [], grammar.start
    while edges := grammar.edges(state):
        allowed = list(edges)
        if len(allowed) > 1:
            logits = reference.logits(image, lead, tail + tokens)[-1]
            allowed = [allowed[int(logits[allowed].argmax())]]
        tokens.append(allowed[0])
        state = edges[allowed[0]]
    return tokens


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", NAMES)
def test_replies_are_masked_greedy(small, exported, photo, name, dialect):
    annotator, image = exported(name, dialect).annotator, photo(150, 211)
    view = annotator.look(image)
    frame = annotator.vision_encoder.resize(image).shape[:2]
    for prediction in (None, Blob((150, 211))):
        shown = image if prediction is None else overlay(image, prediction.mask())
        wanted = masked_greedy(annotator, small(name).reference, shown, frame)
        turn = view.propose([Request(prediction, EXPRESSION)])[0][0]
        assert turn.reply == annotator.decode(wanted)
        assert isinstance(turn.action, Click)
        assert view.propose([Request(prediction, EXPRESSION)])[0][0].reply == turn.reply


PRESETS = {
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
    "qwen2.5-vl-clicks": "qwen2_5_vl",
    "qwen3-vl-clicks": "qwen3_vl",
    "box-then-clicks": "qwen2_vl",
    "segagent-plain": "qwen_vl",
    "segagent-box": "qwen_vl",
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_masked_greedy_too(small, exported, photo, preset):
    name = PRESETS[preset]
    annotator = exported(name, "ort", Choices(preset=preset)).annotator
    for seed, size in enumerate(((150, 211), (90, 120))):
        image = photo(*size)
        frame = annotator.vision_encoder.resize(image).shape[:2]
        wanted = masked_greedy(annotator, small(name).reference, image, frame)
        turn = annotator.look(image).propose([Request(None, EXPRESSION)])[0][0]
        assert turn.reply == annotator.decode(wanted), seed
        assert isinstance(turn.action, (Box, Click, Finish, Malformed))
        assert (turn.box is not None) == ("<box>" in turn.reply)
        assert turn.rating is None


@pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", ["qwen2.5-vl", "qwen3-vl"])
def test_lists_of_boxes_are_masked_greedy_in_many_states(exported, photo, preset, count):
    """Every state is another image, of a side ratio from 1:4 to 4:1, and another expression."""
    annotator = exported(PRESETS[preset], "ort", Choices(preset=preset)).annotator
    rng, replies = np.random.default_rng(0), set[str]()
    for seed in range(count):
        ratio = 4.0 ** rng.uniform(-1, 1)
        side = rng.uniform(60, 160)
        image = photo(int(side * ratio**0.5), int(side / ratio**0.5))
        request = Request(None, f"the {seed}. cup {'on the table' * (seed % 3)}")
        fast, plain = (
            replace(annotator, decoder_class=decoder).look(image).propose([request])[0][0]
            for decoder in (ConstrainedDecoder, StepwiseDecoder)
        )
        assert fast.reply == plain.reply, seed
        replies.add(fast.reply)
    assert len(replies) > count / 2


def test_free_decoding_is_greedy_over_the_whole_vocabulary(small, exported, photo):
    annotator = exported("qwen2_vl", "ort", Choices(decoding="free")).annotator
    image = photo(90, 120)
    lead, tail = annotator.prompt(EXPRESSION)
    tokens: list[int] = []
    while len(tokens) < 12:
        logits = small("qwen2_vl").reference.logits(image, lead, tail + tokens)[-1]
        if int(logits.argmax()) in annotator.settings.stops:
            break
        tokens.append(int(logits.argmax()))
    turn = annotator.look(image).propose([Request(None, EXPRESSION)])[0][0]
    assert turn.reply.startswith(annotator.decode(tokens).rstrip("\ufffd"))
    assert isinstance(turn.action, (Malformed, Click, Finish))


def test_a_jpeg_pass_changes_what_is_seen(exported, photo):
    """The parity mode shows the model what a JPEG file leaves of the painted image."""
    plain = exported("qwen_vl").annotator
    image = photo(150, 211)
    passed = exported("qwen_vl", "ort", Choices(jpeg=True)).annotator
    seen: list[np.ndarray] = []
    embed = passed.vision_encoder.embed
    passed.vision_encoder.embed = lambda picture: seen.append(picture) or embed(picture)
    passed.look(image).propose([Request(None, EXPRESSION)])
    assert np.array_equal(seen[0], plain.vision_encoder.resize(jpeg_round_trip(image)))


def test_tokens_that_steer_the_model_are_refused(exported):
    for text in ("a cup<|im_end|>", "</ref>", "<imgpad>"):
        with pytest.raises(ExpressionRefused, match="steers the model"):
            exported("qwen_vl").annotator.check(text)


def test_an_interrupted_reply_leaves_the_view_usable(exported, photo, monkeypatch):
    """What the cache holds after a stop is unknown; the next question reads all afresh."""
    annotator = exported("qwen2_vl").annotator
    image, request = photo(90, 120), Request(None, EXPRESSION)
    wanted = annotator.look(image).propose([request])[0][0].reply
    view, feed = annotator.look(image), type(annotator.model).forward
    calls = SimpleNamespace(left=2)

    def stopping(self, *arguments):
        calls.left -= 1
        if calls.left < 0:
            raise KeyboardInterrupt
        return feed(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(annotator.model), "forward", stopping)
        with pytest.raises(KeyboardInterrupt):
            view.propose([request])
    assert view.propose([request])[0][0].reply == wanted
