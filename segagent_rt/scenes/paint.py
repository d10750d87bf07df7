"""Pixels of a scene: backgrounds, textures, soft shadows, grain.

Only operations whose result is the same everywhere: elementwise IEEE arithmetic, OpenCV's exact
linear resize, its 8-bit Gaussian blur and its polygon filler. No BLAS, no transcendental function
on arrays.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.scenes.layout import CANVAS, COLOURS, SceneObject
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.shapes import Outline, placed, regular

Pixels: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

TILE = 384
TILES = 16
GRAIN = 768


def paint(objects: Sequence[SceneObject], rng: DeterministicRng, side: int) -> tuple[Bytes, Bytes]:
    """Paint a scene of `side` x `side` pixels.

    Returns:
        image: uint8 [side, side, 3], RGB.
        labels: uint8 [side, side], 0 for the background, i + 1 where object i is visible.
    """
    scale = side / CANVAS
    canvas = _background(rng, side, [COLOURS[o.colour] for o in objects])
    labels = np.zeros((side, side), np.uint8)
    shadow = rng.uniform(0.15, 0.5) if rng.chance(0.5) else 0.0
    sun = (rng.uniform(-6, 6), rng.uniform(2, 7))
    for index, item in enumerate(objects):
        outlines = placed(
            item.shape, item.radius * scale, (item.x * scale, item.y * scale), item.turn
        )
        if shadow:
            cast_shadow(canvas, outlines, (sun[0] * scale, sun[1] * scale), 3 * scale, shadow)
        window, alpha = rasterise(outlines, side)
        base = np.array(COLOURS[item.colour], np.float32)
        base += np.array([rng.normal(6) for _ in range(3)], np.float32)
        fill = _texture(rng, base, window, scale, item.radius)
        blend(canvas[window], fill, alpha)
        labels[window][alpha > 127] = index + 1
    return _camera(canvas, rng), labels


def rasterise(outlines: Sequence[Outline], side: int) -> tuple[tuple[slice, slice], Bytes]:
    """Fill polygons (even-odd, anti-aliased); returns the window they touch and their coverage
    0..255 in it."""
    corners = np.concatenate(outlines)
    x0, y0 = (max(0, int(v) - 1) for v in corners.min(0))
    x1, y1 = (min(side, int(v) + 2) for v in corners.max(0))
    alpha = np.zeros((max(y1 - y0, 1), max(x1 - x0, 1)), np.uint8)
    fixed = [np.rint((outline - (x0, y0)) * 16).astype(np.int32) for outline in outlines]
    cv2.fillPoly(alpha, fixed, (255,), cv2.LINE_AA, 4)
    return (slice(y0, y0 + alpha.shape[0]), slice(x0, x0 + alpha.shape[1])), alpha


def blend(below: Pixels, above: Pixels, alpha: Bytes) -> None:
    """Lay `above` over `below` in place, as much as `alpha` (0..255) says."""
    below += (above - below) * (alpha.astype(np.float32) / np.float32(255))[..., None]


def cast_shadow(
    canvas: Pixels,
    outlines: Sequence[Outline],
    offset: tuple[float, float],
    blur: float,
    depth: float,
) -> None:
    """Darken the canvas where an outline, moved by `offset` (x, y) and blurred, falls."""
    side = canvas.shape[0]
    margin = int(3 * blur) + 1
    window, alpha = rasterise([outline + np.array(offset) for outline in outlines], side)
    rows, cols = window
    y0, x0 = max(0, rows.start - margin), max(0, cols.start - margin)
    y1, x1 = min(side, rows.stop + margin), min(side, cols.stop + margin)
    soft = np.zeros((y1 - y0, x1 - x0), np.uint8)
    soft[rows.start - y0 : rows.stop - y0, cols.start - x0 : cols.stop - x0] = alpha
    soft = _blur(soft, blur)
    canvas[y0:y1, x0:x1] *= 1 - (soft.astype(np.float32) * np.float32(depth / 255))[..., None]


@cache
def noise_tile(index: int) -> npt.NDArray[np.int16]:
    """One of `TILES` tiles of several octaves of noise, int16 [TILE, TILE, 3], deviation 64."""
    draw, rng = np.random.RandomState(index), DeterministicRng("tile", index)
    grey = rng.chance(0.6)
    cells, amplitude = rng.pick((3, 4, 6, 8, 12)), 1.0
    total = np.zeros((TILE, TILE, 3), np.float64)
    for _ in range(rng.integer(1, 6)):
        grid = draw.randint(0, 256, (cells, cells, 1 if grey else 3)).astype(np.uint8)
        grid = np.repeat(grid, 3, axis=2) if grey else grid
        smooth = _blur(_resize_exact(grid, TILE, TILE), TILE / cells / 6)
        total += amplitude * (smooth.astype(np.float64) - 127.5)
        cells, amplitude = min(2 * cells, TILE), amplitude * rng.uniform(0.45, 0.8)
    deviation = np.sqrt(np.mean(np.rint(total) ** 2))
    return np.asarray(np.rint(total * (64 / deviation)), np.int16)


@cache
def _grain(index: int) -> npt.NDArray[np.int16]:
    draw = np.random.RandomState(1000 + index).randint(-128, 128, (4, GRAIN, GRAIN)).sum(0)
    return np.asarray(draw // 2, np.int16)


def noise(rng: DeterministicRng, height: int, width: int, scale: float) -> Pixels:
    """A crop of a noise tile at a random place, float32 [height, width, 3], deviation about 1."""
    tile = noise_tile(rng.integer(0, TILES))
    h = min(TILE, max(2, round(height / scale)))
    w = min(TILE, max(2, round(width / scale)))
    y, x = rng.integer(0, TILE - h + 1), rng.integer(0, TILE - w + 1)
    crop = tile[y : y + h, x : x + w]
    crop = crop[::-1] if rng.chance(0.5) else crop[:, ::-1]
    if crop.shape[:2] != (height, width):
        shifted = np.clip(crop + 128, 0, 255).astype(np.uint8)
        return (_resize_exact(shifted, height, width).astype(np.float32) - 128) / np.float32(64)
    return crop.astype(np.float32) / np.float32(64)


def ramp(rng: DeterministicRng, height: int, width: int) -> Pixels:
    """A linear ramp in a random direction, float32 [height, width, 1] within about -1..1."""
    a, b = rng.uniform(-1, 1), rng.uniform(-1, 1)
    rows = np.linspace(-b, b, height, dtype=np.float32)
    cols = np.linspace(-a, a, width, dtype=np.float32)
    return np.asarray((rows[:, None] + cols)[..., None], np.float32)


def stripes(rng: DeterministicRng, height: int, width: int, period: float) -> Pixels:
    """A triangle wave in a random direction, float32 [height, width, 1] in -1..1, `period` in
    pixels."""
    a, b = rng.uniform(-1, 1), rng.uniform(-1, 1)
    length = max(abs(a) + abs(b), 0.2) * period
    rows = np.arange(height, dtype=np.float32) * np.float32(b / length)
    cols = np.arange(width, dtype=np.float32) * np.float32(a / length)
    phase = rows[:, None] + cols
    wave = np.abs((phase - np.floor(phase)) * 4 - 2) - 1
    return np.asarray(wave[..., None], np.float32)


def _texture(
    rng: DeterministicRng, base: Pixels, window: tuple[slice, slice], scale: float, radius: float
) -> Pixels:
    height, width = (part.stop - part.start for part in window)
    fill = np.empty((height, width, 3), np.float32)
    fill[:] = base
    kind = rng.weighted(("flat", "ramp", "noise", "stripes", "both"), (25, 25, 25, 12, 13))
    if kind in ("ramp", "both"):
        fill += ramp(rng, height, width) * np.float32(rng.uniform(8, 26))
    if kind in ("noise", "both"):
        fill += noise(rng, height, width, scale) * np.float32(rng.uniform(4, 14))
    if kind == "stripes":
        period = rng.uniform(0.15, 0.5) * radius * scale
        fill += stripes(rng, height, width, period) * np.float32(rng.uniform(8, 20))
    return fill


def _background(rng: DeterministicRng, side: int, avoid: Sequence[tuple[int, int, int]]) -> Pixels:
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = _background_colour(rng, avoid)
    kind = rng.weighted(("flat", "ramp", "noise", "clutter"), (15, 20, 40, 25))
    if kind != "flat" and rng.chance(0.6):
        tint = np.array([rng.normal(20) for _ in range(3)], np.float32)
        canvas += ramp(rng, side, side) * tint
    if kind in ("noise", "clutter"):
        canvas += noise(rng, side, side, side / CANVAS) * np.float32(rng.uniform(3, 20))
    if kind == "clutter":
        _clutter(canvas, rng)
    return canvas


def _background_colour(rng: DeterministicRng, avoid: Sequence[tuple[int, int, int]]) -> Pixels:
    """A muted colour that stands apart from every object's."""
    best, best_gap = (128.0, 128.0, 128.0), -1.0
    for _ in range(6):
        grey = rng.uniform(35, 220)
        r, g, b = (min(235.0, max(20.0, grey + rng.normal(22))) for _ in range(3))
        gap = min((abs(r - c[0]) + abs(g - c[1]) + abs(b - c[2]) for c in avoid), default=999.0)
        if gap > best_gap:
            best, best_gap = (r, g, b), gap
        if gap > 130:
            break
    return np.array(best, np.float32)


def _clutter(canvas: Pixels, rng: DeterministicRng) -> None:
    """Faint strokes and blobs: things that are there and are not objects."""
    side = canvas.shape[0]
    for _ in range(rng.integer(3, 9)):
        centre = (rng.uniform(0, side), rng.uniform(0, side))
        length, thickness = rng.uniform(0.1, 0.5) * side, rng.uniform(0.008, 0.05) * side
        outline = regular(rng.pick((4, 6, 24)), 1.0, rng.uniform(0, 3)) * (length, thickness)
        a, b = rng.uniform(-1, 1), rng.uniform(-1, 1)
        norm = max((a * a + b * b) ** 0.5, 0.1)
        turned = outline[:, :1] * (a / norm, b / norm) + outline[:, 1:] * (-b / norm, a / norm)
        window, alpha = rasterise([turned + np.array(centre)], side)
        shade = np.array([rng.normal(16) for _ in range(3)], np.float32) + np.float32(
            rng.normal(12)
        )
        blend(canvas[window], canvas[window] + shade, alpha)


def _camera(canvas: Pixels, rng: DeterministicRng) -> Bytes:
    """What a camera adds: blur, grain, JPEG."""
    side = canvas.shape[0]
    if rng.chance(0.5):
        step = rng.integer(0, 4)
        y, x = rng.integer(0, GRAIN), rng.integer(0, GRAIN)
        span = np.arange(side)
        grain = _grain(step)[(span[:, None] + y) % GRAIN, (span + x) % GRAIN]
        canvas = canvas + (grain.astype(np.float32) * np.float32(rng.uniform(1, 7) / 74))[..., None]
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    if rng.chance(0.4):
        image = _blur(image, rng.uniform(0.4, 1.0) * side / CANVAS)
    if rng.chance(0.3):
        quality = rng.integer(45, 92)
        _, packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = _bytes(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1]
    return np.ascontiguousarray(image)


def _blur(image: Bytes, sigma: float) -> Bytes:
    return _bytes(cv2.GaussianBlur(image, (0, 0), max(sigma, 0.3)))


def _resize_exact(image: Bytes, height: int, width: int) -> Bytes:
    return _bytes(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT))


def _bytes(array: Any) -> Bytes:
    return np.asarray(array, np.uint8)
