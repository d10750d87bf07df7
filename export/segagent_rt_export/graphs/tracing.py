"""From a torch module to an ONNX file, by torch's own exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

OPSET = 18
INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which they go to `<name>.onnx.data`: a protobuf ends at 2 GiB."""


def trace(
    graph: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    outputs: Sequence[str],
    open_axes: Mapping[str, int] | None = None,
) -> None:
    """Write a module as ONNX.

    Args:
        graph: its `forward` takes the inputs in the order of `example`.
        example: an input for every name, in the shape that the graph will have.
        path: of the .onnx file.
        outputs: a name for every output.
        open_axes: inputs with an axis whose length stays open.
    """
    open_axes = open_axes or {}
    axes = {name: {open_axes[name]: torch.export.Dim.AUTO} for name in open_axes}
    weights = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            graph.eval(),
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=weights > INLINE_LIMIT,
            dynamic_shapes={name: axes.get(name) for name in example} if axes else None,
            verbose=False,
        )
    forget_origin(path)


def forget_origin(path: Path) -> None:
    """Take out of a graph what torch notes about each node: lines of code and where they lie on
    the machine that exports. It is 150 kB for a hundred nodes, and nobody else's business."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    noted = (model, graph, *graph.node, *graph.initializer)
    for value in (*noted, *graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        value.doc_string = ""
    path.write_bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about its own insides and the torchvision that it does not find."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
