"""Adapters are merged on the way: the graphs equal those of weights merged beforehand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.mllm.shards import open_shards
from segagent_rt_export.mllm.source import Choices, read_source

pytestmark = pytest.mark.export

RANK, ALPHA = 4, 16
LAYERS = {
    "qwen2_5_vl": ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"),
    "qwen3_vl": (
        "model.language_model.layers.2.self_attn.o_proj",
        "model.visual.blocks.0.attn.qkv",
    ),
    "qwen_vl": ("transformer.h.1.attn.c_attn", "transformer.h.0.mlp.w1"),
}
COMMON = {
    "model.layers.1.self_attn.q_proj": "language.layers.1.self_attn.q_proj",
    "model.layers.0.mlp.down_proj": "language.layers.0.mlp.down_proj",
    "model.language_model.layers.2.self_attn.o_proj": "language.layers.2.self_attn.o_proj",
    "model.visual.blocks.0.attn.qkv": "visual.blocks.0.attn.qkv",
    "transformer.h.0.mlp.w1": "language.layers.0.mlp.up_proj",
}


def write_adapter(folder: Path, base: dict[str, Any], layers: Any, **config: Any) -> dict[str, Any]:
    """An adapter as peft saves it; returns the change of each layer, without the scale."""
    generator = torch.Generator().manual_seed(1)
    tensors, changes = {}, {}
    for layer in layers:
        rows, columns = base[f"{layer}.weight"].shape
        down = torch.randn(RANK, columns, generator=generator)
        up = torch.randn(rows, RANK, generator=generator)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = down
        tensors[f"base_model.model.{layer}.lora_B.weight"] = up
        changes[layer] = (up @ down).numpy()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return changes


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_merged_weights_are_the_base_and_the_change(small, tmp_path, name, rslora):
    """Also where the adapter changes Qwen-VL's one projection, which becomes three here."""
    folder, adapter = small(name).folder, tmp_path / "adapter"
    changes = write_adapter(adapter, open_shards(folder), LAYERS[name], use_rslora=rslora)
    scale = ALPHA / (math.sqrt(RANK) if rslora else RANK)
    base, merged = (read_source(folder, Choices(adapter=a)).weights for a in (None, adapter))
    for layer, change in changes.items():
        if layer.endswith("c_attn"):
            names = [f"language.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
            found = np.concatenate([merged(n) - base(n) for n in names])
        else:
            found = merged(f"{COMMON[layer]}.weight") - base(f"{COMMON[layer]}.weight")
        assert np.allclose(found, scale * change, atol=1e-4)
    untouched = "language.layers.0.self_attn.k_proj.weight"
    assert np.array_equal(base(untouched), merged(untouched))


def test_whole_tensors_of_an_adapter_replace_those_of_the_base(small, tmp_path):
    folder, adapter = small("qwen2_5_vl").folder, tmp_path / "adapter"
    write_adapter(adapter, open_shards(folder), LAYERS["qwen2_5_vl"])
    kept = {n: torch.from_numpy(t.read()) for n, t in open_shards(adapter, "adapter_model").items()}
    head = torch.randn(512, 64)
    name = "base_model.model.lm_head.modules_to_save.weight"
    save_file(kept | {name: head}, adapter / "adapter_model.safetensors")
    source = read_source(folder, Choices(adapter=adapter))
    assert np.array_equal(source.weights("head.weight"), head.numpy())


def test_adapters_of_other_kinds_and_of_other_models_are_refused(small, tmp_path):
    folder = small("qwen2_5_vl").folder
    base, layers = open_shards(folder), LAYERS["qwen2_5_vl"]
    for at, (config, said) in enumerate(
        (
            ({"use_dora": True}, "use_dora = True"),
            ({"bias": "all"}, "bias = all"),
            ({"peft_type": "IA3"}, "peft_type = IA3"),
            ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
            ({"r": 0}, "no rank"),
            ({"lora_alpha": "x"}, "no rank"),
        )
    ):
        adapter = tmp_path / str(at)
        write_adapter(adapter, base, layers, **config)
        with pytest.raises(CheckpointInvalid, match=said):
            read_source(folder, Choices(adapter=adapter))
    write_adapter(tmp_path / "other", open_shards(small("qwen_vl").folder), LAYERS["qwen_vl"])
    with pytest.raises(CheckpointInvalid, match="does not have"):
        read_source(folder, Choices(adapter=tmp_path / "other"))


def test_an_adapter_without_one_half_is_refused(small, tmp_path):
    folder, adapter = small("qwen2_5_vl").folder, tmp_path / "adapter"
    layer = LAYERS["qwen2_5_vl"][0]
    write_adapter(adapter, open_shards(folder), [layer])
    kept = {n: torch.from_numpy(t.read()) for n, t in open_shards(adapter, "adapter_model").items()}
    for half in "AB":
        rest = {n: t for n, t in kept.items() if f"lora_{half}" not in n}
        save_file(rest, adapter / "adapter_model.safetensors")
        with pytest.raises(CheckpointInvalid, match="without its other half"):
            read_source(folder, Choices(adapter=adapter))
