"""A picture of what a bundle cuts out of validation photos, from the best results to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segagent_rt.annotators.oracle import next_click
from segagent_rt.draw import draw_overlay
from segagent_rt.io import atomic_write
from segagent_rt.runtime import load
from segagent_rt.types import Click, Prediction, RgbImage, Segmenter
from segagent_rt_training.photo.evaluation import HeldOutTarget, counted_iou, validation_photos

CLICKS = 3
EVERYDAY = "coco_"
"""How names of photos of everyday life begin; others show facades, rocks and Mars."""

TILES, COLUMNS, TILE = 20, 5, 232
"""Results shown, in a row, and pixels of a tile's side."""

CAPTION = 18
"""Pixels of a line of text."""

JPEG_QUALITY = 76


def write_gallery(photos: Path, bundle: Path, target: Path) -> list[str]:
    """Write the picture, of COCO's photos; those under a ShareAlike licence are left out.

    Args:
        photos: the folder of the training photos.
        bundle: whose segmenter is shown.
        target: the JPEG file.

    Returns:
        The names of the photos shown, row by row.
    """
    results = []
    with load(bundle) as runtime:
        for object_ in validation_photos(photos, share_alike=False):
            if not object_.name.startswith(EVERYDAY):
                continue
            prediction, clicks = _clicked(runtime.segmenter, object_)
            results.append((counted_iou(prediction.mask(), object_), object_, prediction, clicks))
    results.sort(key=lambda result: -result[0])
    some = [results[at] for at in np.linspace(0, len(results) - 1, TILES).astype(int)]
    tiles = [
        captioned_tile(draw_overlay(found.image, made.mask(), clicks), [f"IoU {overlap:.2f}"])
        for overlap, found, made, clicks in some
    ]
    write_tiles(target, tiles)
    return [found.name.split("/")[0] for _, found, _, _ in some]


def _clicked(segmenter: Segmenter, target: HeldOutTarget) -> tuple[Prediction, Sequence[Click]]:
    """The mask after the oracle annotator's clicks."""
    embedding, mask = segmenter.encode(target.image), np.zeros_like(target.mask)
    clicks, prediction = list[Click](), segmenter.decode(embedding, [])
    for number in range(CLICKS):
        click = next_click(target.mask, mask, ignored=target.ignored)
        if click is not None:
            clicks.append(click)
            prior = prediction if number else None
            prediction = segmenter.decode(embedding, clicks, prior=prior)
            mask = prediction.mask()
    return prediction, clicks


def captioned_tile(overlay: RgbImage, captions: Sequence[str]) -> RgbImage:
    """An overlay in a square, and lines of text below it."""
    scale = TILE / max(overlay.shape[:2])
    height, width = (round(length * scale) for length in overlay.shape[:2])
    tile = np.full((TILE + CAPTION * len(captions), TILE, 3), 255, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    shrunk = cv2.resize(overlay, (width, height), interpolation=cv2.INTER_AREA)
    tile[top : top + height, left : left + width] = shrunk
    for number, text in enumerate(captions):
        at = 4, TILE + 13 + CAPTION * number
        cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1)
    return tile


def write_tiles(target: Path, tiles: Sequence[RgbImage]) -> None:
    """Write tiles as one JPEG file, row by row."""
    filled = [*tiles, *[np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)]
    rows = [np.hstack(filled[at : at + COLUMNS]) for at in range(0, len(filled), COLUMNS)]
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, packed = cv2.imencode(".jpg", np.vstack(rows)[..., ::-1], options)
    atomic_write(target, packed.tobytes())
