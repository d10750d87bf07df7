"""The whole training, stage by stage; each continues where a killed one stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import multiprocessing, nn

from segagent_rt_export.errors import TrainingMissing
from segagent_rt_export.parts import write_json
from segagent_rt_export.train.mllm import MllmRecipe, new_parts, train_seeing, train_speaking
from segagent_rt_export.train.pool import Pool, load_pool, sloppy_pool
from segagent_rt_export.train.rollout import roll_out
from segagent_rt_export.train.segmenter import SegmenterRecipe, train_segmenter
from segagent_rt_export.train.segmenter_net import SegmenterNet
from segagent_rt_export.train.team import Team, run_team

POOL_SCENES, ROLLOUT_SCENES = 8000, 3000
ROUNDS = 2
"""Times that the model is trained on the masks of its own loop."""
STAGES = ("segmenter", "seeing", "speaking", *(f"polishing-{n}" for n in range(ROUNDS)))
PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train, where, and how much of it."""

    what: Literal["segmenter", "mllm", "all"]
    folder: Path
    seed: int = 0
    scale: float = 1.0
    processes: int = 2

    def count(self, full: int) -> int:
        """A number of samples, scaled, at least one batch."""
        return max(48, int(full * self.scale))

    @property
    def segmenter(self) -> SegmenterRecipe:
        """The segmenter's recipe."""
        recipe = SegmenterRecipe(seed=self.seed)
        return replace(recipe, images=self.count(recipe.images))

    @property
    def mllm(self) -> MllmRecipe:
        """The MLLM's recipe."""
        recipe = MllmRecipe(seed=self.seed)
        return replace(
            recipe,
            seeing_images=self.count(recipe.seeing_images),
            speaking_images=self.count(recipe.speaking_images),
            polishing_images=self.count(recipe.polishing_images),
        )


def train(plan: Plan) -> None:
    """Train to the end. One training at a time works in a folder."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / ".lock"):
        _remember(plan)
        if plan.what == "all":
            _side_by_side(partial(_segmenter_and_pool, plan), partial(_seeing, plan))
        elif plan.what == "segmenter":
            _segmenter(plan)
        else:
            _seeing(plan)
        if plan.what == "segmenter":
            return
        _make(plan.folder / "pool.npz", partial(_pool, plan))
        run_team(partial(_speak, plan, "speaking"), plan.processes)
        for number in range(ROUNDS):
            _make(plan.folder / f"rollout-{number}.npz", partial(_rollout, plan, number))
            run_team(partial(_speak, plan, f"polishing-{number}"), plan.processes)


def _remember(plan: Plan) -> None:
    """Keep what decides the weights beside them."""
    recipes = {"segmenter": asdict(plan.segmenter), "mllm": asdict(plan.mllm)}
    about = {"seed": plan.seed, "scale": plan.scale, "processes": plan.processes}
    write_json(plan.folder / PLAN_FILE, {**about, **recipes})


def last_stage(folder: Path) -> str:
    """The last stage of the MLLM that has a checkpoint in a training folder."""
    found = [stage for stage in STAGES[1:] if (folder / f"{stage}.pt").exists()]
    if not found or not (folder / "segmenter.pt").exists():
        raise TrainingMissing(
            f"{folder} holds no finished training",
            hint=f"segagent-rt train all --folder {folder}",
        )
    return found[-1]


def _segmenter(plan: Plan) -> None:
    torch.set_num_threads(1)
    train_segmenter(plan.segmenter, plan.folder)


def _segmenter_and_pool(plan: Plan) -> None:
    _segmenter(plan)
    _make(plan.folder / "pool.npz", partial(_pool, plan))


def _seeing(plan: Plan) -> None:
    torch.set_num_threads(1)
    train_seeing(plan.mllm, plan.folder)


def _side_by_side(*works: Callable[[], None]) -> None:
    context: Any = multiprocessing.get_context("spawn")
    members = [context.Process(target=work) for work in works]
    for member in members:
        member.start()
    for member in members:
        member.join()
    if any(member.exitcode for member in members):
        sys.exit("a training process ended early; run the command again to continue")


def _make(path: Path, build: Callable[[], Pool]) -> None:
    if not path.exists():
        build().save(path)


def _pool(plan: Plan) -> Pool:
    net = SegmenterNet()
    net.load_state_dict(_state(plan.folder / "segmenter.pt")["net"])
    return sloppy_pool(net, plan.count(POOL_SCENES), plan.seed)


def _rollout(plan: Plan, number: int) -> Pool:
    from segagent_rt_export.tiny import export_tiny

    bundle = plan.folder / "bundle"
    export_tiny(plan.folder, bundle, last_stage(plan.folder))
    return roll_out(bundle, plan.count(ROLLOUT_SCENES), plan.seed, number)


def _speak(plan: Plan, stage: str, team: Team) -> None:
    recipe, parts = plan.mllm, new_parts(plan.seed)
    before = "seeing"
    if stage != "speaking":
        recipe = replace(
            recipe, speaking_images=recipe.polishing_images, rate=recipe.polishing_rate
        )
        number = int(stage.rpartition("-")[2])
        before = f"polishing-{number - 1}" if number else "speaking"
    _load(parts, plan.folder / f"{before}.pt")
    pools = [load_pool(path) for path in sorted(plan.folder.glob("*.npz"))]
    train_speaking(recipe, plan.folder, parts, pools, team, stage)


def _load(parts: nn.ModuleDict, path: Path) -> None:
    parts.load_state_dict(_state(path)["parts"])


def _state(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))
