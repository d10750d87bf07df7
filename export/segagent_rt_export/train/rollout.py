"""Masks as the trained models make them themselves: the loop run on fresh scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segagent_rt.loop import Rules
from segagent_rt.runtime import Canvas, load
from segagent_rt.scenes.dice import Dice
from segagent_rt.scenes.expressions import candidates, choose
from segagent_rt.scenes.phrases import say
from segagent_rt.scenes.scene import visible_objects
from segagent_rt_export.train.mllm_net import SIDE
from segagent_rt_export.train.pool import TURNS, Pool
from segagent_rt_export.train.states import draw_scene


def roll_out(bundle: Path, scenes: int, seed: int, first: int = 0) -> Pool:
    """Annotate scenes with a bundle, through the runtime that users run, TURNS clicks each."""
    name = f"rollout-{first}"
    meant: list[int] = []
    masks = np.zeros((scenes, TURNS, SIDE * SIDE // 8), np.uint8)
    with load(bundle, threads=1) as runtime:
        for number in range(scenes):
            objects, image, labels = draw_scene(Dice(name, seed, number))
            dice = Dice(f"{name}-words", seed, number)
            visible = visible_objects(objects, labels)
            asked = choose(candidates(objects, visible), dice, 1)
            meant.append(asked[0].target if asked else visible.index(True))
            if asked:
                text = say(asked[0].query, dice)
                masks[number] = _walk(runtime.open(image), text)
    return Pool(name, seed, np.array(meant), masks)


def _walk(canvas: Canvas, text: str) -> np.ndarray:
    found = canvas.annotate(text, rules=Rules(TURNS, accept=None)).candidates
    drawn = [np.packbits(prediction.mask((SIDE, SIDE))) for prediction, _ in found]
    return np.stack(drawn + drawn[-1:] * (TURNS - len(drawn)))
