"""The segmenter as a bundle holds it, to train on.

A bundle's convolutions have their batch norms folded in. Training needs the norms back, and they
must not change the function: each gets the mean and the variance that its channels have on
pictures of the training, as statistics and as shift and scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from segagent_rt.bundle import Part
from segagent_rt.segmenters.click_net import ClickNetSettings
from segagent_rt_export.graph import Weight
from segagent_rt_export.segmenters.click_net import fuse
from segagent_rt_export.train.segmenter import SegmenterRecipe, _step
from segagent_rt_export.train.segmenter_net import SIDE, SegmenterNet
from segagent_rt_export.train.stored import StoredGraph, fill, read_graph, read_settings, refused

BATCHES, BATCH = 8, 8
"""Pictures that statistics are measured on."""


def initial_segmenter(part: Part, batches: int = BATCHES) -> SegmenterNet:
    """The net with the weights of a part that `export_segmenter` wrote.

    Raises:
        CheckpointInvalid: the part is not such a one.
        BundleError: a file of it is missing or was altered.
    """
    folded = _read(part)
    net = SegmenterNet()
    net.load_state_dict(folded.state_dict(), strict=False)  # biases belong to the norms
    _measure(net, folded, batches)
    return net


def _read(part: Part) -> SegmenterNet:
    """The net without norms, as it was exported."""
    if read_settings(part, "click_net", ClickNetSettings).side != SIDE:
        raise refused(part, f"its pictures are not {SIDE} x {SIDE}")
    folded = cast(SegmenterNet, fuse(SegmenterNet()))
    weights: dict[str, Weight] = {}
    for role in ("encoder", "decoder"):
        weights |= _layers(read_graph(part, role))
    try:
        whole = dict(_joined(weights))
    except (ValueError, IndexError):
        raise refused(part, "the halves of a layer do not fit together") from None
    fill(folded, whole, part)
    return folded


def _layers(stored: StoredGraph) -> dict[str, Weight]:
    """Weights and biases of a graph's layers by their names in the net; zero biases are left out
    of graphs."""
    layers: dict[str, Weight] = {}
    for node in stored.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1].endswith(".weight"):
            given = [stored.values.get(name) for name in node.input[1:]]
            weight, bias = (*given, None, None)[:2]
            if weight is not None:
                name = node.input[1].removesuffix(".weight")
                layers[f"{name}.weight"] = weight
                zeros = np.zeros(weight.shape[:1], np.float32)
                layers[f"{name}.bias"] = zeros if bias is None else bias
    return layers


def _joined(layers: Mapping[str, Weight]) -> Iterator[tuple[str, Weight]]:
    """Layers that were parted, in one piece again."""
    for name, values in layers.items():
        if ".still." not in name and ".moving." not in name:
            yield name, values
        elif name.endswith(".still.bias"):
            yield name.replace(".still.", ".layers.0."), values
        elif name.endswith(".still.weight"):
            rest = layers.get(name.replace(".still.", ".moving."), values[:, :0])
            yield name.replace(".still.", ".layers.0."), np.concatenate([values, rest], 1)


@torch.no_grad()
def _measure(net: SegmenterNet, folded: SegmenterNet, batches: int) -> None:
    """Run the folded net as training does, and set the norms of `net` by what they see of it."""
    pairs = [(cast(nn.Conv2d, folded.get_submodule(name)), norm) for name, norm in _norms(net)]
    watches = [conv.register_forward_hook(partial(_watch, norm)) for conv, norm in pairs]
    for number in range(batches):
        _step(folded, SegmenterRecipe(), number * BATCH, BATCH, SIDE)
    for watch in watches:
        watch.remove()
    for conv, norm in pairs:
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        mean -= cast(Tensor, conv.bias)  # which the net's own convolution does not have


def _norms(net: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Every batch norm, by the name of the convolution before it."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Sequential):
            for at, (first, second) in enumerate(pairwise(module)):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    yield f"{name}.{at}", second


def _watch(norm: nn.BatchNorm2d, conv: nn.Module, inputs: object, output: Tensor) -> None:
    """Add the result of a convolution to the averages that a norm keeps."""
    momentum, norm.momentum = norm.momentum, None  # all batches count the same
    norm(output)
    norm.momentum = momentum
