"""Whether a graph that a tool of others wrote is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from segagent_rt_export.errors import ToolFailed

LARGEST = 2_000_000_000
"""Bytes of a graph without its weights; protobuf reads no more."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a graph has: nodes, bytes of weights, names of inputs and of outputs."""

    nodes: int
    weights: int
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[int | str, ...]]


def check_graph(path: Path) -> GraphFacts:
    """Parse a graph and look for all of its weights, without reading them.

    Raises:
        ToolFailed: there is none, it does not parse, is empty, or weights are missing.
    """
    if not path.is_file():
        raise _broken(path, "it was not written")
    if path.stat().st_size > LARGEST:
        raise _broken(path, "it is absurdly long")
    try:
        graph = onnx.load_model_from_string(path.read_bytes()).graph
    except Exception:  # protobuf's own errors differ between its versions
        raise _broken(path, "it is not ONNX, or was cut off") from None
    made = {name for node in graph.node for name in node.output}
    missing = [output.name for output in graph.output if output.name not in made]
    if not graph.node or not graph.output or missing:
        raise _broken(path, "it computes nothing" if not missing else f"no `{missing[0]}` in it")
    weights = sum(_size(tensor, path) for tensor in graph.initializer)
    if weights == 0:
        raise _broken(path, "it has no weights")
    outputs = {output.name: _shape(output) for output in graph.output}
    return GraphFacts(len(graph.node), weights, tuple(i.name for i in graph.input), outputs)


def _size(tensor: onnx.TensorProto, path: Path) -> int:
    """Bytes of a tensor, which may lie in a file beside the graph."""
    if not uses_external_data(tensor):
        return int(tensor.ByteSize())
    place = {entry.key: entry.value for entry in tensor.external_data}
    name = place.get("location", "")
    try:
        start, length = int(place.get("offset", 0)), int(place["length"])
    except (KeyError, ValueError):
        raise _broken(path, f"the place of `{tensor.name[:80]}` is not a number") from None
    beside = path.parent / name
    if not name or Path(name).name != name or not beside.is_file():
        raise _broken(path, f"its weights `{name[:80]}` are not beside it")
    if start < 0 or length < 0 or start + length > beside.stat().st_size:
        raise _broken(path, f"its weights {name} end too early")
    return length


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _broken(path: Path, why: str) -> ToolFailed:
    return ToolFailed(f"{path.parent.name}/{path.name} is not a whole graph: {why}")
