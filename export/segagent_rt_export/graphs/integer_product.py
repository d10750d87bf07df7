"""Products of integers whose activations are rounded on the fly, each row by itself."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from segagent_rt_export.sources.weights import Weight

LIBRARY = "com.microsoft"
"""ONNX Runtime's own operators."""

MOST = 63
"""Of a weight, though int8 goes to 127: x86 without VNNI adds pairs of products in int16, and
2 * 255 * 63 still fits."""

ZERO, STEPS = 128, 127
"""The code uint8 of an activation of zero, and how far codes go from there."""

LEAST_STEP = 1e-12
"""Of rows that are zero throughout."""


class NodeWriter(Protocol):
    """What nodes and their constants are written with."""

    def node(
        self, kind: str, inputs: list[str], output: str | None = None, *,
        domain: str = "", **attributes: Any,
    ) -> str:  # fmt: skip
        """Add a node with one output, named or not; returns the output's name."""
        ...

    def weight(self, values: Weight) -> str:
        """Add a constant; returns its name."""
        ...


def integer_rows(graph: NodeWriter, x: str) -> tuple[str, str]:
    """Round each row of x [rows, K] or [1, rows, K] to 255 steps that reach as far as its largest
    value.

    A few tokens of large language models have activations a hundred times as large as all others
    (Sun et al. 2024, "Massive activations in large language models"). One scale for the whole
    tensor would leave those others few steps.

    Both extremes are looked for and rounding divides by itself, so that no array as large as x is
    written but the codes: at a thousand rows memory is what these nodes wait for.

    Returns:
        Names of the codes, uint8 like x, and of the steps, float32 [..., rows, 1].
    """
    last = graph.weight(np.array([-1]))
    lowest = graph.node("Neg", [graph.node("ReduceMin", [x, last])])
    least = graph.weight(np.array(LEAST_STEP, np.float32))
    largest = graph.node("Max", [graph.node("ReduceMax", [x, last]), lowest, least])
    step = graph.node("Mul", [largest, graph.weight(np.array(1 / STEPS, np.float32))])
    steps = graph.node("Reshape", [step, last])
    zero = TensorProto(data_type=TensorProto.UINT8, dims=[1], raw_data=bytes([ZERO]))
    zeros = graph.node("ConstantOfShape", [graph.node("Shape", [steps])], value=zero)
    return graph.node("QuantizeLinear", [x, steps, zeros], axis=-2), step


def multiply_rows(
    graph: NodeWriter,
    rows: tuple[str, str],
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    output: str | None = None,
) -> str:
    """The rows times (scales * codes).T, in real numbers.

    A row's product does not depend on the rows that come with it: tokens fed together are tokens
    fed alone.

    Args:
        graph: where nodes go.
        rows: what `integer_rows` returned.
        codes: of a weight [out, in], within `MOST`.
        scales: of the weight's outputs [out].
        output: the product's name, if it has to have one.
    """
    one = graph.weight(np.array(1, np.float32))
    zero = graph.weight(np.array(ZERO, np.uint8))
    weight = [graph.weight(codes.T), one, graph.weight(scales), zero]
    product = graph.node("MatMulIntegerToFloat", [rows[0], *weight], domain=LIBRARY)
    return graph.node("Mul", [product, rows[1]], output)
