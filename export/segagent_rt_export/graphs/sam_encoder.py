"""SAM's vision transformer as a graph, in a form for CPUs and one for GPUs."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn


class SamEncoder(nn.Module):
    """float32 [1, 3, side, side], normalised, to the embedding [1, C, side / 16, side / 16]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.encoder.patch_embed(image) + self.encoder.pos_embed
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return cast(Tensor, self.encoder.neck(hidden))


class BiasAttention(nn.Module):
    """Attention within a square, with a bias for each query and each row and column of keys.

    As published, but the biases' tables are laid out here instead of in the graph.
    """

    by_row: Tensor
    by_column: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale = attention.num_attention_heads, attention.scale
        self.side = (len(attention.rel_pos_h) + 1) // 2
        at = torch.arange(self.side)
        apart = at[:, None] - at + self.side - 1
        self.register_buffer("by_row", attention.rel_pos_h[apart].transpose(1, 2).contiguous())
        self.register_buffer("by_column", attention.rel_pos_w[apart].transpose(1, 2).contiguous())

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """[windows, side, side, C] to the same; transformers' layer expects a pair."""
        windows, side, _, width = hidden_states.shape
        tokens, heads = side * side, windows * self.heads
        qkv = self.qkv(hidden_states).reshape(windows, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        grid = query.reshape(heads, side, side, -1)
        rows = (grid @ self.by_row).reshape(heads, tokens, side)
        columns = (grid.transpose(1, 2) @ self.by_column).transpose(1, 2)
        scores = self.scores(query * self.scale, key, rows, columns.reshape(heads, tokens, side))
        mixed = (scores.softmax(-1) @ value).reshape(windows, self.heads, side, side, -1)
        return self.proj(mixed.permute(0, 2, 3, 1, 4).reshape(hidden_states.shape)), None

    def scores(self, query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """[heads, tokens, tokens], from biases [heads, tokens, side] for a key's row and column."""
        bias = rows[:, :, :, None] + columns[:, :, None, :]
        return query @ key.transpose(1, 2) + bias.flatten(2)


class FoldedAttention(BiasAttention):
    """The same, the biases being part of queries and keys: plain attention, which GPUs fuse.

    q k + r_h(q) + r_w(q) = [q, r_h(q), r_w(q)] [k, row of k, column of k], the last two one-hot.
    """

    where: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        at = torch.arange(self.side * self.side)
        row, column = (
            nn.functional.one_hot(i, self.side) for i in (at // self.side, at % self.side)
        )
        self.register_buffer("where", torch.cat([row, column], -1).float())

    def scores(self, query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        query = torch.cat([query, rows, columns], -1)
        key = torch.cat([key, self.where.expand(len(key), -1, -1)], -1)
        return query @ key.transpose(1, 2)


def with_attention(encoder: Any, kind: type[BiasAttention]) -> Any:
    """A SAM vision encoder that attends by `kind`; it shares the other's weights."""
    shared = {id(weight): weight for weight in encoder.parameters()}
    encoder = copy.deepcopy(encoder, shared)
    for layer in encoder.layers:
        layer.attn = kind(layer.attn)
    return encoder
