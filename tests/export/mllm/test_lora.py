"""Adapters are merged on the way: the graphs equal those of weights merged beforehand."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from segagent_rt.bundle.bundle import open_part
from segagent_rt.metrics import max_error
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.mllm_source import Choices, read_source
from segagent_rt_export.families.weight_names import common_name
from segagent_rt_export.gate.mllm_reference import load_whole, merged_by_peft, open_reference
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.gate.verify import verify_mllm_reference
from segagent_rt_export.sources import lora
from segagent_rt_export.sources.shards import open_shards
from tests.export.mllm.conftest import open_exported

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


def testload_whole_tensors_of_an_adapter_replace_those_of_the_base(small, tmp_path):
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
            ({"init_lora_weights": "loftq"}, "init_lora_weights = loftq"),
            ({"init_lora_weights": "pissa_niter_4"}, "began with pissa_niter_4"),
            ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
            ({"peft_type": "IA3"}, "peft_type = IA3"),
            ({"alpha_pattern": {"q_proj": "x"}}, "no rank"),
            ({"rank_pattern": {"q_proj": 0}}, "no rank"),
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


BLOCKS = r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv|mlp\.0|mlp\.2)$"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranks and scales by module": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"layers\..*\.o_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 9}, "use_rslora": True,
    },
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "DoRA upon OLoRA": {"init_lora_weights": "olora", "use_dora": True},
    "biases": {"bias": "all"},
    "a merger": {"modules_to_save": ["merger"]},
    "a head": {"modules_to_save": ["lm_head"]},
    "a table of embeddings": {"modules_to_save": ["embed_tokens"]},
    "changes of the table": {"target_modules": ["embed_tokens", "q_proj"]},
    "changes of the head": {"target_modules": ["lm_head", "q_proj"]},
}  # fmt: skip
"""Adapters as peft makes them."""


def trained(folder: Path, adapter: Path, **kind: Any) -> None:
    """Let peft make an adapter, and change what training would change."""
    torch.manual_seed(5)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": BLOCKS, **kind})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about tied weights and biases
        model = get_peft_model(load_whole(folder), config)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name or name.endswith(".bias"):
                    tensor.mul_(1 + 0.1 * torch.randn_like(tensor))
                    tensor.add_(0.05 * torch.randn_like(tensor))
        model.save_pretrained(adapter)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_as_peft_merges_them(small, tmp_path, kind, family):
    """The table of embeddings of Qwen3-VL is its output head, too."""
    folder, adapter = small(family).folder, tmp_path / "adapter"
    trained(folder, adapter, **KINDS[kind])
    source, base = read_source(folder, Choices(adapter=adapter)), read_source(folder)
    merged, changed = merged_by_peft(load_whole(folder), adapter, family), 0
    for name, tensor in merged.named_parameters(remove_duplicate=False):
        ours = common_name(family, name)
        if ours == "head.weight" and source.model.tied:
            ours = "language.embed_tokens.weight"
        found, wanted = source.weights(ours), tensor.detach().numpy()
        assert max_error(found, wanted) < 1e-4, name
        changed += ours not in base.weights or not np.array_equal(found, base.weights(ours))
    assert changed


def test_an_adapter_merged_into_the_wrong_weights_fails_the_gate(small, tmp_path, monkeypatch):
    """As if PiSSA's residual were the base model."""
    folder, adapter = small("qwen2_5_vl").folder, tmp_path / "adapter"
    trained(folder, adapter, init_lora_weights="pissa")

    def failures(place: Path) -> str:
        place.mkdir()
        source = read_source(folder, Choices(adapter=adapter))
        part = open_part(open_exported(source, place, "portable").folder, "mllm")
        published = open_reference(folder, source, adapter)
        found = verify_mllm_reference(part, published, Gate(), lambda text: None)
        return "; ".join(map(str, found.failures))

    assert failures(tmp_path / "right") == ""
    monkeypatch.setattr(lora, "_start", lambda config, adapter: "base")
    assert "the logits is" in failures(tmp_path / "wrong")


def test_an_adapter_with_the_names_of_older_transformers_is_compared_too(small, tmp_path):
    folder, adapter = small("qwen2_5_vl").folder, tmp_path / "adapter"
    trained(folder, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    old = {name.replace(".model.language_model.", ".model."): t for name, t in tensors.items()}
    assert set(old) != set(tensors)
    save_file(old, adapter / "adapter_model.safetensors")
    merged = merged_by_peft(load_whole(folder), adapter, "qwen2_5_vl").state_dict()
    wanted = merged["model.language_model.layers.1.self_attn.q_proj.weight"].numpy()
    found = read_source(folder, Choices(adapter=adapter)).weights
    assert max_error(found("language.layers.1.self_attn.q_proj.weight"), wanted) < 1e-6
