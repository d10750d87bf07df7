"""The prompt codec of a preset, for a model behind a server: no bundle has to know the model."""

from __future__ import annotations

import re

from segagent_rt.annotators.mllm import PresetSettings, PromptCodec
from segagent_rt.errors import AnnotatorError
from segagent_rt.mllm.prompts import PRESETS

_CONTROL = re.compile(r"<\|[^<>|]{1,40}\|>|</?(?:img|ref|box|quad|image|video|audio|s|think)>")
_CONTROL_TOKEN = 256
"""Stands for every control token; the numbers below it are bytes."""


def preset_codec(name: str) -> PromptCodec:
    """How to ask a model behind a server with the instruction of a preset.

    The model's tokenizer is not at hand, so expressions are measured in bytes.

    Args:
        name: a preset, such as `qwen3-vl`.

    Raises:
        AnnotatorError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise AnnotatorError(
            f"there is no preset `{name}`", hint="choose one of " + ", ".join(PRESETS)
        )
    preset = PRESETS[name]
    frame = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    settings = PresetSettings(frame.replace("{}", preset.instruction), preset.reply, preset.resize)
    return PromptCodec(
        encode=_encode,
        decode=lambda tokens: b"".join(
            b"<|...|>" if token == _CONTROL_TOKEN else bytes([token]) for token in tokens
        ).decode("utf-8", "replace"),
        settings=settings,
        specials=frozenset({_CONTROL_TOKEN}),
    )


def _encode(text: str) -> list[int]:
    """One token for each byte, and one for each control token."""
    tokens: list[int] = []
    at = 0
    for match in _CONTROL.finditer(text):
        tokens += text[at : match.start()].encode()
        tokens.append(_CONTROL_TOKEN)
        at = match.end()
    return tokens + list(text[at:].encode())
