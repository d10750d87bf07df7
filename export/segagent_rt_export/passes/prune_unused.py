"""Give a graph other nodes, and drop the weights that none of them reads."""

from __future__ import annotations

from collections.abc import Iterable

import onnx


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put nodes into a graph in place of its own; initialisers that nobody reads are removed.

    An initialiser whose name is the output of one of the nodes is replaced by it.
    """
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {out.name for out in graph.output}
    read -= {name for node in nodes for name in node.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
