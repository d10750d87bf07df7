"""From a segmenter's traced graphs to those of a variant: weights in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from segagent_rt_export.graphs.integer_product import (
    LIBRARY,
    MOST,
    integer_rows,
    multiply_rows,
)
from segagent_rt_export.graphs.precision import Precision, per_channel_int8, quantise_blocks
from segagent_rt_export.graphs.tracing import INLINE_LIMIT
from segagent_rt_export.passes.fp16 import convert_products_to_fp16
from segagent_rt_export.passes.fuse_gelu import fuse_gelu
from segagent_rt_export.passes.prune_unused import replace_nodes
from segagent_rt_export.passes.qdq_conv import Ranges, quantise_convolutions
from segagent_rt_export.passes.weight_only_int8 import LEAST, quantise_conv_weights
from segagent_rt_export.sources.weights import Weight
from segagent_rt_export.variants import SegmenterVariant


def write_variant(
    graphs: Mapping[str, Path],
    folder: Path,
    variant: SegmenterVariant,
    ranges: Mapping[str, Ranges] | None = None,
) -> None:
    """Write the graphs again, under the same names in another folder, as a variant stores them.

    `ranges` are those of values by role, for variants whose convolutions are int8.
    """
    folder.mkdir()
    for role, path in graphs.items():
        model = onnx.load(path)
        linear = variant.linear
        if role == "decoder" and variant.decoder is not None:
            linear = variant.decoder
        if role in variant.in_integers(graphs):
            assert ranges is not None
            quantise_convolutions(
                fuse_gelu(model), ranges[role], outputs=variant.outputs, exact=variant.exact
            )
        elif variant.convolutions != "fp32":
            quantise_conv_weights(model)
        if linear.scheme == "fp16":
            convert_products_to_fp16(model)
        else:
            quantise_matrices(model, linear)
        save(model, folder / path.name)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; large weights go beside it."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > INLINE_LIMIT
    beside = f"{path.name}.data"
    onnx.save_model(model, str(path), save_as_external_data=large, location=beside)


def quantise_matrices(model: onnx.ModelProto, precision: Precision) -> None:
    """Replace products with constant matrices by those of a precision, in place."""
    if precision.scheme == "fp32":
        return
    rewrite = _MatrixQuantiser(model, precision)
    for node in list(model.graph.node):
        rewrite.take(node)
    rewrite.finish()


class _MatrixQuantiser:
    """One pass over a graph; a matrix that several products use is stored once."""

    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        self._model, self._precision = model, precision
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[NodeProto] = []
        self._stored: dict[str, tuple[int, int]] = {}
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._rows: dict[str, tuple[tuple[str, str], str]] = {}
        """Of products' inputs: what `integer_rows` returned, and the shape without its last."""

    def take(self, node: NodeProto) -> None:
        tensor = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or len(tensor.dims) != 2 or np.prod(tensor.dims) < LEAST:
            self._nodes.append(node)
        elif self._precision.scheme == "int8":
            self._in_integers(node, tensor)
        else:
            self._blocks(node, tensor)

    def finish(self) -> None:
        """Put the nodes into the graph."""
        replace_nodes(self._model.graph, self._nodes)
        domains = {opset.domain for opset in self._model.opset_import}
        if any(node.domain == LIBRARY for node in self._nodes) and LIBRARY not in domains:
            self._model.opset_import.append(helper.make_opsetid(LIBRARY, 1))

    def _store(self, name: str, **values: np.ndarray) -> None:
        tensors = [numpy_helper.from_array(v, f"{name}_{kind}") for kind, v in values.items()]
        self._model.graph.initializer.extend(tensors)

    def _blocks(self, node: NodeProto, tensor: TensorProto) -> None:
        name, block = tensor.name, self._precision.block_of(tensor.dims[0])
        bits = 8 if self._precision.scheme == "8bit" else 4
        if name not in self._stored:
            matrix = np.ascontiguousarray(numpy_helper.to_array(tensor).T, np.float32)
            codes, scales = quantise_blocks(matrix, bits, block)
            self._store(name, codes=codes, scales=scales)
            self._stored[name] = (matrix.shape[1], matrix.shape[0])
        inner, outer = self._stored[name]
        self._nodes.append(
            helper.make_node(
                "MatMulNBits", [node.input[0], f"{name}_codes", f"{name}_scales"], node.output,
                domain=LIBRARY, K=inner, N=outer, bits=bits, block_size=block, accuracy_level=4,
            )
        )  # fmt: skip

    def _in_integers(self, product: NodeProto, tensor: TensorProto) -> None:
        x = product.input[0]
        inner, outer = tensor.dims
        if x not in self._rows:
            flat = self.node("Reshape", [x, self.weight(np.array([-1, inner]))])
            self._rows[x] = integer_rows(self, flat), self.node("Shape", [x], end=-1)
        rows, before = self._rows[x]
        codes, scales = per_channel_int8(numpy_helper.to_array(tensor).T, MOST)
        flat = multiply_rows(self, rows, codes, scales)
        shape = self.node("Concat", [before, self.weight(np.array([outer]))], axis=0)
        self.node("Reshape", [flat, shape], product.output[0])

    def node(
        self, kind: str, inputs: list[str], output: str | None = None, *,
        domain: str = "", **attributes: Any,
    ) -> str:  # fmt: skip
        """Add a node, for `integer_product`."""
        name = output or f"integers_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], domain=domain, **attributes))
        return name

    def weight(self, values: Weight) -> str:
        """Add a constant, or find the one that is equal."""
        values = np.ascontiguousarray(values)
        key = sha256(values.data).digest(), values.dtype.str, values.shape
        if key not in self._constants:
            self._constants[key] = name = f"integers_constant_{len(self._constants)}"
            self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return self._constants[key]
