"""GELU as one operator: spelt out it is five, which runtimes do not recognise among integers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from segagent_rt_export.passes.prune_unused import replace_with_needed

OPSET = 20
"""The first with Gelu. What these graphs are made of means the same in it as in torch's 18."""


def fuse_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace x * (0.5 * (1 + erf(x / sqrt 2))) by Gelu, in place, as torch writes it."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {
        tensor.name: float(numpy_helper.to_array(tensor))
        for tensor in graph.initializer
        if not tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT
    }
    nodes = [_gelu(node, made_by, constants) or node for node in graph.node]
    if not any(node.op_type == "Gelu" for node in nodes):
        return model
    replace_with_needed(graph, nodes)
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = max(opset.version, OPSET)
    return model


def _gelu(
    node: NodeProto, made_by: dict[str, NodeProto], constants: dict[str, float]
) -> NodeProto | None:
    """What a product is, if it is a whole GELU."""
    if node.op_type != "Mul":
        return None
    x, value = node.input
    for kind, wanted in (("Mul", [0.5]), ("Add", [1.0]), ("Erf", []), ("Div", [np.sqrt(2)])):
        step = made_by.get(value)
        if step is None or step.op_type != kind:
            return None
        others = [name for name in step.input if name not in constants]
        known = [constants[name] for name in step.input if name in constants]
        if len(others) != 1 or not np.allclose(known, wanted, rtol=1e-6):
            return None
        (value,) = others
    return helper.make_node("Gelu", [x], node.output) if value == x else None
