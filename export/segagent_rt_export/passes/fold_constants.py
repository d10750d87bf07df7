"""Compute at export what depends on constants only: the runtime refuses graphs that would do so
while they are loaded (`segagent_rt.bundle.constant_work`)."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from segagent_rt.bundle.constant_work import HARMLESS
from segagent_rt.types import Array
from segagent_rt_export.passes.prune_unused import replace_with_needed


def fold_constants(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Replace each node that computes on constants by its results, in place.

    Nodes that the runtime allows, such as those that rearrange weights, stay.

    Args:
        model: a graph in fp32.
        folder: where its weights lie, if they are not inside.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made_by: dict[str, NodeProto] = {}

    def value(name: str) -> Array:
        """A constant, computed now if a node makes it."""
        if name not in made_by:
            array: Array = numpy_helper.to_array(tensors[name], str(folder))
            return array
        node = made_by[name]
        return _results(model, node, {n: value(n) for n in node.input if n})[name]

    kept = []
    for node in graph.node:
        reads = [name for name in node.input if name]
        constant = node.op_type == "Constant" or (
            bool(reads) and all(name in tensors or name in made_by for name in reads)
        )
        if constant:
            made_by |= dict.fromkeys(node.output, node)
        if not constant or node.op_type == "Constant" or node.op_type in HARMLESS:
            kept.append(node)
            continue
        for name, array in _results(model, node, {n: value(n) for n in reads}).items():
            tensor = numpy_helper.from_array(array, name)
            graph.initializer.append(tensor)
            tensors[name] = tensor
            del made_by[name]
    replace_with_needed(graph, kept)
    return model


def _results(model: onnx.ModelProto, node: NodeProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """What a node makes of its inputs, by name."""
    outputs = [name for name in node.output if name]
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for n, a in feeds.items()]  # fmt: skip
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    alone = helper.make_model(
        helper.make_graph([node], "one node", inputs, results), opset_imports=model.opset_import
    )
    return dict(zip(outputs, ReferenceEvaluator(alone).run(None, feeds), strict=True))
