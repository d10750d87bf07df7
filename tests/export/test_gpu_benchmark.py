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


def check(document, *ways):
    assert document["dry"]
    assert set(document["nets"]) == {"vit", "decoder-read", "decoder-write"}
    for net in document["nets"].values():
        for way in ways:
            assert net[way]["error"] < 1e-5
            assert net[way]["ms"] > 0
            assert net[way]["n"] >= 10


def test_small_nets_on_the_cpu(tmp_path):
    document = dry(tmp_path, "--way", "eager", "--way", "sdpa")
    check(document, "onnxruntime", "eager", "sdpa")
    assert document["gpu"] is None
    assert document["ceilings"]["gbytes_per_second"] > 0


@pytest.mark.slow
def test_every_way_on_the_cpu(tmp_path):
    document = dry(tmp_path)
    check(document, "onnxruntime", "eager", "sdpa", "compile")
    assert all(net["cuda graph"] == {"why": "there is no GPU"} for net in document["nets"].values())


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit", "decoder-read"])
def test_a_graph_that_computes_something_else_gets_no_time(gpu, monkeypatch, name):
    """One weight in thousands is wrong in the graph alone."""
    size = gpu.DRY[name]
    net = (gpu.Vit if name == "vit" else gpu.Decoder)(size).eval()
    write = type(net).write

    def spoilt(self, g):
        first = next(
            w for n, w in self.named_parameters() if n.endswith(("fc1.bias", "q_proj.bias"))
        )
        first[0] += 3
        write(self, g)
        first[0] -= 3

    monkeypatch.setattr(type(net), "write", spoilt)
    ways = gpu.measure(net, "fp32", "cpu", 0.01, ["eager"])
    assert "ms" not in ways["onnxruntime"]
    assert ways["onnxruntime"]["error"] > 1e-3
    assert ways["eager"]["ms"] > 0


def test_shares_count_every_weight_once(gpu):
    net = torch.nn.Linear(100, 100, bias=False)
    net.tokens = 5
    ways = {"a": {"ms": 2.0}, "b": {"why": "not here"}}
    gpu.shares(net, ways, {"gbytes_per_second": 0.04, "tflops": 0.0001})
    assert ways["a"]["percent_of_bandwidth"] == 50.0  # 40 kB in 2 ms
    assert ways["a"]["percent_of_product"] == 50.0  # 100 kFLOP in 2 ms
    assert ways["b"] == {"why": "not here"}


def test_a_way_that_breaks_is_told_and_the_others_go_on(gpu, monkeypatch):
    def broken(net, inputs):
        raise RuntimeError("CUDA out of memory\nand a page about it")

    monkeypatch.setitem(gpu.WAYS, "sdpa", broken)
    with torch.inference_mode():
        net = gpu.Vit(gpu.DRY["vit"]).eval()
        ways = gpu.measure(net, "fp32", "cpu", 0.01, ["sdpa", "eager"])
    assert ways["sdpa"] == {"why": "CUDA out of memory"}
    assert ways["eager"]["ms"] > 0


def test_without_a_gpu_nothing_else_is_measured(monkeypatch, gpu):
    monkeypatch.setattr(gpu.torch, "cuda", SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
