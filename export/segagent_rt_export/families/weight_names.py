"""Names of tensors: from what checkpoints of a family use, on disk or in memory, to common ones.

`language.*` below is as in transformers' Qwen2 below `model.`; `visual.*` as the tower's builder
asks for; `head.weight` is the output head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.weights import RowSlice, Stored

_QWEN = (
    ("model.language_model.", "language."),
    ("model.visual.", "visual."),
    ("language_model.model.", "language."),
    ("language_model.lm_head.", "head."),
    ("visual.", "visual."),
    ("model.", "language."),
    ("lm_head.", "head."),
)
_LLAVA = (
    ("model.language_model.", "language."),
    ("model.vision_tower.vision_model.", "visual.tower."),
    ("model.vision_tower.", "visual.tower."),
    ("model.multi_modal_projector.", "visual.projector."),
    ("language_model.model.", "language."),
    ("language_model.lm_head.", "head."),
    ("vision_tower.vision_model.", "visual.tower."),
    ("vision_tower.", "visual.tower."),
    ("multi_modal_projector.", "visual.projector."),
    ("lm_head.", "head."),
)
_V1 = (
    ("transformer.visual.", "visual."),
    ("transformer.", "language."),
    ("lm_head.", "head."),
)
_PREFIXES = {
    "qwen_vl": _V1, "qwen2_vl": _QWEN, "qwen2_5_vl": _QWEN, "qwen3_vl": _QWEN, "llava": _LLAVA,
}  # fmt: skip
"""For each family prefixes and what they become; the first that fits counts."""

_NEEDLESS = re.compile(
    r".*\.(inv_freq|masked_bias|position_ids)"
    r"|visual\.tower\.post_layernorm\..*"
    r"|visual\.tower\.encoder\.layers\..*"
)
"""Tensors that a checkpoint may hold though the graphs do not use them: tables that the host
computes, and CLIP's layers above the features."""

_V1_LAYERS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
"""Qwen-VL's names within a layer; its second matrix is the gate."""


def common_name(family: str, name: str) -> str:
    """The common name of a tensor; names that the family does not use stay as they are."""
    for prefix, common in _PREFIXES[family]:
        if name.startswith(prefix):
            return common + name[len(prefix) :]
    return name


def needless(name: str) -> bool:
    """Whether a tensor may be left out of the graphs."""
    return _NEEDLESS.fullmatch(name) is not None


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


def split_v1(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
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
            inner = _V1_LAYERS.get(match[2], match[2])
            result[f"language.layers.{match[1]}.{inner}.{match[3]}"] = tensor
    return result
