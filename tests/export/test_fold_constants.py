"""What depends on constants only is computed at export, so that the runtime accepts the graph."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra `export`")

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from segagent_rt.bundle.constant_work import check_constant_work
from segagent_rt_export.passes.fold_constants import fold_constants

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(1, 4, 49, 49)).astype(np.float32)


def biased():
    """As MobileSAM's windows: a bias gathered from a rearranged table, added to attention."""
    table = RNG.normal(size=(4, 49)).astype(np.float32)
    places = RNG.integers(0, 49, (49, 49))
    nodes = [
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("Gather", ["turned", "places"], ["bias_last"], axis=0),
        helper.make_node("Transpose", ["bias_last"], ["bias"], perm=[2, 0, 1]),
        helper.make_node("Add", ["x", "bias"], ["y"]),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(places, "places")]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(IMAGE.shape))
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(IMAGE.shape))
    graph = helper.make_graph(nodes, "g", [image], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def result(model):
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": IMAGE})[0]


def accepted(model, path):
    path.write_bytes(model.SerializeToString())
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as bytes_,
    ):
        check_constant_work(bytes_)


def test_the_runtime_accepts_a_folded_graph_and_it_computes_the_same(tmp_path):
    model = biased()
    expected = result(model)
    with pytest.raises(ValueError, match="'Gather' would be computed"):
        accepted(model, tmp_path / "before.onnx")
    fold_constants(model, tmp_path)
    accepted(model, tmp_path / "after.onnx")
    assert [node.op_type for node in model.graph.node] == ["Transpose", "Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["bias_last"]
    assert np.array_equal(result(model), expected)


def test_weights_beside_the_graph_are_read(tmp_path):
    model = biased()
    expected = result(model)
    path = tmp_path / "graph.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, size_threshold=0)
    folded = fold_constants(onnx.load(path, load_external_data=False), tmp_path)
    assert np.array_equal(result(folded), expected)


def test_a_graph_without_constant_work_stays_as_it_is(tmp_path):
    model = fold_constants(biased(), tmp_path)
    before = model.SerializeToString()
    assert fold_constants(model, tmp_path).SerializeToString() == before
