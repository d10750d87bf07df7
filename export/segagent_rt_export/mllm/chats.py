"""The frame of a conversation's first turn, by family; one token stands for the whole picture."""

from __future__ import annotations

from collections.abc import Mapping

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""Opens a conversation with Qwen-VL, Qwen2-VL and Qwen2.5-VL."""

CHATS: Mapping[str, str] = {
    "qwen_vl": SYSTEM
    + "<|im_start|>user\nPicture 1: <img><imgpad></img>\n{instruction}<|im_end|>\n"
    + "<|im_start|>assistant\n",
    "qwen2_vl": SYSTEM
    + "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>\n"
    + "<|im_start|>assistant\n",
    "qwen2_5_vl": SYSTEM
    + "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>\n"
    + "<|im_start|>assistant\n",
    "qwen3_vl": (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llava": "<s>USER: <image>\n{instruction} ASSISTANT:",
}
"""A conversation's first turn, by family, with one token for the whole picture."""


PICTURES: Mapping[str, str] = {
    "qwen_vl": "<imgpad>",
    "qwen2_vl": "<|image_pad|>",
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
    "llava": "<image>",
}
"""That token, by family."""


def chat(family: str, instruction: str) -> str:
    """An instruction in its family's frame."""
    return CHATS[family].replace("{instruction}", instruction)
