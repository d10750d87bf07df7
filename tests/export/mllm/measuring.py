"""How far an exported model is from its reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from segagent_rt.annotators.mllm import MllmAnnotator

CLOSE = 1e-4
"""Largest difference that is allowed, in standard deviations of the reference's values."""

EXPRESSION, REPLY = "the mug behind the 2nd laptop", " Current IOU: 45  Positive point: (12"


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / theirs.std())


def distance_of_picture(annotator: MllmAnnotator, reference: Any, image: np.ndarray) -> float:
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    return distance(seen.embeddings[0], reference.picture(image).numpy())


def distance_of_logits(annotator: MllmAnnotator, reference: Any, image: np.ndarray) -> float:
    """The worst of: prompt read at once; five tokens behind it at once; the rest one by one."""
    model, rope = annotator.model, annotator.settings.language.rope
    lead, tail = annotator.prompt(EXPRESSION)
    more = annotator.encode(REPLY)
    theirs = reference.logits(image, lead, tail + more)[len(tail) - 1 :]
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    x = np.concatenate([model.embed(lead), seen.embeddings, model.embed(tail)], axis=1)
    cache = model.new_cache(x.shape[1] + len(more))
    before = rope.before_text(len(lead), seen.grid)
    found = [distance(model.forward_full_vocab(cache, x, before)[0], theirs[0])]
    cut = list(annotator.settings.head_rows)
    rows = model.forward(cache, model.embed(more[:5]), rows=5)
    found.append(distance(rows, theirs[1:6][:, cut]))
    for at in range(5, len(more)):
        row = model.forward_full_vocab(cache, model.embed([more[at]]))[0]
        found.append(distance(row, theirs[at + 1]))
    return max(found)
