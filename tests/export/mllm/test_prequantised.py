"""Checkpoints of GPTQ and AWQ: packed as their libraries pack, read as what they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
torch = pytest.importorskip("torch", reason="needs the extra `export`")

from safetensors.torch import load_file, save_file  # noqa: E402

from segagent_rt.backends.session import SessionOptions, open_session  # noqa: E402
from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.mllm_source import read_source  # noqa: E402
from segagent_rt_export.gate.mllm_reference import open_reference  # noqa: E402
from segagent_rt_export.graphs.builder import new_graph  # noqa: E402
from segagent_rt_export.graphs.precision import MllmPrecision, Precision  # noqa: E402
from segagent_rt_export.sources.quantised import open_weights  # noqa: E402
from segagent_rt_export.sources.weights import RowSlice  # noqa: E402
from tests.export.mllm.conftest import open_exported  # noqa: E402
from tests.export.mllm.measuring import CLOSE, distance  # noqa: E402

pytestmark = pytest.mark.export

GROUP = 32


@dataclass(frozen=True)
class Layer:
    """A layer's integers: codes [K, N], zeros and scales [groups, N], the group of each input."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    group: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        return ((self.codes - self.zeros[self.group]) * self.scales[self.group]).T


def quantised(weight: np.ndarray, bits: int, *, shuffled: bool = False) -> Layer:
    """Round a weight [N, K]; the groups are neighbours unless they are shuffled."""
    matrix, inputs = weight.T, weight.shape[1]
    group = np.arange(inputs) // GROUP
    if shuffled:
        group = np.random.default_rng(0).permutation(group)
    members = [matrix[group == number] for number in range(inputs // GROUP)]
    low, high = np.stack([m.min(0) for m in members]), np.stack([m.max(0) for m in members])
    most = 2**bits - 1
    scales = ((high - low) / most).astype(np.float16).astype(np.float32)
    zeros = np.clip(np.rint(-low / scales), 1, most).astype(np.int64)
    codes = np.clip(np.rint(matrix / scales[group]) + zeros[group], 0, most).astype(np.int64)
    return Layer(codes, zeros, scales, group)


def words(columns: np.ndarray, bits: int, order: tuple[int, ...]) -> np.ndarray:
    """Neighbouring columns in one word; the n-th `bits` of it hold column `order[n]`."""
    packed = np.zeros((len(columns), columns.shape[1] // len(order)), np.uint32)
    for word in range(packed.shape[1]):
        for at, column in enumerate(order):
            codes = columns[:, word * len(order) + column].astype(np.uint32)
            packed[:, word] |= codes << np.uint32(bits * at)
    return packed.view(np.int32)


def gptq(layer: Layer, bits: int, less: int) -> dict[str, np.ndarray]:
    order = tuple(range(32 // bits))
    return {
        "qweight": np.ascontiguousarray(words(layer.codes.T, bits, order).T),
        "qzeros": words(layer.zeros - less, bits, order),
        "scales": layer.scales.astype(np.float16),
        "g_idx": layer.group.astype(np.int32),
    }


def awq(layer: Layer) -> dict[str, np.ndarray]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(layer.codes, 4, order),
        "qzeros": words(layer.zeros, 4, order),
        "scales": layer.scales.astype(np.float16),
    }


Made = tuple[Layer, dict[str, np.ndarray]]
FORMS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], Made]]] = {}


def form(name: str, described: dict[str, Any], bits: int, pack: Any, **how: Any) -> None:
    def make(weight: np.ndarray) -> Made:
        layer = quantised(weight, bits, **how)
        return layer, pack(layer)

    FORMS[name] = ({"bits": bits, "group_size": GROUP, **described}, make)


form("gptq", {"quant_method": "gptq"}, 4, lambda layer: gptq(layer, 4, 1))
form("gptq in 8 bits", {"quant_method": "gptq"}, 8, lambda layer: gptq(layer, 8, 1))
form("gptq by activation", {"quant_method": "gptq", "desc_act": True}, 4,
     lambda layer: gptq(layer, 4, 1), shuffled=True)  # fmt: skip
form("gptq, second format", {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}, 4,
     lambda layer: gptq(layer, 4, 0))  # fmt: skip
form("awq", {"quant_method": "awq", "version": "gemm"}, 4, awq)


@pytest.fixture
def pack(small, tmp_path):
    """A small Qwen2.5-VL whose decoder is quantised; returns its folder and the true weights."""

    def make(name: str) -> tuple[Path, dict[str, np.ndarray]]:
        described, layer_of = FORMS[name]
        folder = tmp_path / "packed"
        shutil.copytree(small("qwen2_5_vl").folder, folder)
        file = next(folder.glob("*.safetensors"))
        tensors, true = load_file(file), {}
        for known in [n for n in tensors if n.endswith("_proj.weight") and ".layers." in n]:
            layer, packed = layer_of(tensors.pop(known).float().numpy())
            true[known] = layer.weight
            base = known[: -len(".weight")]
            tensors |= {f"{base}.{kind}": torch.from_numpy(v) for kind, v in packed.items()}
        save_file(tensors, file, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = described
        (folder / "config.json").write_text(json.dumps(config))
        return folder, true

    return make


@pytest.mark.parametrize("name", FORMS)
def test_integers_are_read_as_what_they_stand_for(pack, name):
    folder, true = pack(name)
    found = open_weights(folder)
    assert len(true) == 7 * 3
    assert not [tensor for tensor in found if tensor.endswith((".qweight", ".qzeros", ".g_idx"))]
    for layer, weight in true.items():
        assert found[layer].shape == weight.shape
        np.testing.assert_allclose(found[layer].read(), weight, rtol=1e-6)
        rows = [5, 3, 11]
        np.testing.assert_array_equal(found[layer].read(rows), found[layer].read()[rows])
        np.testing.assert_array_equal(found[layer].read(slice(8, 16)), found[layer].read()[8:16])


@pytest.mark.parametrize("name", ["gptq by activation", "awq"])
def test_a_quantised_checkpoint_is_exported(pack, name, photo, tmp_path):
    folder, _ = pack(name)
    source = read_source(folder)
    (tmp_path / "part").mkdir()
    annotator = open_exported(source, tmp_path / "part").annotator
    published = open_reference(folder, source, None)
    image, (lead, tail) = photo(97, 331), annotator.prompt("the mug")
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    x = np.concatenate(
        [annotator.model.embed(lead), seen.embeddings, annotator.model.embed(tail)], axis=1
    )
    rope = annotator.settings.language.rope
    before = rope.before_text(len(lead), seen.grid)
    cache = annotator.model.new_cache(x.shape[1])
    ours = annotator.model.forward(cache, x, before, rows=len(tail))
    theirs = published.logits(image, lead, tail)[:, list(annotator.settings.head_rows)]
    assert distance(ours, theirs) < CLOSE


@pytest.mark.parametrize("name", ["gptq", "gptq in 8 bits", "gptq, second format", "awq"])
def test_the_integers_are_kept(pack, name, tmp_path):
    """A product with them is one with the weights; rows of the identity have no rounding."""
    folder, true = pack(name)
    stored = open_weights(folder)
    for layer, weight in list(true.items())[:7]:
        blocks, path = stored[layer].blocks(), tmp_path / f"{layer}.onnx"
        kept = RowSlice(stored[layer], 8, 24).blocks()
        np.testing.assert_array_equal(kept.codes, blocks.codes[8:24])
        with new_graph(path) as g:
            x = g.input("x", np.float32, ["N", weight.shape[1]])
            precision = Precision(f"{blocks.bits}bit")
            y = precision.linear(g, x, np.zeros_like(weight), None, blocks)
            g.output(y, "y", np.float32, ["N", len(weight)])
        one = np.eye(weight.shape[1], dtype=np.float32)
        y = open_session(path, SessionOptions("cpu", 1)).run({"x": one}, ["y"])["y"]
        np.testing.assert_allclose(y, weight.T, rtol=1e-5, atol=1e-6)


def test_shuffled_groups_are_quantised_anew(pack):
    folder, true = pack("gptq by activation")
    stored = open_weights(folder)
    assert all(stored[layer].blocks() is None for layer in true)


def test_the_decoder_is_made_of_the_integers(pack, tmp_path):
    folder, true = pack("awq")
    (tmp_path / "part").mkdir()
    four = MllmPrecision(language=Precision("4bit"))
    open_exported(read_source(folder), tmp_path / "part", precision=four)
    nodes = onnx.load(tmp_path / "part" / "decoder.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "MatMulNBits" and len(node.input) == 4 for node in nodes) == len(
        true
    )


FAULTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "quant_method = hqq cannot": lambda config, _: config.update(quant_method="hqq"),
    "bits = 3 cannot": lambda config, _: config.update(bits=3),
    "shapes that do not belong together": lambda config, _: config.update(bits=8),
    "has no tensor `.*scales`": lambda _, tensors: tensors.pop(first(tensors, "scales")),
    "does not hold packed integers": lambda _, tensors: tensors.update(
        {(name := first(tensors, "qzeros")): tensors[name].float()}
    ),
    "names groups that are not there": lambda _, tensors: tensors[first(tensors, "g_idx")].fill_(9),
}  # fmt: skip


def first(tensors: dict[str, Any], kind: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(f".{kind}"))


@pytest.mark.parametrize("said", FAULTS)
def test_what_is_packed_otherwise_is_refused(pack, said):
    folder, _ = pack("gptq")
    config = json.loads((folder / "config.json").read_text())
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    FAULTS[said](config["quantization_config"], tensors)
    save_file(tensors, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointInvalid, match=said):
        read_all(folder)


def read_all(folder: Path) -> None:
    for tensor in open_weights(folder).values():
        tensor.read()
