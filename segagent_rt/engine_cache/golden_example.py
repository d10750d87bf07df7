"""What a graph must compute for given inputs, and the file that holds it.

Large arrays are not written out. An input may be named instead: `zeros/1/8/640/128` is an array of
zeros of that shape, `in/keys` the input of the example before, `out/present.0.key` what the graph
itself computed for the example before. An output may be a vector of samples, see `sampled`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from segagent_rt.types import Array

GoldenExample: TypeAlias = tuple[Mapping[str, Array], Mapping[str, Array]]
"""Inputs of a graph, and the outputs that it must give for them."""

SAMPLES = 4096
"""Values that are kept of an output."""

LARGEST = 256 << 20
"""Bytes of the arrays of one file; more are refused, as the file may be anybody's."""

_STRIDE = 2654435761
"""Knuth's multiplicative constant: odd, so neither channels nor rows are preferred."""

_HALF = "in16"
"""Inputs in fp32 whose values fp16 holds."""


def sampled(array: Array) -> Array:
    """`SAMPLES` values of an array, spread over it; always those of the same places."""
    places = np.arange(SAMPLES, dtype=np.uint64) * np.uint64(_STRIDE) % np.uint64(array.size)
    values: Array = array.reshape(-1)[places]
    return values


def reference(text: str) -> Array:
    """An input that is named."""
    return np.array(text)


def resolve(feed: Array, known: Mapping[str, Array]) -> Array:
    """An input itself; `known` are inputs and outputs of the example before.

    Raises:
        ValueError: it names what is not there.
    """
    if feed.dtype.kind != "U":
        return feed
    kind, _, name = str(feed).partition("/")
    if kind == "zeros":
        shape = [int(length) for length in name.split("/")]
        if not 0 <= int(np.prod(shape, dtype=np.float64)) <= LARGEST // 4:
            raise ValueError(f"zeros of shape {shape} are too many")
        return np.zeros(shape, np.float32)
    if str(feed) not in known:
        raise ValueError(f"there is no {str(feed)[:60]!a} in the example before")
    return known[str(feed)]


def pack_examples(examples: Sequence[GoldenExample]) -> bytes:
    """Examples as one compressed file of arrays."""
    arrays: dict[str, Array] = {}
    for number, (feeds, expected) in enumerate(examples):
        for name, array in feeds.items():
            half = _halved(array)
            kind = "in" if half is None else _HALF
            arrays[f"{number}/{kind}/{name}"] = array if half is None else half
        arrays |= {f"{number}/out/{name}": array for name, array in expected.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _halved(array: Array) -> Array | None:
    """The array in fp16 if that holds every value."""
    if array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None


def unpack_examples(content: bytes, most: int | None = None) -> list[GoldenExample]:
    """The inverse of `pack_examples`.

    Args:
        content: the file.
        most: bytes that it may unpack to; None if the file is ours.

    Raises:
        ValueError: it unpacks to too much.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if most is not None and sum(entry.file_size for entry in archive.infolist()) > most:
            raise ValueError(f"golden examples of more than {most >> 20} MiB")
    found: dict[str, tuple[dict[str, Array], dict[str, Array]]] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for path in arrays.files:
            number, kind, name = path.split("/", 2)
            array = arrays[path]
            if kind == _HALF:
                array = array.astype(np.float32)
            found.setdefault(number, ({}, {}))[kind == "out"][name] = array
    return list(found.values())
