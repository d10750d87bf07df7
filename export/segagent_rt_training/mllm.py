"""Train the MLLM: first to see, then to read and answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt_export.families.demo_mllm.net import POINTING_HEADS, Sight, TinyMllm, tiny_config
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_training.aux_heads import AuxHeads, aux_loss, aux_targets
from segagent_rt_training.distributed import WorkerGroup
from segagent_rt_training.example_packing import ExamplePacker, PackedBatch, TokenisedExample
from segagent_rt_training.mixed_precision import autocast
from segagent_rt_training.object_targets import ObjectTargets, compute_object_targets
from segagent_rt_training.optimisers import Optimisers
from segagent_rt_training.pool import Pool
from segagent_rt_training.progress import StageProgress, trapezoid
from segagent_rt_training.states import TrainingState, make_state
from segagent_rt_training.trajectory_examples import TrajectoryExample


@dataclass(frozen=True, slots=True)
class MllmTrainingConfig:
    """What decides the weights."""

    seed: int = 0
    vision_images: int = 200_000
    vision_batch: int = 16
    joint_images: int = 240_000
    joint_batch: int = 24
    questions: int = 6
    frozen_vision_share: float = 0.45
    """Share of the joint stage, at its beginning, in which the vision encoder is frozen: the
    gradients of an untrained language model would only disturb it."""
    rate: float = 1.0
    """Factor on the learning rates of the joint stage."""
    self_rollout_images: int = 100_000
    self_rollout_rate: float = 0.5
    trajectory_images: int = 60_000
    trajectory_rate: float = 0.25
    painted_share: float = 0.62
    pool_share: float = 0.5


@dataclass(frozen=True, slots=True)
class MllmTrainingData:
    """What the loop is learnt from besides masks that are made up: masks as they arose in use, and
    examples of trajectories, which take half of the pictures if there are any."""

    pools: Sequence[Pool] = ()
    examples: Sequence[TrajectoryExample] = ()


def new_parts(seed: int) -> nn.ModuleDict:
    """The model and its training-only heads, with fresh weights."""
    torch.manual_seed(seed)
    net = TinyMllm(tiny_config(build_tokenizer().get_vocab()))
    return nn.ModuleDict({"net": net, "heads": AuxHeads()})


def model_of(parts: nn.ModuleDict) -> TinyMllm:
    """The model without the heads."""
    return cast(TinyMllm, parts["net"])


def train_vision(
    recipe: MllmTrainingConfig, folder: Path, *, init: TinyMllm | None = None
) -> nn.ModuleDict:
    """The vision encoder alone: clean pictures first, then more and more masks over them."""
    parts = new_parts(recipe.seed)
    if init is not None:
        parts["net"] = init
    net = model_of(parts)
    trained = nn.ModuleDict({"net": net.vision, "heads": parts["heads"]})
    optimisers = Optimisers(trained, adam_rate=1e-3, muon_rate=2e-3)
    progress = StageProgress(folder, "vision_pretrain", recipe.vision_images)
    progress.resume(parts=parts, optimisers=optimisers)
    while not progress.done:
        share = progress.seen / recipe.vision_images
        painted = min(0.65, max(0.1, share * 4 - 0.3))
        rng = [
            DeterministicRng("vision_pretrain", recipe.seed, progress.seen + i)
            for i in range(recipe.vision_batch)
        ]
        states = [make_state(each, painted) for each in rng]
        loss, figures = _perceive(parts, states, [_facts(state) for state in states])[1:]
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers.step(trapezoid(progress.seen, recipe.vision_images, warm_up=1000))
        progress.advance(recipe.vision_batch, _detached(figures))
        progress.save_now_and_then(parts=parts, optimisers=optimisers)
    progress.save(parts=parts, optimisers=optimisers)
    return parts


def train_joint(
    recipe: MllmTrainingConfig,
    folder: Path,
    parts: nn.ModuleDict,
    material: MllmTrainingData,
    workers: WorkerGroup,
    stage: str = "joint",
) -> nn.ModuleDict:
    """Both halves together: read the question, look at the object meant, answer. One process of a
    team."""
    optimisers = Optimisers(parts, adam_rate=8e-4 * recipe.rate, muon_rate=1.2e-3 * recipe.rate)
    progress = StageProgress(folder, stage, recipe.joint_images, quiet=workers.rank > 0)
    progress.resume(parts=parts, optimisers=optimisers)
    packer = ExamplePacker(build_tokenizer())
    mine = recipe.joint_batch // workers.size
    while not progress.done:
        first = progress.seen + workers.rank * mine
        rng = [DeterministicRng(stage, recipe.seed, first + i) for i in range(mine)]
        taught = mine // 2 if material.examples else 0
        states = [_draw(recipe, material.pools, each) for each in rng[taught:]]
        facts = [_facts(state) for state in states]
        frozen = progress.seen < recipe.frozen_vision_share * recipe.joint_images
        sight, perceived, figures = (_watch if frozen else _perceive)(parts, states, facts)
        asked = [
            packer.questions(*row, recipe.questions)
            for row in zip(states, facts, rng[taught:], strict=True)
        ]
        answered, more = _answer(model_of(parts), packer, sight, states, asked)
        loss = 0.4 * perceived + 1.5 * answered
        if taught:
            learnt, losses = _learn(parts, packer, material.examples, rng[:taught])
            loss, more = (loss + 1.5 * learnt) / 2, more | losses
        loss.backward()  # type: ignore[no-untyped-call]
        workers.average_gradients(optimisers.weights)
        optimisers.step(trapezoid(progress.seen, recipe.joint_images, warm_up=600, decay=0.45))
        progress.advance(recipe.joint_batch, _detached({**figures, **more}))
        if workers.rank == 0:
            progress.save_now_and_then(parts=parts, optimisers=optimisers)
    if workers.rank == 0:
        progress.save(parts=parts, optimisers=optimisers)
    return parts


def _learn(
    parts: nn.ModuleDict,
    packer: ExamplePacker,
    examples: Sequence[TrajectoryExample],
    rng: Sequence[DeterministicRng],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one trajectory example for each draw, and its figures."""
    drawn = [each.pick(examples) for each in rng]
    states = [example.state() for example in drawn]
    asked = [
        [packer.question(example.asked(each), state)]
        for example, each, state in zip(drawn, rng, states, strict=True)
    ]
    sight = _see(parts, states)
    loss, figures = _answer(model_of(parts), packer, sight.tokens, states, asked)
    return loss, {f"trajectory_{name}": value for name, value in figures.items()}


def _see(parts: nn.ModuleDict, states: list[TrainingState]) -> Sight:
    with autocast():
        return model_of(parts).see(torch.from_numpy(np.stack([s.image for s in states])))


def _draw(
    recipe: MllmTrainingConfig, pools: Sequence[Pool], rng: DeterministicRng
) -> TrainingState:
    if pools and rng.chance(recipe.pool_share):
        if rng.chance(recipe.painted_share):
            return rng.pick(pools).draw(rng)
        return make_state(rng, 0.0)
    return make_state(rng, recipe.painted_share)


def _facts(state: TrainingState) -> ObjectTargets:
    return compute_object_targets(state.objects, state.labels, state.mask)


def _perceive(
    parts: nn.ModuleDict, states: list[TrainingState], facts: list[ObjectTargets]
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Visual tokens [B, cells, HIDDEN], the loss of the heads, and its figures."""
    targets = aux_targets([s.labels for s in states], [s.mask for s in states], facts)
    sight = _see(parts, states)
    loss, figures = aux_loss(cast(AuxHeads, parts["heads"]), sight, targets)
    return sight.tokens, loss, figures


@torch.no_grad()
def _watch(
    parts: nn.ModuleDict, states: list[TrainingState], facts: list[ObjectTargets]
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """As `_perceive`, with nothing to learn."""
    return _see(parts, states).tokens, torch.zeros(()), {}


def _answer(
    net: TinyMllm,
    packer: ExamplePacker,
    sight: Tensor,
    states: list[TrainingState],
    asked: list[list[TokenisedExample]],
) -> tuple[Tensor, dict[str, Tensor]]:
    chosen = [b for b, questions in enumerate(asked) if questions]
    packed = packer.pack([states[b] for b in chosen], [asked[b] for b in chosen])
    with autocast():
        words = F.embedding(packed.tokens, net.embedding)
        picture = sight[chosen].to(words.dtype)
        at = packed.picture
        mixed = torch.cat([words[:, : at.start], picture, words[:, at.stop :]], 1)
        hidden, looks = net.read(mixed, packed.positions, packed.bias, packed.asking)
        learnt = packed.labels >= 0
        logits = F.linear(hidden[learnt], net.embedding).float()
    labels, weights = packed.labels[learnt], packed.weights[learnt]
    said = F.cross_entropy(logits, labels, reduction="none")
    words_loss = (said * weights).sum() / weights.sum()
    pointing = _pointing(looks, packed)
    figures = {"words": words_loss, "pointing": pointing} | _right(logits, labels, weights)
    return words_loss + 0.3 * pointing, figures


def _pointing(looks: Tensor, packed: PackedBatch) -> Tensor:
    """How little of two heads' attention falls on the cells of the object meant."""
    picture = looks[..., packed.picture].float()
    mass = (picture * packed.cells[:, None]).sum(-1)
    return -mass.clamp_min(1e-5).log().sum() / (POINTING_HEADS * packed.asking.numel())


@torch.no_grad()
def _right(logits: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    right = (logits.argmax(-1) == labels).float()
    leading, sign = weights == 1.0, weights == 1.5
    return {"digits_right": right[leading].mean(), "signs_right": right[sign].mean()}


def _detached(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in figures.items()}
