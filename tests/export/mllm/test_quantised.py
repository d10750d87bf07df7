"""Checkpoints of bitsandbytes and in 8 bits: read as the libraries themselves read them."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
torch = pytest.importorskip("torch", reason="needs the extra `export`")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from segagent_rt.backends.session import SessionOptions, open_session  # noqa: E402
from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.mllm_source import Choices, read_source  # noqa: E402
from segagent_rt_export.gate.mllm_reference import open_reference  # noqa: E402
from segagent_rt_export.graphs.builder import new_graph  # noqa: E402
from segagent_rt_export.graphs.precision import Precision  # noqa: E402
from segagent_rt_export.sources.quantised import open_weights  # noqa: E402
from segagent_rt_export.sources.shards import open_shards  # noqa: E402
from segagent_rt_export.targets.checkpoint import write_checkpoint  # noqa: E402
from tests.export.mllm.conftest import open_exported  # noqa: E402
from tests.export.mllm.measuring import CLOSE, distance  # noqa: E402
from tests.export.mllm.quantised_layers import GOLDEN, LAYERS  # noqa: E402
from tests.export.mllm.test_lora import ALPHA, COMMON, RANK, write_adapter  # noqa: E402
from tests.export.mllm.test_lora import LAYERS as ADAPTED  # noqa: E402

pytestmark = pytest.mark.export

Made = tuple[dict[str, Any], dict[str, Any], np.ndarray]
"""A quantization_config, the tensors of `layer`, and the weight that they stand for."""


def golden(name: str) -> Made:
    path = GOLDEN / f"{name.replace(' ', '_')}.safetensors"
    with safe_open(path, "pt") as stored:
        described = json.loads(stored.metadata()["quantization_config"])
    tensors = load_file(path)
    return described, tensors, tensors.pop("true").numpy()


def folder_of(path: Path, described: dict[str, Any], tensors: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    save_file({key: t.contiguous() for key, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": described}))
    return path


def expect_equal(folder: Path, true: np.ndarray) -> None:
    found = open_weights(folder)
    assert set(found) == {"layer.weight"}, "what a layer is made of is no weight"
    weight = found["layer.weight"]
    assert weight.shape == true.shape
    assert weight.read().dtype == np.float32
    np.testing.assert_array_equal(weight.read(), true)
    np.testing.assert_array_equal(weight.read([5, 3, 11]), true[[5, 3, 11]])
    np.testing.assert_array_equal(weight.read(slice(8, 16)), true[8:16])


@pytest.mark.parametrize("name", LAYERS)
def test_every_value_is_that_of_the_library(name, tmp_path):
    described, tensors, true = golden(name)
    expect_equal(folder_of(tmp_path / "model", described, tensors), true)


@pytest.mark.parametrize("name", LAYERS)
def test_every_value_is_that_of_the_installed_library(name, tmp_path):
    library, make = LAYERS[name]
    try:
        importlib.import_module(library)
    except ImportError:
        pytest.skip(f"needs {library}")
    described, layer, true = make()
    tensors = {f"layer.{key}": value for key, value in layer.items()}
    expect_equal(folder_of(tmp_path / "model", described, tensors), true.float().numpy())


def test_e4m3_is_read_as_torch_reads_it(tmp_path):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    tensors = {"layer.weight": codes, "layer.weight_scale": torch.ones(1)}
    folder = folder_of(tmp_path / "model", {"quant_method": "fp8"}, tensors)
    np.testing.assert_array_equal(open_weights(folder)["layer.weight"].read(), codes.float())


def test_scales_in_bfloat16_lose_nothing(tmp_path):
    """Published checkpoints of Qwen have them; the product is not rounded to bfloat16 again."""
    described, tensors, _ = golden("fp8 of transformers")
    scale = tensors["layer.weight_scale_inv"].bfloat16()
    folder = folder_of(tmp_path / "model", described, tensors | {"layer.weight_scale_inv": scale})
    wide = scale.float().repeat_interleave(16, 0).repeat_interleave(32, 1)
    true = tensors["layer.weight"].float() * wide
    np.testing.assert_array_equal(open_weights(folder)["layer.weight"].read(), true)


def test_scales_of_activations_and_caches_are_no_weights(tmp_path):
    described, tensors, true = golden("fp8 by tensor")
    more = {f"layer.{name}": torch.ones(1) for name in ("input_scale", "k_scale", "v_scale")}
    expect_equal(folder_of(tmp_path / "model", described, tensors | more), true)


def test_codes_in_words_of_another_type_are_the_same(tmp_path):
    """bitsandbytes stores bytes as bfloat16 if `bnb_4bit_quant_storage` says so."""
    described, tensors, true = golden("nf4")
    words = tensors["layer.weight"].reshape(-1).view(torch.bfloat16)[:, None]
    expect_equal(folder_of(tmp_path / "m", described, tensors | {"layer.weight": words}), true)


@pytest.mark.parametrize("name", ["int8", "int8 by channel"])
def test_the_integers_are_kept(name, tmp_path):
    """A product with them is one with the weights; rows of the identity have no rounding."""
    described, tensors, true = golden(name)
    blocks = open_weights(folder_of(tmp_path / "m", described, tensors))["layer.weight"].blocks()
    with new_graph(tmp_path / "layer.onnx") as g:
        x = g.input("x", np.float32, ["N", true.shape[1]])
        y = Precision("8bit").linear(g, x, np.zeros_like(true), None, blocks)
        g.output(y, "y", np.float32, ["N", len(true)])
    session = open_session(tmp_path / "layer.onnx", SessionOptions("cpu", 1))
    y = session.run({"x": np.eye(true.shape[1], dtype=np.float32)}, ["y"])["y"]
    np.testing.assert_allclose(y, true.T, rtol=1e-5, atol=1e-6)


# Whole models


def nf4_of(weight: Any) -> dict[str, Any]:
    """A weight as bitsandbytes stores it, without its library: blocks of 64, nothing nested."""
    table = golden("nf4")[1]["layer.weight.quant_map"]
    flat = weight.float().reshape(-1, 64)
    absmax = flat.abs().amax(1)
    codes = (flat / absmax[:, None]).flatten()[:, None].sub(table).abs().argmin(1).byte()
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [*weight.shape]}
    return {
        "weight": (codes[0::2] << 4 | codes[1::2])[:, None],
        "weight.absmax": absmax,
        "weight.quant_map": table.clone(),
        "weight.quant_state.bitsandbytes__nf4": bytes_of(state),
    }


def fp8_of(weight: Any) -> dict[str, Any]:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def bytes_of(state: object) -> Any:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


WHOLE: dict[str, tuple[dict[str, Any], Callable[[Any], dict[str, Any]]]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4_of),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8_of),
}


@pytest.fixture
def pack(small, tmp_path):
    """A small Qwen2.5-VL whose decoder is quantised."""

    def make(name: str) -> Path:
        described, layer_of = WHOLE[name]
        folder = tmp_path / "packed"
        shutil.copytree(small("qwen2_5_vl").folder, folder)
        file = next(folder.glob("*.safetensors"))
        tensors = load_file(file)
        for known in [n for n in tensors if n.endswith("_proj.weight") and ".layers." in n]:
            base = known[: -len("weight")]
            packed = layer_of(tensors.pop(known))
            tensors |= {f"{base}{kind}": value.contiguous() for kind, value in packed.items()}
        save_file(tensors, file, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": described}))
        return folder

    return make


@pytest.mark.parametrize("name", WHOLE)
def test_a_quantised_checkpoint_is_exported(pack, name, photo, tmp_path):
    folder = pack(name)
    source = read_source(folder)
    (tmp_path / "part").mkdir()
    annotator = open_exported(source, tmp_path / "part").annotator
    published = open_reference(folder, source, None)
    image, (lead, tail) = photo(97, 331), annotator.prompt("the mug")
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    x = np.concatenate(
        [annotator.model.embed(lead), seen.embeddings, annotator.model.embed(tail)], axis=1
    )
    before = annotator.settings.language.rope.before_text(len(lead), seen.grid)
    cache = annotator.model.new_cache(x.shape[1])
    ours = annotator.model.forward(cache, x, before, rows=len(tail))
    theirs = published.logits(image, lead, tail)[:, list(annotator.settings.head_rows)]
    assert distance(ours, theirs) < CLOSE


@pytest.mark.parametrize("name", WHOLE)
def test_servers_get_a_quantised_checkpoint_as_it_is(pack, name, tmp_path):
    """Its scales are 32 bits wide, and stay so: a server computes with them."""
    folder = pack(name)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    if name == "bitsandbytes":
        with pytest.raises(CheckpointInvalid, match="bitsandbytes"):
            write_checkpoint(folder, None, "qwen2_5_vl", tmp_path / "served")
        return
    write_checkpoint(folder, None, "qwen2_5_vl", tmp_path / "served")
    kept, given = (open_shards(path) for path in (tmp_path / "served", folder))
    assert {n: (t.dtype, t.shape) for n, t in kept.items()} == {
        n: (t.dtype, t.shape) for n, t in given.items()
    }


def test_an_adapter_on_a_quantised_checkpoint_is_merged(pack, tmp_path):
    """QLoRA: the change is added to what the codes stand for."""
    folder, adapter = pack("bitsandbytes"), tmp_path / "adapter"
    changes = write_adapter(adapter, open_weights(folder), ADAPTED["qwen2_5_vl"])
    base, merged = (read_source(folder, Choices(adapter=a)).weights for a in (None, adapter))
    for layer, change in changes.items():
        name = f"{COMMON[layer]}.weight"
        np.testing.assert_allclose(
            merged(name) - base(name), ALPHA / RANK * change, atol=1e-4, rtol=0
        )


# Damage

FAULTS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any]]] = {
    "quant_method = hqq cannot": ("nf4", lambda config, _: config.update(quant_method="hqq")),
    "shapes that do not belong together": (
        "nf4", lambda _, tensors: cut(tensors, "layer.weight", 5)),
    "`layer.weight` has tensors of shapes": (
        "nf4", lambda _, tensors: cut(tensors, "layer.weight.absmax", 5)),
    "`layer.weight` has tensors of": (
        "nf4", lambda _, tensors: cut(tensors, "layer.weight.quant_map", 15)),
    "has no tensor `layer.weight.absmax`": (
        "nf4", lambda _, tensors: tensors.pop("layer.weight.absmax")),
    "has no tensor `layer.weight`": ("nf4", lambda _, tensors: tensors.pop("layer.weight")),
    "has no tensor `layer.weight.nested_quant_map`": (
        "nf4 with double quantisation",
        lambda _, tensors: tensors.pop("layer.weight.nested_quant_map")),
    "`layer.weight.absmax` has the type": (
        "nf4 with double quantisation", lambda _, tensors: tensors.pop("layer.weight.nested_absmax")
    ),
    "nested_offset = None is not a number": (
        "nf4 with double quantisation", lambda _, t: described(t, nested_offset=None)),
    "nested_offset = 1000.* is not a number": (
        "nf4 with double quantisation", lambda _, t: described(t, nested_offset=10**400)),
    "shape = .* cannot be exported": ("nf4", lambda _, t: described(t, shape=[-24, -48])),
    "blocksize = 0 is not a size": ("nf4", lambda _, t: described(t, blocksize=0)),
    "of shapes that do not belong": (
        "nf4", lambda _, t: described(t, shape=[1 << 29, 1 << 29])),
    "does not hold JSON": (
        "nf4", lambda _, t: t.update({STATE: torch.full((3000,), 91, dtype=torch.uint8)})),
    "is no description": (
        "nf4", lambda _, t: t.update({STATE: torch.zeros(1 << 20, dtype=torch.uint8)})),
    "type U8, and nothing says how it is scaled": ("nf4", lambda _, t: t.pop(STATE)),
    "type I8, and nothing says how": ("int8", lambda _, t: t.pop("layer.SCB")),
    "type F8_E4M3, and nothing says": (
        "fp8 of transformers", lambda _, t: t.pop("layer.weight_scale_inv")),
    "not stored row by row": (
        "int8", lambda _, t: t.update({"layer.weight_format": torch.tensor(2, dtype=torch.uint8)})),
    "`layer` has tensors of shapes": ("int8", lambda _, t: cut(t, "layer.SCB", 5)),
    "`layer` has tensors of": (
        "fp8 of transformers", lambda config, _: config.update(weight_block_size=[16, 16])),
    "weight_block_size = .* not a height": (
        "fp8 of transformers", lambda config, _: config.update(weight_block_size=[0, 16])),
    "weight_block_size = 16 is not a list": (
        "fp8 of transformers", lambda config, _: config.update(weight_block_size=16)),
    "stored as F8_E4M3 with scales in U8": (
        "fp8 by channel", lambda _, t: t.update(
            {"layer.weight_scale": torch.ones(28, 1, dtype=torch.uint8)})),
    "has zero points": (
        "int8 by channel", lambda _, t: t.update(
            {"layer.weight_zero_point": torch.ones(30, 1, dtype=torch.int8)})),
    "format = pack-quantized cannot": (
        "fp8 by channel", lambda config, _: config.update(format="pack-quantized")),
    "sparsity_config = .* cannot": (
        "fp8 by channel", lambda config, _: config.update(sparsity_config={"format": "2of4"})),
    "transform_config = .* cannot": (
        "fp8 by channel", lambda config, _: config.update(
            transform_config={"config_groups": {"u": {}}})),
    "blocks have several sizes": (
        "fp8 by block", lambda config, _: config["config_groups"].update(
            more={"weights": {"strategy": "group", "group_size": 8}})),
    "config_groups = .* is not an object": (
        "fp8 by block", lambda config, _: config.update(config_groups=[3])),
}  # fmt: skip

STATE = "layer.weight.quant_state.bitsandbytes__nf4"


def cut(tensors: dict[str, Any], name: str, count: int) -> None:
    tensors[name] = tensors[name][:count].clone()


def described(tensors: dict[str, Any], **changes: object) -> None:
    state = json.loads(bytes(tensors[STATE].tolist()))
    tensors[STATE] = bytes_of(state | changes)


@pytest.mark.parametrize("said", FAULTS)
def test_what_does_not_fit_is_refused_in_one_sentence(said, tmp_path):
    name, fault = FAULTS[said]
    config, tensors, _ = golden(name)
    fault(config, tensors)
    with pytest.raises(CheckpointInvalid, match=said) as caught:
        open_weights(folder_of(tmp_path / "model", config, tensors))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("seed", range(8))
def test_a_cut_file_is_refused(name, seed, tmp_path):
    """Whatever is cut off, no number of it is made up."""
    config, tensors, _ = golden(name)
    path = folder_of(tmp_path / "model", config, tensors) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: math.ceil(len(content) * seed / 8)])
    with pytest.raises(CheckpointInvalid):
        open_weights(path.parent)
