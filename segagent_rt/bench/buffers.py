"""Bytes of the arrays that go in and out of graphs, and of those that outlive a call.

Counted as the sessions of engines hold them on a board where processor and GPU share memory: a
staging buffer for every input and output that passes through the host, as long as the largest
call's, and device arrays for what stays there.
"""

from __future__ import annotations

from dataclasses import dataclass

from segagent_rt.annotators.mllm import MllmSettings

FLOAT = 4
"""Bytes of a number."""

CACHES = 3
"""Buffers of keys and values that a trajectory keeps: of the clean and of the painted picture, and
one to write into, as an engine does not work in place."""

PREFIXES = 2
"""Prompt prefixes that a trajectory keeps, in the host's memory."""

SCORED = 32
"""Rows of the decoder's outputs in one call, at most."""

TAPS = 4 * (8 + FLOAT)
"""Bytes of a patch's places and weights in a table of positions."""

PATCH = 16
"""Side of a patch in pixels, where only a published size is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MllmShape:
    """The sizes that determine the buffers of an MLLM.

    Attributes:
        patches: of the largest picture.
        visual: tokens that the language model reads of it.
        tokens: rows of the cache: of the picture, the question and the reply together.
        layers, hidden, kv_heads, head_width: of the language model.
        deepstack: outputs of the vision encoder for the first layers of the language model.
        patch_values: numbers of a patch.
        vision_rope: numbers of the rotary angles of a patch.
        head_rows: tokens that the decoder's own head scores.
    """

    patches: int
    visual: int
    tokens: int
    layers: int
    hidden: int
    kv_heads: int
    head_width: int
    deepstack: int = 3
    patch_values: int = 3 * PATCH**2
    vision_rope: int = 64
    head_rows: int = 64


def mllm_shape(settings: MllmSettings, *, patches: int, visual: int, tokens: int) -> MllmShape:
    """The shape of an exported MLLM, for its largest picture."""
    language, vision = settings.language, settings.vision
    return MllmShape(
        patches=patches,
        visual=visual,
        tokens=tokens,
        layers=language.layers,
        hidden=language.hidden,
        kv_heads=language.kv_heads,
        head_width=language.rope.head_dim,
        deepstack=vision.deepstack,
        patch_values=3 * vision.patch**2,
        vision_rope=vision.rope.head_dim if vision.rope else 0,
        head_rows=len(settings.head_rows),
    )


def cache_bytes(shape: MllmShape) -> int:
    """Bytes of one buffer of keys and values."""
    return shape.tokens * shape.layers * 2 * shape.kv_heads * shape.head_width * FLOAT


def mllm_buffers(shape: MllmShape) -> int:
    """Bytes of an MLLM's buffers while a trajectory is decoded."""
    embedding = (1 + shape.deepstack) * shape.hidden * FLOAT
    angles = (shape.head_width + 1) * FLOAT
    vision_inputs = shape.patches * ((shape.patch_values + shape.vision_rope) * FLOAT + TAPS)
    vision_outputs = shape.visual * embedding
    decoder_inputs = shape.tokens * (embedding + angles)
    decoder_outputs = SCORED * (shape.head_rows + shape.hidden) * FLOAT
    picture = shape.patches * shape.patch_values
    prefixes = PREFIXES * (shape.visual * embedding + shape.tokens * angles)
    return (
        CACHES * cache_bytes(shape)
        + vision_inputs + vision_outputs + decoder_inputs + decoder_outputs
        + picture + prefixes
    )  # fmt: skip
