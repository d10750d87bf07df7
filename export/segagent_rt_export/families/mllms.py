"""From a configuration to the shapes of a model, family by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from segagent_rt_export.families.llava.model import llava
from segagent_rt_export.families.mllm_model import Given, Model
from segagent_rt_export.families.qwen_vl.model import qwen2_5_vl, qwen2_vl, qwen3_vl
from segagent_rt_export.families.qwen_vl_v1.model import qwen_vl

FAMILIES: Mapping[str, Callable[[Given], Model]] = {
    "qwen": qwen_vl,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
}
"""By the `model_type` of a configuration."""

__all__ = ["FAMILIES", "Given", "Model"]
