"""Products in 16 bits, for GPUs: typed into the graph, because builders take no wish for a
precision any more.

Only what is multiplied with weights. What comes out is 32 bits wide again, and so are norms,
softmax and all of attention between its layers: SAM's relative positions are tables that queries
are multiplied with, and become part of the scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from segagent_rt_export.passes.prune_unused import replace_nodes

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


def convert_products_to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute every product with constant weights in fp16, in place; weights are stored in it."""
    graph = model.graph
    floats = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    nodes, made = list[NodeProto](), set[str]()

    def half(name: str) -> str:
        """A value, or a weight, in 16 bits; made when first asked for."""
        short = f"{name}_half" if name else ""
        if short and short not in made:
            made.add(short)
            if name in floats:
                graph.initializer.append(_halved(floats[name], short))
            else:
                nodes.append(helper.make_node("Cast", [name], [short], to=TensorProto.FLOAT16))
        return short

    for node in graph.node:
        if not _with_weights(node, floats):
            nodes.append(node)
            continue
        (out,) = node.output
        inputs = [half(name) for name in node.input]
        product = helper.make_node(node.op_type, inputs, [f"{out}_product"], name=node.name)
        product.attribute.extend(node.attribute)
        nodes.append(product)
        nodes.append(helper.make_node("Cast", product.output, [out], to=TensorProto.FLOAT))
    replace_nodes(graph, nodes)
    return model


def _with_weights(node: NodeProto, floats: Mapping[str, TensorProto]) -> bool:
    """Whether a node multiplies with a layer's weights; a table for each row is of rank 3."""
    constants = [floats[name] for name in node.input[:2] if name in floats]
    if node.op_type == "MatMul":
        constants = [tensor for tensor in constants if len(tensor.dims) == 2]
    return node.op_type in PRODUCTS and bool(constants)


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    with np.errstate(over="ignore"):  # what does not fit is infinite, and the gate sees that
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
