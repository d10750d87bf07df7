"""Checkpoints that come quantised, by GPTQ or AWQ: their integers, read as what they stand for.

A linear layer [N, K] is stored as `qweight`, `qzeros`, `scales` and sometimes `g_idx`, the group of
each input; w = scale * (code - zero), with a scale and a zero for each group and output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.mllm_config import Config
from segagent_rt_export.sources.shards import MappedTensor
from segagent_rt_export.sources.weights import (
    BLOCK_SIZES,
    Blocks,
    Stored,
    Weight,
    mismatched,
    missing,
)

KINDS = ("qweight", "qzeros", "scales", "g_idx")
"""Tensors of a quantised layer."""

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which four bits of a word AWQ keeps each of eight neighbouring columns."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint is packed.

    Attributes:
        bits: of a code.
        by_rows: whether words hold neighbouring inputs (GPTQ) or neighbouring outputs (AWQ).
        places: where in a word each of the neighbouring columns lies.
        offset: what must be added to stored zeros; GPTQ's first format stores one less.
    """

    bits: int
    by_rows: bool
    places: tuple[int, ...]
    offset: int

    @property
    def per_word(self) -> int:
        return 32 // self.bits


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A weight [N, K] behind its integers."""

    scheme: Scheme
    name: str
    codes: MappedTensor
    zeros: MappedTensor
    scales: Stored
    groups: MappedTensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.codes.shape
        per = self.scheme.per_word
        return (columns, rows * per) if self.scheme.by_rows else (columns * per, rows)

    @property
    def width(self) -> int:
        return 2

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        codes, zeros, scales = (part[:, rows] for part in self._parts())
        group = self._group_of_inputs()
        weight = (codes - zeros[group]) * scales[group]
        return np.ascontiguousarray(weight.T, np.float32)

    def blocks(self) -> Blocks | None:
        """The integers, unless groups are shuffled, of an odd size, or zeros out of range."""
        (codes, zeros, scales), inputs = self._parts(), self.shape[1]
        size = inputs // len(scales)
        in_order = np.array_equal(self._group_of_inputs(), np.arange(inputs) // size)
        if not in_order or size not in BLOCK_SIZES or zeros.max() >> self.scheme.bits:
            return None
        found = (np.ascontiguousarray(part.T) for part in (codes, zeros.astype(np.uint8), scales))
        return Blocks(self.scheme.bits, *found)

    def _parts(self) -> tuple[Weight, Weight, Weight]:
        """Codes uint8 [K, N], zeros int16 [groups, N], scales float32 [groups, N]."""
        scheme, words = self.scheme, self.codes.stored()
        if scheme.by_rows:
            spread = _spread(words, scheme.bits)
            codes = spread.transpose(0, 2, 1).reshape(self.shape[1], -1)
        else:
            codes = _columns(words, scheme)
        zeros = _columns(self.zeros.stored(), scheme).astype(np.int16) + scheme.offset
        return codes, zeros, self.scales.read()

    def _group_of_inputs(self) -> Weight:
        inputs, count = self.shape[1], self.scales.shape[0]
        if self.groups is None:
            return np.arange(inputs) // (inputs // count)
        group = self.groups.stored()
        if group.min() < 0 or group.max() >= count:
            raise CheckpointInvalid(
                f"the tensor `{self.name}.g_idx` names groups that are not there"
            )
        return group


def _spread(words: Weight, bits: int) -> Weight:
    """The codes in 32-bit words, low bits first, along a new last axis."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    spread = words.view(np.uint32)[..., None] >> shifts
    return np.asarray(spread & np.uint32((1 << bits) - 1), np.uint8)


def _columns(words: Weight, scheme: Scheme) -> Weight:
    """The codes of words that hold neighbouring columns."""
    return _spread(words, scheme.bits)[..., list(scheme.places)].reshape(len(words), -1)


def unpack(tensors: Mapping[str, Stored], described: Config) -> dict[str, Stored]:
    """The weights of a checkpoint; layers that were left out of quantisation as they are.

    Raises:
        CheckpointInvalid: they are packed otherwise, or a tensor is missing, or of another shape.
    """
    scheme = _scheme(described)
    layers = [name[: -len(".qweight")] for name in tensors if name.endswith(".qweight")]
    packed = {f"{layer}.{kind}" for layer in layers for kind in KINDS}
    plain = {name: tensor for name, tensor in tensors.items() if name not in packed}
    return plain | {f"{layer}.weight": _layer(tensors, layer, scheme) for layer in layers}


def _scheme(described: Config) -> Scheme:
    method = described.text("quant_method", "")
    bits = described.size("bits", 4)
    if bits not in ((4, 8) if method == "gptq" else (4,)):
        raise described.refuse("bits", "codes of that size are packed otherwise")
    if method == "awq":
        if described.text("version", "gemm") != "gemm":
            raise described.refuse("version", "only `gemm` can be")
        return Scheme(bits, False, AWQ_PLACES, 0)
    first = described.text("checkpoint_format", "gptq") != "gptq_v2"
    return Scheme(bits, True, tuple(range(32 // bits)), int(first))


def _layer(tensors: Mapping[str, Stored], layer: str, scheme: Scheme) -> Unpacked:
    """One layer, its shapes checked."""
    for kind in ("qzeros", "scales"):
        if f"{layer}.{kind}" not in tensors:
            raise missing(f"{layer}.{kind}")
    codes, zeros = (_words(tensors, f"{layer}.{kind}", 2) for kind in ("qweight", "qzeros"))
    grouped = scheme.by_rows and f"{layer}.g_idx" in tensors
    group = _words(tensors, f"{layer}.g_idx", 1) if grouped else None
    found = Unpacked(scheme, layer, codes, zeros, tensors[f"{layer}.scales"], group)
    outputs, inputs = found.shape
    count = found.scales.shape[0] if found.scales.shape else 0
    fits = (
        count > 0
        and found.scales.shape == (count, outputs)
        and zeros.shape == (count, outputs // scheme.per_word)
        and (inputs % count == 0 if group is None else group.shape == (inputs,))
    )
    if not fits or math.prod(found.shape) == 0:
        raise mismatched(layer)
    return found


def _words(tensors: Mapping[str, Stored], name: str, axes: int) -> MappedTensor:
    found = tensors[name]
    if isinstance(found, MappedTensor) and found.dtype == "I32" and len(found.shape) == axes:
        return found
    raise CheckpointInvalid(
        f"the tensor `{name}` does not hold packed integers",
        hint="quantised checkpoints are read from safetensors files with 32-bit words",
    )
