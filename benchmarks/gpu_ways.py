"""The ways in which a net is run: PyTorch's, and ONNX Runtime with what `export` writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from gpu_nets import Net
from torch import Tensor

from segagent_rt.backends.onnxruntime import OrtBuffer
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt_export.recipe import VariantName

Call = Callable[[], Any]

SHIPPED: dict[str, VariantName] = {"fp32": "reference", "fp16": "gpu-fp16"}
"""The variant that `export` writes for GPUs, by type."""


class Unsuited(Exception):
    """A way that is not for this machine or type; the words go into the document."""


def eager(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """PyTorch as it is written, attention spelt out."""
    net.fused = False
    return lambda: net(*inputs)


def sdpa(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """PyTorch with its fused attention."""
    net.fused = True
    return lambda: net(*inputs)


def compiled(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """The same, through torch.compile."""
    net.fused = True
    torch.compiler.reset()  # or sizes of the nets before make symbols of this one's: minutes
    fast = torch.compile(net, dynamic=False)
    return lambda: fast(*inputs)


def cuda_graph(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """The same as `sdpa`, captured once and replayed."""
    if not inputs[0].is_cuda:
        raise Unsuited("there is no GPU")
    net.fused = True
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            net(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = net(*inputs)

    def call() -> Any:
        graph.replay()
        return output

    return call


WAYS = {"eager": eager, "sdpa": sdpa, "compile": compiled, "cuda graph": cuda_graph}


@contextmanager
def in_onnx_runtime(net: Net, dtype: str, device: str) -> Iterator[Call]:
    """The runtime's own session. What goes in and comes out stays on the device, as in PyTorch; all
    of it is fp32, as in every variant, and so are keys and values.

    Raises:
        Unsuited: no variant has this type.
    """
    if dtype not in SHIPPED:
        raise Unsuited(f"no variant is in {dtype}")
    with tempfile.TemporaryDirectory() as name:
        path = net.write(Path(name), SHIPPED[dtype])
        session = open_session(path, SessionOptions("cuda" if device == "cuda" else "cpu"))
        feeds = {name: _resident(value, device) for name, value in net.feeds().items()}
        into = {
            name.replace("past", "present", 1): buffer
            for name, buffer in feeds.items()
            if name.startswith("past.")
        }
        outputs = list(net.outputs)
        yield lambda: session.run(feeds, outputs, into=into, keep=outputs)
        session.close()


def _resident(value: Any, device: str) -> Any:
    """Tensors lie on the device; lengths and places on the host, where shapes are computed."""
    if value.dtype != np.float32:
        return value
    return OrtBuffer(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0))


def tensors(output: Any) -> list[Tensor]:
    """What a call returned, on the host, in 64 bits."""
    if isinstance(output, Tensor):
        output = (output,)
    elif isinstance(output, dict):
        output = [torch.as_tensor(value.numpy()) for value in output.values()]
    return [tensor.double().cpu() for tensor in output]
