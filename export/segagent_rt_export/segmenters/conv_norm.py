"""A convolution and its batch norm, as the mobile encoders' checkpoints name them."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ConvNorm(nn.Sequential):
    """`c` and `bn`; exporters fold the second into the first."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=conv, bn=nn.BatchNorm2d(outputs)))
