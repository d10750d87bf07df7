"""Does an exported MLLM say what it should? Two annotators, the same states, reply by reply.

Numbers inside graphs say little about a model that answers in text, so a bundle is judged by its
clicks: against its weights in fp32, against decoding one token at a time, and against what it would
write without a grammar.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt import loop
from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.backends.session import SessionOptions as Where
from segagent_rt.backends.session import open_session
from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.errors import GateFailed
from segagent_rt.metrics import iou, meets
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.runtime import Runtime
from segagent_rt.scenes import make_scene
from segagent_rt.types import Annotator, Click, Request, RgbImage, Segmenter, Session, Turn
from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.language_model import build_head
from segagent_rt_export.graphs.precision import Precision

NEAR = 15
"""Clicks this close, in thousandths of the picture's sides, are the same click."""

LEAST = {"jump_forward_equal": 1.0, "free_equal": 0.95, "same_click": 0.97, "miou_drop": 0.01}
"""The gate: least shares of states, and the most that the returned masks may lose."""


@dataclass(frozen=True, slots=True)
class AgreementState:
    """A question as it comes up in a trajectory."""

    image: RgbImage
    request: Request


def trajectory_states(
    runtime: Runtime, count: int, first: int, side: int = 256
) -> Iterator[AgreementState]:
    """States of a bundle's own trajectories, by the default rules, over generated scenes: the clean
    picture, then its masks."""
    found, seed = 0, first
    while found < count:
        scene = make_scene(seed, side)
        said = scene.expressions[0].text
        trajectory = runtime.open(scene.image).annotate(said)
        shown = [None, *(step.prediction for step in trajectory.masks)]
        for prediction in shown[: count - found]:
            yield AgreementState(scene.image, Request(prediction, said))
        found, seed = found + len(shown), seed + 1


def turns(annotator: Annotator, states: Iterable[AgreementState]) -> Iterator[Turn]:
    """What an annotator says in each state, every picture looked at once."""
    image, view = None, None
    for state in states:
        if view is None or state.image is not image:
            image, view = state.image, annotator.look(state.image)
        yield view.propose([state.request])[0][0]


def whole_head(table: Any, precision: Precision) -> Session:
    """The output head over the whole vocabulary, stored as the rows in the decoder are; `table`
    [V, hidden] is that of the embeddings, which is tied to it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.onnx"
        with new_graph(path) as graph:
            build_head(graph, [np.asarray(table, np.float32)], table.shape[1], precision)
        return open_session(path, Where("cpu"))


def without_grammar(
    annotator: MllmAnnotator, precision: Precision, end: str = "<|im_end|>"
) -> MllmAnnotator:
    """The same MLLM, writing whatever it finds likeliest up to its end token; `precision` is its
    language model's."""
    model = annotator.model
    head = whole_head(model._table, precision)
    whole = LanguageModel(model._session, model._table, model.settings, head)
    stops = tuple(annotator.encode(end))
    free = copy.copy(annotator)
    free.model, free.settings = whole, replace(annotator.settings, decoding="free", stops=stops)
    return free


def compare(found: Sequence[Turn], wanted: Sequence[Turn]) -> dict[str, Any]:
    """How alike two annotators' turns are."""
    pairs = [
        (a.action, b.action)
        for a, b in zip(found, wanted, strict=True)
        if isinstance(a.action, Click) and isinstance(b.action, Click)
    ]
    apart = [max(abs(a.x - b.x), abs(a.y - b.y)) for a, b in pairs]
    same_sign = [a.positive == b.positive for a, b in pairs]
    same = [sign and far <= NEAR for sign, far in zip(same_sign, apart, strict=True)]
    rated = [
        abs(a.rating - b.rating)
        for a, b in zip(found, wanted, strict=True)
        if a.rating is not None and b.rating is not None
    ]
    return {
        "same_click": round(sum(same) / len(found), 4),
        "same_sign": round(sum(same_sign) / len(found), 4),
        "apart_p50_p99": [float(v) for v in np.percentile(apart, (50, 99)).round(1)],
        "rating_apart": round(100 * float(np.mean(rated)), 2),
    }


def in_thousandths(turn: Turn, image: RgbImage) -> Turn:
    """The turn with its click over 1000 instead of over the pixels of its image."""
    if not isinstance(turn.action, Click):
        return turn
    height, width = image.shape[:2]
    x, y = turn.action.x * 1000 // width, turn.action.y * 1000 // height
    return replace(turn, action=Click(x, y, turn.action.positive))


def returned_iou(annotator: Annotator, segmenter: Segmenter, seeds: Iterable[int]) -> float:
    """Mean IoU of the masks that the loop returns on scenes."""
    found = []
    for seed in seeds:
        scene = make_scene(seed)
        said, encoded = scene.expressions[0], Future[Any]()
        encoded.set_result(segmenter.encode(scene.image))
        trajectory = loop.annotate(said.text, annotator.look(scene.image), segmenter, encoded)
        target = scene.mask(said.target)
        mask = (
            np.zeros_like(target) if trajectory.prediction is None else trajectory.prediction.mask()
        )
        found.append(iou(mask, target))
    return round(float(np.mean(found)), 4)


def measure_agreement(
    runtime: Runtime,
    annotator: MllmAnnotator,
    segmenter: Segmenter,
    precision: Precision,
    states: int = 500,
    first: int = 5000,
) -> dict[str, Any]:
    """A bundle against its weights before export (`annotator`, `segmenter`), over states of its own
    trajectories from scene `first` on."""
    shipped = runtime.annotator
    assert isinstance(shipped, MllmAnnotator)
    met = list(trajectory_states(runtime, states, first))
    said = list(turns(shipped, met))
    plain = turns(replace(shipped, decoder_class=StepwiseDecoder), met)
    free = list(turns(without_grammar(shipped, precision), met))
    true = list(turns(annotator, met))
    scaled = [
        [in_thousandths(turn, state.image) for turn, state in zip(side, met, strict=True)]
        for side in (said, true)
    ]
    pairs = [(a.reply, b.reply) for a, b in zip(said, free, strict=True)]
    seeds = range(first, first + states // 5)
    mious = [
        returned_iou(*each, seeds)
        for each in ((shipped, runtime.segmenter), (annotator, segmenter))
    ]
    return {
        "states": len(met),
        "first_scene": first,
        "jump_forward_equal": _share(a.reply == b.reply for a, b in zip(said, plain, strict=True)),
        "free_equal": _share(a == b for a, b in pairs),
        "free_different": [[a, b[:60]] for a, b in pairs if a != b][:10],
        **compare(*scaled),
        "scenes": len(seeds),
        "miou": mious[0],
        "miou_fp32": mious[1],
        "miou_drop": round(mious[1] - mious[0], 4),
    }


def _share(truths: Iterable[bool]) -> float:
    return round(float(np.mean(list(truths))), 4)


def check_gate(figures: dict[str, Any]) -> None:
    """Raise `GateFailed` unless the figures of `measure_agreement` are good enough."""
    for name, bar in LEAST.items():
        value = figures[name]
        good = meets(value, at_most=bar) if name == "miou_drop" else meets(value, at_least=bar)
        if not good:
            raise GateFailed(
                f"{name} is {value}, the bar is {bar}",
                hint="keep the vision encoder or the language model at a higher precision",
            )
