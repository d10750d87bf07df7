"""Where an exporter gets its weights from: one tensor at a time, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from segagent_rt_export.errors import CheckpointInvalid

Weight: TypeAlias = npt.NDArray[Any]
"""A tensor of a checkpoint."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Blocks that MatMulNBits multiplies."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight that is quantised already: w = scale * (code - zero) in blocks of inputs.

    codes uint8 [N, K], zeros uint8 [N, blocks], scales float32 [N, blocks].
    """

    bits: int
    codes: npt.NDArray[np.uint8]
    zeros: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]

    @property
    def size(self) -> int:
        """Inputs of a block."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def rows(self, start: int, stop: int) -> Blocks:
        """Some of the outputs."""
        rows = slice(start, stop)
        return Blocks(self.bits, self.codes[rows], self.zeros[rows], self.scales[rows])


class Weights(Protocol):
    """Named tensors, read when asked for."""

    def __call__(self, name: str) -> Weight:
        """The tensor as float32.

        Raises:
            CheckpointInvalid: there is none of that name.
        """

    def __contains__(self, name: object) -> bool: ...

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's integers, if it is stored in blocks of them."""


def take(weights: Weights, name: str, shape: Sequence[int]) -> Weight:
    """A tensor that must have this shape.

    Raises:
        CheckpointInvalid: it is missing, or of another shape.
    """
    tensor = weights(name)
    if tensor.shape != tuple(shape):
        raise CheckpointInvalid(
            f"the tensor `{name}` is {_by(tensor.shape)}, where the configuration asks for "
            f"{_by(shape)}",
            hint="do config.json and the weights belong together?",
        )
    return tensor


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


class StateDict:
    """Weights that are in memory already; `rounded` are the integers of some, by whole names."""

    def __init__(
        self,
        tensors: Mapping[str, object],
        prefix: str = "",
        rounded: Mapping[str, Blocks] | None = None,
    ) -> None:
        self._tensors, self._prefix, self._rounded = tensors, prefix, rounded or {}

    def __call__(self, name: str) -> Weight:
        if name not in self:
            raise missing(self._prefix + name)
        tensor = self._tensors[self._prefix + name]
        return np.asarray(tensor.detach().float().cpu().numpy())  # type: ignore[attr-defined]

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._tensors

    def blocks(self, name: str) -> Blocks | None:
        return self._rounded.get(self._prefix + name)


def missing(name: str) -> CheckpointInvalid:
    """The error for a tensor that is not there."""
    return CheckpointInvalid(
        f"the checkpoint has no tensor `{name}`", hint="was it saved or copied completely?"
    )


def mismatched(layer: str) -> CheckpointInvalid:
    """The error for a quantised layer whose tensors are not of one weight."""
    return CheckpointInvalid(
        f"the quantised layer `{layer}` has tensors of shapes that do not belong together",
        hint="is the quantization_config of config.json that of these weights?",
    )


class Stored(Protocol):
    """A tensor on disk; `width` is the number of bytes of one value."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def width(self) -> int: ...

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        """These rows as float32."""


@runtime_checkable
class Quantised(Protocol):
    """A tensor on disk that may be stored in blocks of integers."""

    def blocks(self) -> Blocks | None:
        """These, if they can be multiplied as they are."""


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Some rows of a tensor: layers that a checkpoint stores as one."""

    whole: Stored
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.whole.shape[1:])

    @property
    def width(self) -> int:
        return self.whole.width

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        return self.whole.read(slice(self.start, self.stop))[rows]

    def blocks(self) -> Blocks | None:
        found = self.whole.blocks() if isinstance(self.whole, Quantised) else None
        return None if found is None else found.rows(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors on disk by name; remembers which were read."""

    tensors: Mapping[str, Stored]
    prefix: str = ""
    read: set[str] = field(default_factory=set)

    def below(self, prefix: str) -> Checkpoint:
        """The tensors whose names begin with `prefix`, by the rest of their names."""
        return Checkpoint(self.tensors, self.prefix + prefix, self.read)

    def stored(self, name: str) -> Stored:
        """A tensor, not read yet.

        Raises:
            CheckpointInvalid: there is none of that name.
        """
        name = self.prefix + name
        if name not in self.tensors:
            raise missing(name)
        self.read.add(name)
        return self.tensors[name]

    def __call__(self, name: str) -> Weight:
        return self.stored(name).read()

    def __contains__(self, name: object) -> bool:
        return f"{self.prefix}{name}" in self.tensors

    def blocks(self, name: str) -> Blocks | None:
        tensor = self.tensors.get(self.prefix + name)
        return tensor.blocks() if isinstance(tensor, Quantised) else None

    def unread(self, known: Callable[[str], bool]) -> Iterator[str]:
        """Names that nobody asked for, but those that are `known` to be needless."""
        for name in sorted(self.tensors):
            if name not in self.read and not known(name):
                yield name


def row_pieces(tensor: Stored, rows: int = 8192) -> Iterator[Weight]:
    """A tensor in pieces of at most so many rows."""
    for start in range(0, tensor.shape[0], rows):
        yield tensor.read(slice(start, min(start + rows, tensor.shape[0])))
