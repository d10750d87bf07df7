"""Two convolutions in a row become one with the same results, and only where that saves work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra `export`")

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from segagent_rt_export.passes.merge_convs import merge_convs

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(1, 8, 9, 9)).astype(np.float32)


def conv(name, source, inputs, outputs, kernel, *, bias=True, **attributes):
    """A node and its weights."""
    names = [f"{name}.w", f"{name}.b"][: 1 + bias]
    values = [RNG.normal(size=(outputs, inputs, kernel, kernel)), RNG.normal(size=outputs)]
    node = helper.make_node("Conv", [source, *names], [name], **attributes)
    tensors = [
        numpy_helper.from_array(v.astype(np.float32), n)
        for v, n in zip(values, names, strict=False)
    ]
    return node, tensors


def model_of(*convs, outputs):
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 9, 9])
    weights = [tensor for _, tensors in convs for tensor in tensors]
    graph = helper.make_graph([node for node, _ in convs], "g", [image], made, weights)
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def results(model):
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": IMAGE})


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (1, {}),
        (3, {"pads": [1, 1, 1, 1]}),
        (3, {"strides": [2, 2], "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        (3, {"auto_pad": "SAME_UPPER"}),
    ],
)
@pytest.mark.parametrize("biases", [(True, True), (False, True), (True, False), (False, False)])
def test_results_are_equal_and_the_wide_map_is_gone(kernel, attributes, biases, tmp_path):
    first = conv("wide", "x", 8, 32, kernel, bias=biases[0], **attributes)
    model = model_of(first, conv("y", "wide", 32, 4, 1, bias=biases[1]), outputs=["y"])
    (expected,) = results(model)
    merge_convs(model, tmp_path)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert len(model.graph.initializer) == 2, "the former weights are dropped"
    np.testing.assert_allclose(results(model)[0], expected, atol=1e-4)


def test_a_row_of_three_becomes_one(tmp_path):
    row = [conv("a", "x", 8, 32, 1), conv("b", "a", 32, 16, 1), conv("c", "b", 16, 4, 1)]
    model = model_of(*row, outputs=["c"])
    (expected,) = results(model)
    assert len(merge_convs(model, tmp_path).graph.node) == 1
    np.testing.assert_allclose(results(model)[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("convs", "outputs"),
    [
        ([conv("a", "x", 8, 32, 1), conv("b", "a", 32, 4, 3)], ["b"]),
        ([conv("a", "x", 8, 32, 1), conv("b", "a", 32, 4, 1, strides=[2, 2])], ["b"]),
        ([conv("a", "x", 8, 32, 1), conv("b", "a", 32, 4, 1, pads=[1, 1, 1, 1])], ["b"]),
        ([conv("a", "x", 8, 32, 1), conv("b", "a", 32, 4, 1)], ["a", "b"]),
        ([conv("a", "x", 1, 8, 3, group=8), conv("b", "a", 8, 4, 1)], ["b"]),
        ([conv("a", "x", 8, 2, 1), conv("b", "a", 2, 64, 1)], ["b"]),
    ],
    ids=["3 x 3", "stride", "padding", "both are read", "depthwise", "more work"],
)
def test_others_stay_as_they_are(convs, outputs, tmp_path):
    model = model_of(*convs, outputs=outputs)
    before = model.SerializeToString()
    assert merge_convs(model, tmp_path).SerializeToString() == before


def test_weights_beside_the_graph_are_read(tmp_path):
    model = model_of(conv("wide", "x", 8, 32, 1), conv("y", "wide", 32, 4, 1), outputs=["y"])
    (expected,) = results(model)
    path = tmp_path / "graph.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, size_threshold=0)
    merged = merge_convs(onnx.load(path, load_external_data=False), tmp_path)
    np.testing.assert_allclose(results(merged)[0], expected, atol=1e-4)
