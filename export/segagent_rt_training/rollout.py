"""Masks as the trained models make them themselves: the loop run on fresh scenes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import multiprocessing

from segagent_rt.loop import StoppingRules
from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas, Runtime, load
from segagent_rt.scenes.expressions import candidates, choose
from segagent_rt.scenes.phrases import say
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.scene import visible_objects
from segagent_rt.types import Mask
from segagent_rt_export.families.demo_mllm.net import SIDE
from segagent_rt_training.pool import ASTRAY, TURNS, Pool
from segagent_rt_training.states import draw_scene

RolledOut: TypeAlias = tuple[int, str, np.ndarray, list[bool]]
"""The object meant, what was asked, packed masks [TURNS, SIDE * SIDE / 8], which are astray."""


def roll_out(bundle: Path, scenes: int, seed: int, number: int, processes: int = 1) -> Pool:
    """Annotate scenes with a bundle, through the runtime that users run, TURNS clicks each."""
    name = f"rollout-{number}"
    shares = [share.tolist() for share in np.array_split(np.arange(scenes), processes)]
    context: Any = multiprocessing.get_context("spawn")
    with context.Pool(processes) as crew:
        parts = crew.map(
            partial(_roll_out_all, bundle, name, seed), [list(map(int, s)) for s in shares]
        )
    meant, asked, masks, astray = zip(*(found for part in parts for found in part), strict=True)
    return Pool(name, seed, np.array(meant), np.array(asked), np.stack(masks), np.array(astray))


def _roll_out_all(bundle: Path, name: str, seed: int, numbers: Sequence[int]) -> list[RolledOut]:
    with load(bundle, threads=1) as runtime:
        return [_roll_out_one(runtime, name, seed, number) for number in numbers]


def _roll_out_one(runtime: Runtime, name: str, seed: int, number: int) -> RolledOut:
    objects, image, labels = draw_scene(DeterministicRng(name, seed, number))
    rng = DeterministicRng(f"{name}-words", seed, number)
    visible = visible_objects(objects, labels)
    chosen = choose(candidates(objects, visible), rng, 1)
    if not chosen:
        nothing = np.zeros((TURNS, SIDE * SIDE // 8), np.uint8)
        return visible.index(True), "", nothing, [False] * TURNS
    meant, text = chosen[0].target, say(chosen[0].query, rng)
    drawn = _masks(runtime.open(image), text)
    astray = [iou(mask, labels == meant + 1) < ASTRAY for mask in drawn]
    return meant, text, np.stack([np.packbits(mask) for mask in drawn]), astray


def _masks(canvas: Canvas, text: str) -> list[Mask]:
    rules = StoppingRules(TURNS, accept_above=None, retry_below=None)
    found = canvas.annotate(text, rules=rules).masks
    drawn = [step.prediction.mask((SIDE, SIDE)) for step in found if step.prediction is not None]
    return drawn + drawn[-1:] * (TURNS - len(drawn))
