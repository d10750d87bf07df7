"""SimpleClick's network: a plain vision transformer, a pyramid made of its last map, a small head.

Written for tracing: tokens are kept in the order of the windows, so that neither windowed nor
global attention has to move them, and the head mixes each map before it is enlarged, not after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW_PIXELS = 224
"""Side of an attention window: that of the pictures on which the transformer was pretrained."""


@dataclass(frozen=True, slots=True)
class NetShape:
    """Sizes of the network. `pyramid` and `head` are numbers of channels."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    pyramid: tuple[int, int, int, int]
    head: int

    @property
    def grid(self) -> int:
        """Tokens along a side of the input."""
        return self.side // self.patch

    @property
    def windows(self) -> int:
        """Attention windows along a side."""
        return self.grid // (WINDOW_PIXELS // self.patch)

    @property
    def group(self) -> int:
        """Every so many blocks, one attends to the whole picture."""
        return 6 if self.depth == 12 else self.depth // 4


class SimpleClickNet(nn.Module):
    """Image, normalised, and guide (mask so far, positive and negative clicks), both float32
    [B, 3, side, side], to logits [B, 1, side / 4, side / 4].
    """

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.patch_embed_coords = Patches(shape)
        self.backbone = Backbone(shape)
        self.neck = Neck(shape)
        self.head = Head(shape)

    def forward(self, image: Tensor, guide: Tensor) -> Tensor:
        tokens = self.backbone.patch_embed(image) + self.patch_embed_coords(guide)
        return cast(Tensor, self.head(*self.neck(self.backbone(tokens))))


class Patches(nn.Module):
    """[B, 3, side, side] to a map of tokens, [B, width, grid, grid]."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, shape.patch)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.proj(image))


class Backbone(nn.Module):
    """The transformer. Its position embedding is in the order of the windows, without class row.

    Inside, the tokens of the batch are the rows of one matrix; a block attends within runs of rows,
    those of a window or those of a whole picture.
    """

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = Patches(shape)
        self.pos_embed = nn.Parameter(torch.empty(1, shape.grid**2, shape.width))
        everywhere, window = shape.grid**2, (shape.grid // shape.windows) ** 2
        self.blocks = nn.Sequential(
            *(
                SimpleClickBlock(shape, everywhere if number % shape.group == 0 else window)
                for number in range(1, shape.depth + 1)
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        rows = (by_windows(tokens, self.shape.windows) + self.pos_embed).flatten(0, 1)
        return as_map(self.blocks(rows), self.shape.windows, self.shape.grid)


def by_windows(tokens: Tensor, windows: int) -> Tensor:
    """[B, C, grid, grid] to [B, grid * grid, C], window by window, row by row within each."""
    channels, grid = tokens.shape[1:3]
    split = tokens.reshape(-1, channels, windows, grid // windows, windows, grid // windows)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(-1, grid * grid, channels)


def as_map(rows: Tensor, windows: int, grid: int) -> Tensor:
    """[B * grid * grid, C], in the order of `by_windows`, to [B, C, grid, grid]."""
    side, channels = grid // windows, rows.shape[-1]
    split = rows.reshape(-1, windows, windows, side, side, channels)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, grid, grid)


class SimpleClickBlock(nn.Module):
    """A transformer block, normalising first; `run` rows attend to each other."""

    def __init__(self, shape: NetShape, run: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = SimpleClickAttention(shape.width, shape.heads, run)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = SimpleClickMlp(shape.width, shape.hidden)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attn(self.norm1(rows))
        return cast(Tensor, rows + self.mlp(self.norm2(rows)))


class SimpleClickAttention(nn.Module):
    """Self-attention; the rows of `qkv` are queries, keys, values, each head by head."""

    def __init__(self, width: int, heads: int, run: int) -> None:
        super().__init__()
        self.layout = (-1, run, heads, width // heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        query, key, value = (
            part.reshape(self.layout).transpose(1, 2) for part in self.qkv(rows).chunk(3, -1)
        )
        scores = (query * self.layout[-1] ** -0.5) @ key.transpose(2, 3)
        mixed = scores.softmax(-1) @ value
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(-1, rows.shape[-1])))


class SimpleClickMlp(nn.Module):
    """Two linear layers and a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = Gelu()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(rows))))


class Gelu(nn.Module):
    """The exact GELU, in the order of operations that ONNX Runtime makes one kernel of."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Neck(nn.Module):
    """The last map at 1/4, 1/8, 1/16 and 1/32 of the input."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        width, (fine, eighth, sixteenth, coarse) = shape.width, shape.pyramid
        first = max(2 * fine, width // 2)
        second, last = max(eighth, width // 2), max(coarse, 2 * width)
        self.down_4 = nn.Sequential(
            nn.ConvTranspose2d(width, first, 2, 2), MapNorm(first), Gelu(),
            nn.ConvTranspose2d(first, first // 2, 2, 2), MapNorm(first // 2),
            nn.Conv2d(first // 2, fine, 1), MapNorm(fine), Gelu(),
        )  # fmt: skip
        self.down_8 = nn.Sequential(
            nn.ConvTranspose2d(width, second, 2, 2), MapNorm(second),
            nn.Conv2d(second, eighth, 1), MapNorm(eighth), Gelu(),
        )  # fmt: skip
        self.down_16 = nn.Sequential(nn.Conv2d(width, sixteenth, 1), MapNorm(sixteenth), Gelu())
        self.down_32 = nn.Sequential(
            nn.Conv2d(width, last, 2, 2), MapNorm(last),
            nn.Conv2d(last, coarse, 1), MapNorm(coarse), Gelu(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.down_4(x), self.down_8(x), self.down_16(x), self.down_32(x)


class MapNorm(nn.GroupNorm):
    """Group norm with a single group, over all of [C, H, W], in elementary steps.

    As ONNX's GroupNormalization it is computed channel by channel by TensorRT up to 10.16, which is
    wrong; as InstanceNormalization of a million values it loses digits in ONNX Runtime. Averages of
    averages do not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - _average(x)
        scale = torch.rsqrt(_average(centred * centred) + self.eps) * self.weight[:, None, None]
        return centred * scale + self.bias[:, None, None]


def _average(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True).mean(1, keepdim=True)


class Head(nn.Module):
    """From the pyramid to logits at 1/4 of the input.

    The original joins the four maps at 1/4 and mixes them with one 1 × 1 convolution. That is a sum
    of one convolution for each map, and enlarging commutes with it, so `blend` comes first: the
    same numbers with a third of the work.
    """

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvRelu(channels, shape.head) for channels in shape.pyramid)
        self.blend = nn.ModuleList(
            nn.Conv2d(shape.head, shape.head, 1, bias=at == 0) for at in range(4)
        )
        self.conv_seg = nn.Conv2d(shape.head, 1, 1)

    def forward(self, *pyramid: Tensor) -> Tensor:
        fine, *others = (
            blend(conv(level))
            for level, conv, blend in zip(pyramid, self.convs, self.blend, strict=True)
        )
        for doublings, level in enumerate(others, 1):
            fine = fine + functional.interpolate(
                level, scale_factor=2.0**doublings, mode="bilinear", align_corners=False
            )
        return cast(Tensor, self.conv_seg(functional.relu(fine)))


class ConvRelu(nn.Module):
    """A 1 × 1 convolution and ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x))
