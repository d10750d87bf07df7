"""Checkpoints that bitsandbytes quantised, to 4 bits (nf4, fp4) or to int8 (LLM.int8).

A weight in 4 bits is a row of codes, two in a byte, the first in its high half. Codes name one of
the 16 numbers of `quant_map`, and neighbours share a factor of `absmax`; with double quantisation
the factors are codes of 8 bits themselves. `quant_state` is JSON with the shape. A weight in int8
has the largest size of each output in `SCB`: w = code * SCB / 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.mllm_config import Config
from segagent_rt_export.sources.scaled import scaled_layer
from segagent_rt_export.sources.shards import MappedTensor, mapped_tensor
from segagent_rt_export.sources.weights import Stored, Weight, mismatched

STATES = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
"""How the tensors end that describe weights in 4 bits."""

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""Tensors beside such a weight, after its name."""

LONGEST_STATE = 4096
"""Bytes of a description; usual ones have two hundred."""

UNIT = 1 / 127
"""Of int8, as bitsandbytes multiplies."""


@dataclass(frozen=True, slots=True)
class BlockCodes:
    """Numbers in a row, as codes of 8 bits: number = table[code] * factor of its block + offset."""

    codes: MappedTensor
    table: Stored
    factors: Stored
    block: int
    offset: float

    def read(self) -> Weight:
        values: Weight = self.table.read()[self.codes.stored()]
        _multiply_blocks(values, self.factors.read(), self.block)
        return values + np.float32(self.offset)


@dataclass(frozen=True, slots=True)
class FourBit:
    """A weight [N, K] behind its codes of 4 bits."""

    codes: MappedTensor
    shape: tuple[int, ...]
    table: Stored
    factors: MappedTensor | BlockCodes
    block: int

    @property
    def width(self) -> int:
        return 2

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        pairs = self.table.read()[np.arange(256)[:, None] >> np.array([4, 0]) & 15]
        values = pairs[self.codes.stored().reshape(-1).view(np.uint8)].reshape(-1)
        values = values[: math.prod(self.shape)]
        _multiply_blocks(values, self.factors.read(), self.block)
        return np.asarray(values.reshape(self.shape)[rows])


def _multiply_blocks(values: Weight, factors: Weight, block: int) -> None:
    """Multiply neighbours by their factor, in place; the last block may be cut."""
    whole = len(values) // block
    values[: whole * block].reshape(whole, block)[:] *= factors[:whole, None]
    values[whole * block :] *= factors[whole:]


def unpack(tensors: Mapping[str, Stored], described: Config) -> dict[str, Stored]:
    """The weights of a checkpoint; layers that were left out of quantisation as they are.

    Raises:
        CheckpointInvalid: a tensor is missing, or of another type or shape.
    """
    plain, layers = dict(tensors), dict[str, Stored]()
    for name in tensors:
        if name.endswith(STATES):
            weight = name[: name.rindex(".quant_state")]
            layers[weight] = _four_bit(tensors, weight, name)
            for part in (name, *(f"{weight}.{part}" for part in PARTS)):
                plain.pop(part, None)
        elif name.endswith(".SCB"):
            layer = name[: -len(".SCB")]
            layers[f"{layer}.weight"] = scaled_layer(tensors, layer, "SCB", unit=UNIT)
            _expect_rows(plain.pop(f"{layer}.weight_format", None), layer)
            plain.pop(name)
    return plain | layers


def _four_bit(tensors: Mapping[str, Stored], weight: str, name: str) -> FourBit:
    state = _state(tensors, name)
    shape, block = state.sizes("shape", ()), state.size("blocksize")
    if len(shape) != 2 or min(shape) < 1:
        raise state.refuse("shape", "a weight has outputs and inputs")
    count, codes = math.prod(shape), mapped_tensor(tensors, weight)
    nested = f"{weight}.nested_absmax" in tensors
    table = _row(tensors, f"{weight}.quant_map", "F32", 16)
    kind = "U8" if nested else "F32"
    factors = _row(tensors, f"{weight}.absmax", kind, -(-count // block))
    if math.prod(codes.shape) * codes.width != -(-count // 2):
        raise mismatched(weight)
    if not nested:
        return FourBit(codes, shape, table, factors, block)
    outer = state.size("nested_blocksize")
    blocks = BlockCodes(
        factors,
        _row(tensors, f"{weight}.nested_quant_map", "F32", 256),
        _row(tensors, f"{weight}.nested_absmax", "F32", -(-factors.shape[0] // outer)),
        outer,
        state.number("nested_offset", math.nan),
    )
    return FourBit(codes, shape, table, blocks, block)


def _state(tensors: Mapping[str, Stored], name: str) -> Config:
    """The description of a weight, JSON in the bytes of a tensor."""
    found = mapped_tensor(tensors, name, ("U8",))
    if len(found.shape) != 1 or found.shape[0] > LONGEST_STATE:
        raise CheckpointInvalid(f"the tensor `{name}` is no description of a quantised weight")
    try:
        content = json.loads(found.stored().tobytes())
    except (ValueError, RecursionError):
        raise CheckpointInvalid(f"the tensor `{name}` does not hold JSON") from None
    if not isinstance(content, dict):
        raise CheckpointInvalid(f"the tensor `{name}` does not hold a JSON object")
    return Config(content, f"`{name}`")


def _row(tensors: Mapping[str, Stored], name: str, kind: str, length: int) -> MappedTensor:
    """A tensor with one axis of this length, in this type."""
    found = mapped_tensor(tensors, name, (kind,))
    if found.shape != (length,):
        raise mismatched(name.rpartition(".")[0])
    return found


def _expect_rows(order: Stored | None, layer: str) -> None:
    """Refuse the orders that GPUs used in former versions of bitsandbytes."""
    if order is not None and (math.prod(order.shape) != 1 or order.read().any()):
        raise CheckpointInvalid(
            f"the quantised layer `{layer}` is not stored row by row",
            hint="save the checkpoint again with bitsandbytes 0.43 or newer",
        )
