"""Graphs of the same net, with one file of weights between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

ALIGNMENT = 64
"""Bytes; weights begin at multiples, as processors like to load them."""

INLINE = 256
"""Bytes; what is no larger stays in its graph."""


def save_sharing(models: Mapping[Path, onnx.ModelProto], beside: str) -> None:
    """Write graphs into one folder; weights that are equal, byte for byte, are stored once.

    Args:
        models: by the file that each is written to; they lose their weights on the way.
        beside: name of the file of weights.
    """
    places, content = dict[bytes, int](), bytearray()
    for path, model in models.items():
        for tensor in model.graph.initializer:
            values = tensor.raw_data
            if len(values) <= INLINE:
                continue
            if values not in places:
                content += bytes(-len(content) % ALIGNMENT)
                places[values] = len(content)
                content += values
            set_external_data(tensor, beside, places[values], len(values))
            tensor.ClearField("raw_data")
        path.with_name(beside).write_bytes(content)
        path.write_bytes(model.SerializeToString())
