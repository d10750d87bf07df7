"""SAM's decoder as a graph: prompts to four masks and their scores.

It differs from the published one in form only: no tensor is repeated, labels choose rows of a table
by a product, all four masks come out, and none is resized.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn


class Prompts(nn.Module):
    """Clicks, box corners and the mask so far, as the decoder takes them.

    Labels: -1 pads, 0 and 1 are negative and positive clicks, 2 and 3 the corners of a box.
    """

    frequencies: Tensor
    kinds: Tensor
    table: Tensor
    no_mask: Tensor

    def __init__(self, encoder: Any, side: int) -> None:
        super().__init__()
        labels = list(encoder.point_embed.parameters())
        self.side, self.grid = side, encoder.image_embedding_size[0]
        self.mask_embed = encoder.mask_embed
        self.register_buffer("frequencies", encoder.shared_embedding.positional_embedding)
        self.register_buffer("table", torch.cat([encoder.not_a_point_embed.weight, *labels]))
        self.register_buffer("kinds", torch.arange(-1.0, len(self.table) - 1))
        self.register_buffer("no_mask", encoder.no_mask_embed.weight.reshape(1, -1, 1, 1))

    def points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """[1, N, 2] in pixels of the square and [1, N] to [1, N, C]."""
        labels = labels[..., None]
        waves = self.waves((coords + 0.5) / self.side)
        return waves * (labels >= 0).float() + (labels == self.kinds).float() @ self.table

    def mask(self, logits: Tensor, given: Tensor) -> Tensor:
        """[1, 1, 4 grid, 4 grid] to what is added to the embedding; `given` is 1 or 0."""
        return cast(Tensor, self.mask_embed(logits)) * given + self.no_mask * (1 - given)

    def positions(self) -> Tensor:
        """[1, C, grid, grid]: where each part of the embedding lies."""
        centres = (torch.arange(self.grid) + 0.5) / self.grid
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return self.waves(torch.stack([columns, rows], -1)).permute(2, 0, 1)[None]

    def waves(self, points: Tensor) -> Tensor:
        """Random Fourier features of x and y, both 0..1."""
        angles = (2 * math.pi) * ((2 * points - 1) @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], -1)


class SamDecoder(nn.Module):
    """The mask decoder of SAM, MobileSAM and SlimSAM with its prompts.

    Masks in and out are squares of `mask_side`, four times the embedding's.
    """

    tokens: Tensor
    places: Tensor
    score_at = 0
    """Which token predicts the scores; those of the masks follow."""

    def __init__(self, prompt_encoder: nn.Module, decoder: Any, side: int) -> None:
        super().__init__()
        self.prompts, self.decoder = Prompts(prompt_encoder, side), decoder
        self.masks, self.mask_side = len(decoder.output_hypernetworks_mlps), 4 * self.prompts.grid
        self.register_buffer("tokens", torch.cat(self.first_tokens())[None])
        self.register_buffer("places", self.prompts.positions())

    def first_tokens(self) -> list[Tensor]:
        """Weights of the tokens that stand before the prompts."""
        return [self.decoder.iou_token.weight, self.decoder.mask_tokens.weight]

    def forward(
        self, embedding: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        points = self.prompts.points(point_coords, point_labels)
        tokens, image = self.attend(embedding + self.prompts.mask(mask_input, has_mask), points)
        return self.draw(tokens, self.upscale(image)), self.scores(tokens)

    def attend(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and the image look at each other: [1, T, C] and [1, C, h, w]."""
        tokens, pixels = self.decoder.transformer(
            point_embeddings=torch.cat([self.tokens, points], 1)[:, None],
            image_embeddings=image,
            image_positional_embeddings=self.places,
            attention_similarity=None,
        )
        return tokens[:, 0], pixels[:, 0].transpose(1, 2).reshape(image.shape)

    def upscale(self, image: Tensor) -> Tensor:
        """Four times as fine, an eighth of the channels."""
        net = self.decoder
        fine = net.activation(net.upscale_layer_norm(net.upscale_conv1(image)))
        return cast(Tensor, net.activation(net.upscale_conv2(fine)))

    def draw(self, tokens: Tensor, fine: Tensor) -> Tensor:
        """Every mask token's product with every pixel: [1, masks, H, W]."""
        first = self.score_at + 1
        heads = self.decoder.output_hypernetworks_mlps
        brushes = [head(tokens[:, first + at]) for at, head in enumerate(heads)]
        masks = torch.stack(brushes, 1) @ fine.flatten(2)
        return masks.reshape(1, self.masks, *fine.shape[2:])

    def scores(self, tokens: Tensor) -> Tensor:
        """Predicted IoU of each mask, [1, masks]."""
        return cast(Tensor, self.decoder.iou_prediction_head(tokens[:, self.score_at]))
