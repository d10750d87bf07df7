"""Bounds on what a configuration may ask for, checked before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from segagent_rt_export.errors import CheckpointInvalid

MOST = 1 << 30
"""No number of a configuration is larger, whatever it counts."""

_BOUNDS = (
    (r"\w*(layers|depth|depths|blocks|stages|blocks_per_stage)", 512),
    (r"\w*(heads|heads_per_stage)", 1024),
    (r"(vocab_size|\w*num_embeddings)", 1 << 22),
    (r"\w*position_embeddings|seq_length|max_length", 1 << 26),
    (r"(crop|patch|image|window)_size|\w*grid|\w*patch_stride", 8192),
    (r"\w*(hidden_size|embed_dim|width|intermediate_size|mlp_dim|channels|out_dims|head_dim"
     r"|hidden_dim|output_dim|inner|kv_channels|hidden_size|channel_list|dim_per_stage)", 1 << 20),
    (r"num_\w+", 1 << 22),
)  # fmt: skip
"""Names of dimensions, and the largest value of each; the first that fits counts."""

_COMPILED = tuple((re.compile(name), most) for name, most in _BOUNDS)


def check_dimensions(config: Any, where: str) -> None:
    """Refuse a configuration with a dimension that no model has.

    Args:
        config: a JSON document; every object within it is looked at.
        where: named in the error.

    Raises:
        CheckpointInvalid: a number is larger than `MOST`, or than models of its kind are.
    """
    for name, value in _numbers(config, ""):
        most = next((most for known, most in _COMPILED if known.fullmatch(name)), MOST)
        if not abs(value) <= most:  # nor is it `nan`
            raise CheckpointInvalid(
                f"{where}: {name} = {str(value)[:20]} is absurd, no model has more than {most}",
                hint="is the file damaged?",
            )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number of a document, with the name of the field that holds it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
