"""Masks as they arise in use: scenes annotated by a sloppy simulated annotator with the trained
segmenter."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from segagent_rt.scenes.layout import SceneObject
from segagent_rt.scenes.paint import Bytes
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.scene import visible_objects
from segagent_rt.types import Mask, RgbImage
from segagent_rt_export.families.click_net.net import SegmenterNet
from segagent_rt_export.families.demo_mllm.net import SIDE
from segagent_rt_training.mixed_precision import autocast
from segagent_rt_training.segmenter import sample_click
from segagent_rt_training.states import TrainingState, draw_scene, painted_state

TURNS = 4

ASTRAY, ASTRAY_SHARE = 0.5, 0.4
"""A trajectory is astray where its mask overlaps the object meant by less; so many of the states
that are drawn are such ones, if there are any."""

Drawn: TypeAlias = tuple[list[SceneObject], RgbImage, Bytes]


@dataclass(frozen=True, slots=True)
class Pool:
    """Scene i is drawn with `DeterministicRng(name, seed, i)`; masks after each turn, as packed
    bits; what was asked ("" if nothing was)."""

    name: str
    seed: int
    meant: npt.NDArray[np.int64]
    asked: npt.NDArray[np.str_]
    masks: npt.NDArray[np.uint8]  # [scenes, TURNS, SIDE * SIDE / 8]
    astray: npt.NDArray[np.bool_]  # [scenes, TURNS]

    def draw(self, rng: DeterministicRng) -> TrainingState:
        """A random state of the pool; those that went astray come more often than they are."""
        at, turn = rng.integer(0, len(self.meant)), rng.integer(0, TURNS)
        if self.astray.any() and rng.chance(ASTRAY_SHARE):
            at, turn = rng.pick(np.argwhere(self.astray).tolist())
        objects, image, labels = draw_scene(DeterministicRng(self.name, self.seed, at))
        mask = np.unpackbits(self.masks[at, turn]).reshape(SIDE, SIDE).astype(np.bool_)
        state = painted_state(objects, image, labels, mask, int(self.meant[at]))
        return replace(state, asked=str(self.asked[at]))

    def save(self, path: Path) -> None:
        """Write the pool; the file is whole or not there."""
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as stream:
            np.savez_compressed(
                stream, name=self.name, seed=self.seed, meant=self.meant, asked=self.asked,
                masks=self.masks, astray=self.astray,
            )  # fmt: skip
        partial.replace(path)


def load_pool(path: Path) -> Pool:
    """Read a pool that `save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = [stored[name] for name in ("meant", "asked", "masks", "astray")]
        return Pool(str(stored["name"]), int(stored["seed"]), *arrays)


@torch.no_grad()
def sloppy_pool(net: SegmenterNet, scenes: int, seed: int, batch: int = 16) -> Pool:
    """Annotate that many scenes, TURNS clicks each, with clicks that are often good and sometimes
    not."""
    net.eval()
    meant, masks = [], []
    for first in range(0, scenes, batch):
        drawn = [
            draw_scene(DeterministicRng("pool", seed, i))
            for i in range(first, min(first + batch, scenes))
        ]
        rng = DeterministicRng("pool-clicks", seed, first)
        chosen = [
            rng.pick([i for i, seen in enumerate(visible_objects(objects, labels)) if seen])
            for objects, _, labels in drawn
        ]
        meant += chosen
        masks.append(_annotate(net, drawn, chosen, rng))
    nothing, never = np.full(scenes, ""), np.zeros((scenes, TURNS), np.bool_)
    return Pool("pool", seed, np.array(meant), nothing, np.concatenate(masks), never)


def _annotate(
    net: SegmenterNet, drawn: list[Drawn], chosen: list[int], rng: DeterministicRng
) -> npt.NDArray[np.uint8]:
    targets = [labels == want + 1 for (_, _, labels), want in zip(drawn, chosen, strict=True)]
    points = np.full((len(drawn), TURNS, 3), -1, np.float32)
    found = np.zeros((len(drawn), SIDE, SIDE), np.bool_)
    prior = torch.zeros(len(drawn), 1, SIDE, SIDE)
    packed = np.zeros((len(drawn), TURNS, SIDE * SIDE // 8), np.uint8)
    with autocast():
        pixels = (
            torch.from_numpy(np.stack([image for _, image, _ in drawn])).permute(0, 3, 1, 2).float()
        )
        features, fine = net.encoder(pixels.contiguous(memory_format=torch.channels_last))
        for turn in range(TURNS):
            for i, (_, _, labels) in enumerate(drawn):
                point = _sloppy_click(targets[i], found[i], labels, rng, first=turn == 0)
                if point is not None:
                    points[i, turn] = point
            logits, _ = net.decoder(features, fine, torch.from_numpy(points.copy()), prior)
            prior = torch.sigmoid(logits.float())
            found = (logits[:, 0] > 0).numpy()
            packed[:, turn] = np.packbits(found.reshape(len(drawn), -1), axis=1)
    return packed


def _sloppy_click(
    target: Mask, mask: Mask, labels: npt.NDArray[np.uint8], rng: DeterministicRng, *, first: bool
) -> tuple[float, float, float] | None:
    others = sorted(set(np.unique(labels)) - {0} - set(np.unique(labels[target])))
    if first and others and rng.chance(0.14):  # the wrong object
        return sample_click(labels == rng.pick(others), mask, rng, first=True)
    point = sample_click(target, mask, rng, first=first)
    if point is not None and not first and rng.chance(0.05):  # the wrong sign
        return (point[0], point[1], 1 - point[2])
    return point
