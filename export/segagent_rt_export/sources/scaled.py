"""Weights in 8 bits with one scale for the whole, for each output, or for each tile.

`quant_method` fp8 is the layout of DeepSeek, Qwen and vLLM: `weight` in E4M3 beside
`weight_scale_inv`, one factor for each tile, or `weight_scale`. compressed-tensors (LLM Compressor)
stores E4M3 or int8 beside `weight_scale`. Both mean w = code * scale. Scales of activations are for
servers that round activations, too; graphs do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.mllm_config import Config
from segagent_rt_export.sources.shards import MappedTensor, mapped_tensor
from segagent_rt_export.sources.weights import (
    BLOCK_SIZES,
    Blocks,
    Stored,
    Weight,
    mismatched,
)

SCALES = ("weight_scale_inv", "weight_scale")
"""How the scales of a layer are called."""

ACTIVATIONS = ("input_scale", "output_scale", "k_scale", "v_scale")
"""Scales that servers round activations and caches with."""

FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
"""Formats of compressed-tensors that store a code in each byte."""

FLOATS = ("F16", "BF16", "F32", "F64")


def _e4m3() -> Weight:
    """The numbers that the 256 codes of E4M3 stand for: no infinity, and one NaN of each sign."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(
        exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent.astype(float) - 10)
    )
    size[code & 127 == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


E4M3 = _e4m3()


@dataclass(frozen=True, slots=True)
class Scaled:
    """A weight [N, K] behind codes of 8 bits.

    Attributes:
        codes: E4M3 or int8, [N, K].
        scales: factors of the tiles, in the order of the tiles, of any shape.
        tile: rows and columns that share a factor; the last ones may be cut.
        unit: a factor of all.
    """

    codes: MappedTensor
    scales: Stored
    tile: tuple[int, int]
    unit: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def width(self) -> int:
        return 2

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        stored, (height, width) = self.codes.stored(rows), self.tile
        values = E4M3[stored] if self.codes.dtype == "F8_E4M3" else stored.astype(np.float32)
        scales = self._grid()[np.arange(self.shape[0])[rows] // height]
        if scales.shape[1] > 1:
            scales = np.repeat(scales, width, axis=1)[:, : self.shape[1]]
        values *= scales
        if self.unit != 1:
            values *= np.float32(self.unit)
        return values

    def blocks(self) -> Blocks | None:
        """The integers, if they are integers, and blocks divide the rows and the tiles."""
        inputs, (height, width) = self.shape[1], self.tile
        fitting = [size for size in BLOCK_SIZES if inputs % size == 0 == width % size]
        if self.codes.dtype != "I8" or not fitting:
            return None
        size = max(fitting)
        codes = self.codes.stored().view(np.uint8) ^ np.uint8(128)  # -128 becomes 0
        scales = self._grid()[np.arange(self.shape[0]) // height] * np.float32(self.unit)
        scales = np.repeat(scales, width // size, axis=1)[:, : inputs // size]
        return Blocks(8, codes, np.full(scales.shape, 128, np.uint8), scales)

    def _grid(self) -> Weight:
        """The factors, float32 [rows of tiles, columns of tiles]."""
        return self.scales.read().reshape(_tiles(self.shape, self.tile))


def _tiles(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, int]:
    """How many tiles cover a weight, down and across."""
    return -(-shape[0] // tile[0]), -(-shape[1] // tile[1])


def scaled_layer(
    tensors: Mapping[str, Stored],
    layer: str,
    scales: str,
    tiles: Iterable[tuple[int, int]] = (),
    unit: float = 1.0,
) -> Scaled:
    """The weight of a layer, its shapes checked.

    Args:
        tensors: of the checkpoint.
        layer: name without `.weight`.
        scales: which tensor of the layer holds its scales.
        tiles: heights and widths that scales may be for, beside a whole row and the whole weight.
        unit: a factor of all values.

    Raises:
        CheckpointInvalid: a tensor is missing, or of another type or shape.
    """
    codes, factors = (mapped_tensor(tensors, f"{layer}.{kind}") for kind in ("weight", scales))
    if codes.dtype not in ("F8_E4M3", "I8") or factors.dtype not in FLOATS:
        raise CheckpointInvalid(
            f"the quantised layer `{layer}` is stored as {codes.dtype} with scales in "
            f"{factors.dtype}, which cannot be exported",
            hint="name the checkpoint that it was quantised from",
        )
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise mismatched(layer)
    whole = codes.shape[0], codes.shape[1]
    grid = (*factors.shape, 1, 1)[: max(2, len(factors.shape))]
    for tile in (whole, (1, whole[1]), *tiles):
        if _tiles(whole, tile) == grid:
            return Scaled(codes, factors, tile, unit)
    raise mismatched(layer)


def unpack_fp8(tensors: Mapping[str, Stored], described: Config) -> dict[str, Stored]:
    """The weights of a checkpoint whose quant_method is fp8.

    Raises:
        CheckpointInvalid: a tensor is missing, or of another type or shape.
    """
    sizes = described.sizes("weight_block_size", ())
    return _unpack(tensors, [_tile(described, "weight_block_size", sizes)] if sizes else [])


def unpack_compressed(tensors: Mapping[str, Stored], described: Config) -> dict[str, Stored]:
    """The weights of a checkpoint whose quant_method is compressed-tensors.

    Raises:
        CheckpointInvalid: its format has no code in each byte, or weights are also sparse or
            rotated, or a tensor is missing, or of another type or shape.
    """
    if described.text("format", "") not in FORMATS:
        raise described.refuse("format", f"only {', '.join(FORMATS)} can be")
    for name in ("sparsity_config", "transform_config"):
        changes = described.section(name)
        if changes.fields and changes.get("format", None) != "dense":
            raise described.refuse(name, "weights are stored otherwise then")
    tiles, groups = set[tuple[int, int]](), described.section("config_groups")
    for group in groups.fields:
        weights = groups.section(group).section("weights")
        if weights.text("strategy", "tensor") == "block":
            tiles.add(_tile(weights, "block_structure", weights.sizes("block_structure", ())))
        elif weights.text("strategy", "tensor") == "group":
            tiles.add((1, weights.size("group_size")))
    if len(tiles) > 1:
        raise described.refuse("config_groups", "its blocks have several sizes")
    return _unpack(tensors, tiles)


def _tile(described: Config, name: str, sizes: tuple[int, ...]) -> tuple[int, int]:
    if len(sizes) != 2 or min(sizes) < 1:
        raise described.refuse(name, "it is not a height and a width")
    return sizes[0], sizes[1]


def _unpack(tensors: Mapping[str, Stored], tiles: Iterable[tuple[int, int]]) -> dict[str, Stored]:
    plain, layers = dict(tensors), dict[str, Stored]()
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        if kind in SCALES:
            layers[f"{layer}.weight"] = scaled_layer(tensors, layer, kind, tiles)
            _expect_symmetric(plain.pop(f"{layer}.weight_zero_point", None), layer)
        if kind in SCALES or kind in ACTIVATIONS:
            plain.pop(name, None)
    return plain | layers


def _expect_symmetric(zeros: Stored | None, layer: str) -> None:
    if zeros is not None and zeros.read().any():
        raise CheckpointInvalid(
            f"the quantised layer `{layer}` has zero points, which cannot be exported",
            hint="name the checkpoint that it was quantised from",
        )
