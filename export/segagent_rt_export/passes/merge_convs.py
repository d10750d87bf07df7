"""Two convolutions with nothing between them become one, where that is less work.

The feature pyramids of SAM 2, EdgeTAM and SAM 3 end so: a convolution to 256 channels, then one of
1 x 1 to 32 or 64. Together they are one to 32 or 64, and the wide map is never made.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from segagent_rt_export.passes.prune_unused import replace_nodes

Weights = npt.NDArray[np.float32]


def merge_convs(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Merge every pair of convolutions of which the second has kernels of 1 x 1, in place.

    The results are equal but for the rounding of fp32, also at the edges: the first one's padding
    stays.

    Args:
        model: a graph in fp32.
        folder: where its weights lie, if they are not inside.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update(out.name for out in graph.output)

    def weights(node: NodeProto) -> list[Weights] | None:
        """Weight and bias, if both are known and all channels belong together."""
        known = [tensors.get(name) for name in node.input[1:]]
        grouped = any(a.name == "group" and a.i != 1 for a in node.attribute)
        if node.op_type != "Conv" or grouped or None in known:
            return None
        weight, *bias = [numpy_helper.to_array(t, str(folder)) for t in known if t is not None]
        return [weight, bias[0] if bias else np.zeros(len(weight), np.float32)]

    made_by: dict[str, NodeProto] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        before, merged = made_by.get(node.input[0]) if node.input else None, None
        if before is not None and reads[node.input[0]] == 1 and _moves_nothing(node):
            merged = _merged(weights(before), weights(node))
        if before is not None and merged is not None:
            names = [f"{node.output[0]}_merged_{kind}" for kind in ("weight", "bias")]
            graph.initializer.extend(
                numpy_helper.from_array(values, name)
                for values, name in zip(merged, names, strict=True)
            )
            kept.remove(before)
            node = helper.make_node("Conv", [before.input[0], *names], node.output, before.name)
            node.attribute.extend(before.attribute)
            tensors |= {tensor.name: tensor for tensor in graph.initializer[-2:]}
        kept.append(node)
        made_by |= dict.fromkeys(node.output, node)
    replace_nodes(graph, kept)
    return model


def _moves_nothing(conv: NodeProto) -> bool:
    """Whether a convolution has neither stride nor padding."""
    given = {a.name: list(a.ints) for a in conv.attribute}
    return not any(given.get("pads", [])) and set(given.get("strides", [])) <= {1}


def _merged(first: list[Weights] | None, second: list[Weights] | None) -> list[Weights] | None:
    """Weight and bias of both in one; None if they cannot be, or that is more work than both."""
    if first is None or second is None or set(second[0].shape[2:]) != {1}:
        return None
    (inner, inner_bias), (outer, outer_bias) = first, second
    outer = outer.reshape(len(outer), -1).astype(np.float64)
    if len(outer) * inner[0].size > inner.size + outer.size:
        return None
    weight = np.tensordot(outer, inner.astype(np.float64), 1)
    bias = outer @ inner_bias.astype(np.float64) + outer_bias
    return [weight.astype(np.float32), bias.astype(np.float32)]
