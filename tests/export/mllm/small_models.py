"""Small models of every family, saved as their owners save them, with weights that matter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from segagent_rt.mllm.prompts import PRESETS
from segagent_rt_export.families.qwen_vl_v1.tiktoken import SPLIT

HIDDEN, VOCABULARY = 64, 512
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<s>", "</s>", "<image>",
)  # fmt: skip
CLIP_STATISTICS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclass(frozen=True)
class Family:
    """How to make, save and ask one family's model."""

    name: str
    make: Callable[[dict[str, int]], Any]
    processor: Any
    preprocessing: dict[str, Any]


def qwen2_vl(tokens: dict[str, int]) -> Any:
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 14,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=TEXT, vision_config=vision, image_token_id=tokens["<|image_pad|>"]
    )
    return Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl(tokens: dict[str, int]) -> Any:
    vision = {
        "depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2,
        "intermediate_size": 44, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=TEXT, vision_config=vision, image_token_id=tokens["<|image_pad|>"]
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(tokens: dict[str, int]) -> Any:
    text = TEXT | {"head_dim": 16, "tie_word_embeddings": True}
    text["rope_parameters"] = TEXT["rope_parameters"] | {"mrope_interleaved": True}
    vision = {
        "depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2,
        "intermediate_size": 48, "patch_size": 16, "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=tokens["<|image_pad|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config)


def llava(tokens: dict[str, int]) -> Any:
    text = {k: v for k, v in TEXT.items() if k != "rope_parameters"} | {"num_key_value_heads": 4}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 84, "patch_size": 14,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=tokens["<image>"],
    )
    return LlavaForConditionalGeneration(config)


_QWEN_PIXELS = {
    "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 120, "patch_size": 14, "merge_size": 2,
    "temporal_patch_size": 2, **CLIP_STATISTICS,
}  # fmt: skip
_QWEN3_PIXELS = {
    "size": {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 120}, "patch_size": 16,
    "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
_CLIP_PIXELS = {
    "size": {"shortest_edge": 84}, "crop_size": {"height": 84, "width": 84}, **CLIP_STATISTICS,
}  # fmt: skip

FAMILIES = {
    "qwen2_vl": Family("qwen2_vl", qwen2_vl, Qwen2VLImageProcessorPil, _QWEN_PIXELS),
    "qwen2_5_vl": Family("qwen2_5_vl", qwen2_5_vl, Qwen2VLImageProcessorPil, _QWEN_PIXELS),
    "qwen3_vl": Family("qwen3_vl", qwen3_vl, Qwen2VLImageProcessorPil, _QWEN3_PIXELS),
    "llava": Family("llava", llava, CLIPImageProcessorPil, _CLIP_PIXELS),
    "llava_padded": Family("llava", llava, LlavaImageProcessorPil, _CLIP_PIXELS | {"do_pad": True}),
}


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE with single digits, over the texts that the tests use."""
    tokenizer = Tokenizer(BPE())
    split = Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=450, show_progress=False, initial_alphabet=sorted(ByteLevel.alphabet())
    )
    texts = [
        " Current IOU: 0  Positive point: (1, 2) Negative point",
        PRESETS["segagent"].instruction,
    ]
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIALS])
    return tokenizer


@torch.no_grad()
def awaken(model: Any, seed: int = 0) -> Any:
    """Weights at which attention looks at something: fresh ones give flat attention."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim < 2:
            tensor.copy_(noise * 0.2 + ("norm" in name and name.endswith("weight")))
        elif "embed" in name and "patch" not in name:
            tensor.copy_(noise)
        else:
            gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
            tensor.copy_(noise * gain * tensor[0].numel() ** -0.5)
    return model.eval()


def save_family(family: Family, folder: Path, tokenizer: Tokenizer) -> Any:
    """A model of a family in a folder, and the model itself."""
    model = awaken(family.make(tokenizer.get_vocab()))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps(family.preprocessing))
    return model


class Reference:
    """A model in transformers, asked in its own way."""

    def __init__(self, family: Family, model: Any, picture: int) -> None:
        self._model, self._picture = model, picture
        self._processor = family.processor(**family.preprocessing)
        self._see, self._seen = model.model.get_image_features, dict[bytes, Any]()
        model.model.get_image_features = self._see_once

    def _see_once(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Features of the last picture are kept: replies ask for them at every token."""
        key = pixel_values.numpy().tobytes()
        if key not in self._seen:
            self._seen = {key: self._see(pixel_values, *args, **kwargs)}
        return self._seen[key]

    def inputs(self, image: np.ndarray) -> dict[str, torch.Tensor]:
        found = self._processor(images=[image], return_tensors="pt")
        return dict(found)

    def picture(self, image: np.ndarray) -> torch.Tensor:
        """Embeddings of the picture."""
        with torch.no_grad():
            features = self._model.model.get_image_features(**self.inputs(image))
        return torch.cat(list(features.pooler_output)).reshape(-1, HIDDEN)

    @torch.no_grad()
    def logits(self, image: np.ndarray, lead: list[int], tail: list[int]) -> np.ndarray:
        """Logits [len(tail), V] of the tokens behind the picture, in one pass without a cache."""
        inputs = self.inputs(image)
        count = len(self.picture(image))
        ids = torch.tensor([[*lead, *[self._picture] * count, *tail]])
        more = {}
        if "image_grid_thw" in inputs:
            more["mm_token_type_ids"] = (ids == self._picture).int()
        out = self._model(input_ids=ids, **inputs, **more).logits[0]
        return out[-len(tail) :].numpy()
