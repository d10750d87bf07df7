"""The training loop: scheduled by time, resumable, with an exponential moving average."""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from segagent_rt.bundle.bundle import Bundle
from segagent_rt_export.families.photo_net.efficientnet import load_imagenet_weights
from segagent_rt_export.families.photo_net.export import fold_norms
from segagent_rt_export.families.photo_net.from_bundle import photo_net_from_part
from segagent_rt_export.families.photo_net.net import ImageFeatures, PhotoPrompts, PhotoSegmenterNet
from segagent_rt_training.distributed import WorkerGroup, run_workers
from segagent_rt_training.mixed_precision import autocast
from segagent_rt_training.photo.activations import RoundedActivations
from segagent_rt_training.photo.batches import Batch, BatchPlan, batches_from
from segagent_rt_training.photo.losses import mask_loss, rating_loss, true_iou
from segagent_rt_training.photo.prompting import jittered_box, next_prompt, spoiled_mask
from segagent_rt_training.photo.rounding import rounded_weights

CHECKPOINT, LOG = "photo.pt", "photo.jsonl"
NORM = "decoder.norm8.weight"
"""A weight that nets with folded norms lack."""

SAVE_EVERY, REPORT_EVERY = 120.0, 30.0
MEASURE_EVERY = 20
"""Steps between those that the ranges of activations are measured in."""

MOST_TURNS = 6
FEW_TURNS_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class PhotoRecipe:
    """What decides the weights, together with the time that they are trained for."""

    hours: float
    batches: BatchPlan
    learning_rate: float = 2e-3
    encoder_rate: float = 2e-4
    frozen_share: float = 0.04
    """Share of the time at the beginning in which the encoder keeps its ImageNet weights."""
    frozen_stages: int = 2
    """Stages of the encoder that keep them always."""
    exact_share: float = 0.6
    """Share of the time after which weights are rounded as in the export with integers."""
    weight_decay: float = 1e-3
    ema_decay: float = 0.998
    box_share: float = 0.3
    """Share of the examples that begin with a box."""
    box_alone_share: float = 0.7
    """Share of the boxes that come without a click; the others come with one, before there is any
    mask that it could correct."""
    box_again_share: float = 0.6
    """Of the boxes without a click, the share that is decoded once more with its own mask before
    the first click, as in use."""
    spoiled_share: float = 0.1
    """Share of the examples that begin with a mask that went wrong."""
    init: str | None = None
    """The digest of the bundle that training begins with instead of ImageNet weights. Its batch
    norms are folded, so activations are rounded as in the export, too, from the first step."""


@dataclass(slots=True)
class PhotoProgress:
    """How far a training is; `seconds` is the computing time of all its runs in the first process,
    so that pauses and a busy machine do not lower the learning rate early."""

    step: int = 0
    seconds: float = 0.0
    means: dict[str, float] = field(default_factory=dict)

    def note(self, values: dict[str, float]) -> None:
        """Smooth the values of a step."""
        for name, value in values.items():
            if math.isfinite(value):
                self.means[name] = 0.97 * self.means.get(name, value) + 0.03 * value


class PhotoTraining:
    """Net, moving average, optimiser and progress, saved together."""

    def __init__(
        self,
        recipe: PhotoRecipe,
        folder: Path,
        team: WorkerGroup,
        init: PhotoSegmenterNet | None = None,
    ) -> None:
        torch.manual_seed(recipe.batches.seed)
        self._team, self.recipe = team, recipe
        self._path, self._log = folder / CHECKPOINT, folder / LOG
        self.net = _imagenet_net() if init is None else init
        self.net.encoder.freeze(recipe.frozen_stages)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net).eval()
        self._activations = None if init is None else RoundedActivations(self.net)
        encoder = [p for p in self.net.encoder.parameters() if p.requires_grad]
        head = [*self.net.pyramid.parameters(), *self.net.decoder.parameters()]
        self.optimiser = torch.optim.AdamW(
            [{"params": head}, {"params": encoder}],
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
        )
        self.progress, self._runs = PhotoProgress(), list[dict[str, Any]]()
        if self._path.exists():
            self._resume()
        self._runs.append({"first_step": self.progress.step, "recipe": asdict(recipe)})

    def _resume(self) -> None:
        state = torch.load(self._path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = PhotoProgress(**state["progress"])
        self._runs = list(state.get("runs", ()))

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": asdict(self.progress),
            "runs": self._runs,
        }
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._path)

    def report(self) -> None:
        """Append a line to the log, and show it."""
        row = {"step": self.progress.step, "seconds": round(self.progress.seconds)}
        line = json.dumps(row | {name: round(v, 4) for name, v in self.progress.means.items()})
        with self._log.open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)

    def step(self, batch: Batch) -> None:
        """One step of the optimiser."""
        done = self.progress.seconds / (3600 * self.recipe.hours)
        frozen = done < self.recipe.frozen_share
        for group, rate in zip(self.optimiser.param_groups, self._rates(done), strict=True):
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        with self._rounding(done):
            losses = self._losses(batch, frozen)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
        for group in self.optimiser.param_groups:
            self._team.average_gradients(group["params"])
            nn.utils.clip_grad_norm_(group["params"], 5.0)
        self.optimiser.step()
        self._average()
        self.progress.step += 1
        self.progress.note({name: float(value.detach()) for name, value in losses.items()})

    @contextmanager
    def _rounding(self, done: float) -> Iterator[None]:
        """As the export in integers will round, as far as this net can be trained for it."""
        with ExitStack() as stack:
            if self._activations is not None:
                measured = self.progress.step % MEASURE_EVERY == 0
                stack.enter_context(self._activations.active(measured=measured))
            if self._activations is not None or done >= self.recipe.exact_share:
                stack.enter_context(rounded_weights(self.net))
            yield

    def _autocast(self) -> torch.autocast:
        """Activations that are rounded anyway are computed in fp32."""
        return autocast(enabled=self._activations is None)

    def _rates(self, done: float) -> tuple[float, float]:
        """Learning rates of head and encoder: a short warm-up, then half a cosine over the time."""
        recipe = self.recipe
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        head = recipe.learning_rate * fall * min(1.0, (self.progress.step + 1) / 100)
        thawed = min(1.0, max(0.0, done - recipe.frozen_share) / 0.02)
        return head, recipe.encoder_rate * fall * thawed

    def _turn_weights(self) -> tuple[int, ...]:
        """How often the annotator has 1, 2, ... turns: few while the net learns what objects are,
        many towards the end, so that late clicks improve masks, too."""
        done = self.progress.seconds / (3600 * self.recipe.hours)
        return (4, 4, 3, 1, 0, 0) if done < FEW_TURNS_SHARE else (1, 2, 4, 4, 3, 2)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema_decay, (self.progress.step + 1) / (self.progress.step + 10))
        pairs = zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True)
        for mean, value in pairs:
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def _losses(self, batch: Batch, frozen: bool) -> dict[str, Tensor]:
        recipe = self.recipe
        number = self.progress.step * self._team.size + self._team.rank
        rng = random.Random(f"photo-step/{recipe.batches.seed}/{number}")
        # 1. Encode each image once; its features serve all its targets.
        pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float()
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            with torch.set_grad_enabled(not frozen):
                maps = self.net.encoder(pixels)
            features = self.net.pyramid(maps)
        repeated = ImageFeatures(
            *(x.repeat_interleave(recipe.batches.targets, 0) for x in features)
        )
        # 2. Let the annotator begin, and correct for some turns.
        session = _Annotation(batch, recipe, rng)
        turns = rng.choices(range(1, MOST_TURNS + 1), self._turn_weights())[0]
        target, counted = torch.from_numpy(batch.targets), torch.from_numpy(~batch.ignored).float()
        total, names = torch.zeros(()), dict[str, Tensor]()
        weights = 0.0
        for turn in range(turns):
            session.click(turn, rng)
            learns = turn == turns - 1 or rng.random() < (0.8 if turn == 0 else 0.25)
            with torch.set_grad_enabled(learns), self._autocast():
                logits, rating = self.net.decoder(repeated, session.prompts())
            logits = logits[:, 0].float()
            session.answer(logits.detach())
            actual = true_iou(logits.detach() > 0, target, counted)
            if learns:
                loss = mask_loss(logits, target, counted) + rating_loss(rating.float(), actual)
                total = total + loss.mean()
                weights += 1.0
            if turn in (0, 2, 4):
                names[f"iou{turn + 1}"] = actual.mean()
            names["rating_error"] = (rating.detach().float() - actual).abs().mean()
        return {"loss": total / weights, **names}


def _imagenet_net() -> PhotoSegmenterNet:
    net = PhotoSegmenterNet()
    load_imagenet_weights(net.encoder)
    return net


class _Annotation:
    """The prompts of a batch's examples, turn after turn; arrays are at half the image's side."""

    def __init__(self, batch: Batch, recipe: PhotoRecipe, rng: random.Random) -> None:
        self._batch, self._recipe = batch, recipe
        count, side = len(batch.targets), batch.targets.shape[1]
        self._points = np.full((count, MOST_TURNS, 3), -1, np.float32)
        self._box = np.zeros((count, 4), np.float32)
        self._boxed, self._masks = set[int](), np.zeros_like(batch.targets)
        self._prior = torch.zeros(count, 1, side, side)
        for i in range(count):
            kind = rng.random()
            if kind < recipe.box_share:
                self._box[i] = np.array(jittered_box(batch.targets[i], rng), np.float32) * 2
                self._boxed.add(i)
            elif kind < recipe.box_share + recipe.spoiled_share:
                self._masks[i] = spoiled_mask(batch.targets[i], batch.targets[i ^ 1], rng)
                self._prior[i, 0] = torch.from_numpy(self._masks[i]).float()

    def click(self, turn: int, rng: random.Random) -> None:
        """Let the annotator click once on every example; some boxes come before all clicks."""
        for i, target in enumerate(self._batch.targets):
            if i in self._boxed and self._stays_alone(i, turn, rng):
                continue
            prompt = next_prompt(target, self._masks[i], self._batch.ignored[i], rng)
            if prompt is not None:
                x, y, label = prompt
                self._points[i, turn] = 2 * x, 2 * y, label
            if turn == 1 and i in self._boxed and rng.random() < 0.4:
                self._box[i] = 0

    def _stays_alone(self, number: int, turn: int, rng: random.Random) -> bool:
        """Whether a box gets no click in this turn, either."""
        if turn == 0:
            return rng.random() < self._recipe.box_alone_share
        clicked = self._points[number, 0, 2] >= 0
        return turn == 1 and not clicked and rng.random() < self._recipe.box_again_share

    def prompts(self) -> PhotoPrompts:
        """All clicks so far, box and previous mask."""
        points, box = torch.from_numpy(self._points.copy()), torch.from_numpy(self._box.copy())
        return PhotoPrompts(points, box, self._prior)

    def answer(self, logits: Tensor) -> None:
        """Take the net's mask as the previous one."""
        self._prior = torch.sigmoid(logits)[:, None]
        self._masks = np.asarray((logits > 0).numpy())


def photo_recipe(hours: float, batches: BatchPlan, init: Bundle | None = None) -> PhotoRecipe:
    """The usual one; for a net that begins as a bundle's, with lower rates, nothing frozen at
    first, and more boxes."""
    if init is None:
        return PhotoRecipe(hours, batches)
    return PhotoRecipe(
        hours,
        batches,
        learning_rate=4e-4,
        encoder_rate=1e-4,
        frozen_share=0.0,
        ema_decay=0.997,
        box_share=0.35,
        init=init.digest,
    )


def train_photo(
    recipe: PhotoRecipe, photos: Path, folder: Path, processes: int = 2, init: Bundle | None = None
) -> None:
    """Train until the recipe's time is used up, or continue where an earlier run stopped.

    Args:
        recipe: what to do, and for how long in all runs together.
        photos: the folder with `index.json`, images and label maps.
        folder: where checkpoint and log lie; one training at a time works in it.
        processes: each has one thread and computes the gradients of its own batches.
        init: the bundle to begin with; without it, ImageNet weights and fresh ones.

    Raises:
        CheckpointInvalid: the bundle's segmenter is another one.
        BundleError: a file of it is missing or was altered.
    """
    net = None if init is None else photo_net_from_part(init.part("segmenter"))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        run_workers(partial(_work, recipe, photos, folder, net), processes)


def _work(
    recipe: PhotoRecipe,
    photos: Path,
    folder: Path,
    init: PhotoSegmenterNet | None,
    team: WorkerGroup,
) -> None:
    """One process of the training; the first one keeps the time, the log and the checkpoint."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # Processes are handed the same memory; each has to change weights of its own.
    training = PhotoTraining(recipe, folder, team, copy.deepcopy(init))
    progress = training.progress
    spent = progress.seconds
    first = progress.step * team.size + team.rank
    with batches_from(photos, recipe.batches, first, team.size) as batches:
        batch = next(batches)
        saved = reported = time.monotonic()
        began = time.process_time()
        while progress.seconds < 3600 * recipe.hours:
            training.step(batch)
            batch = next(batches)
            now = time.monotonic()
            progress.seconds = team.first_value(spent + time.process_time() - began)
            if team.rank == 0 and now - reported > REPORT_EVERY:
                training.report()
                reported = now
            if team.rank == 0 and now - saved > SAVE_EVERY:
                training.save()
                saved = now
    if team.rank == 0:
        training.report()
        training.save()


def trained_photo_net(folder: Path) -> tuple[PhotoSegmenterNet, dict[str, Any]]:
    """The moving average in a training folder, and how it came about: `progress` and `runs`, each
    with its recipe and its first step."""
    state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    net = PhotoSegmenterNet()
    if NORM not in state["average"]:
        net = fold_norms(net)
    net.load_state_dict(state["average"])
    return net.eval(), {"progress": state["progress"], "runs": state.get("runs", [])}
