"""Train the MLLM: first to see, then to read and answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt.scenes.dice import Dice
from segagent_rt_export.families.demo_mllm.net import POINTING_HEADS, Sight, TinyMllm, tiny_config
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_training.facts import Facts, gather_facts
from segagent_rt_training.lessons import Lesson
from segagent_rt_training.optimisers import Optimisers
from segagent_rt_training.perception import PerceptionHeads, perception_loss, perception_targets
from segagent_rt_training.pool import Pool
from segagent_rt_training.progress import Progress, trapezoid
from segagent_rt_training.questions import Examiner, Packed, Question
from segagent_rt_training.states import State, make_state
from segagent_rt_training.team import Team


@dataclass(frozen=True, slots=True)
class MllmRecipe:
    """What decides the weights."""

    seed: int = 0
    seeing_images: int = 200_000
    seeing_batch: int = 16
    speaking_images: int = 240_000
    speaking_batch: int = 24
    questions: int = 6
    listening_share: float = 0.45
    """Share of the speaking, at its beginning, in which the vision tower stays as it is: a language
    model that knows nothing yet has nothing to teach it."""
    rate: float = 1.0
    """Factor on the learning rates while speaking."""
    polishing_images: int = 100_000
    polishing_rate: float = 0.5
    lesson_images: int = 60_000
    lesson_rate: float = 0.25
    painted_share: float = 0.62
    pool_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Material:
    """What the loop is learnt from besides masks that are made up: masks as they arose in use, and
    lessons, which take half of the pictures if there are any."""

    pools: Sequence[Pool] = ()
    lessons: Sequence[Lesson] = ()


def new_parts(seed: int) -> nn.ModuleDict:
    """The model and its training-only heads, with fresh weights."""
    torch.manual_seed(seed)
    net = TinyMllm(tiny_config(build_tokenizer().get_vocab()))
    return nn.ModuleDict({"net": net, "heads": PerceptionHeads()})


def model_of(parts: nn.ModuleDict) -> TinyMllm:
    """The model without the heads."""
    return cast(TinyMllm, parts["net"])


def train_seeing(
    recipe: MllmRecipe, folder: Path, *, init: TinyMllm | None = None
) -> nn.ModuleDict:
    """The vision tower alone: clean pictures first, then more and more masks over them."""
    parts = new_parts(recipe.seed)
    if init is not None:
        parts["net"] = init
    net = model_of(parts)
    trained = nn.ModuleDict({"net": net.vision, "heads": parts["heads"]})
    optimisers = Optimisers(trained, adam_rate=1e-3, muon_rate=2e-3)
    progress = Progress(folder, "seeing", recipe.seeing_images)
    progress.resume(parts=parts, optimisers=optimisers)
    while not progress.done:
        share = progress.seen / recipe.seeing_images
        painted = min(0.65, max(0.1, share * 4 - 0.3))
        dice = [Dice("seeing", recipe.seed, progress.seen + i) for i in range(recipe.seeing_batch)]
        states = [make_state(each, painted) for each in dice]
        loss, figures = _perceive(parts, states, [_facts(state) for state in states])[1:]
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers.step(trapezoid(progress.seen, recipe.seeing_images, warm_up=1000))
        progress.advance(recipe.seeing_batch, _detached(figures))
        progress.save_now_and_then(parts=parts, optimisers=optimisers)
    progress.save(parts=parts, optimisers=optimisers)
    return parts


def train_speaking(
    recipe: MllmRecipe,
    folder: Path,
    parts: nn.ModuleDict,
    material: Material,
    team: Team,
    stage: str = "speaking",
) -> nn.ModuleDict:
    """Both halves together: read the question, look at the object meant, answer. One process of a
    team."""
    optimisers = Optimisers(parts, adam_rate=8e-4 * recipe.rate, muon_rate=1.2e-3 * recipe.rate)
    progress = Progress(folder, stage, recipe.speaking_images, quiet=team.rank > 0)
    progress.resume(parts=parts, optimisers=optimisers)
    examiner = Examiner(build_tokenizer())
    mine = recipe.speaking_batch // team.size
    while not progress.done:
        first = progress.seen + team.rank * mine
        dice = [Dice(stage, recipe.seed, first + i) for i in range(mine)]
        taught = mine // 2 if material.lessons else 0
        states = [_draw(recipe, material.pools, each) for each in dice[taught:]]
        facts = [_facts(state) for state in states]
        listening = progress.seen < recipe.listening_share * recipe.speaking_images
        sight, perceived, figures = (_watch if listening else _perceive)(parts, states, facts)
        asked = [
            examiner.questions(*row, recipe.questions)
            for row in zip(states, facts, dice[taught:], strict=True)
        ]
        answered, more = _answer(model_of(parts), examiner, sight, states, asked)
        loss = 0.4 * perceived + 1.5 * answered
        if taught:
            learnt, told = _learn(parts, examiner, material.lessons, dice[:taught])
            loss, more = (loss + 1.5 * learnt) / 2, more | told
        loss.backward()  # type: ignore[no-untyped-call]
        team.average_gradients(optimisers.weights)
        optimisers.step(trapezoid(progress.seen, recipe.speaking_images, warm_up=600, decay=0.45))
        progress.advance(recipe.speaking_batch, _detached({**figures, **more}))
        if team.rank == 0:
            progress.save_now_and_then(parts=parts, optimisers=optimisers)
    if team.rank == 0:
        progress.save(parts=parts, optimisers=optimisers)
    return parts


def _learn(
    parts: nn.ModuleDict, examiner: Examiner, lessons: Sequence[Lesson], dice: Sequence[Dice]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one lesson for each draw, and its figures."""
    drawn = [each.pick(lessons) for each in dice]
    states = [lesson.state() for lesson in drawn]
    asked = [
        [examiner.question(lesson.asked(each), state)]
        for lesson, each, state in zip(drawn, dice, states, strict=True)
    ]
    sight = _see(parts, states)
    loss, figures = _answer(model_of(parts), examiner, sight.tokens, states, asked)
    return loss, {f"lesson_{name}": value for name, value in figures.items()}


def _see(parts: nn.ModuleDict, states: list[State]) -> Sight:
    with torch.autocast("cpu", torch.bfloat16):
        return model_of(parts).see(torch.from_numpy(np.stack([s.image for s in states])))


def _draw(recipe: MllmRecipe, pools: Sequence[Pool], dice: Dice) -> State:
    if pools and dice.chance(recipe.pool_share):
        if dice.chance(recipe.painted_share):
            return dice.pick(pools).draw(dice)
        return make_state(dice, 0.0)
    return make_state(dice, recipe.painted_share)


def _facts(state: State) -> Facts:
    return gather_facts(state.objects, state.labels, state.mask)


def _perceive(
    parts: nn.ModuleDict, states: list[State], facts: list[Facts]
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Visual tokens [B, cells, HIDDEN], the loss of the heads, and its figures."""
    targets = perception_targets([s.labels for s in states], [s.mask for s in states], facts)
    sight = _see(parts, states)
    loss, figures = perception_loss(cast(PerceptionHeads, parts["heads"]), sight, targets)
    return sight.tokens, loss, figures


@torch.no_grad()
def _watch(
    parts: nn.ModuleDict, states: list[State], facts: list[Facts]
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """As `_perceive`, with nothing to learn."""
    return _see(parts, states).tokens, torch.zeros(()), {}


def _answer(
    net: TinyMllm,
    examiner: Examiner,
    sight: Tensor,
    states: list[State],
    asked: list[list[Question]],
) -> tuple[Tensor, dict[str, Tensor]]:
    chosen = [b for b, questions in enumerate(asked) if questions]
    packed = examiner.pack([states[b] for b in chosen], [asked[b] for b in chosen])
    with torch.autocast("cpu", torch.bfloat16):
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


def _pointing(looks: Tensor, packed: Packed) -> Tensor:
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
