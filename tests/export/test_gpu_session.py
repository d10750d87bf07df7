"""The session on a GPU in small on the CPU: all of it runs, and a killed one keeps what it had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segagent_rt.bench.gpu_section import PARTS
from segagent_rt.bench.report import BenchmarkResult, page

pytest.importorskip("torch", reason="needs the extra `export`")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.export


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = ["bash", "benchmarks/gpu_session.sh", "--dry-run", "--folder", folder]
    return subprocess.Popen(
        [*map(str, command), "-o", str(folder / "gpu.json")], cwd=ROOT, start_new_session=True,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip


def test_a_dry_run_measures_everything(tmp_path):
    assert start(tmp_path).wait(600) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["state"] == "complete"
    print(found["seconds"], {n: about["seconds"] for n, about in found["phases"].items()})
    assert {name: p for name, p in found["phases"].items() if p["state"] != "done"} == {}
    for family, ways in found["numerics"].items():
        assert ways["reference"]["passed"], family
        assert ways["reference"]["worst"] < ways["gpu-fp16"]["worst"] < 0.1
    models = found["models"]
    assert set(models) == {"qwen3-vl-small", "qwen2.5-vl-small", "sam-small"}
    assert failures(models) == []
    parts = models["qwen3-vl-small"]["parts"]
    assert set(parts) == set(PARTS)
    for name, ways in parts.items():
        expected = {"segagent-rt", "PyTorch", "torch.compile", "segagent-rt, CUDA graph"}
        if name == "whole click":
            ways_of_clicks = ("transformers generate", "transformers generate, compiled")
            expected = {"segagent-rt", *ways_of_clicks}
        assert expected <= set(ways), name
        assert all(ways[way]["time"]["n"] == 2 for way in expected)
    assert parts["decode step"]["read_mb"] > 0
    assert parts["decode step"]["segagent-rt"]["percent_of_measured_bandwidth"] > 0
    assert parts["prefill"]["gflop"] > 0
    assert models["qwen3-vl-small"]["logits_apart_from_torch_bf16"] < 0.1
    assert models["qwen3-vl-small"]["host_between_calls"]["calls"] > 2
    assert set(models["qwen3-vl-small"]["nodes"]["prefill"]) == {"CPUExecutionProvider"}
    text = page([BenchmarkResult("gpu", found)])
    assert "a dry run on the CPU" in text
    assert "Graphs of 2 of 2 model families equal PyTorch" in " ".join(text.split())
    assert list(tmp_path.iterdir()) == [tmp_path / "gpu.json"]


def text_of(output: Path) -> str:
    """The document's text; at any moment it is whole."""
    text = output.read_text()
    json.loads(text)
    return text


def failures(found: object) -> list[object]:
    """Every sentence about what failed."""
    if not isinstance(found, dict):
        return []
    below = [each for value in found.values() for each in failures(value)]
    return [*([found["failed"]] if "failed" in found else []), *below]


def test_a_session_killed_half_way_keeps_what_it_had(tmp_path):
    session, output = start(tmp_path), tmp_path / "gpu.json"
    try:
        while session.poll() is None:
            time.sleep(0.1)
            if output.exists() and "reference" in text_of(output):
                break
    finally:
        os.killpg(session.pid, signal.SIGKILL)
        session.wait()
    found = json.loads(output.read_text())
    assert found["state"] == "running"
    assert any("reference" in ways for ways in found["numerics"].values())
    assert "models" not in found
    states = {about["state"] for about in found["phases"].values()}
    assert states <= {"waiting", "running", "done"}
    assert "waiting" in states
