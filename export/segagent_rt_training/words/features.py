"""Frozen ImageNet features of photos and collages, computed once and kept on disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segagent_rt_export.families.photo_net.efficientnet import (
    BATCH_NORM_EPS,
    EfficientNetLite0,
    load_imagenet_weights,
    weights_path,
)
from segagent_rt_training.photo.augmentation import PADDING
from segagent_rt_training.photo.collage import FIRST_LABEL, Cutout, cut_out, paste
from segagent_rt_training.photo.photos import IGNORED, Bytes, LabelledImage, TrainingPhoto
from segagent_rt_training.words.expressions import fully_labelled, outlines
from segagent_rt_training.words.reading import ObjectOutline
from segagent_rt_training.words.vocabulary import INDEX, NOUNS

SIDE, STRIDE = 512, 16
CELLS = SIDE // STRIDE
"""The longer side of a photo in pixels, and the cells of a map at `STRIDE` along it."""

COLLAGES_IN_A_FILE = 20
FEATURES = (112, 320)
"""Channels at strides 16 and 32."""


@dataclass(frozen=True, slots=True)
class PhotoView:
    """A photo as the nets see it, at the top left of a square.

    Attributes:
        source: `coco`, `facade`, or `collage`.
        x16: float16 [112, 32, 32], frozen features.
        x32: float16 [320, 16, 16].
        evidence: float16 [N, 16, 16], the log probability of each noun's ImageNet classes there.
        overall: float16 [N], the same for the whole view.
        extent: the photo's width and height, in cells.
        objects: its labelled objects.
        cover: uint8 [objects, 32, 32], 255 where an object fills the cell.
        known: bool [32, 32], cells that hold a labelled object.
        labelled: categories of which every object is labelled.
    """

    source: str
    x16: Tensor
    x32: Tensor
    evidence: Tensor
    overall: Tensor
    extent: tuple[float, float]
    objects: tuple[ObjectOutline, ...]
    cover: Tensor
    known: Tensor
    labelled: frozenset[str]


class FrozenEncoder:
    """EfficientNet-Lite0 with its classifier applied at every place of the last map."""

    def __init__(self) -> None:
        self._net = EfficientNetLite0().eval()
        load_imagenet_weights(self._net)
        self._net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = torch.load(weights_path(), map_location="cpu", weights_only=True)
        gain = state["_bn1.weight"] / torch.sqrt(state["_bn1.running_var"] + BATCH_NORM_EPS)
        self._head = state["_conv_head.weight"] * gain[:, None, None, None]
        self._bias = state["_bn1.bias"] - state["_bn1.running_mean"] * gain
        self._classes, self._class_bias = state["_fc.weight"], state["_fc.bias"]

    @torch.inference_mode()
    def __call__(self, square: Bytes) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [S, S, 3] to features [1, 112, ..] and [1, 320, ..], class logits [1000, ..]."""
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None].float()
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        *_, x16, x32 = self._net(pixels)
        hidden = F.relu6(F.conv2d(x32, self._head, self._bias))
        logits = torch.einsum("kc,chw->khw", self._classes, hidden[0])
        return x16, x32, logits + self._class_bias[:, None, None]


def noun_evidence(logits: Tensor) -> Tensor:
    """Log probability of each noun's classes, of logits [1000, ...]: [N, ...]. Nouns without a
    class have a constant, low one."""
    chances = torch.log_softmax(logits, 0)
    nothing = torch.full_like(chances[0], -12.0)
    return torch.stack(
        [torch.logsumexp(chances[list(n.classes)], 0) if n.classes else nothing for n in NOUNS]
    ).clamp(min=-16.0)


def make_view(
    image: LabelledImage,
    categories: Mapping[int, str],
    labelled: frozenset[str],
    source: str,
    encoder: FrozenEncoder,
) -> PhotoView:
    """Encode an image whose labels stand for `categories`."""
    height, width = image.labels.shape
    scale = SIDE / max(height, width)
    h, w = (max(1, round(length * scale)) for length in (height, width))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.full((SIDE, SIDE, 3), PADDING, np.uint8)
    square[:h, :w] = cv2.resize(image.image, (w, h), interpolation=method)
    x16, x32, logits = encoder(square)
    inside = logits[:, : -(-h // 32), : -(-w // 32)].mean((1, 2))
    objects = tuple(outlines(image.labels, categories))
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:h, :w] = cv2.resize(image.labels, (w, h), interpolation=cv2.INTER_NEAREST)
    masks = np.stack([labels == item.label for item in objects] or [np.zeros_like(labels)])
    cover = cells_of(masks[: len(objects)])
    known = cells_of(((labels > 0) & (labels != IGNORED))[None])[0] > 127
    return PhotoView(
        source, x16[0].half(), x32[0].half(), noun_evidence(logits).half(),
        noun_evidence(inside).half(), (w / STRIDE, h / STRIDE), objects, cover, known, labelled,
    )  # fmt: skip


def cells_of(masks: Any) -> Tensor:
    """How far masks bool [n, S, S] fill each cell: uint8 [n, S/16, S/16], 255 for all of it."""
    cells = masks.shape[1] // STRIDE
    parts = masks.reshape(-1, cells, STRIDE, cells, STRIDE).mean((2, 4))
    return torch.from_numpy((parts * 255).astype(np.uint8))


def varied(image: LabelledImage, number: int, rng: random.Random) -> LabelledImage:
    """Variant of a photo: 0 as it is, 1 mirrored, others a random part of it."""
    pixels, labels = image.image, image.labels
    if number > 1:
        height, width = labels.shape
        h, w = (round(length * rng.uniform(0.5, 0.85)) for length in (height, width))
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        window = (slice(top, top + h), slice(left, left + w))
        pixels, labels = pixels[window], labels[window]
    if number == 1 or (number > 1 and rng.random() < 0.5):
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    return LabelledImage(np.ascontiguousarray(pixels), np.ascontiguousarray(labels), image.targets)


def photo_views(photo: TrainingPhoto, count: int, encoder: FrozenEncoder) -> Iterator[PhotoView]:
    """The first `count` variants of a photo, encoded."""
    for number in range(count):
        rng = random.Random(f"words-view/{photo.entry['name']}/{number}")
        content = varied(photo.content, number, rng)
        labelled = fully_labelled(photo.entry)
        yield make_view(content, photo.category, labelled, photo.source, encoder)


class CollageMaker:
    """Pastes cut-out objects of the nouns over photos whose objects are all labelled."""

    def __init__(self, photos: Sequence[TrainingPhoto]) -> None:
        self._grounds = [p for p in photos if len(fully_labelled(p.entry)) > 1]
        self._cutouts: dict[str, list[Cutout]] = {}
        for photo in photos:
            for item in photo.entry["instances"]:
                if item["category"] in INDEX:
                    one = TrainingPhoto(photo.content, {**photo.entry, "instances": [item]})
                    self._cutouts.setdefault(item["category"], []).extend(cut_out([one]))
        self._cutouts = {name: found for name, found in self._cutouts.items() if found}

    def draw(self, number: int, encoder: FrozenEncoder) -> PhotoView:
        """Collage `number`, always the same: one to five objects, often of one category."""
        rng = random.Random(f"words-collage/{number}")
        ground = rng.choice(self._grounds)
        image, labels = ground.content.image.copy(), ground.content.labels.copy()
        categories, names = dict(ground.category), list(self._cutouts)
        weights = [len(found) ** 0.5 for found in self._cutouts.values()]
        (name,) = rng.choices(names, weights)
        for label in range(FIRST_LABEL, FIRST_LABEL + rng.randint(1, 5)):
            paste(image, labels, label, rng.choice(self._cutouts[name]), rng)
            categories[label] = name
            if rng.random() < 0.5:
                (name,) = rng.choices(names, weights)
        content = LabelledImage(image, labels, ())
        return make_view(content, categories, frozenset(INDEX), "collage", encoder)


def cached_views(path: Path, make: Callable[[], Iterable[PhotoView]]) -> list[PhotoView]:
    """What an earlier run left at `path`, or what `make` gives, which is then left there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save([_fields(view) for view in make()], partial)
        partial.replace(path)
    rows = torch.load(path, map_location="cpu", weights_only=True)
    return [_view(row) for row in rows]


def _fields(view: PhotoView) -> dict[str, Any]:
    row = {name: getattr(view, name) for name in PhotoView.__slots__}
    row["objects"] = [(o.label, o.category, o.centre, o.box, o.area) for o in view.objects]
    return row | {"labelled": sorted(view.labelled)}


def _view(row: dict[str, Any]) -> PhotoView:
    objects = tuple(ObjectOutline(*fields) for fields in row["objects"])
    return PhotoView(**row | {"objects": objects, "labelled": frozenset(row["labelled"])})


def enlarged(x: Tensor) -> Tensor:
    """[..., h, w] to twice as many rows and columns, bilinear."""
    flat = x.reshape(1, -1, *x.shape[-2:]).float()
    up = F.interpolate(flat, scale_factor=2.0, mode="bilinear", align_corners=False)
    return up.reshape(*x.shape[:-2], *up.shape[-2:])


def place_maps(extents: Tensor) -> Tensor:
    """x and y in 0..1 of the photo, whether a cell is inside, and x and y in longer sides.

    Args:
        extents: float [B, 2], width and height in cells.

    Returns:
        float [B, 5, 32, 32].
    """
    steps = torch.arange(CELLS, dtype=torch.float32) + 0.5
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    across = x[None] / extents[:, 0, None, None]
    down = y[None] / extents[:, 1, None, None]
    inside = ((across < 1) & (down < 1)).float()
    whole = torch.stack([x, y])[None].expand(len(extents), -1, -1, -1) / CELLS
    return torch.cat([torch.stack([across, down, inside], 1), whole], 1)
