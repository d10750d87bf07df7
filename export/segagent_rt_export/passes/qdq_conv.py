"""Convolutions in integers: weights and activations of eight bits, by scales fixed beforehand.

QuantizeLinear and DequantizeLinear stand round every convolution; runtimes that know the pattern
multiply integers, all others compute the same in fp32. Only standard operators.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from segagent_rt_export.graphs.integer_product import MOST
from segagent_rt_export.graphs.precision import per_channel_int8
from segagent_rt_export.passes.prune_unused import replace_nodes

Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""The least and the largest number that a value takes, by the value's name."""

AVERAGES = ("ReduceMean", "GlobalAveragePool")

ACTIVATIONS = ("Relu", "Clip")
"""Operators that bound what a convolution makes; exporters write ReLU6 as Clip."""

EXACT = "_exact"
"""Behind the name of an output that is rounded, what it is before."""

LEVELS = 255
"""Steps of an activation's range, in uint8."""


class QdqSelection:
    """Which values of a graph become integers.

    What a convolution reads and makes does, and the sum of two such values or of one and an input,
    so that integers stay integers from one convolution to the next. Kept in fp32: what reads the
    picture or an average over it, the convolutions with the weights `exact`, and, unless `outputs`
    are to be rounded too, what makes an output of the graph.
    """

    def __init__(
        self, graph: onnx.GraphProto, *, outputs: bool = False, exact: Collection[str] = ()
    ) -> None:
        self._graph, self._last, self._exact = graph, outputs, exact
        self._constants = {tensor.name for tensor in graph.initializer}
        self._outputs = {output.name for output in graph.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.convolutions = self._chosen()
        self.values = self._met()

    def _chosen(self) -> list[NodeProto]:
        """All convolutions but the first ones and, where they are kept, the last ones."""
        kept = self._before_any_convolution() | self._averages()
        return [
            node
            for node in self._graph.node
            if node.op_type == "Conv"
            and node.input[1] in self._constants
            and node.input[1] not in self._exact
            and node.input[0] not in kept
            and (self._last or self.settled(node.output[0]) not in self._outputs)
        ]

    def _before_any_convolution(self) -> set[str]:
        """The inputs, and what is made of them alone."""
        shown = {value.name for value in self._graph.input}
        for node in self._graph.node:
            made_of = {name for name in node.input if name and name not in self._constants}
            if node.op_type != "Conv" and made_of and made_of <= shown:
                shown |= set(node.output)
        return shown

    def _averages(self) -> set[str]:
        """Means, and what is made of nothing else: a number each channel, which costs nothing."""
        found = set[str]()
        for node in self._graph.node:
            made_of = {name for name in node.input if name and name not in self._constants}
            if node.op_type in AVERAGES or (made_of and made_of <= found):
                found |= set(node.output)
        return found

    def settled(self, name: str) -> str:
        """The value behind the Relu or ReLU6 that alone reads this one, or this one."""
        readers = self._readers.get(name, [])
        bounded = len(readers) == 1 and readers[0].op_type in ACTIVATIONS
        if bounded and name not in self._outputs:
            return str(readers[0].output[0])
        return name

    def _met(self) -> list[str]:
        """In the order of the graph."""
        found = dict[str, None]()
        for node in self.convolutions:
            found[node.input[0]] = found[self.settled(node.output[0])] = None
        given = self._before_any_convolution()
        for node in self._graph.node:
            met = any(name in found for name in node.input)
            if node.op_type == "Add" and met and given.union(found).issuperset(node.input):
                found |= dict.fromkeys(node.input)
                found[self.settled(node.output[0])] = None
        return [name for name in found if self._last or name not in self._outputs]


def quantise_convolutions(
    model: onnx.ModelProto, ranges: Ranges, *, outputs: bool = False, exact: Collection[str] = ()
) -> onnx.ModelProto:
    """Put the convolutions of a graph into integers, in place.

    Args:
        model: its weights are in fp32; nodes stand in the order in which they run.
        ranges: for each of the `values` of `QdqSelection`, or for more.
        outputs: whether what makes an output becomes integers, too.
        exact: names of weights whose convolutions stay in fp32.
    """
    graph = model.graph
    chosen = QdqSelection(graph, outputs=outputs, exact=exact)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    scales = {name: _scale(*ranges[name]) for name in chosen.values}
    writer = _QdqWriter(graph, scales)
    made = {node.output[0] for node in chosen.convolutions}
    for node in list(graph.node):
        if node.output[0] in made:
            writer.convolution(node, weights)
        else:
            writer.other(node)
    writer.finish()
    return model


def _scale(least: float, most: float) -> tuple[np.float32, np.uint8]:
    """Of an activation, so that zero is one of its levels."""
    least, most = min(least, 0.0), max(most, 0.0)
    scale = np.float32(max(most - least, 1e-6) / LEVELS)
    return scale, np.uint8(np.clip(np.rint(-least / scale), 0, LEVELS))


def ranges_of(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """The ranges that a graph of `quantise_convolutions` was made with, zero in them."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        name = node.input[0].removesuffix(EXACT) if node.input else ""
        if node.op_type == "QuantizeLinear" and node.output[0] == f"{name}_codes":
            scale, zero = (float(numpy_helper.to_array(held[by])) for by in node.input[1:])
            found[name] = -scale * zero, scale * (LEVELS - zero)
    return found


class _QdqWriter:
    """The nodes of the graph, written anew one after another."""

    def __init__(
        self, graph: onnx.GraphProto, scales: Mapping[str, tuple[np.float32, np.uint8]]
    ) -> None:
        self._graph, self._scales = graph, scales
        self._outputs = {output.name for output in graph.output}
        self._nodes = list[NodeProto]()
        for given in graph.input:
            if given.name in scales:
                self._round(given.name, given.name)

    def other(self, node: NodeProto) -> None:
        """A node that stays as it is, but for what it reads."""
        node.input[:] = [self._rounded(n) if n in self._scales else n for n in node.input]
        if node.op_type == "Concat" and node.output[0] in self._scales:
            node.input[:] = [self._rounded_as(node.output[0], name) for name in node.input]
        self._nodes.append(node)
        for at, name in enumerate(node.output):
            if name in self._scales:
                node.output[at] = name + EXACT if name in self._outputs else name
                self._round(name, node.output[at])

    def _rounded(self, name: str) -> str:
        """What a value is called once it is rounded; outputs keep their names."""
        return name if name in self._outputs else f"{name}_rounded"

    def _round(self, name: str, exact: str) -> None:
        """Integers and back."""
        scale, zero = self._scales[name]
        self._store(f"{name}_scale", np.asarray(scale))
        self._store(f"{name}_zero", np.asarray(zero))
        self._there_and_back(name, exact, f"{name}_codes", self._rounded(name))

    def _rounded_as(self, whole: str, part: str) -> str:
        """A part of what will be rounded as a whole: rounded alike beforehand, bytes are joined."""
        rounded = f"{part}_in_{whole}"
        self._there_and_back(whole, part, f"{rounded}_codes", rounded)
        return rounded

    def _there_and_back(self, scaled: str, exact: str, codes: str, rounded: str) -> None:
        by = [f"{scaled}_scale", f"{scaled}_zero"]
        self._nodes += [
            helper.make_node("QuantizeLinear", [exact, *by], [codes]),
            helper.make_node("DequantizeLinear", [codes, *by], [rounded]),
        ]

    def convolution(self, node: NodeProto, weights: Mapping[str, onnx.TensorProto]) -> None:
        """Its weight by a scale for each output channel, its bias by that times the input's."""
        x, weight, bias = node.input[0], node.input[1], [*node.input[2:]]
        values = numpy_helper.to_array(weights[weight]).astype(np.float32)
        codes, scale = per_channel_int8(values, MOST)
        node.input[1] = self._constant(weight, codes, scale, node.output[0])
        if bias:
            finer = self._scales[x][0] * scale
            exact = np.rint(numpy_helper.to_array(weights[bias[0]]).astype(np.float64) / finer)
            whole = np.clip(exact, -(2**31) + 1, 2**31 - 1).astype(np.int32)
            node.input[2] = self._constant(bias[0], whole, finer, node.output[0])
        self.other(node)

    def _constant(self, name: str, codes: np.ndarray, scale: np.ndarray, reader: str) -> str:
        """Unpacked anew for each reader: a runtime takes the pair for its own."""
        name = f"{name}_of_{reader}"
        self._store(f"{name}_codes", codes)
        self._store(f"{name}_scale", scale)
        unpacked = helper.make_node(
            "DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], axis=0
        )
        self._nodes.append(unpacked)
        return name

    def _store(self, name: str, values: np.ndarray) -> None:
        self._graph.initializer.append(numpy_helper.from_array(values, name))

    def finish(self) -> None:
        """Put the nodes into the graph."""
        replace_nodes(self._graph, self._nodes)
