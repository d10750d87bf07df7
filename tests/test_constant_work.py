"""No graph of a bundle computes on constants while it is loaded: no deadline could end that."""

from __future__ import annotations

import hashlib
import json
import shutil
import time

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import segagent_rt
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.errors import ManifestInvalid
from segagent_rt.loop import StoppingRules
from segagent_rt.scenes import make_scene
from segagent_rt.search import SearchConfig


def model(*nodes, constants=None, functions=()):
    """A model of one input `x` and one output `y`."""
    values = {
        "c": np.ones((4, 4), np.float32),
        "s": np.array([4, 4], np.int64),
        **(constants or {}),
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions)
    return made.SerializeToString()


def node(operator, reads, writes, **attributes):
    return helper.make_node(operator, reads.split(), writes.split(), **attributes)


def body(*nodes):
    """A graph in a node: it has no inputs, and reads what is around it."""
    output = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "body", [], [output])


LAST = node("Add", "x k", "y")
TRUE = {"yes": np.array(True)}
TWICE = helper.make_function(
    "own", "Twice", ["a"], ["b"], [node("MatMul", "a a", "b")], [helper.make_opsetid("", 21)]
)

REFUSED = {
    "a product": model(node("MatMul", "c c", "k"), LAST),
    "a product of a transposed weight": model(
        node("Transpose", "c", "t"), node("MatMul", "t c", "k"), LAST
    ),
    "a constant of any size": model(node("ConstantOfShape", "s", "k"), LAST),
    "a constant joined with itself": model(node("Concat", "c c", "k", axis=0), LAST),
    "a constant repeated": model(node("Tile", "c s", "k"), LAST),
    "a node's own constant": model(
        node("Constant", "", "o", value_float=1.0), node("Expand", "o s", "k"), LAST
    ),
    "in a branch": model(
        node("If", "yes", "k", then_branch=body(node("MatMul", "c c", "b")),
             else_branch=body(node("Identity", "c", "b"))),
        LAST, constants=TRUE,
    ),
    "in a branch that depends on the input": model(
        node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "maybe", to=9),
        node("If", "maybe", "k", then_branch=body(node("MatMul", "c c", "b")),
             else_branch=body(node("Identity", "c", "b"))),
        LAST,
    ),
    "in a function": model(node("Twice", "c", "k", domain="own"), LAST, functions=[TWICE]),
}  # fmt: skip

WEIGHTS = {
    "weights": model(node("MatMul", "x c", "y")),
    "packed weights": model(
        node("DequantizeLinear", "q scale zero", "w"), node("Transpose", "w", "k"), LAST,
        constants={"q": np.ones((4, 4), np.int8), "scale": np.ones((), np.float32),
                   "zero": np.zeros((), np.int8)},
    ),
}  # fmt: skip


def put(content, folder):
    """A copy of the shipped bundle with another graph, whose hash fits."""
    shutil.copytree(open_bundle().folder, folder)
    place = folder / "segmenter" / "manifest.json"
    manifest = json.loads(place.read_text())
    name = manifest["variants"]["cpu-int8"]["graphs"]["decoder"]
    (folder / "segmenter" / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"size": len(content), "sha256": digest}
    place.write_text(json.dumps(manifest))
    return folder


def annotate(folder, config):
    with segagent_rt.load(folder, backend="cpu") as runtime:
        runtime.open(make_scene(7, 96).image).annotate("the circle", config=config)


@pytest.mark.parametrize("kind", REFUSED)
def test_work_on_constants_is_refused(kind, tmp_path):
    bundle = open_bundle(put(REFUSED[kind], tmp_path / "bundle"))
    with pytest.raises(ManifestInvalid, match=r"would be computed while it is loaded|functions"):
        bundle.part("segmenter").verify()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_may_be_unpacked_and_rearranged(kind, tmp_path):
    open_bundle(put(WEIGHTS[kind], tmp_path / "bundle")).part("segmenter").verify()


def test_a_deadline_is_not_delayed_by_a_graph_that_would_load_for_an_hour(tmp_path):
    """200 products of 4,096 x 4,096 are 27 TFLOP."""
    size = {"s": np.array([4096, 4096], np.int64)}
    products = [node("MatMul", f"k{i} k0", f"k{i + 1}") for i in range(200)]
    summed = node("ReduceMax", "k200", "k", keepdims=0)
    content = model(node("ConstantOfShape", "s", "k0"), *products, summed, LAST, constants=size)
    folder, start = put(content, tmp_path / "bundle"), time.monotonic()
    with pytest.raises(ManifestInvalid):
        annotate(folder, SearchConfig(StoppingRules(deadline=0.5), 1))
    assert time.monotonic() - start < 10
