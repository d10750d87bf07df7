"""A picture of results drawn at random, failures included."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from segagent_rt.draw import draw_overlay
from segagent_rt_training.photo.gallery import captioned_tile, write_tiles
from segagent_rt_training.words.clicking import (
    MaskRater,
    Method,
    PhotoLook,
    considered_masks,
    returned_mask,
)

TILES = 40
"""Results shown."""


def write_gallery(
    target: Path,
    looks: Sequence[PhotoLook],
    method: Method,
    rater: MaskRater,
    gain: float,
) -> list[str]:
    """Write the picture; photos under a ShareAlike licence are left out.

    Args:
        target: the JPEG file.
        looks: the photos that were measured.
        method: how first clicks are chosen.
        rater: what rates masks.
        gain: by how much another mask must be rated better than the first one.

    Returns:
        The names of the photos shown, row by row.
    """
    asked = [
        (look, said)
        for look in looks
        if "-SA" not in look.asked.photo.entry["licence"]
        for said in look.asked.expressions
    ]
    drawn = random.Random("words-gallery").sample(asked, min(TILES, len(asked)))
    tiles = []
    for look, said in drawn:
        rating, mask = returned_mask(considered_masks(look, said, method, rater), gain)
        image = look.asked.photo.content.image
        overlay = draw_overlay(image, mask.prediction.mask(), mask.clicks, box=mask.box)
        words = f"IoU {look.iou(mask, said):.2f}, rated {rating:.2f}"
        tiles.append(captioned_tile(overlay, (said.text, words)))
    write_tiles(target, tiles)
    return [str(look.asked.photo.entry["name"]) for look, _ in drawn]
