"""The GPU benchmark where there is no GPU: all of it runs, and a wrong graph gets no time."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.export


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu")


def dry(tmp_path, *arguments):
    result = tmp_path / "dry.json"
    command = [sys.executable, FOLDER / "gpu.py", "--dry", "--seconds", "0.05", "-o", result]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    return json.loads(result.read_text("utf-8"))


SMALL = {"sam", "sam2", "edgetam", "simple-click", "vit", "decoder-read", "decoder-write"}
CLOSE = {"fp32": 1e-5, "fp16": 5e-3}


def check(document, *ways):
    assert document["dry"]
    assert set(document["nets"]) == SMALL
    assert {name for name, types in document["nets"].items() if "fp16" in types} == {
        "sam", "decoder-write",
    }  # fmt: skip
    for types in document["nets"].values():
        assert "fp32" in types
        for dtype, net in types.items():
            for way in ways:
                assert net[way]["error"] < CLOSE[dtype]
                assert net[way]["ms"] > 0
                assert net[way]["n"] >= 10


def test_small_nets_on_the_cpu(tmp_path):
    document = dry(tmp_path, "--way", "eager", "--way", "sdpa")
    check(document, "onnxruntime", "eager", "sdpa")
    assert document["gpu"] is None
    assert set(document["ceilings"]) == {"fp32", "fp16"}
    for ceiling in document["ceilings"].values():
        assert ceiling["gbytes_per_second"] > 0
    for name in ("sam", "decoder-write"):  # what was measured is not the fp32 graph again
        whole, half = (document["nets"][name][d]["onnxruntime"] for d in ("fp32", "fp16"))
        assert half["error"] > 20 * whole["error"]


@pytest.mark.slow
def test_every_way_on_the_cpu(tmp_path):
    document = dry(tmp_path)
    check(document, "onnxruntime", "eager", "sdpa", "compile")
    for types in document["nets"].values():
        assert all(net["cuda graph"] == {"why": "there is no GPU"} for net in types.values())


def measured(gpu, name, dtype="fp32", ways=("eager",)):
    """What is written down for one small net."""
    return gpu.of_net(gpu.DRY[name], gpu.Terms(dtype, "cpu", 0.01, ways), {})


FAULTS = {"vit": "fc1.bias", "decoder-read": "q_proj.bias", "sam": "lin1.bias"}


@pytest.mark.parametrize("name", FAULTS)
def test_a_graph_that_computes_something_else_gets_no_time(gpu, monkeypatch, name):
    """One weight in thousands is wrong in the graph alone."""
    kind = type(gpu.make(gpu.DRY[name]))
    write = kind.write

    def spoilt(self, folder, variant):
        first = next(w for n, w in self.named_parameters() if n.endswith(FAULTS[name]))
        first[0] += 3
        path = write(self, folder, variant)
        first[0] -= 3
        return path

    monkeypatch.setattr(kind, "write", spoilt)
    ways = measured(gpu, name)
    assert "ms" not in ways["onnxruntime"]
    assert ways["onnxruntime"]["error"] > 1e-3
    assert ways["eager"]["ms"] > 0


def test_a_form_for_gpus_that_forgets_positions_gets_no_time(gpu, monkeypatch):
    """In 16 bits it is the graph of `gpu-fp16` that is judged, and against fp32."""
    kind, devices = type(gpu.make(gpu.DRY["sam"])), []
    graph = kind.graph

    def forgetful(self, device):
        devices.append(device)
        folded = graph(self, device)
        folded.encoder.layers[0].attn.where.zero_()
        return folded

    monkeypatch.setattr(kind, "graph", forgetful)
    ways = measured(gpu, "sam", "fp16", ways=())
    assert devices == ["gpu"]
    assert set(ways["onnxruntime"]) == {"error", "why"}


def test_keys_and_values_are_kept_as_the_variant_keeps_them(gpu, tmp_path):
    """Products in 16 bits, the buffer in 32, no operator of ONNX Runtime's own."""
    onnx = pytest.importorskip("onnx")
    net = gpu.make(gpu.DRY["decoder-write"])
    model = onnx.load(net.write(tmp_path, "gpu-fp16"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert types["past.0.key"] == types["inputs_embeds"] == onnx.TensorProto.FLOAT
    assert {node.domain for node in model.graph.node} == {""}
    halves = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert len([n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in halves]) > 10


def test_bf16_is_told_not_to_be_shipped(gpu):
    assert measured(gpu, "vit", "bf16", ways=())["onnxruntime"] == {"why": "no variant is in bf16"}


def test_without_transformers_a_net_says_so_and_others_go_on(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("sam", "sam2", "edgetam"):
        (said,) = measured(gpu, name).items()
        assert said[0] == "why"
        assert "transformers" in said[1]
    assert measured(gpu, "vit")["onnxruntime"]["ms"] > 0


def test_without_torch_s_exporter_pytorch_is_measured_alone(gpu, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxscript"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    ways = measured(gpu, "simple-click")
    assert "onnxscript" in ways["onnxruntime"]["why"]
    assert ways["eager"]["ms"] > 0


SIZES = {
    "sam-vit-b": 89_670_912, "sam-vit-l": 308_278_272, "sam-vit-h": 637_026_048,
    "sam2.1-hiera-tiny": 27_243_808, "sam2.1-hiera-large": 212_727_952, "edgetam": 4_892_072,
    "simple-click-l": 322_991_809,
}  # fmt: skip
"""Weights: of SAM's encoders as published; EdgeTAM's with its branches merged."""


def test_the_segmenters_are_of_true_size(gpu):
    for name, size in SIZES.items():
        with torch.device("meta"):
            net = gpu.NETS[name]()
        assert sum(weight.numel() for weight in net.parameters()) == size, name


def test_operations_are_counted(gpu):
    """Two for each weight of a layer and each token, and those of attention."""
    net = torch.nn.Linear(16, 8)
    net.inputs, net.outputs = (torch.zeros(5, 16),), ("y",)
    with torch.inference_mode():
        assert gpu.reference(net).flops == 2 * 5 * 16 * 8


def test_shares_count_every_weight_once(gpu):
    net = torch.nn.Linear(100, 100, bias=False)
    ways = {"a": {"ms": 2.0}, "b": {"why": "not here"}}
    gpu.shares(net, 100_000, ways, {"gbytes_per_second": 0.04, "tflops": 0.0001})
    assert ways["a"]["percent_of_bandwidth"] == 50.0  # 40 kB in 2 ms
    assert ways["a"]["percent_of_product"] == 50.0  # 100,000 operations in 2 ms
    assert ways["b"] == {"why": "not here"}


def test_a_way_that_breaks_is_told_and_the_others_go_on(gpu, monkeypatch):
    def broken(net, inputs):
        raise RuntimeError("CUDA out of memory\nand a page about it")

    monkeypatch.setitem(gpu.WAYS, "sdpa", broken)
    ways = measured(gpu, "vit", ways=("sdpa", "eager"))
    assert ways["sdpa"] == {"why": "CUDA out of memory"}
    assert ways["eager"]["ms"] > 0


def test_without_a_gpu_nothing_else_is_measured(monkeypatch, gpu):
    monkeypatch.setattr(gpu.torch, "cuda", SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
