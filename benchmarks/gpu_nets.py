"""The nets that are measured on a GPU, at true size and in miniature; their weights are random.

`vit-*` are plain transformers of the size of SAM's encoders, for hosts that lack transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gpu_decoder import Decoder, DecoderSize
from gpu_segmenters import EdgeTamEncoder, EdgeTamSize, Sam, Sam2, SimpleClick
from gpu_vit import Vit, VitSize
from torch import Tensor

from segagent_rt_export.families.simple_click.net import NetShape
from segagent_rt_export.graphs.attention import Heads
from segagent_rt_export.graphs.language_model import LanguageShape
from segagent_rt_export.recipe import VariantName


class Net(Protocol):
    """A torch module, the example `inputs` that it takes, and names of its outputs."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    fused: bool
    """Whether PyTorch's fused attention is used, or what is spelt out."""

    def __call__(self, *inputs: Tensor) -> Any: ...

    def eval(self) -> Net: ...

    def to(self, *device_and_type: Any) -> Any: ...

    def parameters(self) -> Any: ...

    def feeds(self) -> dict[str, Any]:
        """The example for the graph; `past.*` is written, too, under the name `present.*`."""

    def write(self, folder: Path, variant: VariantName) -> Path:
        """The graph as `export` stores it in a variant; the file in an empty folder."""


SMALL = LanguageShape(36, 2048, 11008, Heads(16, 2, 128))
LARGE = LanguageShape(28, 3584, 18944, Heads(28, 4, 128))
MINIATURE = LanguageShape(2, 64, 96, Heads(4, 2, 16))

SAM_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "mlp_dim": 3072, "global_attn_indexes": [2, 5, 8, 11]}  # fmt: skip
SAM_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "mlp_dim": 4096, "global_attn_indexes": [5, 11, 17, 23]}  # fmt: skip
SAM_H = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
         "mlp_dim": 5120, "global_attn_indexes": [7, 15, 23, 31]}  # fmt: skip
SAM_MINIATURE = {"image_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "mlp_dim": 64,
                 "num_attention_heads": 2, "global_attn_indexes": [1], "window_size": 4,
                 "output_channels": 32}  # fmt: skip


def hiera(
    blocks: list[int], width: int, heads: int, windows: list[int], whole: list[int]
) -> dict[str, Any]:
    """SAM 2.1 on a Hiera of this size; `whole` blocks attend to the whole picture."""
    widths = [width * 2**stage for stage in range(4)]
    trunk = {
        "model_type": "sam2_hiera_det_model", "hidden_size": width, "num_attention_heads": heads,
        "blocks_per_stage": blocks, "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "window_size_per_stage": windows, "global_attention_blocks": whole,
    }  # fmt: skip
    return {"vision_config": {"backbone_config": trunk, "backbone_channel_list": widths[::-1]}}


SAM2_TINY = hiera([1, 2, 7, 2], 96, 1, [8, 4, 14, 7], [5, 7, 9])
SAM2_LARGE = hiera([2, 6, 36, 4], 144, 2, [8, 4, 16, 8], [23, 33, 43])
EDGETAM = {"vision_config": {"backbone_channel_list": [384, 192, 96, 48]}}


def in_miniature(config: dict[str, Any]) -> dict[str, Any]:
    """The same for pictures of 128 x 128, in fewer channels."""
    vision = config["vision_config"]
    sizes = {"fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    if trunk := vision.get("backbone_config"):
        sizes["backbone_config"] = trunk | {"image_size": [128, 128]}
    return {
        "vision_config": vision | sizes,
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    }


NETS: Mapping[str, Callable[[], Net]] = {
    "sam-vit-b": partial(Sam, SAM_B),
    "sam-vit-l": partial(Sam, SAM_L),
    "sam-vit-h": partial(Sam, SAM_H),
    "sam2.1-hiera-tiny": partial(Sam2, SAM2_TINY),
    "sam2.1-hiera-large": partial(Sam2, SAM2_LARGE),
    "edgetam": partial(EdgeTamEncoder, EdgeTamSize((48, 96, 192, 384), (2, 2, 14, 2), EDGETAM)),
    "simple-click-l": partial(
        SimpleClick, NetShape(448, 16, 1024, 24, 16, 4096, (192, 384, 768, 1536), 256)
    ),
    "vit-b": partial(Vit, VitSize(768, 12, 12, (2, 5, 8, 11))),
    "vit-l": partial(Vit, VitSize(1024, 24, 16, (5, 11, 17, 23))),
    "vit-h": partial(Vit, VitSize(1280, 32, 16, (7, 15, 23, 31))),
    "qwen2.5-vl-3b-read": partial(Decoder, DecoderSize(SMALL, 480, 0)),
    "qwen2.5-vl-3b-write": partial(Decoder, DecoderSize(SMALL, 1, 480)),
    "qwen2.5-vl-7b-read": partial(Decoder, DecoderSize(LARGE, 480, 0)),
    "qwen2.5-vl-7b-write": partial(Decoder, DecoderSize(LARGE, 1, 480)),
}
DRY: Mapping[str, Callable[[], Net]] = {
    "sam": partial(Sam, SAM_MINIATURE),
    "sam2": partial(Sam2, in_miniature(hiera([1, 1, 2, 1], 16, 1, [8, 4, 4, 4], [3]))),
    "edgetam": partial(
        EdgeTamEncoder,
        EdgeTamSize(
            (16, 24, 32, 48), (2, 2, 3, 1),
            in_miniature({"vision_config": {"backbone_channel_list": [48, 32, 24, 16]}}),
        ),
    ),
    "simple-click": partial(
        SimpleClick, NetShape(448, 16, 32, 8, 4, 128, (8, 16, 24, 40), 16)
    ),
    "vit": partial(Vit, VitSize(32, 2, 2, (1,), side=8, window=4, pixels=48)),
    "decoder-read": partial(Decoder, DecoderSize(MINIATURE, 24, 0)),
    "decoder-write": partial(Decoder, DecoderSize(MINIATURE, 1, 24)),
}  # fmt: skip
