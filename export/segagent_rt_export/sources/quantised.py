"""The tensors of a model's folder; those that are quantised, as what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources import bitsandbytes, gptq_awq, scaled
from segagent_rt_export.sources.mllm_config import Config
from segagent_rt_export.sources.shards import MappedTensor, open_shards
from segagent_rt_export.sources.weights import Stored

Unpack: TypeAlias = Callable[[Mapping[str, Stored], Config], dict[str, Stored]]
"""From tensors and a quantization_config to tensors that read as weights."""

METHODS: dict[str, Unpack] = {
    "gptq": gptq_awq.unpack,
    "awq": gptq_awq.unpack,
    "bitsandbytes": bitsandbytes.unpack,
    "fp8": scaled.unpack_fp8,
    "compressed-tensors": scaled.unpack_compressed,
}
"""By the `quant_method` of a quantization_config."""

CODES = ("F8_E4M3", "I8", "U8")
"""Types of weights that mean nothing without scales."""


def open_weights(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder; those that are quantised, as what they stand for.

    Raises:
        CheckpointInvalid: there are none, or a file is damaged, or they are quantised otherwise.
    """
    tensors = open_shards(folder)
    described = Config.load(folder / "config.json").section("quantization_config")
    if described.fields:
        method = described.text("quant_method", "")
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise described.refuse(
                "quant_method",
                f"{known} can be, and what is not quantised",
                hint="name the checkpoint that it was quantised from",
            )
        tensors = METHODS[method](tensors, described)
    for name, tensor in tensors.items():
        if isinstance(tensor, MappedTensor) and tensor.dtype in CODES and name.endswith("weight"):
            raise CheckpointInvalid(
                f"the tensor `{name}` has the type {tensor.dtype}, and nothing says how it is "
                "scaled",
                hint="is the quantization_config of config.json that of these weights?",
            )
    return tensors
