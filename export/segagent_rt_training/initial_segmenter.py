"""The segmenter as a bundle holds it, to train on.

A bundle's convolutions have their batch norms folded in. Training needs the norms back, and they
must not change the function: each gets the mean and the variance that its channels have on
pictures of the training, as statistics and as shift and scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from segagent_rt.bundle.bundle import Part
from segagent_rt_export.families.click_net.from_bundle import click_net_from_part
from segagent_rt_export.families.click_net.net import SIDE, SegmenterNet
from segagent_rt_training.segmenter import SegmenterTrainingConfig, _step

BATCHES, BATCH = 8, 8
"""Pictures that statistics are measured on."""


def initial_segmenter(part: Part, batches: int = BATCHES) -> SegmenterNet:
    """The net with the weights of a part that `export_segmenter` wrote.

    Raises:
        CheckpointInvalid: the part is not such a one.
        BundleError: a file of it is missing or was altered.
    """
    folded = click_net_from_part(part)
    net = SegmenterNet()
    net.load_state_dict(folded.state_dict(), strict=False)  # biases belong to the norms
    _measure(net, folded, batches)
    return net


@torch.no_grad()
def _measure(net: SegmenterNet, folded: SegmenterNet, batches: int) -> None:
    """Run the folded net as training does, and set the norms of `net` by what they see of it."""
    pairs = [(cast(nn.Conv2d, folded.get_submodule(name)), norm) for name, norm in _norms(net)]
    watches = [conv.register_forward_hook(partial(_watch, norm)) for conv, norm in pairs]
    for number in range(batches):
        _step(folded, SegmenterTrainingConfig(), number * BATCH, BATCH, SIDE)
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
