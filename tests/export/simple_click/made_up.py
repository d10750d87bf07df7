"""Checkpoints of SimpleClick with made-up weights, laid out as its authors save them."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

LOSS = "isegm.model.modeling.transformer_helper.cross_entropy_loss"


@dataclass(frozen=True)
class Sizes:
    """Of a made-up SimpleClick, trained at 448."""

    width: int = 32
    depth: int = 8
    heads: int = 4
    patch: int = 16
    pyramid: tuple[int, int, int, int] = (8, 16, 24, 40)
    head: int = 16


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the authors' class, by name, the unused ones too."""
    d, p, channels = sizes.width, sizes.patch, sizes.head
    first = max(2 * sizes.pyramid[0], d // 2)
    second, last = max(sizes.pyramid[1], d // 2), max(sizes.pyramid[3], 2 * d)
    found: dict[str, tuple[int, ...]] = {
        "backbone.cls_token": (1, 1, d),
        "backbone.pos_embed": (1, 1 + (448 // p) ** 2, d),
    }

    def layer(name: str, *shape: int, out: int | None = None) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, (out or shape[0],)

    layer("patch_embed_coords.proj", d, 3, p, p)
    layer("backbone.patch_embed.proj", d, 3, p, p)
    for block in range(sizes.depth):
        name = f"backbone.blocks.{block}"
        layer(f"{name}.norm1", d)
        layer(f"{name}.norm2", d)
        layer(f"{name}.attn.qkv", 3 * d, d)
        layer(f"{name}.attn.proj", d, d)
        layer(f"{name}.mlp.fc1", 4 * d, d)
        layer(f"{name}.mlp.fc2", d, 4 * d)
    layer("backbone.fc_norm", d)
    layer("backbone.head", 10, d)
    layer("neck.down_4.0", d, first, 2, 2, out=first)
    layer("neck.down_4.1", first)
    layer("neck.down_4.3", first, first // 2, 2, 2, out=first // 2)
    layer("neck.down_4.4", first // 2)
    layer("neck.down_4.5", sizes.pyramid[0], first // 2, 1, 1)
    layer("neck.down_4.6", sizes.pyramid[0])
    layer("neck.down_8.0", d, second, 2, 2, out=second)
    layer("neck.down_8.1", second)
    layer("neck.down_8.2", sizes.pyramid[1], second, 1, 1)
    layer("neck.down_8.3", sizes.pyramid[1])
    layer("neck.down_16.0", sizes.pyramid[2], d, 1, 1)
    layer("neck.down_16.1", sizes.pyramid[2])
    layer("neck.down_32.0", last, d, 2, 2)
    layer("neck.down_32.1", last)
    layer("neck.down_32.2", sizes.pyramid[3], last, 1, 1)
    layer("neck.down_32.3", sizes.pyramid[3])
    for level in range(4):
        layer(f"head.convs.{level}.conv", channels, sizes.pyramid[level], 1, 1)
    layer("head.fusion_conv.conv", channels, 4 * channels, 1, 1)
    layer("head.conv_seg", 1, channels, 1, 1)
    layer("head.up_conv1.0", channels, channels // 2, 2, 2, out=channels // 2)
    return found


def random_tensors(sizes: Sizes, seed: int = 0) -> dict[str, Any]:
    """Weights that let every part of the net matter: fresh ones are in part zero."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(sizes).items():
        noise = torch.randn(shape, generator=rng)
        if name.endswith("bias") or "embed" in name.rpartition(".")[2] or name.endswith("token"):
            tensors[name] = 0.3 * noise
        elif len(shape) == 1:
            tensors[name] = 1 + 0.2 * noise
        else:
            tensors[name] = noise * float(np.prod(shape[1:])) ** -0.5
    return tensors


def config(sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """As the authors save it: how their class was called, one of the values being an object."""
    values = {
        "use_disks": True,
        "norm_radius": 5,
        "with_prev_mask": True,
        "backbone_params": {
            "img_size": (448, 448), "patch_size": (sizes.patch, sizes.patch), "in_chans": 3,
            "embed_dim": sizes.width, "depth": sizes.depth, "num_heads": sizes.heads,
            "mlp_ratio": 4, "qkv_bias": True,
        },
        "neck_params": {"in_dim": sizes.width, "out_dims": list(sizes.pyramid)},
        "head_params": {
            "in_channels": list(sizes.pyramid), "in_index": [0, 1, 2, 3], "dropout_ratio": 0.1,
            "num_classes": 1, "loss_decode": "a loss", "align_corners": False, "upsample": "x1",
            "channels": sizes.head,
        },
        "norm_mean_std": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }  # fmt: skip
    for path, value in changes.items():
        *outer, name = path.split("__")
        place = values[outer[0]] if outer else values
        assert isinstance(place, dict)
        if value is None:
            del place[name]
        else:
            place[name] = value
    params = {
        name: {"type": "builtin", "value": v, "specified": True} for name, v in values.items()
    }
    return {"class": "isegm.model.is_plainvit_model.PlainVitModel", "params": params}


def content(sizes: Sizes, **changes: Any) -> dict[str, Any]:
    return {"state_dict": random_tensors(sizes), "config": config(sizes, **changes)}


def save(path: Path, checkpoint: dict[str, Any]) -> Path:
    """With a live object of the authors' package inside, as in every released checkpoint."""
    module = types.ModuleType(LOSS)

    class CrossEntropyLoss(torch.nn.Module):
        pass

    CrossEntropyLoss.__module__, CrossEntropyLoss.__qualname__ = LOSS, "CrossEntropyLoss"
    module.CrossEntropyLoss = CrossEntropyLoss  # type: ignore[attr-defined]
    names = [LOSS.rsplit(".", n)[0] for n in range(LOSS.count(".") + 1)]
    sys.modules |= {name: types.ModuleType(name) for name in names} | {LOSS: module}
    checkpoint["config"]["params"]["head_params"]["value"]["loss_decode"] = CrossEntropyLoss()
    torch.save(checkpoint, path)
    for name in names:
        del sys.modules[name]
    return path
