"""Photo-like collages for the segmenter: textured, many-coloured things in front of textured
surroundings.

The segmenter must learn what an *object* is where colour alone does not say it: one outline around
several colours, soft edges, shadows, shading, clutter of the same materials behind it. No
photograph is used.
"""

import cv2
import numpy as np
import numpy.typing as npt

from segagent_rt.scenes.dice import Dice
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
from segagent_rt.scenes.shapes import OUTLINES, Outline, regular


def make_collage(dice: Dice, side: int) -> tuple[Bytes, Bytes]:
    """Returns image uint8 [side, side, 3] and labels uint8 [side, side], i + 1 where thing i is
    visible."""
    canvas = _material(dice, side, side, strength=dice.uniform(0.3, 1.3))
    if dice.chance(0.5):
        _horizon(canvas, dice)
    for _ in range(dice.integer(0, 7)):  # things of the surroundings: never a target
        _paste(canvas, None, 0, dice, dice.uniform(0.03, 0.3) * side, soft=dice.uniform(0.5, 4))
    if dice.chance(0.35):  # shallow depth of field
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), dice.uniform(0.8, 4) * side / 256))
    labels = np.zeros((side, side), np.uint8)
    for value in range(1, dice.integer(2, 7)):
        radius = side * 0.06 * (7.0 ** dice.uniform(0, 1))
        _paste(canvas, labels, value, dice, radius, soft=dice.uniform(0.2, 1.4) * side / 256)
    return _develop(canvas, dice), labels


def _paste(
    canvas: Pixels, labels: Bytes | None, value: int, dice: Dice, radius: float, soft: float
) -> None:
    side = canvas.shape[0]
    centre = np.array([dice.uniform(0, side), dice.uniform(0, side)])
    window, alpha = rasterise_union([part * radius + centre for part in _body(dice)], side)
    if alpha.size < 16 or not alpha.any():
        return
    outlines = [part * radius + centre for part in [regular(16)]]
    if labels is not None and dice.chance(0.4):
        offset = (dice.uniform(-0.15, 0.15) * radius, dice.uniform(0.0, 0.25) * radius)
        cast_shadow(canvas, outlines, offset, 0.12 * radius, dice.uniform(0.1, 0.5))
    height, width = alpha.shape
    fill = _many_coloured(dice, height, width)
    if labels is not None:
        labels[window][alpha > 127] = value
    if soft > 0.4:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), soft))
    if dice.chance(0.08):  # glass, smoke, motion
        alpha = (alpha * np.float32(dice.uniform(0.7, 0.95))).astype(np.uint8)
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


def _body(dice: Dice) -> list[Outline]:
    """A thing of about unit radius: a blob, a polygon, a named shape, or a trunk with limbs."""
    kind = dice.weighted(("blob", "polygon", "shape", "limbs", "stick"), (34, 16, 10, 32, 8))
    if kind == "shape":
        return [_turned(dice, OUTLINES[dice.pick(tuple(OUTLINES))][0])]
    if kind == "polygon":
        corners = regular(dice.integer(3, 9), 1.0, dice.uniform(0, 6.28))
        reach = np.array([[dice.uniform(0.6, 1.1)] for _ in corners])
        return [_turned(dice, corners * reach)]
    if kind == "stick":
        return [_turned(dice, regular(24) * (1.3, dice.uniform(0.08, 0.3)))]
    trunk = _blob(dice)
    if kind == "blob":
        return [trunk]
    parts = [trunk * dice.uniform(0.45, 0.8)]
    for _ in range(dice.integer(1, 6)):
        angle, away = dice.uniform(0, 6.28), dice.uniform(0.4, 0.85)
        limb = _blob(dice) * (dice.uniform(0.25, 0.6), dice.uniform(0.12, 0.35))
        c, s = np.cos(angle), np.sin(angle)
        parts.append(limb @ np.array([[c, s], [-s, c]]) + np.array([c, s]) * away)
    return parts


def _blob(dice: Dice) -> Outline:
    t = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    reach = np.ones(56)
    rough = dice.uniform(0.05, 0.32)
    for wave in range(2, 8):
        reach += dice.normal(rough / wave**0.8) * np.cos(wave * t + dice.uniform(0, 6.28))
    circle = np.stack([np.cos(t), np.sin(t) * dice.uniform(0.4, 1.0)], axis=1)
    return _turned(dice, circle * np.clip(reach, 0.25, 1.6)[:, None])


def _turned(dice: Dice, outline: Outline) -> Outline:
    angle = dice.uniform(0, 6.28)
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(outline @ np.array([[c, s], [-s, c]]))


def _many_coloured(dice: Dice, height: int, width: int) -> Pixels:
    """A fill of one to four materials in patches, shaded from one side."""
    fill = _material(dice, height, width, strength=dice.uniform(0.0, 1.2))
    for _ in range(dice.weighted((0, 1, 2, 3), (35, 30, 20, 15))):
        cut = ramp(dice, height, width)[..., 0] + noise(dice, height, width, 1.0)[
            ..., 0
        ] * np.float32(dice.uniform(0, 0.5))
        low = np.float32(dice.uniform(-0.5, 0.6))
        inside = (cut > low) & (cut < low + np.float32(dice.uniform(0.2, 1.5)))
        other = _material(dice, height, width, strength=dice.uniform(0.0, 1.2))
        fill[inside] = other[inside]
    if dice.chance(0.6):
        fill *= 1 + ramp(dice, height, width) * np.float32(dice.uniform(0.1, 0.5))
    return fill


def _material(dice: Dice, height: int, width: int, strength: float) -> Pixels:
    """Noise, stripes or spots, mapped through a palette of a few random colours."""
    scale = 2.0 ** dice.uniform(-1.5, 1.5)
    kind = dice.weighted(("noise", "stripes", "spots", "checks"), (60, 14, 16, 10))
    if kind == "stripes":
        level = stripes(dice, height, width, dice.uniform(4, 40))[..., 0]
    elif kind == "checks":
        a, b = (stripes(dice, height, width, dice.uniform(6, 50))[..., 0] for _ in range(2))
        level = np.sign(a) * np.sign(b) * np.float32(0.8)
    else:
        level = noise(dice, height, width, scale)[..., 0]
        if kind == "spots":
            level = np.where(
                level > np.float32(dice.uniform(0.2, 1.2)), np.float32(1), np.float32(-1)
            )
    mean = _colour(dice)
    knots = [mean + np.array([dice.normal(45 * strength) for _ in range(3)]) for _ in range(4)]
    table = np.stack(
        [np.interp(np.arange(64), (0, 21, 42, 63), [k[c] for k in knots]) for c in range(3)], 1
    )
    index = np.clip(level * 16 + 32, 0, 63).astype(np.uint8)
    return np.asarray(table.astype(np.float32)[index])


def _colour(dice: Dice) -> npt.NDArray[np.float64]:
    grey, spread = dice.uniform(15, 240), dice.weighted((12, 35, 80), (4, 4, 2))
    return np.array([min(250.0, max(5.0, grey + dice.normal(spread))) for _ in range(3)])


def _horizon(canvas: Pixels, dice: Dice) -> None:
    side = canvas.shape[0]
    line = dice.integer(int(0.25 * side), int(0.8 * side))
    canvas[line:] = _material(dice, side - line, side, strength=dice.uniform(0.2, 1.2))


def _develop(canvas: Pixels, dice: Dice) -> Bytes:
    """Light, contrast, grain and JPEG of the whole picture."""
    side = canvas.shape[0]
    if dice.chance(0.5):
        canvas = canvas * (1 + ramp(dice, side, side) * np.float32(dice.uniform(0.05, 0.35)))
    gain = np.array([dice.uniform(0.85, 1.15) for _ in range(3)], np.float32)
    canvas = canvas * gain + np.float32(dice.normal(8))
    if dice.chance(0.5):
        canvas = canvas + noise(dice, side, side, 0.7) * np.float32(dice.uniform(1, 6))
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    if dice.chance(0.4):
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), dice.uniform(0.4, 1.1)))
    if dice.chance(0.5):
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, dice.integer(35, 92)])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
    return image
