"""Convolutions with a batch norm: as the mobile encoders' checkpoints name them, and fused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvNorm(nn.Sequential):
    """`c` and `bn`; exporters fold the second into the first."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=conv, bn=nn.BatchNorm2d(outputs)))


def fuse(net: nn.Module) -> nn.Module:
    """A copy for inference: every batch norm folded into the convolution before it."""
    net = copy.deepcopy(net).eval()
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            for at in range(len(module) - 1):
                if isinstance(module[at], nn.Conv2d) and isinstance(module[at + 1], nn.BatchNorm2d):
                    module[at] = fuse_conv_bn_eval(
                        cast(nn.Conv2d, module[at]), cast(nn.BatchNorm2d, module[at + 1])
                    )
                    module[at + 1] = nn.Identity()
    return net
