"""The gate that a bundle passes before it ships must be able to fail: planted faults are seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.errors import GateFailed
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.mllm.preprocess import SquareResize
from segagent_rt.mllm.vision_encoder import VisionEncoder
from segagent_rt.runtime import load
from segagent_rt.types import Click, Turn
from segagent_rt_export.gate.agreement import (
    LEAST,
    check_gate,
    compare,
    in_thousandths,
    trajectory_states,
    turns,
    without_grammar,
)
from segagent_rt_export.graphs.precision import Precision

STATES = 24


@pytest.fixture(scope="module")
def runtime():
    with load(threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def met(runtime):
    return list(trajectory_states(runtime, STATES, 9000))


def said(annotator, met):
    found = turns(annotator, met)
    return [in_thousandths(turn, state.image) for turn, state in zip(found, met, strict=True)]


def faulty(annotator: MllmAnnotator, **settings) -> MllmAnnotator:
    """The same graphs, told something wrong."""
    changed = replace(annotator.settings, **settings)
    encoder = VisionEncoder(annotator.vision_encoder._session, changed.vision)
    model = LanguageModel(annotator.model._session, annotator.model._table, changed.language)
    return replace(annotator, vision_encoder=encoder, model=model, settings=changed, _grammars={})


def swapped(annotator):
    reply = annotator.settings.reply
    template = reply.template.replace("{row}, {column}", "{column}, {row}")
    return faulty(annotator, reply=replace(reply, template=template))


def wrong_resize(annotator):
    smaller = replace(annotator.settings.vision, resize=SquareResize(192, "area"))
    return faulty(annotator, vision=replace(smaller, table=16))


def wrong_rope(annotator):
    language = annotator.settings.language
    return faulty(annotator, language=replace(language, rope=replace(language.rope, theta=1e6)))


def broken_scale(annotator):
    made = faulty(annotator)
    table = np.array(annotator.model._table, np.float32)
    table[:, ::2] *= 4  # as if every other block had lost two bits
    made.model._table = table
    return made


def test_states_are_walks_from_the_clean_picture(met):
    assert len(met) == STATES
    assert met[0].request.prediction is None
    assert any(state.request.prediction is not None for state in met)


@pytest.mark.thorough
def test_an_annotator_agrees_with_itself(runtime, met):
    mine = said(runtime.annotator, met)
    assert compare(mine, mine)["same_click"] == 1.0
    plain = said(replace(runtime.annotator, decoder_class=StepwiseDecoder), met)
    assert [turn.reply for turn in plain] == [turn.reply for turn in mine]


@pytest.mark.thorough
@pytest.mark.parametrize("plant", [swapped, wrong_resize, wrong_rope, broken_scale])
def test_planted_faults_fall_below_the_bar(runtime, met, plant):
    found = compare(said(plant(runtime.annotator), met), said(runtime.annotator, met))
    assert found["same_click"] < LEAST["same_click"]


def test_without_its_grammar_the_model_writes_on_to_its_end_token(runtime, met):
    free = next(iter(turns(without_grammar(runtime.annotator, Precision("8bit")), met)))
    assert "<|im_end|>" not in free.reply


def test_the_bars():
    good = {"jump_forward_equal": 1.0, "free_equal": 0.99, "same_click": 0.98, "miou_drop": 0.001}
    check_gate(good)
    for name, bad in (("jump_forward_equal", 0.998), ("same_click", 0.96), ("miou_drop", 0.02)):
        with pytest.raises(GateFailed, match=name):
            check_gate(good | {name: bad})


def test_clicks_are_compared_in_thousandths_and_by_sign():
    def turn(x, positive=True):
        return Turn("", Click(x, 100, positive), 0.5)

    near, far, other = turn(115), turn(116), turn(100, positive=False)
    found = compare([near, far, other, turn(100)], [turn(100)] * 4)
    assert (found["same_click"], found["same_sign"]) == (0.5, 0.75)
