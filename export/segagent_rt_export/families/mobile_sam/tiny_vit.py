"""TinyViT (Wu et al., 2022) as MobileSAM's encoder, under the names of its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from segagent_rt_export.graphs.conv_norm import ConvNorm


@dataclass(frozen=True, slots=True)
class TinyVitShape:
    """Sizes of each of the four stages; the first is convolutional, without heads and windows."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    outputs: int


class Bottleneck(nn.Module):
    """MBConv: wide depthwise convolution between two 1x1, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * width
        self.conv1 = ConvNorm(width, inner)
        self.conv2 = ConvNorm(inner, inner, 3, groups=inner)
        self.conv3 = ConvNorm(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gelu = nn.functional.gelu
        return gelu(x + self.conv3(gelu(self.conv2(gelu(self.conv1(x))))))


class WindowAttention(nn.Module):
    """Attention within a window; a learned bias for each distance between two tokens."""

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        at = torch.arange(window * window)
        rows, columns = at // window, at % window
        apart = (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
        self.register_buffer("offsets", apart, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[windows, tokens, width] to the same."""
        windows, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(windows, tokens, self.heads, 3, width // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        bias = self.attention_biases.index_select(1, self.offsets.reshape(-1))
        bias = bias.reshape(self.heads, tokens, tokens)
        weights = ((query * self.scale) @ key.transpose(2, 3) + bias).softmax(-1)
        return cast(Tensor, self.proj((weights @ value).transpose(1, 2).reshape(x.shape)))


class TinyVitMlp(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(nn.functional.gelu(self.fc1(self.norm(x)))))


class TinyVitBlock(nn.Module):
    """Window attention, a depthwise convolution, an MLP, on [1, H, W, C]."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn, self.mlp = WindowAttention(width, heads, window), TinyVitMlp(width)
        self.local_conv = ConvNorm(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return cast(Tensor, x + self.mlp(x))

    def attend(self, x: Tensor) -> Tensor:
        """Windows from the top left; the last ones are filled up with zeros."""
        _, height, width, channels = x.shape
        side = self.window
        down, across = -(-height // side), -(-width // side)
        padding = (0, 0, 0, across * side - width, 0, down * side - height)
        x = nn.functional.pad(x, padding).reshape(down, side, across, side, channels)
        x = self.attn(x.transpose(1, 2).reshape(down * across, side * side, channels))
        x = x.reshape(down, across, side, side, channels).transpose(1, 2)
        return x.reshape(1, down * side, across * side, channels)[:, :height, :width]


class Merge(nn.Module):
    """To the width of the next stage, at half the size; MobileSAM's last one keeps the size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        gelu = nn.functional.gelu
        return cast(Tensor, self.conv3(gelu(self.conv2(gelu(self.conv1(x))))))


class TinyVitStage(nn.Module):
    """Blocks of one width, then a merge into the next stage's, on [1, C, H, W]."""

    def __init__(self, blocks: Sequence[nn.Module], merge: Merge | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if merge is not None:
            self.downsample = merge

    def forward(self, x: Tensor) -> Tensor:
        """Attention stages work with the channels last."""
        attends = isinstance(self.blocks[0], TinyVitBlock)
        x = x.permute(0, 2, 3, 1) if attends else x
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2) if attends else x
        return cast(Tensor, self.downsample(x)) if hasattr(self, "downsample") else x


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [1, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """The image at a quarter of its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, 3, 2), nn.GELU(), ConvNorm(width // 2, width, 3, 2)
        )

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.seq(image))


class TinyVit(nn.Module):
    """float32 [1, 3, side, side] to the embedding [1, outputs, side / 16, side / 16]."""

    def __init__(self, shape: TinyVitShape) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape.widths[0])
        last = len(shape.widths) - 1
        self.layers = nn.ModuleList()
        for at, width in enumerate(shape.widths):
            blocks = [
                TinyVitBlock(width, shape.heads[at], shape.windows[at]) if at else Bottleneck(width)
                for _ in range(shape.depths[at])
            ]
            strides = 1 if at + 1 == last else 2
            merge = Merge(width, shape.widths[at + 1], strides) if at < last else None
            self.layers.append(TinyVitStage(blocks, merge))
        self.neck = nn.Sequential(
            nn.Conv2d(shape.widths[-1], shape.outputs, 1, bias=False),
            ChannelNorm(shape.outputs),
            nn.Conv2d(shape.outputs, shape.outputs, 3, padding=1, bias=False),
            ChannelNorm(shape.outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.neck(x))
