"""Names of tensors: from what checkpoints of a family use, on disk or in memory, to common ones.

`language.*` below is as in transformers' Qwen2 below `model.`; `visual.*` as the vision encoder's
builder asks for; `head.weight` is the output head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.registry import mllm_exporter
from segagent_rt_export.sources.weights import Stored

_TABLES = re.compile(r".*\.(inv_freq|masked_bias|position_ids)")
"""Tensors that checkpoints hold though the host computes them."""


def common_name(family: str, name: str) -> str:
    """The common name of a tensor; names that the family does not use stay as they are."""
    for prefix, common in mllm_exporter(family).prefixes:
        if name.startswith(prefix):
            return common + name[len(prefix) :]
    return name


def needless(family: str, name: str) -> bool:
    """Whether a tensor, by its common name, may be left out of the graphs."""
    unused = mllm_exporter(family).needless
    return bool(_TABLES.fullmatch(name) or (unused and re.fullmatch(unused, name)))


def rename(family: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors by their common names.

    Raises:
        CheckpointInvalid: two tensors have the same one.
    """
    renamed: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        common = common_name(family, name)
        if common in renamed:
            raise CheckpointInvalid(f"the checkpoint holds `{name}` twice, under two names")
        renamed[common] = tensor
    return renamed
