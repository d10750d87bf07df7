"""Training of the nets of the study, from cached views, in minutes."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from segagent_rt_training.words.expressions import EverydayExpression, make_expressions
from segagent_rt_training.words.features import PhotoView
from segagent_rt_training.words.net import WordsNet, batch_of, draw_expression

REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class WordsRecipe:
    """What decides the weights. `shares` are weights of the draws of full, facade and partly
    labelled photos and of collages."""

    seed: int = 0
    steps: int = 500
    views: int = 12
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    shares: tuple[float, float, float, float] = (0.45, 0.08, 0.12, 0.35)
    trained_stages: bool = False
    """Whether the encoder's last stages are trained, too, at `stages_rate` of the learning rate."""
    stages_rate: float = 0.1


Pool = Sequence[tuple[PhotoView, tuple[EverydayExpression, ...]]]


def with_expressions(views: Sequence[PhotoView], seed: int) -> Pool:
    """Each view, and everything that can be said about it."""
    rng = random.Random(f"words-expressions/{seed}")
    return [(v, tuple(make_expressions(v.objects, v.labelled, rng)[0])) for v in views]


def train_words(
    recipe: WordsRecipe,
    views: Mapping[str, Sequence[PhotoView]],
    path: Path,
    report_progress: Callable[[str], None],
) -> WordsNet:
    """Train a net, or read the one that an earlier run with the same recipe and material left.

    Args:
        recipe: what to do.
        views: by `full`, `facade`, `partly` and `collage`; an empty group is left out.
        path: where the weights are kept.
        report_progress: hears how it goes.
    """
    torch.manual_seed(recipe.seed)
    net = WordsNet(trained_stages=recipe.trained_stages)
    made_from = repr((asdict(recipe), {name: len(some) for name, some in views.items()}))
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["made_from"] == made_from:
            net.load_state_dict(state["net"])
            return net.eval()
    rng = random.Random(f"words-training/{recipe.seed}")
    names = ("full", "facade", "partly", "collage")
    pools = [with_expressions(views.get(name, ()), recipe.seed) for name in names]
    shares = [s if p else 0.0 for s, p in zip(recipe.shares, pools, strict=True)]
    late = [p for n, p in net.named_parameters() if ".late." in n and p.requires_grad]
    others = [p for n, p in net.named_parameters() if ".late." not in n]
    groups = [{"params": others, "share": 1.0}, {"params": late, "share": recipe.stages_rate}]
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    means: dict[str, float] = {}
    began = time.process_time()
    for step in range(recipe.steps):
        drawn = [rng.choice(pool) for pool in rng.choices(pools, shares, k=recipe.views)]
        rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * group["share"] * rate
        losses = _step_losses(net, drawn, rng)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        for name, value in losses.items():
            now = float(value.detach())
            means[name] = 0.98 * means.get(name, now) + 0.02 * now
        if step % REPORT_EVERY == REPORT_EVERY - 1:
            shown = {name: round(value, 3) for name, value in means.items()}
            report_progress(f"{path.stem} {step + 1} {shown} {time.process_time() - began:.0f} s")
    net.eval()
    torch.save({"net": net.state_dict(), "made_from": made_from}, path)
    return net


def _step_losses(net: WordsNet, drawn: Pool, rng: random.Random) -> dict[str, torch.Tensor]:
    rows, said, covers = [], [], []
    for at, (view, expressions) in enumerate(drawn):
        if expressions:
            expression = draw_expression(expressions, rng)
            label = [item.label for item in view.objects].index(expression.target)
            rows.append(at)
            said.append(expression)
            covers.append(view.cover[label].float() / 255)
    return net.losses(
        batch_of([view for view, _ in drawn]),
        rows,
        said,
        torch.stack(covers) if covers else torch.empty(0),
    )
