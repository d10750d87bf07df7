"""SimpleClick's net as its paper and code describe it, step by step, on a checkpoint's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .made_up import Sizes


class PlainNet:
    """No rearrangement of any kind: slow, and easy to compare with the original."""

    def __init__(self, tensors: Any, sizes: Sizes) -> None:
        self.tensors, self.sizes = tensors, sizes

    @torch.no_grad()
    def __call__(self, image: Any, guide: Any) -> Any:
        return self.head(self.neck(self.backbone(image, guide)))

    def backbone(self, image: Any, guide: Any) -> Any:
        x = self.conv("backbone.patch_embed.proj", image, self.sizes.patch)
        x = x + self.conv("patch_embed_coords.proj", guide, self.sizes.patch)
        grid = x.shape[-1]
        x = (x + self.positions(grid)).permute(0, 2, 3, 1)
        side = grid // (grid // (224 // self.sizes.patch))
        group = 6 if self.sizes.depth == 12 else self.sizes.depth // 4
        for at in range(self.sizes.depth):
            run = grid if (at + 1) % group == 0 else side
            x = self.windowed(f"backbone.blocks.{at}", x, run)
        return x.permute(0, 3, 1, 2)

    def positions(self, grid: int) -> Any:
        trained = 448 // self.sizes.patch
        rows = self.tensors["backbone.pos_embed"][:, 1:].transpose(1, 2)
        plane = rows.reshape(1, self.sizes.width, trained, trained)
        if grid == trained:
            return plane
        return functional.interpolate(plane, (grid, grid), mode="bicubic")

    def windowed(self, name: str, x: Any, side: int) -> Any:
        """A block on each window by itself; a window may be the whole map."""
        out = torch.empty_like(x)
        for top in range(0, x.shape[1], side):
            for left in range(0, x.shape[2], side):
                window = x[:, top : top + side, left : left + side]
                rows = self.block(name, window.reshape(len(x), side * side, -1))
                out[:, top : top + side, left : left + side] = rows.reshape(window.shape)
        return out

    def block(self, name: str, x: Any) -> Any:
        x = x + self.attention(f"{name}.attn", self.layer_norm(f"{name}.norm1", x))
        y = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", x))
        return x + self.linear(f"{name}.mlp.fc2", functional.gelu(y))

    def attention(self, name: str, x: Any) -> Any:
        batch, count, width = x.shape
        qkv = self.linear(f"{name}.qkv", x).reshape(batch, count, 3, self.sizes.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.linear(f"{name}.proj", mixed.transpose(1, 2).reshape(batch, count, width))

    def neck(self, x: Any) -> list[Any]:
        """Maps at 1/4, 1/8, 1/16 and 1/32; GELU where the original has it."""
        gelu = functional.gelu
        fine = gelu(self.norm("neck.down_4.1", self.up("neck.down_4.0", x)))
        fine = self.norm("neck.down_4.4", self.up("neck.down_4.3", fine))
        fine = self.norm("neck.down_4.6", self.conv("neck.down_4.5", fine))
        eighth = self.norm("neck.down_8.1", self.up("neck.down_8.0", x))
        eighth = self.norm("neck.down_8.3", self.conv("neck.down_8.2", eighth))
        sixteenth = self.norm("neck.down_16.1", self.conv("neck.down_16.0", x))
        coarse = self.norm("neck.down_32.1", self.conv("neck.down_32.0", x, 2))
        coarse = self.norm("neck.down_32.3", self.conv("neck.down_32.2", coarse))
        return [gelu(level) for level in (fine, eighth, sixteenth, coarse)]

    def head(self, pyramid: list[Any]) -> Any:
        """All maps enlarged, joined, then mixed."""
        size, maps = pyramid[0].shape[2:], []
        for at, level in enumerate(pyramid):
            level = functional.relu(self.conv(f"head.convs.{at}.conv", level))
            maps.append(functional.interpolate(level, size, mode="bilinear"))
        mixed = functional.relu(self.conv("head.fusion_conv.conv", torch.cat(maps, 1)))
        return self.conv("head.conv_seg", mixed)

    def weights(self, name: str) -> tuple[Any, Any]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def conv(self, name: str, x: Any, stride: int = 1) -> Any:
        return functional.conv2d(x, *self.weights(name), stride=stride)

    def up(self, name: str, x: Any) -> Any:
        return functional.conv_transpose2d(x, *self.weights(name), stride=2)

    def norm(self, name: str, x: Any) -> Any:
        return functional.group_norm(x, 1, *self.weights(name))

    def layer_norm(self, name: str, x: Any) -> Any:
        return functional.layer_norm(x, [self.sizes.width], *self.weights(name), eps=1e-6)

    def linear(self, name: str, x: Any) -> Any:
        return functional.linear(x, *self.weights(name))


def pictures(batch: int, side: int = 448) -> tuple[Any, Any]:
    rng = torch.Generator().manual_seed(batch)
    image = torch.randn(batch, 3, side, side, generator=rng)
    return image, torch.rand(batch, 3, side, side, generator=rng)


def error(found: Any, expected: Any) -> float:
    """Largest difference as a share of the largest expected magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
