"""Store the weights of convolutions in eight bits; ONNX Runtime unpacks them once, at load."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segagent_rt_export.graphs.precision import per_channel_int8
from segagent_rt_export.passes.prune_unused import replace_nodes

LEAST = 1024
"""Smaller weights are not worth a scale for each channel."""


def quantise_conv_weights(model: onnx.ModelProto, most: int = 127) -> onnx.ModelProto:
    """Replace the weight of every convolution and Gemm by int8 and DequantizeLinear, in place.

    One scale for each output channel, whose largest weight becomes `most`; the function changes
    only by the rounding of the weights.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes, packed = [], set()
    for node in graph.node:
        name = node.input[1] if node.op_type in ("Conv", "Gemm") else ""
        tensor = weights.get(name)
        if tensor is not None and name not in packed and np.prod(tensor.dims) >= LEAST:
            packed.add(name)
            nodes.append(_unpacked(graph, numpy_helper.to_array(tensor), name, most))
        nodes.append(node)
    replace_nodes(graph, nodes)
    return model


def _unpacked(graph: onnx.GraphProto, values: np.ndarray, name: str, most: int) -> onnx.NodeProto:
    codes, scale = per_channel_int8(values, most)
    graph.initializer.extend(
        [
            numpy_helper.from_array(codes, f"{name}_codes"),
            numpy_helper.from_array(scale, f"{name}_scale"),
        ]
    )
    return helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], axis=0)


def dequantise_conv_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The inverse of `quantise_conv_weights`, in place: weights in fp32 again, as they were
    rounded."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not set(node.input) <= set(tensors):
            kept.append(node)
            continue
        codes, scale = (numpy_helper.to_array(tensors[name]) for name in node.input)
        weight = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
        graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), node.output[0]))
    replace_nodes(graph, kept)
    return model
