"""RepViT (Wang et al., 2023), EdgeTAM's trunk, under the names of timm's `repvit_m1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from segagent_rt_export.graphs.conv_norm import ConvNorm, fuse


class TokenMixer(nn.Module):
    """Depthwise 3x3, 1x1 and identity side by side; `merged` is the one 3x3 that equals them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, width, 3, groups=width)
        self.conv1 = ConvNorm(width, width, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x) + self.conv1(x) + x)

    def merged(self) -> nn.Conv2d:
        """One convolution; the batch norms must have been folded."""
        wide, narrow = cast(nn.Conv2d, self.conv[0]), cast(nn.Conv2d, self.conv1[0])
        with torch.no_grad():
            wide.weight[:, :, 1, 1] += narrow.weight[:, :, 0, 0] + 1
            cast(Tensor, wide.bias).add_(cast(Tensor, narrow.bias))
        return wide


class ChannelMixer(nn.Module):
    """Two 1x1 convolutions, twice as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(width, 2 * width), ConvNorm(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(nn.functional.gelu(self.conv1(x))))


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(8, (width // 4 + 4) // 8 * 8)
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.fc1(x.mean((2, 3), keepdim=True)).relu()
        return cast(Tensor, x * self.fc2(pooled).sigmoid())


class RepVitBlock(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self, width: int, squeeze: bool) -> None:
        super().__init__()
        self.token_mixer: nn.Module = TokenMixer(width)
        self.se = Squeeze(width) if squeeze else nn.Identity()
        self.channel_mixer = ChannelMixer(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.token_mixer(x))
        return cast(Tensor, x + self.channel_mixer(x))


class Downsample(nn.Module):
    """Half the size, more channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pre_block = RepVitBlock(inputs, squeeze=False)
        self.spatial_downsample = ConvNorm(inputs, inputs, 3, 2, groups=inputs)
        self.channel_downsample = ConvNorm(inputs, outputs)
        self.ffn = ChannelMixer(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return cast(Tensor, x + self.ffn(x))


class RepVitStage(nn.Module):
    """Blocks of one width; every other one squeezes."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        same = inputs == outputs
        self.downsample = nn.Identity() if same else Downsample(inputs, outputs)
        self.blocks = nn.Sequential(*(RepVitBlock(outputs, at % 2 == 0) for at in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(self.downsample(x)))


class Stem(nn.Module):
    """The image at a quarter of its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width // 2, 3, 2)
        self.conv2 = ConvNorm(width // 2, width, 3, 2)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(nn.functional.gelu(self.conv1(image))))


class RepVit(nn.Module):
    """float32 [1, 3, side, side] to four maps [1, C, H, W], each half the size of the last."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(widths[0])
        before = [widths[0], *widths]
        for at, (inputs, width, depth) in enumerate(zip(before, widths, depths, strict=False)):
            self.add_module(f"stages_{at}", RepVitStage(inputs, width, depth))

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for name, stage in self.named_children():
            if name != "stem":
                x = stage(x)
                maps.append(x)
        return maps


def merged_branches(net: RepVit) -> RepVit:
    """A copy for inference: one convolution wherever the checkpoint has three and batch norms."""
    net = cast(RepVit, fuse(net))
    for module in list(net.modules()):
        if isinstance(module, RepVitBlock):
            module.token_mixer = cast(TokenMixer, module.token_mixer).merged()
    return net
