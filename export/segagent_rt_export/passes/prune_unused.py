"""Give a graph other nodes, and drop the weights that none of them reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put nodes into a graph in place of its own; initialisers that nobody reads are removed.

    An initialiser whose name is the output of one of the nodes is replaced by it.
    """
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {out.name for out in graph.output}.union(*map(_reads, nodes))
    read -= {name for node in nodes for name in node.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def replace_with_needed(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """As `replace_nodes`, without the nodes that nobody reads any more."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= _reads(node)
            kept.append(node)
    replace_nodes(graph, reversed(kept))


def _reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, also in the graphs of its branches."""
    bodies = [
        body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)
    ]  # an attribute without a graph has an empty one
    return set(node.input).union(*(_reads(inner) for body in bodies for inner in body.node))
