"""Whether a checkpoint answers in the form that its preset expects, when nothing makes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segagent_rt.annotators.mllm import MllmCodec
from segagent_rt.mllm.prompts import PRESETS
from segagent_rt.reply import AnyReplyProtocol, BoxListProtocol
from segagent_rt.scenes import make_scene
from segagent_rt.types import Box, Click, Size
from segagent_rt_export.families.mllm_source import MllmSource
from segagent_rt_export.gate.mllm_reference import MllmReference

ENOUGH = 0.5
"""Share of a reply's fixed tokens that a model must foresee. One that was trained on the form
foresees nearly all, another the few that any text would have."""

SCENE, SIDE = 40_000, 448
"""Seed and side in pixels of the generated scene that is asked about."""


@dataclass(frozen=True, slots=True)
class PresetFit:
    """How well a preset fits a model.

    Attributes:
        share: of the preset's fixed text that the model would write of itself, 0..1.
        begins: the token with which the model would begin its reply.
        better: another preset with the same instruction that fits, if this one does not.
    """

    share: float
    begins: str
    better: str | None = None

    def warning(self, preset: str) -> str | None:
        """What to tell the user; None if the preset fits."""
        if self.share >= ENOUGH:
            return None
        advice = f'preset = "{self.better}" fits' if self.better else "is it the right preset?"
        return (
            f"left to itself the model begins its reply with `{self.begins}` and writes "
            f"{self.share:.0%} of what the preset {preset} expects; {advice}"
        )

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {"preset_share": round(self.share, 3), "reply_begins": self.begins}


def preset_fit(source: MllmSource, reference: MllmReference) -> PresetFit:
    """Compare a preset's replies with those that the published model would give unconstrained.

    One forward pass reads an example of a reply: at each token of its fixed text the model's own
    choice is compared with it. Numbers and signs are not compared.

    Args:
        source: the checkpoint and how it is asked.
        reference: the model in torch.
    """
    found, begins = _share(source.codec, source.settings.reply, reference)
    if found >= ENOUGH:
        return PresetFit(found, begins)
    asked = source.settings.prompt
    others = {
        name: _share(source.codec, preset.reply, reference)[0]
        for name, preset in PRESETS.items()
        if preset.reply != source.settings.reply and preset.instruction in asked
    }
    best = max(others, key=others.__getitem__, default=None)
    better = best if best is not None and others[best] >= ENOUGH else None
    return PresetFit(found, begins, better)


def _share(
    codec: MllmCodec, reply: AnyReplyProtocol, reference: MllmReference
) -> tuple[float, str]:
    scene = make_scene(SCENE, SIDE)
    expression = scene.expressions[0].text
    lead, tail = replace(codec, settings=replace(codec.settings, reply=reply)).prompt(expression)
    said = codec.encode(_example(reply, expression, (SIDE, SIDE)))
    logits = reference.logits(scene.image, lead, [*tail, *said])[-len(said) - 1 : -1]
    chosen = np.asarray(logits).argmax(axis=1)
    signs = set("".join(getattr(reply, "signs", ())))
    fixed = [at for at, token in enumerate(said) if _is_fixed(codec.decode([token]), signs)]
    share = float(np.mean([chosen[at] == said[at] for at in fixed])) if fixed else 1.0
    begins = "".join(c if c.isprintable() else " " for c in codec.decode([int(chosen[0])]))
    return share, begins[:20]


def _is_fixed(token: str, signs: set[str]) -> bool:
    """Whether a token is neither part of a number nor of the word that says the click's sign."""
    return not re.search(r"\d", token) and not (len(token.strip()) > 1 and set(token) <= signs)


def _example(reply: AnyReplyProtocol, expression: str, size: Size) -> str:
    """A reply about an object in the middle of the picture."""
    height, width = size
    box = Box(width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    if isinstance(reply, BoxListProtocol):
        return reply.write([box], size, expression=expression)
    middle = Click(width // 2, height // 2, True)
    return reply.write(middle, size, iou=0.5, box=box, expression=expression)
