"""LoRA adapters, merged into the weights on their way into a graph."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.graph import Weight
from segagent_rt_export.mllm.shards import open_shards, read_object
from segagent_rt_export.mllm.weights import Stored

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")
_SAVED = re.compile(r"base_model\.model\.(.+?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)")
_PLAIN: Mapping[str, Any] = {
    "peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "bias": "none",
    "rank_pattern": {}, "alpha_pattern": {}, "layer_replication": None,
    "trainable_token_indices": None, "target_parameters": None, "use_qalora": False,
}  # fmt: skip
"""What is supported of an adapter's configuration, beside the scale."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """weight + scale * B @ A (Hu et al. 2021, section 4.1)."""

    base: Stored
    down: Stored
    up: Stored
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def width(self) -> int:
        return self.base.width

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        change: Weight = self.up.read(rows) @ self.down.read()
        change *= self.scale
        change += self.base.read(rows)
        return change


def adapt(
    tensors: Mapping[str, Stored], adapter: Path, common: Callable[[str], str]
) -> dict[str, Stored]:
    """The tensors with an adapter's changes; `common` maps the names of either to common ones.

    Raises:
        CheckpointInvalid: the adapter is of a kind that cannot be merged, or of another model.
    """
    config = read_object(adapter / "adapter_config.json")
    for name, plain in _PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise CheckpointInvalid(
                f"{adapter}: adapters with {name} = {str(config[name])[:40]} cannot be merged here",
                hint="merge it with peft's merge_and_unload and export the result",
            )
    scale = _scale(config, adapter)
    stored, result = open_shards(adapter, "adapter_model"), dict(tensors)
    for name, tensor in stored.items():
        if match := _NAME.fullmatch(name):
            target = common(f"{match[1]}.weight")
            down, up = (stored.get(name.replace(f"lora_{match[2]}", f"lora_{h}")) for h in "AB")
            result[target] = _adapted(tensors.get(target), down, up, scale, name)
        elif match := _SAVED.fullmatch(name):
            target = common(f"{match[1]}.{match[2]}")
            _same_shape(tensors.get(target), tensor.shape, name)
            result[target] = tensor
        else:
            raise CheckpointInvalid(f"{adapter} holds `{name}`, which is no part of a LoRA adapter")
    return result


def _scale(config: Mapping[str, Any], adapter: Path) -> float:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise CheckpointInvalid(f"{adapter / 'adapter_config.json'} has no rank r and lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _adapted(
    base: Stored | None, down: Stored | None, up: Stored | None, scale: float, name: str
) -> Stored:
    if down is None or up is None or len(down.shape) != 2 or len(up.shape) != 2:
        raise CheckpointInvalid(f"the adapter holds `{name}` without its other half")
    _same_shape(base, (up.shape[0], down.shape[1]), name)
    if base is None or up.shape[1] != down.shape[0]:
        raise CheckpointInvalid(f"the two halves of the adapter's `{name}` do not fit")
    return Adapted(base, down, up, scale)


def _same_shape(base: Stored | None, shape: tuple[int, ...], name: str) -> None:
    if base is None or base.shape != shape:
        raise CheckpointInvalid(
            f"the adapter's `{name}` changes a tensor that the base model does not have",
            hint="was the adapter trained on this very checkpoint?",
        )
