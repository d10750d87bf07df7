"""What a graph would compute while it is loaded: refused, because nothing can stop it.

ONNX Runtime computes every node that depends on constants only before a session is there. No
deadline ends that, and its memory has no bound: forty nodes that each join a constant with itself
make a terabyte. The exporter has folded its constants, so its graphs need none of it, apart from
nodes that unpack or rearrange weights. Read from the protocol buffers, without the package `onnx`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

from segagent_rt.bundle.protobuf import message_fields

HARMLESS = frozenset({
    "Abs", "Cast", "DequantizeLinear", "Flatten", "Identity", "Neg", "QuantizeLinear", "Reciprocal",
    "Reshape", "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose work and result are no larger than what they read, but for wider numbers."""

DEEPEST = 64
"""Graphs within graphs."""

_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_GRAPHS = (6, 11)
_TENSOR_NAME, _SPARSE_VALUES = 8, 1
"""Numbers of fields in onnx.proto."""


_Field: TypeAlias = tuple[int, int, int]
"""Number and place of a field."""


@dataclass(slots=True)
class _Node:
    """A node, as far as it matters here; `bodies` are places of the graphs in its attributes."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    bodies: list[tuple[int, int]] = field(default_factory=list)


def check_constant_work(content: mmap.mmap) -> None:
    """See that nothing but weights is computed while a graph is loaded.

    Args:
        content: of the file of an ONNX model.

    Raises:
        ValueError: a node would compute on constants, the model defines functions, or it is
            damaged.
        IndexError: it ends too early.
    """
    for number, start, end in message_fields(content, 0, len(content)):
        if number == _MODEL_GRAPH:
            _check_graph(content, start, end, frozenset(), 0)
        elif number == _MODEL_FUNCTION:
            raise ValueError("it defines functions of its own")


def _check_graph(
    content: mmap.mmap, start: int, end: int, outer: AbstractSet[str], depth: int
) -> None:
    """Nodes stand in the order in which they are computed (onnx.proto, `GraphProto`)."""
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    fields = list(message_fields(content, start, end))
    constants = set(outer).union(_initializers(content, fields))
    for node in (_node(content, first, last) for n, first, last in fields if n == _GRAPH_NODE):
        reads = [name for name in node.inputs if name]
        if reads and constants.issuperset(reads):
            if node.operator not in HARMLESS:
                raise ValueError(f"{node.operator[:40]!a} would be computed while it is loaded")
            constants.update(node.outputs)
        elif node.operator == "Constant":
            constants.update(node.outputs)
        for first, last in node.bodies:
            _check_graph(content, first, last, constants, depth + 1)


def _initializers(content: mmap.mmap, fields: Iterable[_Field]) -> Iterator[str]:
    """The names of a graph's constants."""
    for number, start, end in fields:
        if number == _GRAPH_TENSOR:
            yield from _texts(content, start, end, _TENSOR_NAME)
        elif number == _GRAPH_SPARSE:
            for inner, first, last in message_fields(content, start, end):
                if inner == _SPARSE_VALUES:
                    yield from _texts(content, first, last, _TENSOR_NAME)


def _node(content: mmap.mmap, start: int, end: int) -> _Node:
    node = _Node()
    for number, first, last in message_fields(content, start, end):
        if number == _NODE_INPUT:
            node.inputs.append(content[first:last].decode("utf-8"))
        elif number == _NODE_OUTPUT:
            node.outputs.append(content[first:last].decode("utf-8"))
        elif number == _NODE_OPERATOR:
            node.operator = content[first:last].decode("utf-8")
        elif number == _NODE_ATTRIBUTE:
            node.bodies += [
                (body, stop)
                for inner, body, stop in message_fields(content, first, last)
                if inner in _ATTRIBUTE_GRAPHS
            ]
    return node


def _texts(content: mmap.mmap, start: int, end: int, wanted: int) -> list[str]:
    return [
        content[first:last].decode("utf-8")
        for number, first, last in message_fields(content, start, end)
        if number == wanted
    ]
