"""Graphs of the same net, with one file of weights between them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data

from segagent_rt_export.graphs.builder import WeightFile

INLINE = 256
"""Bytes; what is no larger stays in its graph."""


def save_with_shared_weights(models: Mapping[Path, onnx.ModelProto], beside: Path) -> None:
    """Write graphs into the folder of a file of weights, which holds equal weights once.

    Args:
        models: by the file that each is written to; they lose their weights on the way.
        beside: the file of weights.
    """
    with closing(WeightFile(beside)) as weights:
        for model in models.values():
            for tensor in model.graph.initializer:
                values = np.frombuffer(tensor.raw_data, np.uint8)
                if len(values) > INLINE:
                    set_external_data(tensor, beside.name, weights.put(values), len(values))
                    tensor.ClearField("raw_data")
    for path, model in models.items():
        path.write_bytes(model.SerializeToString())
