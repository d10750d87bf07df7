"""Qwen-VL's language model under the names and in the pieces of Qwen2's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from segagent_rt_export.sources.weights import RowSlice, Stored

_NAMES = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
"""Qwen-VL's names within a layer; its second matrix is the gate."""


def split_layers(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Qwen-VL's language model under Qwen2's names: its one projection becomes three."""
    result: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"language\.h\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            outer = {"language.wte.weight": "embed_tokens", "language.ln_f.weight": "norm"}
            result[f"language.{outer[name]}.weight" if name in outer else name] = tensor
        elif match[2] == "attn.c_attn":
            third = tensor.shape[0] // 3
            for at, part in enumerate("qkv"):
                piece = RowSlice(tensor, at * third, (at + 1) * third)
                result[f"language.layers.{match[1]}.self_attn.{part}_proj.{match[3]}"] = piece
        else:
            inner = _NAMES.get(match[2], match[2])
            result[f"language.layers.{match[1]}.{inner}.{match[3]}"] = tensor
    return result
