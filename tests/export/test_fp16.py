"""Products in 16 bits: which they are, what they compute, and what becomes of too large numbers."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from segagent_rt.backends.engine_library import load_library
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bundle.graph import Graph
from segagent_rt.bundle.manifest import Variant
from segagent_rt.engine_cache.selection import EngineSelector
from segagent_rt.engine_cache.store import EngineCache
from segagent_rt.errors import EngineRefused
from segagent_rt_export.graphs.blocks import Module, gated_mlp
from segagent_rt_export.graphs.builder import GraphBuilder, new_graph
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.passes.fp16 import PRODUCTS, convert_products_to_fp16
from segagent_rt_export.sources.weights import StateDict

torch = pytest.importorskip("torch", reason="needs the extra `export`")

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)


def net(scale: float = 1.0) -> onnx.ModelProto:
    """A convolution, a norm, attention, a layer: every kind of product, and what lies between."""
    constants = {
        "filter": RNG.normal(0, 0.2, (16, 3, 4, 4)).astype(np.float32),
        "shift": RNG.normal(0, 0.2, 16).astype(np.float32),
        "rows": np.array([16, 64]),
        "ones": np.ones(16, np.float32),
        "up": RNG.normal(0, 0.2, (16, 16)).astype(np.float32) * np.float32(scale),
        "down": RNG.normal(0, 0.2, (16, 16)).astype(np.float32) / np.float32(scale),
    }
    nodes = [
        helper.make_node("Conv", ["image", "filter", "shift"], ["map"], strides=[4, 4]),
        helper.make_node("Reshape", ["map", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["x"], perm=[1, 0]),
        helper.make_node("LayerNormalization", ["x", "ones", "shift"], ["normed"]),
        helper.make_node("MatMul", ["normed", "up"], ["query"]),
        helper.make_node("Transpose", ["normed"], ["key"], perm=[1, 0]),
        helper.make_node("MatMul", ["query", "key"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "query"], ["mixed"]),
        helper.make_node("Gemm", ["mixed", "down", "shift"], ["features"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [value("features", TensorProto.FLOAT, [64, 16])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    content = model.SerializeToString()
    return open_session(content, SessionOptions("cpu", 1)).run({"image": image}, ["features"])[
        "features"
    ]


IMAGE = RNG.random((1, 3, 32, 32)).astype(np.float32)


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def test_products_with_weights_are_16_bits_wide_and_nothing_else_is():
    model = convert_products_to_fp16(net())
    onnx.checker.check_model(model)
    of = types(model)
    kinds = {}
    for node in model.graph.node:
        if node.op_type != "Cast":
            kinds[node.output[0].removesuffix("_product")] = of[node.input[0]]
    half = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
    assert half == {"map", "query", "features"}
    assert {kinds[n] for n in ("normed", "scores", "shares", "mixed")} == {TensorProto.FLOAT}
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"filter_half", "up_half", "down_half", "shift"} <= names
    assert not {"filter", "up", "down"} & names


def test_tables_that_rows_are_multiplied_with_are_no_weights():
    """SAM's relative positions: a matrix for each row of queries; scores keep their 32 bits."""
    value = helper.make_tensor_value_info
    table = numpy_helper.from_array(np.ones((5, 8, 5), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["grid", "table"], ["rows"])], "net",
        [value("grid", TensorProto.FLOAT, [2, 5, 5, 8])],
        [value("rows", TensorProto.FLOAT, [2, 5, 5, 5])], [table],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    before = model.SerializeToString()
    assert convert_products_to_fp16(model).SerializeToString() == before


def test_they_compute_the_same_but_for_rounding():
    whole, half = run(net(), IMAGE), None
    model = net()
    whole = run(model, IMAGE)
    half = run(convert_products_to_fp16(model), IMAGE)
    apart = np.linalg.norm(half - whole) / np.linalg.norm(whole)
    assert 1e-5 < apart < 5e-3


@torch.inference_mode()
def test_an_mllm_s_layers_are_halved_where_they_are_built(tmp_path):
    mlp = torch.nn.ModuleDict(
        {n: torch.nn.Linear(*s, bias=False) for n, s in
         {"gate_proj": (8, 12), "up_proj": (8, 12), "down_proj": (12, 8)}.items()}
    )  # fmt: skip

    def build(g: GraphBuilder, precision: Precision) -> None:
        x = g.input("image", np.float32, [5, 8])
        module = Module(g, StateDict(mlp.state_dict()), precision)
        g.output(gated_mlp(module, x, 12, 8), "features", np.float32, [5, 8])

    found = {}
    for scheme in ("fp32", "fp16"):
        path = tmp_path / f"{scheme}.onnx"
        with new_graph(path, "portable") as g:
            build(g, Precision(scheme))
        found[scheme] = model = onnx.load(path)
        of = types(model)
        products = [n for n in model.graph.node if n.op_type in PRODUCTS]
        wanted = TensorProto.FLOAT16 if scheme == "fp16" else TensorProto.FLOAT
        assert len(products) == 3
        assert {of[name] for node in products for name in node.input} == {wanted}
    x = RNG.random((5, 8)).astype(np.float32)
    whole, half = (run(model, x) for model in found.values())
    assert 0 < np.linalg.norm(half - whole) / np.linalg.norm(whole) < 5e-3
    casts = [n.input[0] for n in found["fp16"].graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts))  # gate and up share what goes in


@pytest.fixture
def rungs(tmp_path):
    """A net whose query is too large for 16 bits in between, and the same in 32."""

    def write(name: str, device: str, model: onnx.ModelProto) -> Graph:
        path = tmp_path / name / "encoder.onnx"
        path.parent.mkdir()
        path.write_bytes(model.SerializeToString())
        variant = Variant(device, name, {"encoder": f"{name}/encoder.onnx"}, "portable")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Graph(path, digest, "segmenter", "encoder", name, variant)

    model = net(scale=1e5)
    half = onnx.ModelProto()
    half.CopyFrom(model)
    return model, [
        write("gpu-fp16", "gpu", convert_products_to_fp16(half)), write("reference", "any", model)
    ]  # fmt: skip


def test_an_overflow_of_large_weights_is_caught_and_fp32_takes_its_place(rungs, machine, tmp_path):
    model, graphs = rungs
    expected = {"features": run(model, IMAGE)}
    assert np.isfinite(expected["features"]).all()
    cache = EngineCache(tmp_path / "engines")
    ladder = EngineSelector(load_library("tensorrt"), cache)
    made, failed = ladder.build(graphs, [({"image": IMAGE}, expected)], lambda phase: None)
    assert made.graph == "segmenter encoder (reference)"
    assert "features: not finite" in failed["gpu-fp16"]
    session, rung, refused = ladder.open(graphs)
    assert rung.graph.name == "reference"
    assert refused == failed
    assert np.array_equal(
        session.run({"image": IMAGE}, ["features"])["features"], expected["features"]
    )
    records = [json.loads(p.read_text()) for p in cache_files(tmp_path)]
    assert any("not finite" in (record.get("why") or "") for record in records)


def test_without_fp32_below_it_the_overflow_is_an_error(rungs, machine, tmp_path):
    model, graphs = rungs
    examples = [({"image": IMAGE}, {"features": run(model, IMAGE)})]
    with pytest.raises(EngineRefused, match="not finite"):
        EngineSelector(load_library("tensorrt"), EngineCache(tmp_path / "e")).build(
            graphs[:1], examples, lambda phase: None
        )


def cache_files(folder):
    return sorted((folder / "engines").rglob("*.json"))
