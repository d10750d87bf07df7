"""Decoder graphs read branches as the texts that they stand for, in every family."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from segagent_rt import runtime as runtime_module
from segagent_rt.backends.registry import get_backend
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.bundle.bundle import Bundle, open_part
from segagent_rt.bundle.manifest import BundleIndex
from segagent_rt.engine_cache.golden_io import record_golden
from segagent_rt.mllm.decoder import ConstrainedDecoder
from segagent_rt.mllm.language_model import BRANCH_INPUT, KVCache
from segagent_rt.runtime import Runtime
from segagent_rt.types import Request
from segagent_rt_export.families.mllm_source import Choices
from segagent_rt_export.gate.verify import OpenedVariant, reference_errors
from tests.export.mllm.conftest import NAMES
from tests.export.mllm.measuring import CLOSE, distance

pytestmark = pytest.mark.export

KNOWN, BRANCHES = "12", ("3, 4", "5", "77, ", "3, 4", "600")
BOXES = {"qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}


def begun(annotator, image):
    """A cache that holds a picture and a question about it."""
    model, rope = annotator.model, annotator.settings.language.rope
    lead, tail = annotator.prompt("the cup")
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    x = np.concatenate([model.embed(lead), seen.embeddings, model.embed(tail)], axis=1)
    cache = model.new_cache(x.shape[1] + 64)
    model.forward(cache, x, rope.before_text(len(lead), seen.grid))
    return cache


def errors_of_branches(annotator, image):
    """How far the rows of a call with branches are from calls with one text each."""
    model, encode = annotator.model, annotator.encode
    known, branches = encode(KNOWN), [encode(text) for text in BRANCHES]
    cache = begun(annotator, image)
    start = cache.length
    found = model.forward_branches(cache, known, branches)
    assert cache.length == start + len(known)
    errors = []
    for row, branch in zip(found, [[], *branches], strict=True):
        cache.rewind(start)
        errors.append(distance(row, model.forward(cache, model.embed([*known, *branch]))[0]))
    return errors


@contextmanager
def causal(self, start, lengths):
    """The planted fault: positions are right, but branches attend to those before them."""
    rows = slice(start, start + sum(lengths))
    steps = [start + step for length in lengths for step in range(length)]
    self.cos[rows], self.sin[rows] = self.cos[steps], self.sin[steps]
    yield


@contextmanager
def one_after_the_other(self, start, lengths):
    """The planted fault: branches do not see each other, and stand one after the other."""
    rows = slice(start, start + sum(lengths))
    self.branch[rows] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    yield
    self.branch[rows] = 0


@pytest.mark.parametrize("name", NAMES)
def test_branches_are_read_as_if_each_were_alone(exported, photo, name):
    annotator = exported(name, "portable").annotator
    assert max(errors_of_branches(annotator, photo(97, 331))) < CLOSE / 10


@pytest.mark.parametrize("fault", [causal, one_after_the_other])
def test_a_wrong_mask_or_position_is_noticed(exported, photo, monkeypatch, fault):
    monkeypatch.setattr(KVCache, "branching", fault)
    known, first, *later = errors_of_branches(
        exported("qwen3_vl", "portable").annotator, photo(97, 331)
    )
    assert max(known, first) < CLOSE, "nothing stands before them"
    assert min(later) > 20 * CLOSE


@pytest.mark.parametrize("fault", [None, causal, one_after_the_other])
def test_the_gate_compares_branches(small, exported, monkeypatch, fault):
    """With faults in the mask and in the positions, and without."""
    if fault is not None:
        monkeypatch.setattr(KVCache, "branching", fault)
    part = open_part(exported("qwen2_5_vl", "portable").folder, "mllm")
    with OpenedVariant(part) as opened:
        errors = reference_errors(opened, small("qwen2_5_vl").reference, lambda text: None)
    assert (errors["logits"] < CLOSE) == (fault is None)


@pytest.mark.thorough
@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BOXES)
def test_boxes_equal_masked_greedy_decoding(exported, photo, name, count):
    """Whole replies about pictures of many sizes, by stock models of random weights."""
    annotator = exported(name, "portable", Choices(preset=BOXES[name])).annotator
    annotator = replace(annotator, model=annotator.model)
    calls = []

    class Counting(ConstrainedDecoder):
        def write(self, *arguments):
            written = super().write(*arguments)
            calls.append((len(written.choices), written.calls))
            return written

    annotator.model.allow_branches()
    rng = np.random.default_rng(0)
    for number in range(count):
        image = photo(*rng.integers(40, 400, 2))
        request = Request(None, f"the cup {number}")
        plain, found = (
            replace(annotator, decoder_class=way).look(image).propose([request])[0][0]
            for way in (StepwiseDecoder, Counting)
        )
        assert found.reply == plain.reply
        assert found.boxes == plain.boxes
    annotator.model.branch_tokens = 0
    assert sum(made for _, made in calls) < 0.7 * sum(choices for choices, _ in calls)


@pytest.mark.parametrize("name", NAMES)
def test_the_dialect_of_onnx_runtime_decides_one_token_a_call(exported, name):
    model = exported(name, "ort").annotator.model
    model.allow_branches()
    assert (model.has_branches, model.branch_tokens) == (False, 0)


@pytest.mark.parametrize("nvidia", [False, True])
def test_branches_are_for_gpus(exported, monkeypatch, nvidia):
    """On a CPU, a call takes longer the more tokens it has, so one token is decided per call."""
    folder = exported("qwen3_vl", "portable").folder
    bundle = Bundle(folder, BundleIndex("one", {"mllm": "."}), {"mllm": open_part(folder, "mllm")})
    row = replace(get_backend("cpu"), nvidia=nvidia)
    monkeypatch.setattr(runtime_module, "get_backend", lambda name: row)
    with Runtime(bundle, SessionOptions("cpu", 1)) as runtime:
        assert runtime.annotator.model.has_branches
        assert bool(runtime.annotator.model.branch_tokens) == nvidia


def test_an_engine_is_compared_on_a_call_with_branches(exported):
    part = open_part(exported("qwen3_vl", "portable").folder, "mllm")
    for backend, wanted in (("tensorrt", True), ("openvino", False)):
        examples = record_golden(part, backend)["decoder"]
        assert any(feeds[BRANCH_INPUT].any() for feeds, _ in examples) == wanted
