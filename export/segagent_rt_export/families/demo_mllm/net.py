"""The MLLM that ships: transformers' Qwen3-VL in a tiny configuration, run in packed batches for
training.

Several questions about one image share its tokens: the image is encoded once, and each question
attends to it and to itself only. The modules are transformers' own; only the order in which they
are called is ours, and a test holds both to the same logits.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

SIDE, PATCH, MERGE = 256, 16, 2
PATCHES, CELLS = SIDE // PATCH, SIDE // PATCH // MERGE
"""Patches, and merged cells (= visual tokens), along one side."""
WIDTH, DEPTH, HIDDEN, LAYERS = 192, 6, 256, 4
POINTING_HEADS = 2
"""Attention heads of the last layer but one that are taught to look at the object meant."""


def tiny_config(tokens: dict[str, int]) -> Qwen3VLConfig:
    """The configuration that ships, for a vocabulary that maps token text to id."""
    vision = {
        "depth": DEPTH,
        "hidden_size": WIDTH,
        "intermediate_size": 528,
        "num_heads": WIDTH // 64,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": PATCHES**2,
        "deepstack_visual_indexes": [],
    }
    rope = {
        "rope_type": "default",
        "rope_theta": 1000.0,
        "mrope_section": [8, 12, 12],
        "mrope_interleaved": True,
    }
    text = {
        "vocab_size": -(-len(tokens) // 16) * 16,
        "hidden_size": HIDDEN,
        "intermediate_size": 704,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "rope_parameters": rope,
        "pad_token_id": tokens["<|endoftext|>"],
        "bos_token_id": None,
        "eos_token_id": tokens["<|im_end|>"],
        "tie_word_embeddings": True,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokens["<|image_pad|>"],
        video_token_id=tokens["<|video_pad|>"],
        vision_start_token_id=tokens["<|vision_start|>"],
        vision_end_token_id=tokens["<|vision_end|>"],
        tie_word_embeddings=True,
    )


@dataclass(frozen=True, slots=True)
class Sight:
    """Visual tokens [B, CELLS^2, HIDDEN] in row-major order; hidden states of the patches half way
    and at the end."""

    tokens: Tensor
    middle: Tensor  # [B, PATCHES^2, WIDTH], patches in merge order
    last: Tensor


class TinyMllm(nn.Module):
    """`Qwen3VLForConditionalGeneration` with the forward passes that training needs."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__()
        self.model = Qwen3VLForConditionalGeneration(config)
        self.vision: Any = self.model.model.visual
        self.language: Any = self.model.model.language_model
        grid = torch.tensor([[1, PATCHES, PATCHES]])
        positions = qwen.get_vision_position_ids(grid, MERGE)
        taps, weights = qwen.get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=self.vision.num_grid_per_side,
            mode=self.vision.interpolation_mode,
            align_corners=self.vision.interpolation_align_corners,
            spatial_merge_size=MERGE,
        )
        self.register_buffer("_positions", positions, persistent=False)
        self.register_buffer("_taps", taps, persistent=False)
        self.register_buffer("_weights", weights, persistent=False)
        self._start_positions_from_waves()

    def _start_positions_from_waves(self) -> None:
        """Sines and cosines of row and column: a better start for the position table than noise."""
        table = self.vision.pos_embed.weight
        quarter = table.shape[1] // 4
        speed = 1 / 100 ** (torch.arange(quarter) / quarter)
        row, column = torch.meshgrid(torch.arange(PATCHES), torch.arange(PATCHES), indexing="ij")
        angles = [place.reshape(-1, 1) * speed for place in (row, column)]
        table.data.copy_(0.3 * torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1))

    def see(self, images: Tensor) -> Sight:
        """images: uint8 [B, SIDE, SIDE, 3]."""
        batch, vision = images.shape[0], self.vision
        shape = (batch, CELLS, MERGE, PATCH, CELLS, MERGE, PATCH, 3)
        patches = (images.float() / 127.5 - 1).view(shape).permute(0, 1, 4, 2, 5, 7, 3, 6)
        kernel = vision.patch_embed.proj.weight.sum(2).flatten(
            1
        )  # both frames of a still image are the same
        x = F.linear(patches.reshape(batch, PATCHES**2, -1), kernel, vision.patch_embed.proj.bias)
        x = x + (vision.pos_embed(self._taps) * cast(Tensor, self._weights)[..., None]).sum(1)
        cos, sin = vision.rotary_pos_emb(x, self._positions)
        middle = x
        for number, block in enumerate(vision.blocks):
            x = x + self._vision_attention(block.attn, block.norm1(x), cos, sin)
            x = x + block.mlp(block.norm2(x))
            if number == DEPTH // 2 - 1:
                middle = x
        tokens = vision.merger(x.reshape(batch * PATCHES**2, WIDTH)).view(batch, CELLS**2, HIDDEN)
        return Sight(tokens, middle, x)

    @staticmethod
    def _vision_attention(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = attention.num_heads
        query, key, value = (
            attention.qkv(x).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        )
        query, key = qwen.apply_rotary_pos_emb(
            query, key, cos[None].to(x.dtype), sin[None].to(x.dtype)
        )
        mixed = attend(query, key, value)
        return cast(Tensor, attention.proj(mixed.transpose(1, 2).reshape(batch, length, width)))

    def read(
        self, embeddings: Tensor, positions: Tensor, bias: Tensor, asking: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the language model.

        embeddings [B, L, HIDDEN]; positions int64 [3, B, L]; bias [B, 1, L, L], 0 or very negative;
        asking int64 [B, K], places whose attention to the image is wanted. Returns hidden states
        after the last norm [B, L, HIDDEN], and attention [B, POINTING_HEADS, K, L].
        """
        x, looks = embeddings, embeddings
        cos, sin = self.language.rotary_emb(x, positions)
        for number, layer in enumerate(self.language.layers):
            y = layer.input_layernorm(x)
            query, key, value = self._project(layer.self_attn, y, cos, sin)
            if number == LAYERS - 2:
                looks = self._looks(query, key, bias, asking)
            mixed = attend(query, key, value, bias)
            x = x + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.language.norm(x), looks

    @staticmethod
    def _project(
        attention: Any, y: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*y.shape[:2], -1, attention.head_dim)
        query = attention.q_norm(attention.q_proj(y).view(shape)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(y).view(shape)).transpose(1, 2)
        value = attention.v_proj(y).view(shape).transpose(1, 2)
        query, key = qwen.apply_rotary_pos_emb(query, key, cos, sin)
        groups = attention.num_key_value_groups
        return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)

    @staticmethod
    def _looks(query: Tensor, key: Tensor, bias: Tensor, asking: Tensor) -> Tensor:
        place = asking[:, None, :, None].expand(-1, POINTING_HEADS, -1, query.shape[-1])
        chosen = torch.gather(query[:, :POINTING_HEADS], 2, place)
        scores = (
            chosen.float()
            @ key[:, :POINTING_HEADS].float().transpose(-1, -2)
            * query.shape[-1] ** -0.5
        )
        rows = torch.gather(bias[:, 0], 1, asking[..., None].expand(-1, -1, bias.shape[-1]))
        return cast(Tensor, (scores + rows[:, None].float()).softmax(-1))

    @property
    def embedding(self) -> Tensor:
        """The token table, which is also the output head. [V, HIDDEN]."""
        return cast(Tensor, self.language.embed_tokens.weight)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention spelled out: on CPUs faster, forwards and backwards, than the fused kernel
    in bfloat16."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return cast(Tensor, scores.softmax(-1) @ value)
