"""The floor that reading weights sets: bytes over bandwidth."""

import pytest

from segagent_rt.bench.roofline import roofline, weight_bytes
from segagent_rt.runtime import load


def test_the_floor_is_bytes_over_bandwidth():
    found = roofline({"a": 4_000_000, "b": 1}, 2.0, {"a": 8.0})
    assert found == {"a": {"bytes": 4_000_000, "floor_ms": 2.0, "call_ms": 8.0, "percent": 25.0}}


def test_weights_beside_a_graph_count_too():
    with load(threads=1) as runtime:
        _ = runtime.segmenter, runtime.annotator
        sizes = weight_bytes(runtime)
        folder = runtime.bundle.folder
    decoder = [folder / "mllm" / name for name in ("decoder.onnx", "decoder.onnx.data")]
    assert sizes["mllm decoder"] == sum(path.stat().st_size for path in decoder)
    assert set(sizes) == {"mllm vision", "mllm decoder", "segmenter encoder", "segmenter decoder"}
    assert sizes["segmenter encoder"] == pytest.approx(4.3e6, rel=0.5)
