"""What a graph must compute for given inputs, and the file that holds it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from segagent_rt.types import Array

GoldenExample: TypeAlias = tuple[Mapping[str, Array], Mapping[str, Array]]
"""Inputs of a graph, and the outputs that it must give for them."""


def pack_examples(examples: Sequence[GoldenExample]) -> bytes:
    """Examples as one compressed file of arrays."""
    arrays = {
        f"{number}/{kind}/{name}": array
        for number, example in enumerate(examples)
        for kind, part in zip(("in", "out"), example, strict=True)
        for name, array in part.items()
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpack_examples(content: bytes) -> list[GoldenExample]:
    """The inverse of `pack_examples`."""
    found: dict[str, tuple[dict[str, Array], dict[str, Array]]] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for path in arrays.files:
            number, kind, name = path.split("/", 2)
            found.setdefault(number, ({}, {}))[kind == "out"][name] = arrays[path]
    return list(found.values())
