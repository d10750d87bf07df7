"""The floor that weights and arithmetic set: bytes over bandwidth, operations over their rate."""

import pytest

from segagent_rt.bench.flops import flops_per_call, node_flops
from segagent_rt.bench.roofline import roofline, weight_bytes
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene

CEILINGS = {"gbytes_per_second": 2.0, "gflops": 100.0}


def test_the_floor_is_the_longer_of_bytes_and_arithmetic():
    sizes, calls = {"read": 4_000_000, "reckoned": 4_000_000, "other": 1}, {"read": 8.0}
    calls |= {"reckoned": 8.0}
    found = roofline(sizes, {"read": 1e8, "reckoned": 6e8}, CEILINGS, calls)
    assert found["read"] == {
        "bytes": 4_000_000, "gflop": 0.1, "floor_ms": 2.0, "call_ms": 8.0, "percent": 25.0,
    }  # fmt: skip
    assert found["reckoned"]["floor_ms"] == 6.0
    assert set(found) == {"read", "reckoned"}


def node(name, *given, made):
    shapes = {"input_type_shape": [{"float": list(shape)} for shape in given]}
    return {"op_name": name, "output_type_shape": [{"float": list(made)}], **shapes}


def test_operations_of_a_node_by_hand():
    """A product of 5 x 3 with 3 x 7 is 5 * 7 sums of 3 products; a 3 x 3 convolution sums 9 for
    each channel that goes in."""
    assert node_flops(node("MatMul", (5, 3), (3, 7), made=(5, 7))) == 2 * 5 * 7 * 3
    assert node_flops(node("FusedConv", (1, 4, 8, 8), (6, 4, 3, 3), made=(1, 6, 8, 8))) == (
        2 * 6 * 8 * 8 * 4 * 9
    )
    whole = (1, 16, 24)
    assert node_flops(node("MultiHeadAttention", whole, whole, whole, made=whole)) == (
        2 * 2 * 16 * 16 * 24
    )
    assert node_flops(node("Add", (5, 3), (5, 3), made=(5, 3))) == 0


def test_a_profile_tells_the_arithmetic_of_the_shipped_graphs():
    """256 patches through the vision encoder's 2.25 million weights, and its attention: 1.5 GFLOP;
    the segmenter's convolutions, though they are made in integers, 3.53 and 0.78 GFLOP by the
    shapes of its layers; the runtime fills channels up to sixteens."""
    with load(threads=1) as runtime:
        found = flops_per_call(runtime, make_scene(1))
    assert found["mllm vision"] == pytest.approx(1.55e9, rel=0.05)
    assert 3.5e9 < found["segmenter encoder"] < 3.8e9
    assert 0.77e9 < found["segmenter decoder"] < 1.2e9
    assert set(found) == {"mllm vision", "mllm decoder", "segmenter encoder", "segmenter decoder"}


def test_weights_beside_a_graph_count_too():
    with load(threads=1) as runtime:
        sizes = weight_bytes(runtime)
        folder = runtime.bundle.folder
    decoder = [folder / "mllm" / name for name in ("decoder.onnx", "decoder.onnx.data")]
    assert sizes["mllm decoder"] == sum(path.stat().st_size for path in decoder)
    assert set(sizes) == {"mllm vision", "mllm decoder", "segmenter encoder", "segmenter decoder"}
    assert sizes["segmenter encoder"] == pytest.approx(4.3e6, rel=0.5)
