"""Every family in both dialects against its reference: pictures of ragged sizes, prefill, several
tokens behind a filled cache; and faults that these comparisons must notice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segagent_rt.mllm import vision_encoder
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.mllm.patch_layout import AttentionWindows, VisionRope2D
from segagent_rt.mllm.vision_encoder import VisionEncoder
from segagent_rt_export.families.mllm_source import Choices
from tests.export.mllm.conftest import NAMES
from tests.export.mllm.measuring import CLOSE, distance, distance_of_logits, distance_of_picture

pytestmark = pytest.mark.export

SIZES = ((140, 196), (97, 331), (300, 120), (64, 64), (211, 223))
"""Grids that windows do not divide, pictures that are enlarged and that are shrunk."""

FREE = Choices(decoding="free", preset="segagent-rated")


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", NAMES)
def test_graphs_are_their_reference(small, exported, photo, name, dialect):
    reference, annotator = small(name).reference, exported(name, dialect, FREE).annotator
    for size in SIZES:
        assert distance_of_picture(annotator, reference, photo(*size)) < CLOSE
    for size in SIZES[:1] if name == "qwen_vl" else SIZES:
        assert distance_of_logits(annotator, reference, photo(*size)) < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_dialects_are_equal(exported, photo, name):
    """Not only close to the reference: closer to each other."""
    one, other = (exported(name, dialect, FREE).annotator for dialect in ("ort", "portable"))
    picture = one.vision_encoder.resize(photo(120, 170))
    seen = one.vision_encoder.embed(picture)
    assert distance(other.vision_encoder.embed(picture).embeddings, seen.embeddings) < CLOSE / 2
    positions = one.settings.language.rope.before_text(0, seen.grid)
    count = positions.shape[1]
    ours, theirs = (
        a.model.forward(a.model.new_cache(count + 9), seen.embeddings, positions, rows=count)
        for a in (one, other)
    )
    assert distance(ours, theirs) < CLOSE / 2


def with_rope(annotator, **changes):
    model = annotator.model
    rope = replace(model.settings.rope, **changes)
    settings = replace(model.settings, rope=rope)
    changed = LanguageModel(model._session, model._table, settings, model._head)
    annotator = replace(annotator, model=changed)
    return replace(annotator, settings=replace(annotator.settings, language=settings))


def with_vision(annotator, **changes):
    encoder = annotator.vision_encoder
    return replace(
        annotator,
        vision_encoder=VisionEncoder(encoder._session, replace(encoder._settings, **changes)),
    )


ROPE_FAULTS = {
    "sections swapped": ("qwen2_5_vl", {"sections": (3, 3, 2)}),
    "interleaved read as chunked": ("qwen3_vl", {"layout": "chunked"}),
    "chunked read as interleaved": ("qwen2_vl", {"layout": "interleaved"}),
    "visual tokens counted like words": ("qwen2_vl", {"layout": "plain"}),
    "another base": ("qwen_vl", {"theta": 11000.0}),
}


@pytest.mark.parametrize("fault", ROPE_FAULTS)
def test_a_wrong_position_is_noticed(small, exported, photo, fault):
    name, changes = ROPE_FAULTS[fault]
    wrong = with_rope(exported(name, "ort", FREE).annotator, **changes)
    assert distance_of_logits(wrong, small(name).reference, photo(*SIZES[1])) > 20 * CLOSE


def test_a_wrong_angle_in_the_vision_encoder_is_noticed(small, exported, photo):
    for name in ("qwen2_vl", "qwen3_vl"):
        wrong = with_vision(exported(name, "ort", FREE).annotator, rope=VisionRope2D(16, 9000.0))
        assert distance_of_picture(wrong, small(name).reference, photo(*SIZES[1])) > 20 * CLOSE


def test_windows_in_another_order_are_noticed(small, exported, photo, monkeypatch):
    """Windows cut from tokens in reading order, which is right only for one row of windows."""
    right = vision_encoder.sort_windows

    def unsorted(rows, columns, side, merge):
        windows = right(rows, columns, side, merge)
        straight = np.arange(rows * columns)
        return AttentionWindows(straight, windows.members, windows.mask, windows.places, straight)

    monkeypatch.setattr(vision_encoder, "sort_windows", unsorted)
    vision_encoder.patch_inputs.cache_clear()
    annotator = exported("qwen2_5_vl", "ort", FREE).annotator
    found = distance_of_picture(annotator, small("qwen2_5_vl").reference, photo(*SIZES[1]))
    vision_encoder.patch_inputs.cache_clear()
    assert found > 20 * CLOSE


def test_deepstack_left_out_is_noticed(small, exported, photo, monkeypatch):
    annotator, feed = exported("qwen3_vl", "ort", FREE).annotator, LanguageModel._run

    def flat(self, cache, embeddings, *rest):
        only_first = np.array([1, 0, 0], np.float32)[:, None, None]
        return feed(self, cache, embeddings * only_first, *rest)

    monkeypatch.setattr(LanguageModel, "_run", flat)
    found = distance_of_logits(annotator, small("qwen3_vl").reference, photo(*SIZES[0]))
    assert found > 20 * CLOSE


def test_another_filter_is_noticed(small, exported, photo):
    """OpenCV's area filter in place of Pillow's bicubic one."""
    annotator = exported("qwen_vl", "ort", FREE).annotator
    resize = replace(annotator.vision_encoder._settings.resize, filter="area")
    wrong = with_vision(annotator, resize=resize)
    assert distance_of_picture(wrong, small("qwen_vl").reference, photo(*SIZES[0])) > 20 * CLOSE
