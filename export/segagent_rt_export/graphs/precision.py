"""How the weights of linear layers are stored and multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.integer_product import LIBRARY, MOST, integer_rows, multiply_rows
from segagent_rt_export.sources.weights import Blocks, Weight

Scheme: TypeAlias = Literal["fp32", "fp16", "8bit", "4bit", "int8", "stored", "rounded"]


Device: TypeAlias = Literal["cpu", "gpu", "any"]
"""What a variant is made for."""

AT_ONCE = 128
"""Rows of a matrix that are quantised together: what lies between is small."""

SHORTEST = 32
"""Longer blocks are halved down to this where they do not fit a matrix."""

LINE = 64
"""Columns that matrices of integers have a multiple of, where that is free to choose. With rows
that do not begin at a cache line, products take about a fifth longer (Qwen2.5-VL's 3,420)."""

PADDING = 1 / 16
"""The most zeros that may fill up the last block of MatMulNBits, as a share of the inputs."""


@dataclass(frozen=True, slots=True)
class Precision:
    """`8bit` and `4bit`: weights in blocks with one scale each; in ONNX Runtime's dialect
    activations are quantised on the fly (MatMulNBits, accuracy level 4). In the portable dialect
    weights are unpacked (DequantizeLinear), those of 8 bits with one scale per output, because
    TensorRT 10 takes blocks of 4 bits only; with `half`, to 16 bits, in which they are multiplied
    then. `int8`: products of integers, ONNX Runtime only; weights of seven bits with one scale per
    output channel, activations with one per row (`integer_product`). `stored`: eight bits on disk,
    unpacked once, at load, and multiplied in fp32: for small models, whose results then depend on
    rounding no more. `rounded`: products of integers, activations with one scale for all rows
    (MatMulInteger), where weights come as integers with one scale per output, else as `stored`; in
    the portable dialect all are unpacked. `fp16`: products in 16 bits, what comes in and out of
    them in 32. `fp32`: as they are.
    """

    scheme: Scheme = "fp32"
    block: int = 32
    half: bool = False

    def block_of(self, inputs: int) -> int:
        """Inputs that share a scale in a MatMulNBits of so many."""
        return fitting(self.block, inputs, int(PADDING * inputs))

    def aligned(self, size: int) -> int:
        """The width between two products that is multiplied fastest, at least `size`."""
        return size + -size % LINE if self.scheme == "int8" else size

    def linear(
        self,
        graph: GraphBuilder,
        x: str,
        weight: Weight,
        bias: Weight | None = None,
        blocks: Blocks | None = None,
    ) -> str:
        """x @ weight.T + bias, for a weight of [out, in] as in torch. Precision `int8` takes x of
        [rows, in] or [1, rows, in] only.

        `blocks` are the same weight's integers; they are kept where the precision is for them.
        """
        weight = np.asarray(weight, np.float32)
        if self.scheme == "fp32":
            y = graph.node("MatMul", [x, graph.weight(weight.T)])
        elif self.scheme == "fp16":
            with np.errstate(over="ignore"):  # what does not fit is infinite; the gate sees that
                y = _half(graph, x, graph.weight(weight.T.astype(np.float16)))
        elif self.scheme == "rounded" and blocks is not None:
            y = _in_integers(graph, x, *_signed(blocks))
        elif graph.dialect == "portable" or self.scheme in ("stored", "rounded"):
            unpacked = self._unpacked(graph, weight)
            y = _half(graph, x, unpacked) if self.half else graph.node("MatMul", [x, unpacked])
        elif self.scheme == "int8":
            y = _by_row(graph, x, *per_channel_int8(weight, MOST))
        elif blocks is not None and self.scheme == f"{blocks.bits}bit":
            y = _kept(graph, x, blocks)
        else:
            y = self._blocks(graph, x, weight)
        if bias is None:
            return y
        return graph.add(y, graph.weight(np.asarray(bias, np.float32)))

    def _blocks(self, graph: GraphBuilder, x: str, weight: Weight) -> str:
        bits, block = 8 if self.scheme == "8bit" else 4, self.block_of(weight.shape[1])
        packed, scales = quantise_blocks(weight, bits, block)
        inputs = [x, graph.weight(packed), graph.weight(scales)]
        return _in_blocks(graph, inputs, weight.shape, bits, block)

    def _unpacked(self, graph: GraphBuilder, weight: Weight) -> str:
        """The weight [in, out], stored in few bits.

        A width that blocks do not divide gets one scale per output and eight bits.
        """
        assert self.scheme != "int8"
        outputs, inputs = weight.shape
        block = fitting(self.block, inputs, 0)
        by_output = self.scheme == "8bit" and graph.dialect == "portable"
        if inputs % block or by_output:
            codes, scales = quantise_symmetric(weight, 8, inputs)
            return _unpacked_rows(graph, codes, self._scales(scales[:, 0]))
        codes, scales = quantise_symmetric(weight, 4 if self.scheme == "4bit" else 8, block)
        stored, scales = codes.T, self._scales(scales.T)
        if self.scheme != "4bit":
            name = graph.weight(stored)
        else:
            flat = np.pad(stored.reshape(-1), (0, stored.size % 2)).view(np.uint8)
            pairs = (flat[0::2] & 15) | (flat[1::2] << 4)
            name = graph.weight(pairs, nibbles=(inputs, outputs))
        return graph.node(
            "DequantizeLinear", [name, graph.weight(scales)], axis=0, block_size=block
        )

    def _scales(self, scales: Weight) -> Weight:
        """Scales of the type that weights are unpacked to."""
        return scales.astype(np.float16) if self.half else scales


def per_channel_int8(values: Weight, most: int = 127) -> tuple[Weight, Weight]:
    """Round a weight with one scale for each output channel.

    Args:
        values: float32 [channels, ...].
        most: the code of a channel's largest weight.

    Returns:
        Codes int8 of the same shape, and scales float32 [channels].
    """
    rest = tuple(range(1, values.ndim))
    scales = np.maximum(np.abs(values).max(rest), 1e-12).astype(np.float32) / most
    codes = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    return codes, scales


@dataclass(frozen=True, slots=True)
class MllmPrecision:
    """Precisions of an MLLM's two large graphs."""

    vision: Precision = Precision()
    language: Precision = Precision()


def fitting(block: int, inputs: int, padding: int) -> int:
    """The block, halved until at most so many zeros fill up the last one, or it is the shortest."""
    while block > SHORTEST and -inputs % block > padding:
        block //= 2
    return block


def quantise_blocks(
    weight: Weight, bits: int, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Symmetric quantisation of [N, K] in blocks: uint8 [N, blocks, block * bits / 8], and scales.

    The zero point is half of the range; a block's largest magnitude falls on the end of the range
    that has one code more.
    """
    rows, columns = weight.shape
    blocks = -(-columns // block)
    codes = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    padded = np.zeros((min(rows, AT_ONCE), blocks * block), np.float32)
    for start in range(0, rows, AT_ONCE):
        some = weight[start : start + AT_ONCE]
        padded[: len(some), :columns] = some
        grouped = padded[: len(some)].reshape(len(some), blocks, block)
        found = _quantise(grouped, bits)
        codes[start : start + AT_ONCE], scales[start : start + AT_ONCE] = found
    return codes, scales.reshape(-1)


def _quantise(grouped: Weight, bits: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Codes and scales of [rows, blocks, block]."""
    middle = 1 << (bits - 1)
    at = np.abs(grouped).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(grouped, at, -1)
    scales = (extreme / -middle).astype(np.float32)
    safe = np.where(scales == 0, 1, scales)
    codes = np.clip(np.rint(grouped / safe) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scales[..., 0]


def quantise_symmetric(
    weight: Weight, bits: int, block: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """As `quantise_blocks` with positive scales, which TensorRT asks for: int8 [N, K], [N, blocks].

    `block` divides K.
    """
    grouped = weight.reshape(len(weight), -1, block)
    most = (1 << (bits - 1)) - 1
    scales = np.maximum(np.abs(grouped).max(-1), 1e-12) / most
    codes = np.rint(grouped / scales[..., None]).astype(np.int8)
    return codes.reshape(weight.shape), scales.astype(np.float32)


def _half(graph: GraphBuilder, x: str, weight: str) -> str:
    """x @ weight in 16 bits, for a weight [in, out] of 16 bits."""
    key = f"{x}_half"
    if key not in graph.shared:
        graph.shared[key] = graph.nodes("Cast", [x], [key], to=10)
    product = graph.node("MatMul", [*graph.shared[key], weight])
    return graph.node("Cast", [product], to=1)


def _kept(graph: GraphBuilder, x: str, blocks: Blocks) -> str:
    """The integers of a checkpoint as they are."""
    count = blocks.scales.shape[1]
    codes: Weight = blocks.codes.reshape(-1, count, blocks.size)
    zeros: Weight = blocks.zeros
    if blocks.bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
        zeros = np.pad(zeros, ((0, 0), (0, count % 2)))
        zeros = zeros[:, 0::2] | (zeros[:, 1::2] << 4)
    inputs = [x, *(graph.weight(part) for part in (codes, blocks.scales.reshape(-1), zeros))]
    return _in_blocks(graph, inputs, blocks.codes.shape, blocks.bits, blocks.size)


def _in_blocks(
    graph: GraphBuilder, inputs: list[str], shape: tuple[int, ...], bits: int, block: int
) -> str:
    """`inputs` are the activations, codes, scales, and zeros if they are not in the middle."""
    return graph.node(
        "MatMulNBits",
        inputs,
        domain=LIBRARY,
        K=shape[1],
        N=shape[0],
        bits=bits,
        block_size=block,
        accuracy_level=4,
    )


def _signed(blocks: Blocks) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes and scales of integers with one scale per output, none of them below -127."""
    assert blocks.scales.shape[1] == 1
    codes = blocks.codes.astype(np.int16) - blocks.zeros
    return codes.astype(np.int8), blocks.scales[:, 0]


def _unpacked_rows(graph: GraphBuilder, codes: npt.NDArray[np.int8], scale: Weight) -> str:
    """The weight [in, out] of codes [out, in] with one scale per output."""
    names = [graph.weight(codes.T), graph.weight(scale)]
    return graph.node("DequantizeLinear", names, axis=1)


def _by_row(
    graph: GraphBuilder, x: str, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> str:
    """x @ (scales * codes).T; products with the same activations share their codes."""
    if f"{x}_rows" not in graph.shared:
        graph.shared[f"{x}_rows"] = list(integer_rows(graph, x))
    rows, step = graph.shared[f"{x}_rows"]
    return multiply_rows(graph, (rows, step), codes, scales)


def _in_integers(
    graph: GraphBuilder, x: str, codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]
) -> str:
    """x @ (scale * codes).T; activations are quantised on the fly, all with one scale."""
    if graph.dialect == "portable":
        return graph.node("MatMul", [x, _unpacked_rows(graph, codes, scale)])
    if f"{x}_codes" not in graph.shared:
        names = [f"{x}_codes", f"{x}_scale", f"{x}_zero"]
        graph.shared[f"{x}_codes"] = graph.nodes("DynamicQuantizeLinear", [x], names)
    quantised, x_scale, x_zero = graph.shared[f"{x}_codes"]
    product = graph.node("MatMulInteger", [quantised, graph.weight(codes.T), x_zero])
    scaled = graph.mul(x_scale, graph.weight(scale))
    return graph.mul(graph.node("Cast", [product], to=1), scaled)
