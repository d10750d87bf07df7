"""Photo-like collages for the segmenter: textured, many-coloured things in front of textured
surroundings.

The segmenter must learn what an *object* is where colour alone does not say it: one outline around
several colours, soft edges, shadows, shading, clutter of the same materials behind it. No
photograph is used.
"""

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.scenes.paint import (
    Bytes,
    Pixels,
    blend,
    cast_shadow,
    noise,
    ramp,
    rasterise,
    stripes,
)
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.shapes import OUTLINES, Outline, regular


def make_collage(rng: DeterministicRng, side: int) -> tuple[Bytes, Bytes]:
    """Returns image uint8 [side, side, 3] and labels uint8 [side, side], i + 1 where thing i is
    visible."""
    canvas = _material(rng, side, side, strength=rng.uniform(0.3, 1.3))
    if rng.chance(0.5):
        _horizon(canvas, rng)
    for _ in range(rng.integer(0, 7)):  # things of the surroundings: never a target
        _paste(canvas, None, 0, rng, rng.uniform(0.03, 0.3) * side, soft=rng.uniform(0.5, 4))
    if rng.chance(0.35):  # shallow depth of field
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.8, 4) * side / 256))
    labels = np.zeros((side, side), np.uint8)
    for value in range(1, rng.integer(2, 7)):
        radius = side * 0.06 * (7.0 ** rng.uniform(0, 1))
        _paste(canvas, labels, value, rng, radius, soft=rng.uniform(0.2, 1.4) * side / 256)
    return _develop(canvas, rng), labels


def _paste(
    canvas: Pixels,
    labels: Bytes | None,
    value: int,
    rng: DeterministicRng,
    radius: float,
    soft: float,
) -> None:
    side = canvas.shape[0]
    centre = np.array([rng.uniform(0, side), rng.uniform(0, side)])
    window, alpha = rasterise_union([part * radius + centre for part in _body(rng)], side)
    if alpha.size < 16 or not alpha.any():
        return
    outlines = [part * radius + centre for part in [regular(16)]]
    if labels is not None and rng.chance(0.4):
        offset = (rng.uniform(-0.15, 0.15) * radius, rng.uniform(0.0, 0.25) * radius)
        cast_shadow(canvas, outlines, offset, 0.12 * radius, rng.uniform(0.1, 0.5))
    height, width = alpha.shape
    fill = _many_coloured(rng, height, width)
    if labels is not None:
        labels[window][alpha > 127] = value
    if soft > 0.4:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), soft))
    if rng.chance(0.08):  # glass, smoke, motion
        alpha = (alpha * np.float32(rng.uniform(0.7, 0.95))).astype(np.uint8)
    blend(canvas[window], fill, alpha)


def rasterise_union(outlines: list[Outline], side: int) -> tuple[tuple[slice, slice], Bytes]:
    """Coverage of the union of several outlines, and the window that holds it."""
    parts = [rasterise([outline], side) for outline in outlines]
    rows = slice(min(w[0].start for w, _ in parts), max(w[0].stop for w, _ in parts))
    cols = slice(min(w[1].start for w, _ in parts), max(w[1].stop for w, _ in parts))
    alpha = np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.uint8)
    for (r, c), part in parts:
        view = alpha[
            r.start - rows.start : r.stop - rows.start, c.start - cols.start : c.stop - cols.start
        ]
        np.maximum(view, part, out=view)
    # Outlines may reach beyond the picture; the window may not.
    top, left = max(0, -rows.start), max(0, -cols.start)
    bottom, right = min(rows.stop, side) - rows.start, min(cols.stop, side) - cols.start
    alpha = alpha[top : max(bottom, top), left : max(right, left)]
    return (slice(rows.start + top, rows.start + top + alpha.shape[0]),
            slice(cols.start + left, cols.start + left + alpha.shape[1])), alpha  # fmt: skip


def _body(rng: DeterministicRng) -> list[Outline]:
    """A thing of about unit radius: a blob, a polygon, a named shape, or a trunk with limbs."""
    kind = rng.weighted(("blob", "polygon", "shape", "limbs", "stick"), (34, 16, 10, 32, 8))
    if kind == "shape":
        return [_turned(rng, OUTLINES[rng.pick(tuple(OUTLINES))][0])]
    if kind == "polygon":
        corners = regular(rng.integer(3, 9), 1.0, rng.uniform(0, 6.28))
        reach = np.array([[rng.uniform(0.6, 1.1)] for _ in corners])
        return [_turned(rng, corners * reach)]
    if kind == "stick":
        return [_turned(rng, regular(24) * (1.3, rng.uniform(0.08, 0.3)))]
    trunk = _blob(rng)
    if kind == "blob":
        return [trunk]
    parts = [trunk * rng.uniform(0.45, 0.8)]
    for _ in range(rng.integer(1, 6)):
        angle, away = rng.uniform(0, 6.28), rng.uniform(0.4, 0.85)
        limb = _blob(rng) * (rng.uniform(0.25, 0.6), rng.uniform(0.12, 0.35))
        c, s = np.cos(angle), np.sin(angle)
        parts.append(limb @ np.array([[c, s], [-s, c]]) + np.array([c, s]) * away)
    return parts


def _blob(rng: DeterministicRng) -> Outline:
    t = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    reach = np.ones(56)
    rough = rng.uniform(0.05, 0.32)
    for wave in range(2, 8):
        reach += rng.normal(rough / wave**0.8) * np.cos(wave * t + rng.uniform(0, 6.28))
    circle = np.stack([np.cos(t), np.sin(t) * rng.uniform(0.4, 1.0)], axis=1)
    return _turned(rng, circle * np.clip(reach, 0.25, 1.6)[:, None])


def _turned(rng: DeterministicRng, outline: Outline) -> Outline:
    angle = rng.uniform(0, 6.28)
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(outline @ np.array([[c, s], [-s, c]]))


def _many_coloured(rng: DeterministicRng, height: int, width: int) -> Pixels:
    """A fill of one to four materials in patches, shaded from one side."""
    fill = _material(rng, height, width, strength=rng.uniform(0.0, 1.2))
    for _ in range(rng.weighted((0, 1, 2, 3), (35, 30, 20, 15))):
        cut = ramp(rng, height, width)[..., 0] + noise(rng, height, width, 1.0)[
            ..., 0
        ] * np.float32(rng.uniform(0, 0.5))
        low = np.float32(rng.uniform(-0.5, 0.6))
        inside = (cut > low) & (cut < low + np.float32(rng.uniform(0.2, 1.5)))
        other = _material(rng, height, width, strength=rng.uniform(0.0, 1.2))
        fill[inside] = other[inside]
    if rng.chance(0.6):
        fill *= 1 + ramp(rng, height, width) * np.float32(rng.uniform(0.1, 0.5))
    return fill


def _material(rng: DeterministicRng, height: int, width: int, strength: float) -> Pixels:
    """Noise, stripes or spots, mapped through a palette of a few random colours."""
    scale = 2.0 ** rng.uniform(-1.5, 1.5)
    kind = rng.weighted(("noise", "stripes", "spots", "checks"), (60, 14, 16, 10))
    if kind == "stripes":
        level = stripes(rng, height, width, rng.uniform(4, 40))[..., 0]
    elif kind == "checks":
        a, b = (stripes(rng, height, width, rng.uniform(6, 50))[..., 0] for _ in range(2))
        level = np.sign(a) * np.sign(b) * np.float32(0.8)
    else:
        level = noise(rng, height, width, scale)[..., 0]
        if kind == "spots":
            level = np.where(
                level > np.float32(rng.uniform(0.2, 1.2)), np.float32(1), np.float32(-1)
            )
    mean = _colour(rng)
    knots = [mean + np.array([rng.normal(45 * strength) for _ in range(3)]) for _ in range(4)]
    table = np.stack(
        [np.interp(np.arange(64), (0, 21, 42, 63), [k[c] for k in knots]) for c in range(3)], 1
    )
    index = np.clip(level * 16 + 32, 0, 63).astype(np.uint8)
    return np.asarray(table.astype(np.float32)[index])


def _colour(rng: DeterministicRng) -> npt.NDArray[np.float64]:
    grey, spread = rng.uniform(15, 240), rng.weighted((12, 35, 80), (4, 4, 2))
    return np.array([min(250.0, max(5.0, grey + rng.normal(spread))) for _ in range(3)])


def _horizon(canvas: Pixels, rng: DeterministicRng) -> None:
    side = canvas.shape[0]
    line = rng.integer(int(0.25 * side), int(0.8 * side))
    canvas[line:] = _material(rng, side - line, side, strength=rng.uniform(0.2, 1.2))


def _develop(canvas: Pixels, rng: DeterministicRng) -> Bytes:
    """Light, contrast, grain and JPEG of the whole picture."""
    side = canvas.shape[0]
    if rng.chance(0.5):
        canvas = canvas * (1 + ramp(rng, side, side) * np.float32(rng.uniform(0.05, 0.35)))
    gain = np.array([rng.uniform(0.85, 1.15) for _ in range(3)], np.float32)
    canvas = canvas * gain + np.float32(rng.normal(8))
    if rng.chance(0.5):
        canvas = canvas + noise(rng, side, side, 0.7) * np.float32(rng.uniform(1, 6))
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    if rng.chance(0.4):
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.1)))
    if rng.chance(0.5):
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, rng.integer(35, 92)])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
    return image
